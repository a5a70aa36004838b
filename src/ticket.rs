//! A waiter's place in the lines that the nodes keep, and the calls that reach it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use redis::{PushKind, Value};
use tokio::sync::Notify;

use crate::protocol::Ballot;
use crate::sync::locked;

/// The tickets of one client, by number.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<u64, Weak<Ticket>>>);

impl Tickets {
    /// A request that may have to wait takes its number when it begins, and keeps it over all its tries.
    pub(crate) fn issue(self: &Arc<Self>, number: Ballot, session: u64, quorum: usize) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket {
            issuer: Arc::clone(self),
            number: number.get(),
            session,
            quorum,
            left_on: AtomicU64::new(0),
            waits_on: AtomicU64::new(0),
            called_by: AtomicU64::new(0),
            called: Notify::new(),
        });
        locked(&self.0).insert(ticket.number, Arc::downgrade(&ticket));
        ticket
    }

    /// What a node sends unasked. Says whether it is a call.
    pub(crate) fn heard(&self, node: usize, kind: &PushKind, data: &[Value]) -> bool {
        let (PushKind::Message, [_, Value::BulkString(number)]) = (kind, data) else { return false };
        let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(number) = number else { return true }; // Published by hand.
        // The lock is free again before the ticket is dropped, which needs it.
        let ticket = locked(&self.0).get(&number).and_then(Weak::upgrade);
        if let Some(ticket) = ticket {
            ticket.call(node);
        }
        true
    }
}

/// Where nodes call the waiters of one client.
pub(crate) fn channel(session: u64) -> String {
    format!("quorlock:call:{session:016x}")
}

pub(crate) struct Ticket {
    issuer: Arc<Tickets>,
    number: u64,
    /// Of the client, which names its channel.
    session: u64,
    quorum: usize,
    /// One bit for each node in whose line it may stand. Never taken back: an answer to an older message says nothing of
    /// what a newer one has left.
    left_on: AtomicU64,
    /// One bit for each node that has put it in its line since the last try began, and so will call.
    waits_on: AtomicU64,
    /// One bit for each node that has called since the last try.
    called_by: AtomicU64,
    called: Notify,
}

impl Ticket {
    /// As it stands in a node's line: number and channel.
    pub(crate) fn text(&self) -> String {
        format!("{}:{:016x}", self.number, self.session)
    }

    /// This node is about to be sent what may leave the ticket there.
    pub(crate) fn leave_on(&self, node: usize) {
        self.left_on.fetch_or(1 << node, Ordering::Relaxed);
    }

    /// This node was busy, and will call, or has called before its answer was looked at.
    pub(crate) fn wait_on(&self, node: usize) {
        self.waits_on.fetch_or(1 << node, Ordering::SeqCst);
        self.wake_if_called();
    }

    pub(crate) fn may_be_on(&self, node: usize) -> bool {
        self.left_on.load(Ordering::Relaxed) & (1 << node) != 0
    }

    fn call(&self, node: usize) {
        self.called_by.fetch_or(1 << node, Ordering::SeqCst);
        self.wake_if_called();
    }

    /// After a change of either side, in whichever order the two make theirs.
    fn wake_if_called(&self) {
        let (called_by, waits_on) = (self.called_by.load(Ordering::SeqCst), self.waits_on.load(Ordering::SeqCst));
        let has_all = waits_on != 0 && called_by & waits_on == waits_on;
        if has_all || called_by.count_ones() as usize >= self.quorum {
            self.called.notify_one();
        }
    }

    /// Another try begins: earlier calls are answered by it.
    pub(crate) fn begin_try(&self) {
        self.called_by.store(0, Ordering::SeqCst);
        self.waits_on.store(0, Ordering::SeqCst);
    }

    /// Resolves when a quorum of nodes has called since the last try, or all that were busy then; perhaps once too often.
    pub(crate) async fn called(&self) {
        self.called.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        locked(&self.issuer.0).remove(&self.number);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.text())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    impl Tickets {
        fn hear(&self, node: usize, number: &str) {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            self.heard(node, &PushKind::Message, &[text("quorlock:call:0"), text(number)]);
        }
    }

    #[tokio::test]
    async fn a_quorum_of_nodes_wakes_it_and_one_node_is_one() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(Ballot::ZERO.next(), 7, 2);
        assert_eq!(ticket.text(), "1:0000000000000007");
        let mut called = pin!(ticket.called());
        for number in ["1", "1", "2", "", "nonsense"] {
            tickets.hear(4, number);
            assert!(poll!(&mut called).is_pending());
        }
        tickets.hear(0, "1");
        assert!(poll!(&mut called).is_ready());
    }

    #[tokio::test]
    async fn nobody_waits_for_calls_that_will_not_come() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(Ballot::ZERO.next(), 7, 3);
        ticket.wait_on(1);
        ticket.wait_on(2);
        tickets.hear(1, "1");
        assert!(poll!(pin!(ticket.called())).is_pending());
        tickets.hear(2, "1");
        assert!(poll!(pin!(ticket.called())).is_ready());
    }

    #[tokio::test]
    async fn calls_before_a_try_do_not_count_after_it() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(Ballot::ZERO.next(), 7, 2);
        tickets.hear(0, "1");
        ticket.begin_try();
        tickets.hear(1, "1");
        assert!(poll!(pin!(ticket.called())).is_pending());
    }

    #[test]
    fn a_ticket_that_is_gone_is_forgotten() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(Ballot::ZERO.next(), 7, 1);
        ticket.leave_on(3);
        assert!(ticket.may_be_on(3) && !ticket.may_be_on(2));
        drop(ticket);
        assert!(locked(&tickets.0).is_empty());
        tickets.hear(0, "1");
    }
}
