//! Counters and gauges, as a program reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::event::{Event, LossCause};
use super::extension::Extension;
use crate::error::{ErrorKind, NodeError};

/// What a client has done since it was made, and what it does now. See [`Quorlock::stats`](crate::Quorlock::stats).
///
/// The numbers are read one after the other, so two of them may differ by what happens meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How requests ended, since the client was made.
    pub acquires: AcquireStats,
    /// How extensions of held leases ended, since the client was made.
    pub extensions: ExtensionStats,
    /// How many held leases were lost, since the client was made.
    pub losses: LossStats,
    /// How often a held lease came near its end without being renewed, since the client was made.
    pub endangered: u64,
    /// How many held leases were given back, since the client was made.
    pub released: u64,
    /// How many leases guards of this client hold now. A lease that is entered again counts once.
    pub held: u64,
    /// How many requests are under way now.
    pub waiting: u64,
    /// What is known of each node, in the order of the node list.
    pub nodes: Vec<NodeStats>,
}

/// How many requests ended in each way. A request for several names counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcquireStats {
    /// Those that got a guard.
    pub granted: u64,
    /// Those that failed because another owner held the lock: [`ErrorKind::Held`].
    pub held: u64,
    /// Those that failed because too few nodes answered in time: [`ErrorKind::NoQuorum`].
    pub no_quorum: u64,
    /// Those that failed because too few nodes can have a vote: [`ErrorKind::Misconfigured`].
    pub misconfigured: u64,
    /// Those that were to enter a lease that is over: [`ErrorKind::Lost`].
    pub lost: u64,
    /// Those that could not work, or whose client cannot be used any more: [`ErrorKind::Usage`].
    pub usage: u64,
    /// Those whose future was dropped before they ended.
    pub cancelled: u64,
}

/// How many extensions of held leases ended in each way. A re-entry and an inner release renew the lease too, and count. An
/// extension whose lease ends first does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtensionStats {
    /// Those that a majority honoured.
    pub extended: u64,
    /// Those of a lease that a majority does not honour any more.
    pub refused: u64,
    /// Those that no majority honoured, for want of answers or of agreement.
    pub no_quorum: u64,
}

/// How many held leases were lost, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LossStats {
    /// Those that no majority renewed in time: [`LossCause::Expired`].
    pub expired: u64,
    /// Those that a majority does not honour any more: [`LossCause::Refused`].
    pub refused: u64,
    /// Those that were revoked: [`LossCause::Revoked`].
    pub revoked: u64,
}

/// What a client knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStats {
    /// The node's address, without user and password.
    pub node: String,
    /// What keeps the node from being counted now; `None` when it is up.
    pub trouble: Option<NodeError>,
    /// The round trip of the latest answer, with the time that the request waited for others in the same write. `None` before the
    /// first answer.
    pub round_trip: Option<Duration>,
    /// How often an answer was overdue for longer than the node timeout, since the client was made.
    pub timeouts: u64,
    /// How many connections were made after the first one, since the client was made.
    pub reconnections: u64,
}

impl NodeStats {
    /// Returns the state of the node in a word or two: `up`, or [`NodeError::state`].
    #[must_use]
    pub fn state(&self) -> &'static str {
        self.trouble.as_ref().map_or("up", NodeError::state)
    }
}

/// One number of [`Stats`], which many threads change.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All numbers of a client.
#[derive(Debug, Default)]
pub(super) struct Counters {
    granted: Count,
    held_by_others: Count,
    no_quorum: Count,
    misconfigured: Count,
    entered_lost: Count,
    usage: Count,
    cancelled: Count,
    extended: Count,
    extensions_refused: Count,
    extensions_without_quorum: Count,
    expired: Count,
    refused: Count,
    revoked: Count,
    endangered: Count,
    released: Count,
    held: Count,
    waiting: Count,
    nodes: Vec<NodeCounters>,
}

#[derive(Debug, Default)]
struct NodeCounters {
    /// In µs; 0 before the first answer.
    round_trip: AtomicU64,
    timeouts: Count,
    connections: Count,
}

impl Counters {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes: (0..nodes).map(|_| NodeCounters::default()).collect(), ..Self::default() }
    }

    pub(super) fn event(&self, event: &Event<'_>) {
        match event {
            Event::Granted { .. } => self.request_ended(&self.granted),
            Event::Refused { error, .. } => self.request_ended(self.refusals(error.kind())),
            Event::Cancelled { .. } => self.request_ended(&self.cancelled),
            Event::Endangered { .. } => self.endangered.up(),
            Event::Lost { cause, .. } => {
                self.held.down();
                match cause {
                    LossCause::Expired => self.expired.up(),
                    LossCause::Refused => self.refused.up(),
                    LossCause::Revoked => self.revoked.up(),
                }
            }
            Event::Released { .. } => {
                self.held.down();
                self.released.up();
            }
            Event::NodeUp { .. }
            | Event::NodeDown { .. }
            | Event::NodeQuarantined { .. }
            | Event::NodeRefuses { .. } => {}
        }
    }

    fn request_ended(&self, how: &Count) {
        self.waiting.down();
        how.up();
    }

    fn refusals(&self, kind: ErrorKind) -> &Count {
        match kind {
            ErrorKind::Held => &self.held_by_others,
            ErrorKind::NoQuorum | ErrorKind::Unconfirmed => &self.no_quorum,
            ErrorKind::Misconfigured => &self.misconfigured,
            ErrorKind::Lost => &self.entered_lost,
            ErrorKind::Usage => &self.usage,
        }
    }

    pub(super) fn extension(&self, extension: &Extension<'_>) {
        match extension {
            Extension::Confirmed { .. } => self.extended.up(),
            Extension::Refused(_) => self.extensions_refused.up(),
            Extension::NoQuorum(_) => self.extensions_without_quorum.up(),
        }
    }

    pub(super) fn unusable_request(&self) {
        self.usage.up();
    }

    pub(super) fn request_begins(&self) {
        self.waiting.up();
    }

    pub(super) fn lease_begins(&self) {
        self.held.up();
    }

    pub(super) fn round_trip(&self, node: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.nodes[node].round_trip.store(micros, Ordering::Relaxed);
    }

    pub(super) fn overdue(&self, node: usize) {
        self.nodes[node].timeouts.up();
    }

    pub(super) fn connected(&self, node: usize) {
        self.nodes[node].connections.up();
    }

    /// Reads all numbers. `nodes` are the addresses, and what is wrong with each node.
    pub(super) fn read(&self, nodes: impl Iterator<Item = (String, Option<NodeError>)>) -> Stats {
        let node = |((node, trouble), counters): ((String, Option<NodeError>), &NodeCounters)| NodeStats {
            node,
            trouble,
            round_trip: match counters.round_trip.load(Ordering::Relaxed) {
                0 => None,
                micros => Some(Duration::from_micros(micros)),
            },
            timeouts: counters.timeouts.get(),
            reconnections: counters.connections.get().saturating_sub(1),
        };
        Stats {
            acquires: AcquireStats {
                granted: self.granted.get(),
                held: self.held_by_others.get(),
                no_quorum: self.no_quorum.get(),
                misconfigured: self.misconfigured.get(),
                lost: self.entered_lost.get(),
                usage: self.usage.get(),
                cancelled: self.cancelled.get(),
            },
            extensions: ExtensionStats {
                extended: self.extended.get(),
                refused: self.extensions_refused.get(),
                no_quorum: self.extensions_without_quorum.get(),
            },
            losses: LossStats { expired: self.expired.get(), refused: self.refused.get(), revoked: self.revoked.get() },
            endangered: self.endangered.get(),
            released: self.released.get(),
            held: self.held.get(),
            waiting: self.waiting.get(),
            nodes: nodes.zip(&self.nodes).map(node).collect(),
        }
    }
}
