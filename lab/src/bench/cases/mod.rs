//! The cases, in the order in which they are measured.

mod crowd;
mod names;
mod outage;
mod paused;
mod scale;
mod scripts;
mod silent;
mod speed;
mod turns;

pub use turns::INSIDE;

use clap::ValueEnum;

use super::Bench;
use super::measure::{Rounds, Stretch, number};
use super::report::{Entry, Report, Target};
use crate::exit::Failure;

/// The number of nodes that targets apply to.
const TARGET_NODES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Case {
    /// lock and unlock, one task
    Cycle,
    /// lock and unlock as in main: no spawned task, two kinds of runtime
    BlockOn,
    /// lock and unlock in 64 tasks, each with its own lock
    Tasks,
    /// lock and unlock while one or two nodes are paused
    Paused,
    /// re-entry of a held lock
    Reentry,
    /// four locks at once
    LockAll,
    /// one lock under contention of 8 tasks
    HandOver,
    /// one lock under contention of 8 processes
    Processes,
    /// the commands of 50 waiters
    Waiters,
    /// one lock under contention of 20 to 1,000 clients
    Crowd,
    /// the commands of waiters to the remaining nodes while a majority is down
    Outage,
    /// a node that is silent for 30 s under full load
    Silent,
    /// 10,000 held leases
    Held,
    /// 45,000 held leases while every core is busy
    Many,
    /// 20,000 names, each locked once: their remains on a node
    Names,
    /// the cost of the scripts for a node
    Scripts,
}

impl Case {
    /// In order and once each; all when none is named.
    pub fn chosen(named: &[Case]) -> Vec<Case> {
        let all = Self::value_variants().iter().copied();
        all.filter(|case| named.is_empty() || named.contains(case)).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Cycle => "cycle",
            Self::BlockOn => "block-on",
            Self::Tasks => "tasks",
            Self::Paused => "paused",
            Self::Reentry => "reentry",
            Self::LockAll => "lock-all",
            Self::HandOver => "hand-over",
            Self::Processes => "processes",
            Self::Waiters => "waiters",
            Self::Crowd => "crowd",
            Self::Outage => "outage",
            Self::Silent => "silent",
            Self::Held => "held",
            Self::Many => "many",
            Self::Names => "names",
            Self::Scripts => "scripts",
        }
    }

    /// Returns its description in `--help`.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    pub fn measure(self, bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
        match self {
            Self::Cycle => speed::cycle(bench, report),
            Self::BlockOn => speed::block_on(bench, report),
            Self::Tasks => speed::tasks(bench, report),
            Self::Paused => paused::measure(bench, report),
            Self::Reentry => speed::reentry(bench, report),
            Self::LockAll => speed::lock_all(bench, report),
            Self::HandOver => turns::among_tasks(bench, report),
            Self::Processes => turns::among_processes(bench, report),
            Self::Waiters => scale::waiters(bench, report),
            Self::Crowd => crowd::measure(bench, report),
            Self::Outage => outage::measure(bench, report),
            Self::Silent => silent::measure(bench, report),
            Self::Held => scale::held(bench, report),
            Self::Many => scale::many(bench, report),
            Self::Names => names::measure(bench, report),
            Self::Scripts => scripts::measure(bench, report),
        }
    }
}

/// Adds a count that must be zero.
fn find_none(entry: &mut Entry, what: impl Into<String>, count: usize) {
    let target = (entry.nodes == TARGET_NODES).then_some(Target::AtMost(0.0));
    entry.find(what, number(count), "", target);
}

/// Measures all columns in every round, each time beginning with another one.
fn in_rounds(bench: &Bench<'_>, columns: usize, measure: impl Fn(usize) -> Stretch) -> Rounds {
    let mut rounds = Rounds::default();
    for round in 0..usize::from(bench.flags.rounds) {
        let mut order: Vec<usize> = (0..columns).collect();
        order.rotate_left(round % columns);
        let mut measured: Vec<(usize, Stretch)> = order.into_iter().map(|column| (column, measure(column))).collect();
        measured.sort_unstable_by_key(|(column, _)| *column);
        rounds.push(measured.into_iter().map(|(_, stretch)| stretch).collect());
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_what_must_not_be_misses_the_target() {
        for (nodes, count, is_missed) in [(TARGET_NODES, 0, false), (TARGET_NODES, 1, true), (3, 1, false)] {
            let mut report = Report::new(false);
            let mut entry = Entry::new(Case::Cycle, nodes, "quorlock");
            find_none(&mut entry, "failed", count);
            report.add(entry);
            assert_eq!(report.has_missed(), is_missed, "{count} on {nodes} nodes");
        }
    }
}
