//! The kinds of faults, and how long each is felt after its end.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is done to nodes, to what lies between, or to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SIGSTOP to a node, SIGCONT.
    Pause,
    /// SIGKILL to a node, and a new process with the same data folder.
    Restart,
    /// SIGKILL to a node, and a new process with an empty folder.
    Forget,
    /// CLIENT PAUSE, by which the server itself stops to answer.
    ClientPause,
    /// Nothing passes either way.
    Cut,
    /// Nothing reaches the node; its answers pass.
    CutRequests,
    /// The node hears everything; what it says waits.
    CutReplies,
    /// The node obeys, and its answers are lost.
    Mute,
    /// Every connection is broken.
    Reset,
    /// One node answers late.
    Delay,
    /// All nodes answer a little late.
    Slow,
    /// A node's wall clock leaps ahead.
    ClockForward,
    /// A node's wall clock, ahead before, is set right.
    ClockBack,
    /// A node's wall clock runs too fast or too slow, within the drift allowance.
    ClockRate,
    /// One worker reaches no node.
    Isolate,
    /// SIGSTOP to a worker inside its critical section, for longer than its lease; SIGCONT.
    WorkerPause,
    /// SIGKILL to a worker, and a new process in its place.
    WorkerKill,
}

impl Kind {
    pub const ALL: [Self; 17] = [
        Self::Pause,
        Self::Restart,
        Self::Forget,
        Self::ClientPause,
        Self::Cut,
        Self::CutRequests,
        Self::CutReplies,
        Self::Mute,
        Self::Reset,
        Self::Delay,
        Self::Slow,
        Self::ClockForward,
        Self::ClockBack,
        Self::ClockRate,
        Self::Isolate,
        Self::WorkerPause,
        Self::WorkerKill,
    ];

    pub fn is_of_clocks(self) -> bool {
        matches!(self, Self::ClockForward | Self::ClockBack | Self::ClockRate)
    }

    pub fn is_of_workers(self) -> bool {
        matches!(self, Self::Isolate | Self::WorkerPause | Self::WorkerKill)
    }

    /// While it lasts, no answer of the node can reach the worker.
    pub fn silences(self) -> bool {
        matches!(
            self,
            Self::Pause
                | Self::Restart
                | Self::Forget
                | Self::ClientPause
                | Self::Cut
                | Self::CutRequests
                | Self::CutReplies
                | Self::Mute
                | Self::Isolate
        )
    }

    /// The node may be of no use while it lasts and for a time after: it counts as one that has failed.
    pub fn disturbs(self) -> bool {
        !matches!(self, Self::Slow | Self::ClockRate | Self::WorkerPause | Self::WorkerKill)
    }

    /// In words, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Pause => "node paused",
            Self::Restart => "node killed, restarted with its data",
            Self::Forget => "node killed, restarted empty",
            Self::ClientPause => "CLIENT PAUSE",
            Self::Cut => "cut both ways",
            Self::CutRequests => "requests cut",
            Self::CutReplies => "answers cut",
            Self::Mute => "obeys, answers lost",
            Self::Reset => "connections reset",
            Self::Delay => "node delayed",
            Self::Slow => "all nodes slowed",
            Self::ClockForward => "clock stepped ahead",
            Self::ClockBack => "clock stepped back",
            Self::ClockRate => "clock rate changed",
            Self::Isolate => "worker cut off",
            Self::WorkerPause => "worker paused",
            Self::WorkerKill => "worker killed",
        }
    }

    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What is left for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Every node goes on being of use.
    Harmless,
    /// A majority of the nodes is well: locks go on being granted.
    Minority,
    /// No majority is left: locks are lost, and none is granted.
    Majority,
}

/// One fault of the plan. Times are in ms since the workers began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub id: usize,
    pub at: u64,
    pub lasts: u64,
    pub kind: Kind,
    pub scale: Scale,
    /// Counted from 0.
    pub nodes: Vec<usize>,
    pub worker: Option<usize>,
    /// ms of a delay or a step, millionths of a rate.
    #[serde(default)]
    pub amount: i64,
    /// What a cut held back is thrown away with its connection, and not delivered late.
    #[serde(default)]
    pub lossy: bool,
}

impl Fault {
    pub fn ends(&self) -> u64 {
        self.at + self.lasts
    }

    /// Is this worker's way to the nodes meant?
    pub fn concerns(&self, worker: usize) -> bool {
        self.worker.is_none_or(|concerned| concerned == worker)
    }

    /// For how many ms after its end a node, or a worker's connections, may still be of no use. `lease` is the longest
    /// lease, in ms.
    ///
    /// A node that restarted is in quarantine; one that was silent may first do what was asked of it long ago, and have
    /// a lock once more for one lease; a clock that went back keeps locks for as long as it went back.
    pub fn tail(&self, lease: u64) -> u64 {
        let remembered = lease + lease / 50 + RECONNECTING_MS;
        match self.kind {
            Kind::ClockBack => remembered + self.amount.unsigned_abs(),
            Kind::Reset => RECONNECTING_MS + lease / 2,
            // Whoever wakes up finds its connections given up.
            Kind::WorkerPause => RECONNECTING_MS,
            kind if kind.disturbs() => remembered,
            _ => 0,
        }
    }
}

/// How long a client may take to have a connection again once that is possible.
pub const RECONNECTING_MS: u64 = 600;
