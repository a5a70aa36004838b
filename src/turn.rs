//! The line inside this process: of all its requests for one resource, one at a time competes over the network, in the
//! order in which they came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lease::Lease;
use crate::resource::Resource;
use crate::sync::locked;

/// Who has the turn for which resource, and who is next.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<Resource, Queue>>);

struct Queue {
    /// One permit, handed on in order.
    turn: Arc<Semaphore>,
    /// How many hold it or wait for it.
    users: usize,
    /// What the turn was used for.
    lease: Weak<Lease>,
}

impl Turns {
    /// Waits for the turn. Dropping the future gives the place up.
    pub(crate) async fn take(self: &Arc<Self>, resource: &Resource) -> Turn {
        let (mut place, turn) = self.queue_up(resource);
        // Nobody closes the semaphore, so this is a permit.
        place.permit = turn.acquire_owned().await.ok();
        place
    }

    /// The lease that whoever has the turn has got, if it has got one.
    pub(crate) fn lease(&self, resource: &Resource) -> Option<Arc<Lease>> {
        locked(&self.0).get(resource)?.lease.upgrade()
    }

    fn queue_up(self: &Arc<Self>, resource: &Resource) -> (Turn, Arc<Semaphore>) {
        let mut queues = locked(&self.0);
        let fresh = || Queue { turn: Arc::new(Semaphore::new(1)), users: 0, lease: Weak::new() };
        let queue = queues.entry(resource.clone()).or_insert_with(fresh);
        queue.users += 1;
        (Turn { turns: Arc::clone(self), resource: resource.clone(), permit: None }, Arc::clone(&queue.turn))
    }
}

/// A turn, or a place in the queue for it. Dropping it lets the next one go.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    resource: Resource,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// The turn has led to this lease.
    pub(crate) fn used_for(&self, lease: &Arc<Lease>) {
        if let Some(queue) = locked(&self.turns.0).get_mut(&self.resource) {
            queue.lease = Arc::downgrade(lease);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let had_turn = self.permit.is_some();
        let mut queues = locked(&self.turns.0);
        if let Some(queue) = queues.get_mut(&self.resource) {
            queue.users -= 1;
            if had_turn {
                queue.lease = Weak::new();
            }
            if queue.users == 0 {
                queues.remove(&self.resource);
            }
        }
        drop(queues);
        self.permit = None; // Wakes the next, outside of the lock.
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

    #[tokio::test]
    async fn turns_are_taken_in_order_and_nothing_is_left() {
        let (turns, a, b) = (Arc::new(Turns::default()), resource("a"), resource("b"));
        let first = turns.take(&a).await;
        let (mut second, mut third) = (pin!(turns.take(&a)), pin!(turns.take(&a)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        let other = timeout(Duration::from_secs(5), turns.take(&b)).await.expect("nobody has it");
        drop(first);
        assert!(poll!(&mut third).is_pending(), "it is not its turn");
        drop(second.await);
        drop((third.await, other));
        assert!(locked(&turns.0).is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_is_passed_over() {
        let (turns, a) = (Arc::new(Turns::default()), resource("a"));
        let first = turns.take(&a).await;
        let (mut second, mut third) = (Box::pin(turns.take(&a)), pin!(turns.take(&a)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(second);
        drop(first);
        drop(third.await);
        assert!(locked(&turns.0).is_empty());
    }
}
