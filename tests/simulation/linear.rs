//! Decides whether a history is one of a re-entrant fenced mutex: whether such a lock allows an order of its operations that
//! puts no operation before one that had ended when it began.
//!
//! In general only a search finds such an order (Wing and Gong). Tokens give most of the order: they only grow, so the
//! operations of one token, a block, all come before those of a larger one. The rest is to compare ends and starts between
//! blocks, and to try orders within a block, whose operations hardly ever overlap.

use std::collections::{BTreeMap, HashSet};

use crate::history::{Mutex, NEVER, Op};

/// The limit of steps to find the order within a block. More is "unknown", which counts as a violation.
const MOST_STEPS: usize = 1_000_000;

/// The number of shown operations that do not fit.
const MOST_SHOWN: usize = 4;

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Legal,
    Illegal(String),
    Unknown,
}

/// Judges the history of one resource.
pub fn judge(history: &[Op]) -> Verdict {
    let mut blocks: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
    for op in history {
        blocks.entry(op.token).or_default().push(*op);
    }
    // An operation without a claim on a lease that was never granted can only follow a larger token.
    let mut carried: Vec<Op> = Vec::new();
    for block in blocks.values_mut() {
        block.append(&mut carried);
        if !block.iter().any(|op| op.what.claims()) {
            carried = std::mem::take(block);
        }
    }
    if let Some(op) = carried.first() {
        return Verdict::Illegal(format!("no share was granted the lease of {op:?}"));
    }
    // The earliest end of an operation with a larger token.
    let mut newer: Option<Op> = None;
    for block in blocks.values_mut().rev() {
        let overtaken = |op: &Op| newer.filter(|newer| newer.returned < op.invoked);
        if let Some((op, newer)) = block.iter().filter(|op| op.what.claims()).find_map(|op| Some((op, overtaken(op)?)))
        {
            return Verdict::Illegal(format!("{op:?} after {newer:?}"));
        }
        let earliest = block.iter().chain(&newer).min_by_key(|op| op.returned).copied();
        // An operation without a claim that begins after the start of a newer lease has no effect.
        block.retain(|op| overtaken(op).is_none());
        newer = earliest;
        match order(block) {
            Verdict::Legal => {}
            other => return other,
        }
    }
    Verdict::Legal
}

/// Searches for an order of the operations that the mutex allows. Correct for any history, but fast only when operations hardly
/// overlap.
pub fn order(ops: &[Op]) -> Verdict {
    let mut ops = ops.to_vec();
    ops.sort_by_key(|op| op.invoked);
    let mut tried: HashSet<(Vec<usize>, Mutex)> = HashSet::new();
    let mut steps = 0;
    let mut furthest = (ops.len() + 1, String::new());
    // The operations without an order yet, by place in `ops`.
    let mut open: Vec<(Vec<usize>, Mutex)> = vec![((0..ops.len()).collect(), Mutex::default())];
    while let Some((left, mutex)) = open.pop() {
        if left.is_empty() {
            return Verdict::Legal;
        }
        if left.len() < furthest.0 {
            let next: Vec<Op> = left.iter().take(MOST_SHOWN).map(|i| ops[*i]).collect();
            furthest =
                (left.len(), format!("{} of {} fit, then {mutex:?} and {next:?}", ops.len() - left.len(), ops.len()));
        }
        // No operation may come before one that had ended when it began.
        let first_end = left.iter().map(|i| ops[*i].returned).min().unwrap_or(NEVER);
        let may_be_next: Vec<usize> = (0..left.len()).take_while(|at| ops[left[*at]].invoked <= first_end).collect();
        let branches = may_be_next.len() > 1;
        // The last one pushed is tried first: the one that ended first.
        let mut next = may_be_next;
        next.sort_by_key(|at| std::cmp::Reverse(ops[left[*at]].returned));
        for at in next {
            steps += 1;
            if let Some(after) = mutex.after(&ops[left[at]]) {
                let mut rest = left.clone();
                rest.remove(at);
                if !branches || tried.insert((rest.clone(), after.clone())) {
                    open.push((rest, after));
                }
            }
        }
        if steps > MOST_STEPS {
            return Verdict::Unknown;
        }
    }
    Verdict::Illegal(furthest.1)
}
