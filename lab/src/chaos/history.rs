//! What happened, as JSON lines on one clock: `CLOCK_MONOTONIC` in µs, which all processes of a machine share.
//!
//! Where something takes time, an event says when it had begun (`from`) and `at` is when it was done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Kind, Scale};

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
    /// It was killed.
    Down { worker: usize, life: u64, from: u64 },

    /// A thread of this life (0: the run's own process) that was to wake up at `from` did so now: the machine had no time
    /// for it, or the process was stopped.
    Stall { life: u64, from: u64 },

    /// A request is about to be sent; inside the hold `within` of the same owner, if it is nested.
    Ask {
        op: u64,
        worker: usize,
        life: u64,
        /// The longest lease that may follow from it, in µs.
        lease: u64,
        names: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        within: Option<u64>,
        /// Whether the request waits while another owner holds one of them.
        waits: bool,
    },
    /// It was granted: the guard says this of itself. `from` was just before it was asked how much is left.
    Grant { op: u64, owner: String, tokens: Vec<u64>, holds: u32, from: u64, remaining: u64 },
    /// What each node answered, unless another owner holds the lock.
    Refuse {
        op: u64,
        why: Refusal,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        detail: Option<String>,
    },
    /// The future that asked was dropped.
    Cancel { op: u64 },
    /// The guard says that at least `remaining` µs are left, `from` being just before it was asked.
    Valid { op: u64, from: u64, remaining: u64, tokens: Vec<u64>, holds: u32 },
    /// The guard signals the loss of a lease that was last known to reach to `deadline`.
    Lost { op: u64, deadline: u64 },
    /// The hold is about to be given back.
    Leave { op: u64, how: Leaving },
    /// It was; `holds` is how deep the owner is nested still, where a majority confirmed.
    Left {
        op: u64,
        outcome: Outcome,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        holds: Option<u32>,
    },

    /// Balances have been read under a hold, to be written back after a while.
    Section { op: u64 },
    /// The write to the ledger, or the reading before it that was refused.
    Write { op: u64, from: u64, accepted: bool },

    /// All faults are over, and this worker has had every lock again.
    Calm { worker: usize, acquired: usize, of: usize },

    /// A fault is in effect.
    Fault {
        id: usize,
        kind: Kind,
        scale: Scale,
        nodes: Vec<usize>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        worker: Option<usize>,
        amount: i64,
        /// The node has forgotten what it had voted, when it comes back.
        forgets: bool,
        /// How long after its end it may be felt, in µs.
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
    /// What a node has at the end, when every lease is over: lock keys.
    Scan { node: usize, keys: Vec<String> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another owner holds the lock, or no request won a majority.
    Held,
    NoQuorum,
    /// The majority came when the lease was spent.
    TooLate,
    /// What was to be entered again is lost.
    Lost,
    /// Nothing that may come from a fault.
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

/// What cannot be read from the events alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub nodes: usize,
    /// The longest lease, in µs.
    pub lease: u64,
    pub fencing: bool,
}

/// Between two looks at whether the machine has time for this process.
const TICK: Duration = Duration::from_millis(20);
/// So much later than it was to, a thread wakes up on a machine that is only busy.
const LATE: Duration = Duration::from_millis(60);

/// Tells whenever this task was not let run in time. For a process that the lock is no part of: there, also a runtime that is
/// late is the machine's doing.
pub async fn watch_runtime_for_stalls(life: u64, tell: impl Fn(Event) -> bool) {
    loop {
        let due = now() + micros(TICK);
        tokio::time::sleep(TICK).await;
        let at = now();
        if at > due + micros(LATE) && !tell(Event { at, what: What::Stall { life, from: due } }) {
            return;
        }
    }
}

/// Starts a thread that tells whenever it was not let run in time, for as long as `tell` wants to hear it. No runtime has
/// a part in it: what blocks one is no excuse.
pub fn watch_for_stalls(life: u64, tell: impl Fn(Event) -> bool + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            let due = now() + micros(TICK);
            std::thread::sleep(TICK);
            let at = now();
            if at > due + micros(LATE) && !tell(Event { at, what: What::Stall { life, from: due } }) {
                return;
            }
        }
    });
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// `CLOCK_MONOTONIC` in µs.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}
