//! The history in order: requests, holds and how long their holders believed in them, and the effects of faults.

use std::collections::{BTreeMap, BTreeSet};

use super::read::Reader;
use crate::chaos::fault::{Kind, Scale};
use crate::chaos::history::{Event, Leaving, Outcome, Refusal, Setting, Signal};
use crate::chaos::sight::NodeSight;

/// How long a fault takes until it certainly is in effect, in µs: a signal, or a changed link, needs a moment to reach its
/// process.
pub const SETTLING: u64 = 20_000;

/// How long a new process may take to reach every node that is well, in µs.
const YOUNG: u64 = 1_000_000;

/// How long the effects of a standstill of the machine last, in µs: clients have closed connections, and make new ones.
const AFTERMATH: u64 = 1_500_000;

/// How long after a wait for a processor answers may still be late, in µs.
const REST: u64 = 50_000;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub op: u64,
    pub worker: usize,
    pub life: u64,
    pub lease: u64,
    /// The lease that it asked for.
    pub asked: u64,
    pub names: Vec<String>,
    pub within: Option<u64>,
    pub waits: bool,
    pub at: u64,
    pub answer: Answer,
    /// The answers of the nodes, for some refusals.
    pub detail: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No answer: the process was killed, or the run was over.
    None,
    Granted(u64),
    Refused(Refusal, u64),
    Cancelled(u64),
}

impl Ask {
    /// Returns when the request was over.
    pub fn answered(&self) -> Option<u64> {
        match self.answer {
            Answer::None => None,
            Answer::Granted(at) | Answer::Refused(_, at) | Answer::Cancelled(at) => Some(at),
        }
    }
}

/// A reading of a guard.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The times before and after the reading.
    pub from: u64,
    pub at: u64,
    pub remaining: u64,
    pub tokens: Vec<u64>,
    pub margin: usize,
}

/// What the nodes had of a hold that was given back, or of a request that was cancelled.
#[derive(Clone, Debug)]
pub struct Seen {
    pub op: u64,
    pub at: u64,
    pub answered: usize,
    /// How many of them named its owner.
    pub held: usize,
    /// For how long one of these keeps it at most.
    pub ttl: u64,
}

/// A reading of all nodes that showed something new.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The times before and after the reading.
    pub from: u64,
    pub at: u64,
    /// The wall clock of the machine after it, in ms.
    pub wall: u64,
    pub nodes: Vec<NodeSight>,
}

#[derive(Clone, Debug)]
pub struct Hold {
    pub ask: Ask,
    pub owner: String,
    pub tokens: Vec<u64>,
    /// How deep the owner was nested, by the guard.
    pub depth: u32,
    pub granted: u64,
    /// All readings. The first is that of the grant.
    pub readings: Vec<Reading>,
    /// When the loss was signalled, and the last known end of the lease.
    pub lost: Option<(u64, u64)>,
    /// When each other signal was given first.
    pub signals: BTreeMap<Signal, u64>,
    pub leave: Option<(u64, Leaving)>,
    pub left: Option<(u64, Outcome, Option<u32>)>,
    /// The start and end of its write to the ledger, and whether the write was accepted.
    pub write: Option<(u64, u64, bool)>,
    /// When its process was killed.
    pub killed: Option<u64>,
}

impl Hold {
    /// Returns the latest end of validity that the guard has shown. A process that stood still after the grant may find the lease
    /// over at the first reading.
    pub fn deadline(&self) -> u64 {
        let first = self.readings.first().map_or(self.granted, |reading| reading.from);
        let read = self.readings.iter().filter(|reading| reading.remaining > 0);
        let read = read.map(|reading| reading.from + reading.remaining).max().unwrap_or(first);
        read.max(self.lost.map_or(0, |(_, deadline)| deadline))
    }

    /// Returns when its holder stopped believing in it: at the start of the release, the signal of the loss, the death of the
    /// process, or the end of the lease.
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
    /// The earliest time at which it may have been in effect, and the time from which it certainly was.
    pub from: u64,
    pub at: u64,
    /// The time until which it certainly was in effect, and the latest time at which it may have been.
    pub healing: u64,
    pub healed: u64,
    pub tail: u64,
    /// Why it does not count as done. It may still have had effects.
    pub doubt: Option<String>,
}

impl Trouble {
    pub fn concerns(&self, worker: usize) -> bool {
        self.worker.is_none_or(|concerned| concerned == worker)
    }

    /// Returns when its effects end, if no clock is set meanwhile.
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
    /// In the order of their start.
    pub asks: Vec<Ask>,
    /// In the order of their grants.
    pub holds: Vec<Hold>,
    by_op: BTreeMap<u64, usize>,
    pub seen: Vec<Seen>,
    /// Worker, when, and the margin of its own lock when all was well.
    pub margins: Vec<(usize, u64, usize)>,
    /// Node, the start and end of the query, and how many commands it had executed.
    pub commands: Vec<(usize, u64, u64, u64)>,
    /// When each life was ready.
    ups: BTreeMap<u64, u64>,
    pub troubles: Vec<Trouble>,
    /// Worker, life, and the start and end of the kill.
    pub deaths: Vec<(usize, u64, u64, u64)>,
    /// Worker, how many locks it acquired after the faults, and of how many.
    pub calms: Vec<(usize, usize, usize)>,
    pub scans: BTreeMap<usize, Vec<String>>,
    pub sights: Vec<Sight>,
    /// Life, and from when to when the machine did not run it.
    pub stalls: Vec<(u64, u64, u64)>,
    /// When the machine stood still for a process that the run had not stopped.
    pub standstills: Vec<(u64, u64)>,
    /// When a thread has waited for a processor for much of the time.
    waits: Vec<(u64, u64)>,
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
        let (seen, margins, commands, ups) = (reader.seen, reader.margins, reader.commands, reader.ups);
        let sights = reader.sights;
        for hold in &mut holds {
            hold.killed = deaths.iter().find(|(_, life, ..)| *life == hold.ask.life).map(|(_, _, from, _)| *from);
        }
        asks.sort_by_key(|ask| ask.at);
        troubles.sort_by_key(|trouble| trouble.from);
        let end = events.last().map_or(0, |event| event.at);
        let standstills = standstills(&stalls, &lives, &troubles);
        let setting = setting.clone();
        Self {
            setting,
            asks,
            holds,
            by_op: held,
            seen,
            margins,
            commands,
            ups,
            troubles,
            deaths,
            calms,
            scans,
            sights,
            stalls,
            standstills,
            waits: reader.waits,
            begin,
            end,
        }
    }

    pub fn spare(&self) -> usize {
        crate::chaos::plan::spare(self.setting.nodes)
    }

    pub fn hold(&self, op: u64) -> Option<&Hold> {
        self.by_op.get(&op).and_then(|index| self.holds.get(*index))
    }

    /// Returns whether its owner held all of it before: no other owner is in the way, so it takes one round.
    pub fn is_mere_reentry(&self, ask: &Ask) -> bool {
        let outer = ask.within.and_then(|op| self.hold(op));
        outer.is_some_and(|outer| outer.lost.is_none() && ask.names.iter().all(|name| outer.ask.names.contains(name)))
    }

    /// The holds that this one is nested in, the nearest first.
    pub fn around<'a>(&'a self, hold: &'a Hold) -> impl Iterator<Item = &'a Hold> {
        let outer = |hold: &'a Hold| hold.ask.within.and_then(|op| self.hold(op));
        std::iter::successors(outer(hold), move |hold| outer(hold))
    }

    /// Returns whether a fault of this worker itself, or of its links, had effects between these times.
    pub fn worker_was_troubled(&self, worker: usize, from: u64, to: u64) -> bool {
        self.troubles
            .iter()
            .any(|trouble| trouble.worker == Some(worker) && trouble.from <= to && from <= trouble.felt_until())
    }

    /// Returns whether this life was so young at this time that it may not have reached every node yet.
    pub fn is_young(&self, life: u64, at: u64) -> bool {
        self.ups.get(&life).is_some_and(|up| at < up + YOUNG)
    }

    /// Returns whether this life may not have waited yet at this time for a quarantine that began while the nodes' clocks were ahead
    /// for good. Each client waits a longest lease for it, by its own clock, from when it first hears of it.
    pub fn may_wait_for_quarantine(&self, worker: usize, life: u64, at: u64) -> bool {
        let leap = self.troubles.iter().filter(|trouble| trouble.kind == Kind::Leap).map(|leap| leap.from).min();
        let resumed = self.pauses(worker, 0, at).map(|(_, end)| end).max();
        let runs_since = self.ups.get(&life).copied().max(resumed);
        let is_new = runs_since.is_some_and(|since| at < since + YOUNG + self.setting.lease);
        let has_forgotten =
            |leap| self.troubles.iter().any(|other| other.forgets && leap <= other.healed && other.from <= at);
        is_new && leap.is_some_and(has_forgotten)
    }

    /// Returns whether another worker's request for one of these names may have left votes that nothing takes back: the worker was
    /// stopped, killed or cut off meanwhile. They last for a lease.
    pub fn may_have_stray_votes(&self, ask: &Ask, from: u64, to: u64) -> bool {
        let from = from.saturating_sub(self.setting.lease);
        let over = |other: &Ask| {
            let killed = || self.deaths.iter().find(|(_, life, ..)| *life == other.life).map(|(_, _, _, at)| *at);
            other.answered().or_else(killed).unwrap_or(self.end)
        };
        let others = self.asks[..self.asks.partition_point(|other| other.at <= to)].iter();
        others.filter(|other| other.worker != ask.worker && over(other) >= from).any(|other| {
            other.names.iter().any(|name| ask.names.contains(name))
                && self.worker_was_troubled(other.worker, other.at, over(other))
        })
    }

    /// Returns whether the machine stood still between these times, or so shortly before that effects may remain.
    pub fn stood_still(&self, from: u64, to: u64) -> bool {
        self.standstills.iter().any(|(start, end)| *start <= to && from <= end + AFTERMATH)
    }

    /// Returns whether the machine was so busy between these times that an answer within a node timeout could not be expected.
    pub fn was_busy(&self, from: u64, to: u64) -> bool {
        self.stood_still(from, to) || self.waits.iter().any(|(start, end)| *start <= to && from <= end + REST)
    }

    /// Returns whether threads waited for a processor in more than a quarter of the time between these.
    pub fn was_overloaded(&self, from: u64, to: u64) -> bool {
        let (mut waited, mut counted) = (0, from);
        for (start, end) in self.waits.iter().map(|(start, end)| (*start, (*end).min(to))) {
            waited += end.saturating_sub(start.max(counted));
            counted = counted.max(end);
        }
        waited > (to - from) / 4
    }

    /// Returns when an event that was due at `due` is late at the earliest: this life was stopped, or did not run, until then.
    pub fn excused(&self, worker: usize, life: u64, due: u64, lateness: u64) -> u64 {
        let stalls = self.stalls.iter().filter(|stall| stall.0 == life).map(|(_, from, to)| (*from, *to));
        let mut idle: Vec<(u64, u64)> = self.pauses(worker, 0, u64::MAX).chain(stalls).collect();
        idle.sort_unstable();
        let later = |due: u64, (start, end): (u64, u64)| {
            if start <= due.saturating_add(lateness) && due < end { end } else { due }
        };
        idle.into_iter().fold(due, later)
    }

    /// Returns when this worker was stopped between these times.
    pub fn pauses(&self, worker: usize, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        self.troubles
            .iter()
            .filter(move |trouble| trouble.kind == Kind::WorkerPause && trouble.worker == Some(worker))
            .map(|trouble| (trouble.from, trouble.healed))
            .filter(move |(start, end)| *start <= to && from <= *end)
    }

    /// Returns the nodes that cannot have sent this worker an answer at any time from `from` to `to`.
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

    /// Returns how long every answer of a node takes at least, from `from` to `to`, in µs.
    pub fn slowness(&self, from: u64, to: u64) -> u64 {
        let slow = self.troubles.iter().filter(|trouble| trouble.kind == Kind::Slow && trouble.doubt.is_none());
        let slow = slow.filter(|slow| slow.nodes.len() == self.setting.nodes);
        let throughout = slow.filter(|slow| slow.at + SETTLING <= from && to <= slow.healing);
        throughout.map(|slow| slow.amount.unsigned_abs() * 1000).max().unwrap_or(0)
    }

    /// Returns the nodes that lost their votes at most one longest lease before `to`. A clock that is set ahead does not
    /// shorten that: a quarantine ends by the clock of the node and that of the client, and the client has the machine's clock.
    pub fn quarantined(&self, from: u64, to: u64) -> BTreeSet<usize> {
        let forgot = self.troubles.iter().filter(|trouble| {
            trouble.forgets
                && trouble.doubt.is_none()
                && trouble.at + SETTLING <= from
                && to <= trouble.from + self.setting.lease
        });
        forgot.flat_map(|trouble| trouble.nodes.iter().copied()).collect()
    }

    /// Returns when its effects end. When a clock is set, a quarantine or the lock of a dead holder on its node may last for
    /// one lease more.
    pub fn felt_until(&self, trouble: &Trouble) -> u64 {
        let steps = self.troubles.iter().filter(|step| step.kind.sets_clocks() && step.shares_a_node_with(trouble));
        // In the order of their beginnings.
        steps.fold(trouble.felt_until(), |until, step| {
            if step.from <= until && trouble.from <= step.healed { until.max(step.felt_until()) } else { until }
        })
    }

    /// Returns whether this node's clock was set back at that time or later: what it had then may live too long.
    pub fn was_set_back_since(&self, node: usize, since: u64) -> bool {
        self.troubles.iter().filter(|step| step.kind == Kind::Step && step.nodes.contains(&node)).any(|step| {
            // A clock that was set ahead is set back at the end of the fault.
            let set_back = if step.amount < 0 { step.at } else { step.healed };
            since <= set_back
        })
    }

    /// Returns when a lease that was due to end at `due` by the clocks of nodes certainly is over. Each clock that is set before
    /// may extend it by a longest lease from the next try, which is at most `looking` later.
    pub fn due_by_clocks(&self, since: u64, due: u64, looking: u64) -> u64 {
        let steps = self.troubles.iter().filter(|trouble| trouble.kind.sets_clocks());
        let mut set: Vec<u64> = steps.flat_map(|step| [step.at, step.healed]).filter(|at| *at >= since).collect();
        set.sort_unstable();
        let lease = self.setting.lease + self.setting.lease / 50;
        set.into_iter().fold(due, |due, at| if at <= due { due.max(at + lease + looking) } else { due })
    }

    /// Returns the largest number of nodes that may have been useless to this worker at one time from `from` to `to`.
    pub fn most_disturbed(&self, worker: usize, from: u64, to: u64) -> usize {
        let disturbing = self.troubles.iter().filter(|trouble| trouble.disturbs() && trouble.concerns(worker));
        let felt: Vec<(&Trouble, u64, u64)> = disturbing
            .map(|trouble| (trouble, trouble.from, self.felt_until(trouble)))
            .chain(self.found_again())
            .filter(|(_, begins, until)| *begins <= to && from <= *until)
            .collect();
        // The number grows only where a fault begins.
        let moments = felt.iter().map(|(_, begins, _)| (*begins).max(from)).chain([from]);
        let disturbed = |at: u64| {
            let now = felt.iter().filter(|(_, begins, until)| *begins <= at && at <= *until);
            now.flat_map(|(trouble, ..)| trouble.nodes.iter()).collect::<BTreeSet<_>>().len()
        };
        moments.map(disturbed).max().unwrap_or(0)
    }

    /// Returns quarantines that had ended, and apply again to clients that connect after the node's clock was set back, with
    /// the times from and until which they do.
    fn found_again(&self) -> impl Iterator<Item = (&Trouble, u64, u64)> {
        // A leap is never undone.
        let steps = self.troubles.iter().filter(|trouble| trouble.kind == Kind::Step);
        steps.flat_map(|step| {
            // A clock that was set ahead is set back at the end of the fault.
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

/// Returns the stalls that no SIGSTOP explains.
fn standstills(stalls: &[(u64, u64, u64)], lives: &BTreeMap<u64, usize>, troubles: &[Trouble]) -> Vec<(u64, u64)> {
    let was_stopped = |life: u64, from: u64, to: u64| {
        let own = |trouble: &&Trouble| trouble.worker.is_some() && trouble.worker == lives.get(&life).copied();
        troubles.iter().filter(own).any(|trouble| trouble.from <= to && from <= trouble.healed)
    };
    let unexplained = stalls.iter().filter(|(life, from, to)| !was_stopped(*life, *from, *to));
    unexplained.map(|(_, from, to)| (*from, *to)).collect()
}
