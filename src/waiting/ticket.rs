//! The ticket of a waiting request in the nodes' wait queues, and the calls that reach it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use redis::{PushKind, Value};
use tokio::sync::Notify;

use crate::protocol::Token;
use crate::resource::Resource;
use crate::sync::locked;

/// The tickets of one client, by number.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<u64, Weak<Ticket>>>);

impl Tickets {
    /// Makes the ticket of a request that begins. The request keeps it over all its tries.
    pub(crate) fn issue(self: &Arc<Self>, mut number: u64, client: u64, quorum: usize) -> Arc<Ticket> {
        let mut tickets = locked(&self.0);
        while tickets.contains_key(&number) {
            number += 1;
        }
        let ticket = Arc::new(Ticket {
            issuer: Arc::clone(self),
            number,
            client,
            quorum,
            left_on: AtomicU64::new(0),
            waits_on: AtomicU64::new(0),
            called_by: AtomicU64::new(0),
            freed_on: AtomicU64::new(0),
            called: Notify::new(),
            met: Mutex::default(),
        });
        tickets.insert(ticket.number, Arc::downgrade(&ticket));
        ticket
    }

    /// Hands a call to its ticket. Returns whether this message of a node is a call.
    pub(crate) fn on_push(&self, node: usize, kind: &PushKind, data: &[Value]) -> bool {
        let (PushKind::Message, [_, Value::BulkString(number)]) = (kind, data) else { return false };
        let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(number) = number else { return true }; // Published by hand.
        // Bound first, so the lock is free again before the ticket is dropped: its drop takes the lock.
        let ticket = locked(&self.0).get(&number).and_then(Weak::upgrade);
        if let Some(ticket) = ticket {
            ticket.call(node);
        }
        true
    }
}

/// Returns the channel on which nodes call the waiters of one client.
pub(crate) fn channel(client: u64) -> String {
    format!("quorlock:call:{client:016x}")
}

pub(crate) struct Ticket {
    issuer: Arc<Tickets>,
    number: u64,
    /// The number of the client, which names its channel.
    client: u64,
    quorum: usize,
    /// One bit for each node in whose wait queue it may stand. Never cleared: a reply to an older message does not show what a
    /// newer one has left.
    left_on: AtomicU64,
    /// One bit for each node that has enqueued it since the last try began, and so will call.
    waits_on: AtomicU64,
    /// One bit for each node that has called since the last try.
    called_by: AtomicU64,
    /// One bit for each node where this client's own release has freed the resource since the last try began. Its call is no
    /// reason to try again.
    freed_on: AtomicU64,
    called: Notify,
    met: Mutex<Met>,
}

/// Whose leases were in the way of a request for several resources.
#[derive(Default)]
struct Met {
    /// In this try, and the latest in the tries before.
    now: HashMap<Resource, Option<Token>>,
    before: HashMap<Resource, Option<Token>>,
    /// The request waits for what is in the way now, and for nothing else.
    waits_for_these: bool,
    /// What may be in the way for long.
    first: Option<Resource>,
}

impl Ticket {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the ticket as it stands in a node's wait queue: number and channel.
    pub(crate) fn text(&self) -> String {
        format!("{}:{:016x}", self.number, self.client)
    }

    /// Notes that this node is about to be sent what may enqueue the ticket there.
    pub(crate) fn leave_on(&self, node: usize) {
        self.left_on.fetch_or(1 << node, Ordering::Relaxed);
    }

    /// Notes that this node has enqueued the ticket. It will call, or has called before its reply was read.
    pub(crate) fn wait_on(&self, node: usize) {
        self.waits_on.fetch_or(1 << node, Ordering::SeqCst);
        self.wake_if_called();
    }

    /// Notes that this node is about to be sent this client's own release, which leaves the ticket there.
    pub(crate) fn free_on(&self, node: usize) {
        self.freed_on.fetch_or(1 << node, Ordering::SeqCst);
        self.wait_on(node);
    }

    pub(crate) fn may_be_on(&self, node: usize) -> bool {
        self.left_on.load(Ordering::Relaxed) & (1 << node) != 0
    }

    fn call(&self, node: usize) {
        self.called_by.fetch_or(1 << node, Ordering::SeqCst);
        self.wake_if_called();
    }

    /// Wakes the request if the calls so far are enough. Runs after each change of the three sets, in any order.
    fn wake_if_called(&self) {
        let (called_by, waits_on) = (self.called_by.load(Ordering::SeqCst), self.waits_on.load(Ordering::SeqCst));
        let by_others = called_by & !self.freed_on.load(Ordering::SeqCst) != 0;
        let by_all = called_by & waits_on == waits_on;
        if by_others && ((waits_on != 0 && by_all) || called_by.count_ones() as usize >= self.quorum) {
            self.called.notify_one();
        }
    }

    /// Begins another try. Earlier calls count no more.
    pub(crate) fn begin_try(&self) {
        self.called_by.store(0, Ordering::SeqCst);
        self.waits_on.store(0, Ordering::SeqCst);
        self.freed_on.store(0, Ordering::SeqCst);
        let mut met = locked(&self.met);
        let now = std::mem::take(&mut met.now);
        met.before.extend(now);
        met.waits_for_these = false;
    }

    /// Notes the lease that was in the way of a request for several resources. Returns whether the request is to leave the queues
    /// of the other resources, whose calls it cannot use: `true` once for each try, when the lease may be in the way for long.
    /// Where another lease was in the way in an earlier try, the resource changes hands, and will be free soon.
    pub(crate) fn meets(&self, resource: &Resource, holder: Option<Token>) -> bool {
        let mut met = locked(&self.met);
        met.now.insert(resource.clone(), holder);
        let is_news = !met.waits_for_these && met.before.get(resource).is_none_or(|before| *before == holder);
        if is_news {
            (met.waits_for_these, met.first) = (true, Some(resource.clone()));
        }
        is_news
    }

    /// Returns whether this resource is to be asked for first, as it may be in the way for long. A node that refuses it then
    /// takes none of the others.
    pub(crate) fn asks_first_for(&self, resource: &Resource) -> bool {
        locked(&self.met).first.as_ref() == Some(resource)
    }

    /// Returns whether the ticket stays in the queues of this resource after a try that failed.
    pub(crate) fn waits_for(&self, resource: &Resource) -> bool {
        let met = locked(&self.met);
        !met.waits_for_these || met.now.contains_key(resource)
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
    use crate::protocol::Ballot;

    impl Tickets {
        fn hear(&self, node: usize, number: &str) {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            self.on_push(node, &PushKind::Message, &[text("quorlock:call:0"), text(number)]);
        }
    }

    #[tokio::test]
    async fn a_quorum_of_nodes_wakes_it_and_one_node_is_one() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 2);
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
    async fn calls_of_all_nodes_that_enqueued_it_wake_it() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 3);
        ticket.wait_on(1);
        ticket.wait_on(2);
        tickets.hear(1, "1");
        assert!(poll!(pin!(ticket.called())).is_pending());
        tickets.hear(2, "1");
        assert!(poll!(pin!(ticket.called())).is_ready());
    }

    #[tokio::test]
    async fn its_own_release_does_not_wake_it() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 2);
        for node in [0, 1] {
            ticket.free_on(node);
            tickets.hear(node, "1");
        }
        assert!(poll!(pin!(ticket.called())).is_pending());
        ticket.wait_on(2);
        tickets.hear(2, "1");
        assert!(poll!(pin!(ticket.called())).is_ready(), "another one's release does");
    }

    #[tokio::test]
    async fn calls_before_a_try_do_not_count_after_it() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 2);
        tickets.hear(0, "1");
        ticket.begin_try();
        tickets.hear(1, "1");
        assert!(poll!(pin!(ticket.called())).is_pending());
    }

    #[tokio::test]
    async fn a_try_waits_only_for_the_nodes_that_enqueued_it_since() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 3);
        ticket.wait_on(1);
        ticket.free_on(2);
        ticket.begin_try();
        ticket.wait_on(2);
        tickets.hear(2, "1");
        assert!(poll!(pin!(ticket.called())).is_ready());
    }

    /// A set of `hot`, which goes from one to the next, and `slow`, which stays with the same owner.
    #[test]
    fn a_set_waits_in_one_queue_for_what_may_be_held_for_long() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 1);
        let [hot, slow] = ["hot", "slow"].map(|name| Resource::new(b"", name.as_bytes()).unwrap());
        let token = |number| Token::from(Ballot::from_wire(number).unwrap());
        let waits_for = || [ticket.waits_for(&hot), ticket.waits_for(&slow)];
        assert_eq!(waits_for(), [true, true], "nothing is known yet");
        assert!(ticket.meets(&hot, Some(token(1))) && !ticket.meets(&hot, Some(token(1))), "once for each try");
        assert_eq!(waits_for(), [true, false]);
        ticket.begin_try();
        assert!(ticket.meets(&slow, Some(token(2))));
        assert_eq!(waits_for(), [false, true]);
        for _ in 0..2 {
            ticket.begin_try();
            assert!(ticket.asks_first_for(&slow) && !ticket.asks_first_for(&hot));
            assert!(ticket.meets(&slow, Some(token(2))), "the same owner");
        }
        ticket.begin_try();
        assert!(!ticket.meets(&hot, Some(token(3))), "it changes hands, so its call will come soon");
        assert_eq!(waits_for(), [true, true]);
    }

    #[test]
    fn a_ticket_that_is_gone_is_forgotten() {
        let tickets = Arc::new(Tickets::default());
        let ticket = tickets.issue(1, 7, 1);
        ticket.leave_on(3);
        assert!(ticket.may_be_on(3) && !ticket.may_be_on(2));
        drop(ticket);
        assert!(locked(&tickets.0).is_empty());
        tickets.hear(0, "1");
    }
}
