//! Which nodes have answered since another one may have forgotten leases.
//!
//! How long such a node has no vote goes by the longest lease of all nodes' records. Another client may have raised it on a node
//! that this one has asked nothing since. So the first grants in which such a node has a part wait for all nodes that can be
//! reached: each answer says if the node knows of longer leases.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::environment::Moment;

#[derive(Debug)]
pub(crate) struct Hearing {
    /// When a node may have forgotten leases, the latest of them, in µs. Only what was sent since then counts.
    since: AtomicU64,
    /// One bit for each node that has answered, or was waited for in vain.
    heard: AtomicU64,
    /// One bit for each node that was not reached yet, nor found to be out of reach.
    unknown: AtomicU64,
    changed: Notify,
}

impl Hearing {
    /// The hearing of so many nodes, 63 at most.
    pub(crate) fn new(nodes: usize) -> Self {
        let unknown = AtomicU64::new((1 << nodes) - 1);
        Self { since: AtomicU64::new(0), heard: AtomicU64::new(0), unknown, changed: Notify::new() }
    }

    /// Notes that a node may have forgotten leases at this moment, or before.
    pub(crate) fn begins(&self, forgot: Moment) {
        if self.since.fetch_max(forgot.micros(), Ordering::SeqCst) < forgot.micros() {
            self.heard.store(0, Ordering::SeqCst);
        }
    }

    /// Notes that a node has answered a hold message that was sent at this moment.
    pub(crate) fn answered(&self, node: usize, sent: Moment) {
        let is_heard = self.heard.load(Ordering::SeqCst) & (1 << node) != 0;
        if !is_heard && sent.micros() >= self.since.load(Ordering::SeqCst) {
            self.give_up(1 << node);
        }
    }

    /// Waits for these nodes, one bit for each, no more.
    pub(crate) fn give_up(&self, nodes: u64) {
        self.heard.fetch_or(nodes, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Notes whether a node can be reached.
    pub(crate) fn is_known(&self, node: usize) {
        self.unknown.fetch_and(!(1 << node), Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Returns the nodes that have not been heard, of those that are connected or not tried yet, one bit for each.
    pub(crate) fn missing(&self, connected: u64) -> u64 {
        (connected | self.unknown.load(Ordering::SeqCst)) & !self.heard.load(Ordering::SeqCst)
    }

    /// Resolves when all nodes have been heard that can be reached. `connected` are those to which there is a connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn all(&self, connected: impl Fn() -> u64) {
        loop {
            let changed = self.changed.notified();
            if self.missing(connected()) == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::time::Duration;

    use futures::poll;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    #[tokio::test]
    async fn all_nodes_that_can_be_reached_are_heard_by_what_was_sent_since() {
        let (hearing, connected) = (Hearing::new(3), Cell::new(0b011));
        assert_eq!(hearing.missing(0b011), 0b111, "none was tried yet");
        hearing.begins(at(5));
        hearing.answered(0, at(5));
        hearing.answered(1, at(4));
        hearing.begins(at(5));
        assert_eq!(hearing.missing(0b011), 0b110, "the second one has answered before");
        let mut all = pin!(hearing.all(|| connected.get()));
        assert!(poll!(&mut all).is_pending());
        hearing.answered(1, at(6));
        assert!(poll!(&mut all).is_pending(), "the third one may be reached yet");
        connected.set(0b111);
        hearing.is_known(2);
        assert!(poll!(&mut all).is_pending(), "the third one has not answered");
        connected.set(0b011);
        hearing.is_known(2);
        assert!(poll!(&mut all).is_ready(), "it is out of reach");

        (0..2).for_each(|node| hearing.is_known(node));
        hearing.begins(at(4));
        assert_eq!(hearing.missing(0b011), 0, "what one forgot earlier was asked about since");
        hearing.begins(at(7));
        hearing.answered(0, at(8));
        let mut all = pin!(hearing.all(|| connected.get()));
        assert!(poll!(&mut all).is_pending());
        hearing.give_up(0b010);
        assert!(poll!(&mut all).is_ready());
    }
}
