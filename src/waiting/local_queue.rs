//! The queue inside this process: of all its requests for one resource, one at a time competes over the network, in the order
//! in which they came.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::resource::Resource;
use crate::sync::locked;

/// The turns for all resources, and the requests that wait for them.
#[derive(Default)]
pub(crate) struct Turns {
    /// For each resource whose turn is taken.
    queues: Mutex<HashMap<Resource, Queue>>,
    places: AtomicU64,
}

/// The requests that wait for a turn, by number of their places, which grows.
type Queue = VecDeque<(u64, Start)>;

/// What is run when the turn has come.
type Start = Box<dyn FnOnce(Turn) + Send>;

impl Turns {
    /// Queues for `resource` and runs `start` at the head of the queue. `start` runs on the task that drops the previous
    /// `Turn`, so its commands leave in the same write as that task's release. `notify` gets the call that wakes the waiting
    /// future. If that is dropped uncalled, the turn passes on and the result is `None`. Dropping the future leaves the queue,
    /// or drops what was started.
    pub(crate) async fn take<T: Send + 'static>(
        self: &Arc<Self>,
        resource: &Resource,
        start: impl FnOnce() -> T + Send + 'static,
        notify: impl FnOnce(Box<dyn FnOnce() + Send>) + Send + 'static,
    ) -> Option<(T, Turn)> {
        let turn = || Turn { turns: Arc::clone(self), resource: resource.clone() };
        let (place, started) = {
            let mut queues = locked(&self.queues);
            let Some(queue) = queues.get_mut(resource) else {
                queues.insert(resource.clone(), Queue::default());
                drop(queues);
                let turn = turn();
                return Some((start(), turn));
            };
            let (sender, started) = oneshot::channel();
            let start = move |turn| {
                let done = (start(), turn);
                notify(Box::new(move || drop(sender.send(done))));
            };
            let number = self.places.fetch_add(1, Ordering::Relaxed);
            queue.push_back((number, Box::new(start)));
            (Place { turns: self, resource, number }, started)
        };
        let done = started.await.ok();
        drop(place);
        done
    }
}

/// A place in a queue. Dropping it leaves the queue.
struct Place<'a> {
    turns: &'a Turns,
    resource: &'a Resource,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = locked(&self.turns.queues);
        let start = queues.get_mut(self.resource).and_then(|queue| {
            let at = queue.binary_search_by_key(&self.number, |(number, _)| *number).ok()?;
            queue.remove(at)
        });
        drop(queues);
        drop(start); // Outside of the lock.
    }
}

/// The right to compete for a resource. Dropping it begins the turn of the next request.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    resource: Resource,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queues = locked(&self.turns.queues);
        let next = queues.get_mut(&self.resource).and_then(VecDeque::pop_front);
        if next.is_none() {
            queues.remove(&self.resource);
        }
        drop(queues);
        if let Some((_, start)) = next {
            start(Turn { turns: Arc::clone(&self.turns), resource: self.resource.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use futures::poll;
    use tokio::time::timeout;

    use super::*;

    fn resource(name: &str) -> Resource {
        Resource::new(b"", name.as_bytes()).unwrap()
    }

    async fn take(turns: &Arc<Turns>, resource: &Resource) -> Turn {
        turns.take(resource, || (), |notify| notify()).await.expect("notified at once").1
    }

    fn is_empty(turns: &Turns) -> bool {
        locked(&turns.queues).is_empty()
    }

    #[tokio::test]
    async fn turns_are_taken_in_order_and_nothing_is_left() {
        let (turns, a, b) = (Arc::new(Turns::default()), resource("a"), resource("b"));
        let first = take(&turns, &a).await;
        let (mut second, mut third) = (pin!(take(&turns, &a)), pin!(take(&turns, &a)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        let other = timeout(Duration::from_secs(5), take(&turns, &b)).await.expect("no other request has it");
        drop(first);
        assert!(poll!(&mut third).is_pending(), "it is not its turn");
        drop(second.await);
        drop((third.await, other));
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn a_dropped_waiter_is_passed_over() {
        let (turns, a) = (Arc::new(Turns::default()), resource("a"));
        let first = take(&turns, &a).await;
        let (mut second, mut third) = (Box::pin(take(&turns, &a)), pin!(take(&turns, &a)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(second);
        drop(first);
        drop(third.await);
        assert!(is_empty(&turns));
    }

    /// Says what it is when it is dropped.
    struct Note(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Drop for Note {
        fn drop(&mut self) {
            locked(&self.1).push(self.0);
        }
    }

    #[tokio::test]
    async fn the_drop_of_a_turn_starts_the_next_and_a_dropped_waiter_drops_what_was_started() {
        let (turns, a, notes) = (Arc::new(Turns::default()), resource("a"), Arc::new(Mutex::default()));
        let started = |note| {
            let notes = Arc::clone(&notes);
            move || Note(note, notes)
        };
        let first = take(&turns, &a).await;
        let (sender, calls) = std::sync::mpsc::channel();
        let mut second =
            Box::pin(turns.take(&a, started("second"), move |notify| sender.send(notify).expect("kept below")));
        let mut third = pin!(turns.take(&a, started("third"), |notify| notify()));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(first);
        let notify = calls.try_recv().expect("it has begun");
        assert!(poll!(&mut second).is_pending(), "it has not been notified");
        drop(second);
        notify();
        assert_eq!(*locked(&notes), ["second"], "dropped before the turn went on");
        let (third, turn) = third.await.expect("notified at once");
        drop((third, turn));
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn nothing_is_started_for_a_waiter_that_was_dropped_before_its_turn() {
        let (turns, a) = (Arc::new(Turns::default()), resource("a"));
        let has_started = Arc::new(AtomicBool::new(false));
        let first = take(&turns, &a).await;
        let started = Arc::clone(&has_started);
        let mut second = Box::pin(turns.take(&a, move || started.store(true, Ordering::Relaxed), |notify| notify()));
        assert!(poll!(&mut second).is_pending());
        drop(second);
        drop(first);
        assert!(!has_started.load(Ordering::Relaxed));
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn a_dropped_notification_passes_the_turn_on() {
        let (turns, a) = (Arc::new(Turns::default()), resource("a"));
        let first = take(&turns, &a).await;
        let (mut second, mut third) = (pin!(turns.take(&a, || (), drop)), pin!(take(&turns, &a)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(first);
        assert!(second.await.is_none());
        drop(third.await);
        assert!(is_empty(&turns));
    }
}
