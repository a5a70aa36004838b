//! The kinds of faults, and how long the effects of each outlast it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of faults of nodes, links and workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SIGSTOP to a node, SIGCONT.
    Pause,
    /// SIGKILL to a node, and a new process with the same data folder.
    Restart,
    /// SIGKILL to a node, and after a while a new process with an empty folder.
    Forget,
    /// SIGKILL to a node, and at once another, empty server behind its address.
    Replace,
    /// SIGKILL to a node; a fresh replica of another node takes its place and is promoted.
    Promote,
    /// REPLICAOF another node under living connections, and REPLICAOF NO ONE.
    Replica,
    /// FLUSHALL under living connections.
    Flush,
    /// SWAPDB with an empty database under living connections.
    Swap,
    /// CLIENT PAUSE, by which the server itself stops to answer.
    ClientPause,
    /// No bytes pass either way.
    Cut,
    /// No bytes reach the node; its answers pass.
    CutRequests,
    /// The node gets all requests; its answers are held back.
    CutReplies,
    /// The node executes all requests; its answers are lost.
    Mute,
    /// Every connection is broken.
    Reset,
    /// One node answers late.
    Delay,
    /// All nodes answer a little late.
    Slow,
    /// The wall clocks of any number of nodes are set ahead or back, and later set right, which is a step as well.
    Step,
    /// The wall clocks of all nodes are set ahead by ten minutes, and stay so.
    Leap,
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
    pub const ALL: [Self; 22] = [
        Self::Pause,
        Self::Restart,
        Self::Forget,
        Self::Replace,
        Self::Promote,
        Self::Replica,
        Self::Flush,
        Self::Swap,
        Self::ClientPause,
        Self::Cut,
        Self::CutRequests,
        Self::CutReplies,
        Self::Mute,
        Self::Reset,
        Self::Delay,
        Self::Slow,
        Self::Step,
        Self::Leap,
        Self::ClockRate,
        Self::Isolate,
        Self::WorkerPause,
        Self::WorkerKill,
    ];

    pub fn is_of_clocks(self) -> bool {
        self.sets_clocks() || self == Self::ClockRate
    }

    /// Returns whether it sets clocks by more than their drift.
    pub fn sets_clocks(self) -> bool {
        matches!(self, Self::Step | Self::Leap)
    }

    pub fn is_of_workers(self) -> bool {
        matches!(self, Self::Isolate | Self::WorkerPause | Self::WorkerKill)
    }

    /// Returns whether the node loses its votes, also when it keeps every write on disk.
    pub fn forgets(self) -> bool {
        matches!(self, Self::Forget | Self::Replace | Self::Promote | Self::Replica | Self::Flush | Self::Swap)
    }

    /// Returns whether the node copies another one.
    pub fn copies(self) -> bool {
        matches!(self, Self::Promote | Self::Replica)
    }

    /// Returns whether no grant of the node can reach the worker while it lasts: no bytes pass, or the node takes no writes.
    pub fn silences(self) -> bool {
        matches!(
            self,
            Self::Pause
                | Self::Restart
                | Self::Forget
                | Self::Replace
                | Self::Promote
                | Self::Replica
                | Self::ClientPause
                | Self::Cut
                | Self::CutRequests
                | Self::CutReplies
                | Self::Mute
                | Self::Isolate
        )
    }

    /// Returns whether requests to the node get no answer while it lasts, and no error either.
    pub fn leaves_unanswered(self) -> bool {
        matches!(self, Self::Pause | Self::ClientPause | Self::Cut | Self::CutRequests | Self::CutReplies | Self::Mute)
    }

    /// Returns whether the node may be useless while it lasts and for a time after, so that it counts as failed. `amount` is
    /// that of the fault: a clock that is not too far off does not affect its node.
    pub fn disturbs(self, amount: i64) -> bool {
        match self {
            Self::Slow | Self::ClockRate | Self::Leap | Self::WorkerPause | Self::WorkerKill => false,
            Self::Step => amount.unsigned_abs() > LARGEST_HARMLESS_STEP_MS,
            _ => true,
        }
    }

    /// Returns a description for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Pause => "node paused",
            Self::Restart => "node killed, restarted with its data",
            Self::Forget => "node killed, restarted empty",
            Self::Replace => "other server, empty, at the node's address",
            Self::Promote => "replica of another node promoted in its place",
            Self::Replica => "made a replica of another node, and a master again",
            Self::Flush => "FLUSHALL",
            Self::Swap => "SWAPDB with an empty database",
            Self::ClientPause => "CLIENT PAUSE",
            Self::Cut => "cut both ways",
            Self::CutRequests => "requests cut",
            Self::CutReplies => "answers cut",
            Self::Mute => "obeys, answers lost",
            Self::Reset => "connections reset",
            Self::Delay => "node delayed",
            Self::Slow => "all nodes slowed",
            Self::Step => "clocks stepped",
            Self::Leap => "all clocks ten minutes ahead",
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

/// The state of the cluster during a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Every node stays useful.
    Harmless,
    /// A majority of the nodes is well: locks are still granted.
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
    /// Bytes that a cut held back are discarded with their connection, and not delivered late.
    #[serde(default)]
    pub lossy: bool,
    /// The node that is copied.
    #[serde(default)]
    pub source: Option<usize>,
}

impl Fault {
    pub fn new(kind: Kind, scale: Scale, at: u64, lasts: u64, nodes: Vec<usize>) -> Self {
        Self { id: 0, at, lasts, kind, scale, nodes, worker: None, amount: 0, lossy: false, source: None }
    }

    pub fn ends(&self) -> u64 {
        self.at + self.lasts
    }

    /// Returns whether it affects the links of this worker.
    pub fn concerns(&self, worker: usize) -> bool {
        self.worker.is_none_or(|concerned| concerned == worker)
    }

    pub fn disturbs(&self) -> bool {
        self.kind.disturbs(self.amount)
    }

    /// Returns for how many ms after its end a node, or the connections of a worker, may still be useless. `lease` is the
    /// longest lease, in ms.
    ///
    /// A node that lost its memory is in quarantine. A node that was silent may first execute old requests, and store a lock
    /// again for one lease. A clock that was set may extend a quarantine or the lock of a dead holder on its node by up to one
    /// lease.
    pub fn tail(&self, lease: u64) -> u64 {
        let remembered = lease + lease / 50 + RECONNECTING_MS;
        match self.kind {
            Kind::Reset => RECONNECTING_MS + lease / 2,
            // A process that continues finds its connections closed.
            Kind::WorkerPause => RECONNECTING_MS,
            Kind::Promote | Kind::Replica => SYNCING_MS + remembered,
            kind if kind.sets_clocks() || self.disturbs() => remembered,
            _ => 0,
        }
    }
}

/// How long a client may take to connect again once that is possible.
pub const RECONNECTING_MS: u64 = 600;

/// How much later than planned the copy of another node may be complete.
const SYNCING_MS: u64 = 800;

/// Two clocks, one ahead and one behind by this much, differ by less than the window (300 s) within which a node accepts
/// ballots.
pub const LARGEST_HARMLESS_STEP_MS: u64 = 140_000;
