//! The history, put in order: who asked, who held what and for how long it believed so, and which faults were felt when.

use std::collections::{BTreeMap, BTreeSet};

use super::read::Reader;
use crate::chaos::fault::{Kind, Scale};
use crate::chaos::history::{Event, Leaving, Outcome, Refusal, Setting};

/// How long after a fault was put into effect it certainly is, in µs: a signal, or a changed link, needs a moment to
/// reach what it is meant for.
const SETTLING: u64 = 20_000;

/// For how long a standstill of the machine may be felt, in µs: connections were given up, and are made again.
const AFTERMATH: u64 = 1_500_000;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub op: u64,
    pub worker: usize,
    pub life: u64,
    pub lease: u64,
    pub names: Vec<String>,
    pub within: Option<u64>,
    pub waits: bool,
    pub at: u64,
    pub answer: Answer,
    /// What each node said, of some that were refused.
    pub detail: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// None came: the process was killed, or the run was over.
    None,
    Granted(u64),
    Refused(Refusal, u64),
    Cancelled(u64),
}

impl Ask {
    /// When the request was over.
    pub fn answered(&self) -> Option<u64> {
        match self.answer {
            Answer::None => None,
            Answer::Granted(at) | Answer::Refused(_, at) | Answer::Cancelled(at) => Some(at),
        }
    }
}

/// What a guard said of itself.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Before and after it was asked.
    pub from: u64,
    pub at: u64,
    pub remaining: u64,
    pub tokens: Vec<u64>,
}

#[derive(Clone, Debug)]
pub struct Hold {
    pub ask: Ask,
    pub owner: String,
    pub tokens: Vec<u64>,
    /// How deep the owner was nested with it, as it was told.
    pub depth: u32,
    pub granted: u64,
    /// The first is that of the grant.
    pub readings: Vec<Reading>,
    /// When the loss was signalled, and until when the lease had been known to reach.
    pub lost: Option<(u64, u64)>,
    pub leave: Option<(u64, Leaving)>,
    pub left: Option<(u64, Outcome, Option<u32>)>,
    /// From when to when it wrote to the ledger, and whether that was accepted.
    pub write: Option<(u64, u64, bool)>,
    /// When the process was killed under it.
    pub killed: Option<u64>,
}

impl Hold {
    /// Until when the guard has said that it is valid.
    pub fn deadline(&self) -> u64 {
        let read = self.readings.iter().filter(|reading| reading.remaining > 0);
        let read = read.map(|reading| reading.from + reading.remaining).max().unwrap_or(0);
        read.max(self.lost.map_or(0, |(_, deadline)| deadline))
    }

    /// Until when its holder believed in it: until it began to give it back, heard of the loss, died, or knew it to be over.
    pub fn believed_until(&self) -> u64 {
        let ends = [self.leave.map(|(at, _)| at), self.lost.map(|(at, _)| at), self.killed];
        ends.into_iter().flatten().fold(self.deadline(), u64::min)
    }

    pub fn token_of(&self, name: &str) -> Option<u64> {
        let place = self.ask.names.iter().position(|held| held == name)?;
        self.tokens.get(place).copied()
    }

    pub fn named(&self) -> String {
        let Ask { op, worker, names, .. } = &self.ask;
        format!("worker {} op {op} on {} (tokens {:?})", worker + 1, names.join(" "), self.tokens)
    }
}

/// A fault, as it was carried out.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub id: usize,
    pub kind: Kind,
    pub scale: Scale,
    pub nodes: Vec<usize>,
    pub worker: Option<usize>,
    pub amount: i64,
    pub forgets: bool,
    /// From when on it may, and certainly, was in effect.
    pub from: u64,
    pub at: u64,
    /// Until when it certainly, and may have been, in effect.
    pub healing: u64,
    pub healed: u64,
    pub tail: u64,
    /// Why it does not count as done. It may still have been felt.
    pub doubt: Option<String>,
}

impl Trouble {
    fn concerns(&self, worker: usize) -> bool {
        self.worker.is_none_or(|concerned| concerned == worker)
    }

    /// Until when it may be felt, as far as no clock is set meanwhile.
    pub fn felt_until(&self) -> u64 {
        self.healed.saturating_add(self.tail)
    }

    pub fn disturbs(&self) -> bool {
        self.kind.disturbs(self.amount)
    }

    fn shares_a_node_with(&self, other: &Self) -> bool {
        self.nodes.iter().any(|node| other.nodes.contains(node))
    }
}

pub struct Model {
    pub setting: Setting,
    /// In the order of asking.
    pub asks: Vec<Ask>,
    /// In the order of grants.
    pub holds: Vec<Hold>,
    by_op: BTreeMap<u64, usize>,
    pub troubles: Vec<Trouble>,
    /// Worker, life, and from when to when it was killed.
    pub deaths: Vec<(usize, u64, u64, u64)>,
    /// Worker, and how many locks of how many it had in the end.
    pub calms: Vec<(usize, usize, usize)>,
    pub scans: BTreeMap<usize, Vec<String>>,
    /// Life, and from when to when it was not let run.
    pub stalls: Vec<(u64, u64, u64)>,
    /// When the machine stood still for a process that the run had not stopped.
    pub standstills: Vec<(u64, u64)>,
    /// When the first worker was ready, and when the last thing happened.
    pub begin: u64,
    pub end: u64,
}

impl Model {
    pub fn read(events: &[Event], setting: &Setting) -> Self {
        let mut events: Vec<&Event> = events.iter().collect();
        events.sort_by_key(|event| event.at);
        let mut reader = Reader::default();
        for event in events.iter().copied() {
            reader.read(event);
        }
        let Reader { mut asks, mut holds, mut troubles, deaths, calms, scans, stalls, lives, begin, held, .. } = reader;
        for hold in &mut holds {
            hold.killed = deaths.iter().find(|(_, life, ..)| *life == hold.ask.life).map(|(_, _, from, _)| *from);
        }
        asks.sort_by_key(|ask| ask.at);
        troubles.sort_by_key(|trouble| trouble.from);
        let end = events.last().map_or(0, |event| event.at);
        let standstills = standstills(&stalls, &lives, &troubles);
        let setting = setting.clone();
        Self { setting, asks, holds, by_op: held, troubles, deaths, calms, scans, stalls, standstills, begin, end }
    }

    pub fn spare(&self) -> usize {
        crate::chaos::plan::spare(self.setting.nodes)
    }

    pub fn hold(&self, op: u64) -> Option<&Hold> {
        self.by_op.get(&op).and_then(|index| self.holds.get(*index))
    }

    /// The holds that this one is nested in, the nearest first.
    pub fn around<'a>(&'a self, hold: &'a Hold) -> impl Iterator<Item = &'a Hold> {
        let outer = |hold: &'a Hold| hold.ask.within.and_then(|op| self.hold(op));
        std::iter::successors(outer(hold), move |hold| outer(hold))
    }

    /// Did something happen to this worker itself between these times, or was it cut off?
    pub fn worker_was_troubled(&self, worker: usize, from: u64, to: u64) -> bool {
        self.troubles
            .iter()
            .any(|trouble| trouble.worker == Some(worker) && trouble.from <= to && from <= trouble.felt_until())
    }

    /// Did the machine stand still between these times, or so shortly before that it may still be felt?
    pub fn stood_still(&self, from: u64, to: u64) -> bool {
        self.standstills.iter().any(|(start, end)| *start <= to && from <= end + AFTERMATH)
    }

    /// Until when something that was due at `due` is excused: this life was stopped, or not let run, at that time.
    pub fn excused(&self, worker: usize, life: u64, due: u64, lateness: u64) -> u64 {
        let stalls = self.stalls.iter().filter(|stall| stall.0 == life).map(|(_, from, to)| (*from, *to));
        let mut idle: Vec<(u64, u64)> = self.pauses(worker, 0, u64::MAX).chain(stalls).collect();
        idle.sort_unstable();
        let later = |due: u64, (start, end): (u64, u64)| {
            if start <= due.saturating_add(lateness) && due < end { end } else { due }
        };
        idle.into_iter().fold(due, later)
    }

    /// When this worker was stopped, between these times.
    pub fn pauses(&self, worker: usize, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        self.troubles
            .iter()
            .filter(move |trouble| trouble.kind == Kind::WorkerPause && trouble.worker == Some(worker))
            .map(|trouble| (trouble.from, trouble.healed))
            .filter(move |(start, end)| *start <= to && from <= *end)
    }

    /// The nodes of which no answer can have reached this worker, at any time from `from` to `to`.
    pub fn silent(&self, worker: usize, from: u64, to: u64) -> BTreeSet<usize> {
        let throughout = self.troubles.iter().filter(|trouble| {
            trouble.kind.silences()
                && trouble.doubt.is_none()
                && trouble.concerns(worker)
                && trouble.at + SETTLING <= from
                && to <= trouble.healing
        });
        throughout.flat_map(|trouble| trouble.nodes.iter().copied()).collect()
    }

    /// The nodes that lost their votes at most one longest lease before `to`. A clock that is set ahead makes that no
    /// shorter: the quarantine is over when the clock of the node and that of the asker say so, which is the machine's own.
    pub fn quarantined(&self, from: u64, to: u64) -> BTreeSet<usize> {
        let forgot = self.troubles.iter().filter(|trouble| {
            trouble.forgets
                && trouble.doubt.is_none()
                && trouble.at + SETTLING <= from
                && to <= trouble.from + self.setting.lease
        });
        forgot.flat_map(|trouble| trouble.nodes.iter().copied()).collect()
    }

    /// Until when it may be felt. When a clock is set, what is in force at its node by that clock, a quarantine or the lock
    /// of a dead holder, may last for one lease more.
    fn felt_until(&self, trouble: &Trouble) -> u64 {
        let steps = self.troubles.iter().filter(|step| step.kind.sets_clocks() && step.shares_a_node_with(trouble));
        // In the order of their beginnings.
        steps.fold(trouble.felt_until(), |until, step| {
            if step.from <= until && trouble.from <= step.healed { until.max(step.felt_until()) } else { until }
        })
    }

    /// When what was to be over at `due` by the clocks of nodes certainly is: each clock that is set before may make it last
    /// for a longest lease more, from when it is looked at next, `looking` later at most.
    pub fn due_by_clocks(&self, since: u64, due: u64, looking: u64) -> u64 {
        let steps = self.troubles.iter().filter(|trouble| trouble.kind.sets_clocks());
        let mut set: Vec<u64> = steps.flat_map(|step| [step.at, step.healed]).filter(|at| *at >= since).collect();
        set.sort_unstable();
        let lease = self.setting.lease + self.setting.lease / 50;
        set.into_iter().fold(due, |due, at| if at <= due { due.max(at + lease + looking) } else { due })
    }

    /// The largest number of nodes that may have been of no use to this worker, at any one time from `from` to `to`.
    pub fn most_disturbed(&self, worker: usize, from: u64, to: u64) -> usize {
        let disturbing = self.troubles.iter().filter(|trouble| trouble.disturbs() && trouble.concerns(worker));
        let felt: Vec<(&Trouble, u64, u64)> = disturbing
            .map(|trouble| (trouble, trouble.from, self.felt_until(trouble)))
            .chain(self.found_again())
            .filter(|(_, begins, until)| *begins <= to && from <= *until)
            .collect();
        // It only grows where something begins.
        let moments = felt.iter().map(|(_, begins, _)| (*begins).max(from)).chain([from]);
        let disturbed = |at: u64| {
            let now = felt.iter().filter(|(_, begins, until)| *begins <= at && at <= *until);
            now.flat_map(|(trouble, ..)| trouble.nodes.iter()).collect::<BTreeSet<_>>().len()
        };
        moments.map(disturbed).max().unwrap_or(0)
    }

    /// Quarantines that were over, and are not for clients that connect after the node's clock was set back; with the times
    /// from and until which that is.
    fn found_again(&self) -> impl Iterator<Item = (&Trouble, u64, u64)> {
        let steps = self.troubles.iter().filter(|trouble| trouble.kind.sets_clocks());
        steps.flat_map(|step| {
            // One that was set ahead is set back when that heals.
            let (from, at) = if step.amount < 0 { (step.from, step.at) } else { (step.healing, step.healed) };
            let reach = step.amount.unsigned_abs().saturating_mul(1000);
            let forgot = self.troubles.iter().filter(move |trouble| {
                trouble.forgets
                    && trouble.shares_a_node_with(step)
                    && trouble.from <= at
                    && from <= trouble.felt_until().saturating_add(reach)
            });
            forgot.map(move |trouble| (trouble, from, at.saturating_add(step.tail)))
        })
    }
}

/// Those stalls that no SIGSTOP explains.
fn standstills(stalls: &[(u64, u64, u64)], lives: &BTreeMap<u64, usize>, troubles: &[Trouble]) -> Vec<(u64, u64)> {
    let was_stopped = |life: u64, from: u64, to: u64| {
        let own = |trouble: &&Trouble| trouble.worker.is_some() && trouble.worker == lives.get(&life).copied();
        troubles.iter().filter(own).any(|trouble| trouble.from <= to && from <= trouble.healed)
    };
    let unexplained = stalls.iter().filter(|(life, from, to)| !was_stopped(*life, *from, *to));
    unexplained.map(|(_, from, to)| (*from, *to)).collect()
}
