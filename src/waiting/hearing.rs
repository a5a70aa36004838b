//! Which nodes have answered since this client met a node that may have forgotten leases.
//!
//! How long such a node has no vote goes by the longest lease of all nodes' records. Another client may have raised it on a node
//! that this one has asked nothing since. So the first grants in which such a node has a part wait for all nodes that can be
//! reached: each answer says if the node knows of longer leases.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::environment::Moment;

#[derive(Debug, Default)]
pub(crate) struct Hearing {
    /// When such a node was met last, in µs. Only what was sent since then counts.
    since: AtomicU64,
    /// One bit for each node that has answered, or was waited for in vain.
    heard: AtomicU64,
    changed: Notify,
}

impl Hearing {
    /// Notes that a node has been met that may have forgotten leases.
    pub(crate) fn begins(&self, now: Moment) {
        self.since.store(now.micros(), Ordering::SeqCst);
        self.heard.store(0, Ordering::SeqCst);
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

    /// Notes that a node can be reached no more.
    pub(crate) fn disconnected(&self) {
        self.changed.notify_waiters();
    }

    /// Resolves when all nodes have been heard that can be reached.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn all(&self, reached: impl Fn() -> u64) {
        loop {
            let changed = self.changed.notified();
            if reached() & !self.heard.load(Ordering::SeqCst) == 0 {
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
        let (hearing, reached) = (Hearing::default(), Cell::new(0b111));
        hearing.begins(at(5));
        hearing.answered(0, at(5));
        hearing.answered(1, at(4));
        let mut all = pin!(hearing.all(|| reached.get()));
        assert!(poll!(&mut all).is_pending(), "the second one may have answered before");
        hearing.answered(1, at(6));
        assert!(poll!(&mut all).is_pending(), "the third one has not answered");
        reached.set(0b011);
        hearing.disconnected();
        assert!(poll!(&mut all).is_ready());

        hearing.begins(at(7));
        hearing.answered(0, at(8));
        let mut all = pin!(hearing.all(|| reached.get()));
        assert!(poll!(&mut all).is_pending());
        hearing.give_up(0b010);
        assert!(poll!(&mut all).is_ready());
    }
}
