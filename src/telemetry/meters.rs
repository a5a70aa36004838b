//! Metrics of the facade `metrics`. Each number goes to the recorder that is installed when it changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Label, SharedString, Unit, counter, gauge, histogram};

use super::apart::apart;
use super::event::{Event, LockName, Locks};
use super::extension::Extension;
use super::listeners::{Class, Listeners};
use super::trace::outcome;
use crate::error::NodeError;
use crate::sync::locked;

const ACQUIRE_TOTAL: &str = "quorlock_acquire_total";
const WAIT_SECONDS: &str = "quorlock_wait_seconds";
const HOLD_SECONDS: &str = "quorlock_hold_seconds";
const LOCKS_HELD: &str = "quorlock_locks_held";
const WAITING: &str = "quorlock_waiting";
const LOST_TOTAL: &str = "quorlock_lost_total";
const EXTEND_TOTAL: &str = "quorlock_extend_total";
const MARGIN: &str = "quorlock_margin";
const NODE_UP: &str = "quorlock_node_up";
const NODE_STATE: &str = "quorlock_node_state";
const NODE_RTT_SECONDS: &str = "quorlock_node_rtt_seconds";
const NODE_QUARANTINED: &str = "quorlock_node_quarantined";

/// The state of a node that has a vote. `quorlock status` has the same word.
const VOTING: &str = "voting";

/// The class of a name for which the program's function panics.
const UNKNOWN: &str = "unknown";

#[derive(Debug)]
pub(super) struct Meters {
    class: Option<Class>,
    /// By node, the state that was set last.
    states: Mutex<BTreeMap<Arc<str>, &'static str>>,
}

impl Meters {
    pub(super) fn new(nodes: &[Arc<str>], listeners: &Listeners) -> Self {
        describe();
        let meters = Self { class: listeners.class.clone(), states: Mutex::default() };
        for node in nodes {
            meters.set_node(node, NodeError::Connecting.state());
        }
        meters
    }

    /// Returns the labels of a number about this name.
    fn labels(&self, lock: Option<LockName<'_>>, others: &[(&'static str, &'static str)]) -> Vec<Label> {
        let mut labels: Vec<Label> = others.iter().map(|(key, value)| Label::new(*key, *value)).collect();
        if let (Some(Class(class)), Some(lock)) = (&self.class, lock) {
            let class = apart(|| class(lock.0));
            labels.push(Label::new("class", SharedString::from(class.unwrap_or_else(|| UNKNOWN.into()))));
        }
        labels
    }

    pub(super) fn request_begins(&self, locks: Locks<'_>) {
        gauge!(WAITING, self.labels(locks.iter().next(), &[])).increment(1.0);
    }

    pub(super) fn unusable_request(&self) {
        let _ = self;
        counter!(ACQUIRE_TOTAL, "outcome" => "usage").increment(1);
    }

    pub(super) fn lease_begins(&self, lock: LockName<'_>) {
        gauge!(LOCKS_HELD, self.labels(Some(lock), &[])).increment(1.0);
    }

    pub(super) fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Granted { locks, waited, .. } => {
                self.request_ended(locks, "granted");
                histogram!(WAIT_SECONDS, self.labels(locks.iter().next(), &[])).record(waited);
            }
            Event::Refused { locks, error, .. } => self.request_ended(locks, outcome(error)),
            Event::Cancelled { locks, .. } => self.request_ended(locks, "cancelled"),
            Event::Endangered { .. } => {}
            Event::Lost { lock, cause, held, .. } => {
                self.lease_ended(lock, held);
                counter!(LOST_TOTAL, self.labels(Some(lock), &[("cause", cause.word())])).increment(1);
            }
            Event::Released { lock, held, .. } => self.lease_ended(lock, held),
            Event::NodeUp { node, .. } => self.set_node(&node.into(), VOTING),
            Event::NodeDown { node, error } | Event::NodeRefuses { node, error } => {
                self.set_node(&node.into(), error.state());
            }
            Event::NodeQuarantined { node, left } => {
                self.set_node(&node.into(), NodeError::Quarantined { left }.state());
            }
        }
    }

    /// Sets all that is said of a node's state. The state before is 0 from then on, as a recorder keeps what it was once given.
    fn set_node(&self, node: &Arc<str>, state: &'static str) {
        let flag = |is_so: bool| f64::from(u8::from(is_so));
        let before = locked(&self.states).insert(Arc::clone(node), state);
        if let Some(before) = before {
            gauge!(NODE_STATE, vec![of_node(node), Label::new("state", before)]).set(0.0);
        }
        gauge!(NODE_STATE, vec![of_node(node), Label::new("state", state)]).set(1.0);
        gauge!(NODE_UP, vec![of_node(node)]).set(flag(state == VOTING));
        let quarantined = NodeError::Quarantined { left: Duration::ZERO }.state();
        gauge!(NODE_QUARANTINED, vec![of_node(node)]).set(flag(state == quarantined));
    }

    fn request_ended(&self, locks: Locks<'_>, outcome: &'static str) {
        let lock = locks.iter().next();
        gauge!(WAITING, self.labels(lock, &[])).decrement(1.0);
        counter!(ACQUIRE_TOTAL, self.labels(lock, &[("outcome", outcome)])).increment(1);
    }

    fn lease_ended(&self, lock: LockName<'_>, held: Duration) {
        gauge!(LOCKS_HELD, self.labels(Some(lock), &[])).decrement(1.0);
        histogram!(HOLD_SECONDS, self.labels(Some(lock), &[])).record(held);
    }

    pub(super) fn extension(&self, lock: LockName<'_>, extension: &Extension<'_>) {
        let labels = self.labels(Some(lock), &[("outcome", extension.word())]);
        counter!(EXTEND_TOTAL, labels).increment(1);
        if let Extension::Confirmed { margin } = extension {
            // There are at most 63 nodes.
            let margin = f64::from(u32::try_from(*margin).unwrap_or(u32::MAX));
            histogram!(MARGIN, self.labels(Some(lock), &[])).record(margin);
        }
    }

    pub(super) fn round_trip(&self, node: &Arc<str>, took: Duration) {
        let _ = self;
        gauge!(NODE_RTT_SECONDS, vec![of_node(node)]).set(took);
    }
}

fn of_node(node: &Arc<str>) -> Label {
    Label::new("node", Arc::clone(node))
}

fn describe() {
    metrics::describe_counter!(ACQUIRE_TOTAL, "Requests that ended, by outcome.");
    metrics::describe_histogram!(WAIT_SECONDS, Unit::Seconds, "The time from a request to its guard.");
    metrics::describe_histogram!(HOLD_SECONDS, Unit::Seconds, "The time from a grant to the end of the lease.");
    metrics::describe_gauge!(LOCKS_HELD, "Leases that guards hold now.");
    metrics::describe_gauge!(WAITING, "Requests under way now.");
    metrics::describe_counter!(LOST_TOTAL, "Held leases that were lost, by cause.");
    metrics::describe_counter!(EXTEND_TOTAL, "Extensions of held leases, by outcome.");
    metrics::describe_histogram!(MARGIN, "The votes beyond the quorum at each extension.");
    metrics::describe_gauge!(NODE_UP, "Whether the node has a vote.");
    metrics::describe_gauge!(NODE_STATE, "1 for the state of the node, in words, and 0 for its earlier ones.");
    metrics::describe_gauge!(NODE_RTT_SECONDS, Unit::Seconds, "The round trip of the node's latest answer.");
    metrics::describe_gauge!(NODE_QUARANTINED, "Whether the node may have forgotten leases and has no vote for that.");
}
