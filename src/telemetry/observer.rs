//! The program's own listener, and the queue in front of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::apart::apart;
use super::event::{Event, LockName, Locks, LossCause};
use super::trace;
use crate::error::{AcquireError, NodeError, Reports};
use crate::owner::Owner;
use crate::protocol::Token;
use crate::resource::Resource;
use crate::sync::locked;

/// Gets every [`Event`] of a client: for an audit trail, or to act on a lost lock in one place.
///
/// It is one method and not one for each kind of event. An audit trail writes all kinds in one way, a match shows which kinds a
/// program leaves out, and a later version may report more kinds without a change of the trait.
///
/// ```
/// use std::sync::Arc;
/// use quorlock::{Event, Observer, Quorlock};
///
/// struct Audit;
///
/// impl Observer for Audit {
///     fn event(&self, event: &Event<'_>) {
///         match event {
///             Event::Granted { locks, owner, token, .. } => println!("{locks}: {token} to {}", owner.fingerprint()),
///             Event::Lost { lock, token, cause, .. } => println!("{lock}: {token} was lost, {}", cause.word()),
///             Event::Released { lock, token, .. } => println!("{lock}: {token} was released"),
///             _ => {}
///         }
///     }
/// }
///
/// let builder = Quorlock::builder().observer(Arc::new(Audit));
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Takes an event.
    ///
    /// The events of one client come one at a time and in order. The client holds no lock meanwhile, so this may call the client:
    /// read its [`stats`](crate::Quorlock::stats), drop a guard, spawn a task that acquires a lock. What follows from that comes as
    /// a later event.
    ///
    /// It runs in a task of the client, or in the task whose call brought the event about, and may run a moment after that call has
    /// returned. It must not block: other events wait for it, and on the client's own task also the answers of the nodes. Send the
    /// event to a channel if there is much to do.
    ///
    /// A panic is caught. The event counts as taken, and the first panic is reported as an `ERROR` event of `tracing`. After a
    /// `fork`, the copy of the client in the child reports nothing.
    fn event(&self, event: &Event<'_>);
}

/// An event that is kept until the observer takes it.
enum Notice {
    Granted { locks: Box<[Resource]>, owner: Owner, token: Token, votes: usize, rounds: u32, waited: Duration },
    Refused { locks: Box<[Resource]>, owner: Owner, error: Box<AcquireError>, rounds: u32, waited: Duration },
    Cancelled { locks: Box<[Resource]>, owner: Owner, waited: Duration },
    Endangered { lock: Box<[u8]>, owner: Owner, token: Token, left: Duration, nodes: Reports },
    Lost { lock: Box<[u8]>, owner: Owner, token: Token, cause: LossCause, held: Duration, nodes: Reports },
    Released { lock: Box<[u8]>, owner: Owner, token: Token, held: Duration },
    NodeUp { node: Box<str>, is_back: bool },
    NodeDown { node: Box<str>, error: Box<NodeError> },
    NodeQuarantined { node: Box<str>, left: Duration },
    NodeRefuses { node: Box<str>, error: Box<NodeError> },
}

impl Notice {
    fn new(event: &Event<'_>) -> Self {
        let name = |lock: LockName<'_>| lock.0.into();
        match *event {
            Event::Granted { locks, owner, token, votes, rounds, waited } => {
                Self::Granted { locks: locks.0.into(), owner: owner.clone(), token, votes, rounds, waited }
            }
            Event::Refused { locks, owner, error, rounds, waited } => {
                let (locks, error) = (locks.0.into(), Box::new(error.clone()));
                Self::Refused { locks, owner: owner.clone(), error, rounds, waited }
            }
            Event::Cancelled { locks, owner, waited } => {
                Self::Cancelled { locks: locks.0.into(), owner: owner.clone(), waited }
            }
            Event::Endangered { lock, owner, token, left, nodes } => {
                Self::Endangered { lock: name(lock), owner: owner.clone(), token, left, nodes: nodes.clone() }
            }
            Event::Lost { lock, owner, token, cause, held, nodes } => {
                Self::Lost { lock: name(lock), owner: owner.clone(), token, cause, held, nodes: nodes.clone() }
            }
            Event::Released { lock, owner, token, held } => {
                Self::Released { lock: name(lock), owner: owner.clone(), token, held }
            }
            Event::NodeUp { node, is_back } => Self::NodeUp { node: node.into(), is_back },
            Event::NodeDown { node, error } => Self::NodeDown { node: node.into(), error: Box::new(error.clone()) },
            Event::NodeQuarantined { node, left } => Self::NodeQuarantined { node: node.into(), left },
            Event::NodeRefuses { node, error } => {
                Self::NodeRefuses { node: node.into(), error: Box::new(error.clone()) }
            }
        }
    }

    fn event(&self) -> Event<'_> {
        match self {
            &Self::Granted { ref locks, ref owner, token, votes, rounds, waited } => {
                Event::Granted { locks: Locks(locks), owner, token, votes, rounds, waited }
            }
            &Self::Refused { ref locks, ref owner, ref error, rounds, waited } => {
                Event::Refused { locks: Locks(locks), owner, error, rounds, waited }
            }
            &Self::Cancelled { ref locks, ref owner, waited } => {
                Event::Cancelled { locks: Locks(locks), owner, waited }
            }
            &Self::Endangered { ref lock, ref owner, token, left, ref nodes } => {
                Event::Endangered { lock: LockName(lock), owner, token, left, nodes }
            }
            &Self::Lost { ref lock, ref owner, token, cause, held, ref nodes } => {
                Event::Lost { lock: LockName(lock), owner, token, cause, held, nodes }
            }
            &Self::Released { ref lock, ref owner, token, held } => {
                Event::Released { lock: LockName(lock), owner, token, held }
            }
            &Self::NodeUp { ref node, is_back } => Event::NodeUp { node, is_back },
            Self::NodeDown { node, error } => Event::NodeDown { node, error },
            &Self::NodeQuarantined { ref node, left } => Event::NodeQuarantined { node, left },
            Self::NodeRefuses { node, error } => Event::NodeRefuses { node, error },
        }
    }
}

/// What the observer has not taken yet. Most events come up under a lock of the client: they wait here until the thread that has
/// the lock delivers them.
pub(super) struct Outbox {
    observer: Arc<dyn Observer>,
    queue: Mutex<Queue>,
    process: u32,
}

#[derive(Default)]
struct Queue {
    notices: VecDeque<Notice>,
    /// So many threads deliver nothing now, and all that there is as soon as they can.
    postponed: usize,
    /// A thread calls the observer, and goes on until the queue is empty.
    is_delivering: bool,
    has_panicked: bool,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbox")
    }
}

impl Outbox {
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer, queue: Mutex::default(), process: std::process::id() }
    }

    /// Returns whether this is a copy of the process that made it. A thread of that process may have had the queue locked.
    fn is_copy(&self) -> bool {
        std::process::id() != self.process
    }

    /// Queues an event. Delivers it now, unless that is postponed.
    pub(super) fn post(&self, event: &Event<'_>) {
        if self.is_copy() {
            return;
        }
        locked(&self.queue).notices.push_back(Notice::new(event));
        self.deliver();
    }

    /// Postpones the delivery until [`resume`](Self::resume).
    pub(super) fn postpone(&self) {
        locked(&self.queue).postponed += 1;
    }

    /// Ends what [`postpone`](Self::postpone) has begun, and delivers.
    pub(super) fn resume(&self) {
        locked(&self.queue).postponed -= 1;
        self.deliver();
    }

    fn deliver(&self) {
        let mut queue = locked(&self.queue);
        // Another thread that delivers, or this one further up its stack, takes what was queued.
        if queue.postponed > 0 || queue.is_delivering {
            return;
        }
        queue.is_delivering = true;
        while queue.postponed == 0
            && let Some(notice) = queue.notices.pop_front()
        {
            drop(queue);
            let taken = apart(|| self.observer.event(&notice.event()));
            queue = locked(&self.queue);
            if taken.is_none() && !queue.has_panicked {
                queue.has_panicked = true;
                apart(trace::observer_panicked);
            }
        }
        queue.is_delivering = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Observer for Seen {
        fn event(&self, event: &Event<'_>) {
            let Event::NodeUp { node, .. } = event else { panic!("{event:?}") };
            locked(&self.0).push((*node).to_owned());
            assert_ne!(*node, "broken");
        }
    }

    fn up(node: &str) -> Event<'_> {
        Event::NodeUp { node, is_back: false }
    }

    #[test]
    fn what_is_posted_while_postponed_comes_later_and_in_order() {
        let seen = Arc::new(Seen::default());
        let outbox = Outbox::new(Arc::<Seen>::clone(&seen));
        outbox.post(&up("a"));
        outbox.postpone();
        outbox.postpone();
        outbox.post(&up("b"));
        outbox.resume();
        outbox.post(&up("c"));
        assert_eq!(*locked(&seen.0), ["a"]);
        outbox.resume();
        assert_eq!(*locked(&seen.0), ["a", "b", "c"]);
    }

    #[test]
    fn a_panic_ends_neither_the_caller_nor_the_delivery() {
        let seen = Arc::new(Seen::default());
        let outbox = Outbox::new(Arc::<Seen>::clone(&seen));
        outbox.postpone();
        for node in ["broken", "a", "broken", "b"] {
            outbox.post(&up(node));
        }
        outbox.resume();
        assert_eq!(*locked(&seen.0), ["broken", "a", "broken", "b"]);
    }

    /// Posts another event from within the observer, as an observer does that drops a guard.
    struct Recursive(Mutex<Vec<String>>, std::sync::OnceLock<Arc<Outbox>>);

    impl Observer for Recursive {
        fn event(&self, event: &Event<'_>) {
            let Event::NodeUp { node, .. } = event else { panic!("{event:?}") };
            if let Some(outbox) = self.1.get().filter(|_| *node == "a") {
                outbox.post(&up("from within"));
            }
            locked(&self.0).push((*node).to_owned());
        }
    }

    #[test]
    fn an_event_from_within_the_observer_comes_after_the_one_that_caused_it() {
        let observer = Arc::new(Recursive(Mutex::default(), std::sync::OnceLock::new()));
        let outbox = Arc::new(Outbox::new(Arc::<Recursive>::clone(&observer)));
        observer.1.set(Arc::clone(&outbox)).unwrap_or_else(|_| panic!("once"));
        outbox.post(&up("a"));
        assert_eq!(*locked(&observer.0), ["a", "from within"]);
    }
}
