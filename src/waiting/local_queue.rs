//! The line inside this process: of all its requests for one resource, one at a time competes over the network, in the
//! order in which they came.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::resource::Resource;
use crate::sync::locked;

/// Who has the turn for which resource, and who is next.
#[derive(Default)]
pub(crate) struct Turns {
    /// Of the resources whose turn somebody has.
    queues: Mutex<HashMap<Resource, Queue>>,
    places: AtomicU64,
}

/// The requests that wait for a turn, by number of their places, which grows.
type Queue = VecDeque<(u64, Start)>;

/// What is done for somebody whose turn has come.
type Start = Box<dyn FnOnce(Turn) + Send>;

impl Turns {
    /// Does `start` when the turn comes. Then whoever hands the turn on does it, on the spot: what it sends leaves with what
    /// was sent before, and no other task has to run first. `tell` is how the news gets to whoever waits here; should it be
    /// lost on the way, so is the turn, and this gives `None`. Dropping the future gives up the place, or what was started.
    pub(crate) async fn take<T: Send + 'static>(
        self: &Arc<Self>,
        resource: &Resource,
        start: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce(Box<dyn FnOnce() + Send>) + Send + 'static,
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
            let (teller, started) = oneshot::channel();
            let start = move |turn| {
                let done = (start(), turn);
                tell(Box::new(move || drop(teller.send(done))));
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

/// A place in a queue. Dropping it gives it up.
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

/// A turn. Dropping it lets the next one go.
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
    use std::time::Duration;

    use futures::poll;
    use tokio::time::timeout;

    use super::*;

    fn resource(name: &str) -> Resource {
        Resource::new(b"", name.as_bytes()).unwrap()
    }

    async fn take(turns: &Arc<Turns>, resource: &Resource) -> Turn {
        turns.take(resource, || (), |tell| tell()).await.expect("the news are told at once").1
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
        let other = timeout(Duration::from_secs(5), take(&turns, &b)).await.expect("nobody has it");
        drop(first);
        assert!(poll!(&mut third).is_pending(), "it is not its turn");
        drop(second.await);
        drop((third.await, other));
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn who_gives_up_is_passed_over() {
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
    async fn whoever_hands_the_turn_on_begins_for_the_next_and_takes_that_back_when_nobody_wants_it() {
        let (turns, a, notes) = (Arc::new(Turns::default()), resource("a"), Arc::new(Mutex::default()));
        let started = |note| {
            let notes = Arc::clone(&notes);
            move || Note(note, notes)
        };
        let first = take(&turns, &a).await;
        let (told, news) = std::sync::mpsc::channel();
        let mut second = Box::pin(turns.take(&a, started("second"), move |tell| told.send(tell).expect("kept below")));
        let mut third = pin!(turns.take(&a, started("third"), |tell| tell()));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(first);
        let tell = news.try_recv().expect("it has begun");
        assert!(poll!(&mut second).is_pending(), "it has not been told");
        drop(second);
        tell();
        assert_eq!(*locked(&notes), ["second"], "dropped before the turn went on");
        let (third, turn) = third.await.expect("told at once");
        drop((third, turn));
        assert!(is_empty(&turns));
    }

    #[tokio::test]
    async fn a_turn_of_which_nobody_is_told_is_lost_and_goes_on() {
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
