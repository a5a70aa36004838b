//! The events of a run, as JSON lines on one clock: `CLOCK_MONOTONIC` in µs, which all processes of a machine share.
//!
//! For an action that takes time, `from` is its start and `at` is its end.

use serde::{Deserialize, Serialize};

use super::fault::{Kind, Scale};
use super::sight::NodeSight;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: u64,
    #[serde(flatten)]
    pub what: What,
}

/// `op` is the number of a request and of the hold that it gave, unique in a run. Names are those of resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A worker process is ready. Each process in a worker's place is another life.
    Up { worker: usize, life: u64 },
    /// A worker process was killed.
    Down { worker: usize, life: u64, from: u64 },

    /// A thread of this life (0: the run's own process) was due to wake up at `from` and did so now: the machine had no time
    /// for it, or the process was stopped.
    Stall { life: u64, from: u64 },
    /// A thread of a worker, of the run's own process or of a server has waited for a processor for much of the time since `from`.
    Wait { from: u64 },

    /// A request is about to be sent; inside the hold `within` of the same owner, if it is nested.
    Ask {
        op: u64,
        worker: usize,
        life: u64,
        /// The longest lease that may follow from it, in µs.
        lease: u64,
        /// The lease that it asks for, in µs: a re-entry may ask for a shorter one.
        asked: u64,
        names: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        within: Option<u64>,
        /// Whether the request waits while another owner holds one of them.
        waits: bool,
    },
    /// The request was granted, and its guard shows these values. `from` is the time just before the guard was read.
    Grant { op: u64, owner: String, tokens: Vec<u64>, holds: u32, margin: usize, from: u64, remaining: u64 },
    /// What each node answered, unless another owner holds the lock.
    Refuse {
        op: u64,
        why: Refusal,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        detail: Option<String>,
    },
    /// The future of the request was dropped.
    Cancel { op: u64 },
    /// The guard shows that at least `remaining` µs are left. `from` is the time just before it was read.
    Valid { op: u64, from: u64, remaining: u64, tokens: Vec<u64>, holds: u32, margin: usize },
    /// The guard signals, by [`Guard::lost`](quorlock::Guard::lost), the loss of a lease whose last known end is `deadline`.
    Lost { op: u64, deadline: u64 },
    /// The guard gives this signal for the first time.
    Signal { op: u64, signal: Signal },
    /// The hold is about to be released.
    Leave { op: u64, how: Leaving },
    /// The release is done. `holds` is how deep the owner is still nested, where a majority confirmed.
    Left {
        op: u64,
        outcome: Outcome,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        holds: Option<u32>,
    },

    /// The nodes were asked who holds a name of this hold, which goes on or was given back, or of a request that was cancelled: of
    /// the nodes that answered, this many named its owner. `ttl` is the longest time, in µs, for which one of these keeps it.
    Seen { op: u64, answered: usize, held: usize, ttl: u64 },

    /// Balances were read under a hold, and are written back after a while.
    Section { op: u64 },
    /// The write to the ledger, or the reading before it that was refused.
    Write { op: u64, from: u64, accepted: bool },

    /// All faults are over, and this worker has acquired every lock again.
    Calm { worker: usize, acquired: usize, of: usize },
    /// All faults are over, and the margin of a lock that only this worker uses has come so far.
    Margin { worker: usize, margin: usize },

    /// A fault is in effect.
    Fault {
        id: usize,
        kind: Kind,
        scale: Scale,
        nodes: Vec<usize>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        worker: Option<usize>,
        amount: i64,
        /// The node has lost its votes when it comes back.
        forgets: bool,
        /// How long its effects may outlast it, in µs.
        tail: u64,
        from: u64,
        /// Why it does not count as done: its effect was not seen.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        doubt: Option<String>,
    },
    /// It is over.
    Heal {
        id: usize,
        from: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        doubt: Option<String>,
    },
    /// How many commands a node has executed so far, asked for from `from` to now. A node that was restarted counts on.
    Commands { node: usize, from: u64, total: u64 },
    /// The lock keys of a node at the end, when every lease is over.
    Scan { node: usize, keys: Vec<String> },

    /// The program that is tested runs.
    Start,
    /// The program has written this line.
    Line { stream: Stream, text: String },
    /// What the nodes have, read from `from` to now, where that has changed. `wall` is the machine's wall clock now, in ms.
    Sight { from: u64, wall: u64, nodes: Vec<NodeSight> },
    /// All processes of the program are gone.
    Exit(Ending),
}

/// Where a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The run sent SIGTERM before.
    pub asked: bool,
    /// The run sent SIGKILL to processes that SIGTERM had not ended.
    pub killed: bool,
}

/// The signals of a guard beside [`Guard::lost`](quorlock::Guard::lost). All futures are made at the grant, and polled when they
/// wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// `protect` has ended the work.
    Protect,
    /// `is_lost` is true.
    IsLost,
    /// `endangered` has resolved.
    Endangered,
    /// `is_endangered` is true.
    IsEndangered,
}

impl Signal {
    pub fn words(self) -> &'static str {
        match self {
            Self::Protect => "protect()",
            Self::IsLost => "is_lost()",
            Self::Endangered => "endangered()",
            Self::IsEndangered => "is_endangered()",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another owner holds the lock.
    Held,
    /// No request won a majority.
    Contended,
    NoQuorum,
    /// The majority answered when the lease had run out.
    TooLate,
    /// The lease that was to be entered again is lost.
    Lost,
    /// An error that no fault explains.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaving {
    Release,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A majority has confirmed.
    Released,
    /// It had been lost before.
    NotHeld,
    Unconfirmed,
}

/// The name of a lock that one worker alone asks for begins so.
pub const OWN_LOCK: &str = "own-";

/// The settings of a run, which the events do not contain.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub nodes: usize,
    /// The longest lease, in µs.
    pub lease: u64,
    pub fencing: bool,
    /// The key prefix of all locks.
    pub prefix: String,
}

/// `CLOCK_MONOTONIC` in µs.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}
