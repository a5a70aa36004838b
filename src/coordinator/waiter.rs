//! How a request waits: its ticket in the nodes' wait queues, and its turn in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::futures::OwnedNotified;

use super::core::Core;
use super::lease::Lease;
use super::registry::{Registry, WaitsForTurns};
use super::send::send_leave;
use crate::owner::Owner;
use crate::protocol::RetryAdvice;
use crate::resource::Resource;
use crate::waiting::{Ticket, Turn};

/// The place of a waiting request: its entry in the nodes' wait queues, and its turn in this process. Dropping it ends both.
pub(crate) struct Waiter<'a> {
    core: &'a Arc<Core>,
    resources: &'a Arc<[Resource]>,
    waits: bool,
    /// Not while no majority answers: each request then tries by itself, and gets the error of its own try.
    takes_turns: bool,
    /// Since when it has waited behind another request of its owner, without a ticket: the number of a ticket of that time.
    since: Option<u64>,
    entry: Option<Arc<QueueEntry>>,
    /// Dropped after the entry.
    turn: Option<Turn>,
    /// Dropped after the turn, so the next request of the owner finds it free.
    alone: Option<WaitsForTurns>,
}

/// The request's entry in the nodes' wait queues. Dropping it removes the ticket from every queue unless a granted lease has
/// taken the ticket over. A round that may still enqueue the ticket must hold an `Arc` to this entry.
struct QueueEntry {
    core: Arc<Core>,
    resources: Arc<[Resource]>,
    ticket: Arc<Ticket>,
    is_granted: AtomicBool,
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        if !*self.is_granted.get_mut() {
            send_leave(&self.core, &self.resources, &self.ticket);
            self.core.driver.send_last();
        }
    }
}

impl<'a> Waiter<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, resources: &'a Arc<[Resource]>, waits: bool) -> Self {
        Self { core, resources, waits, takes_turns: true, since: None, entry: None, turn: None, alone: None }
    }

    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.entry.as_ref().map(|entry| &entry.ticket)
    }

    /// Begins another try. The first takes a ticket, which shows since when the request has waited. A request that does not
    /// wait needs none.
    pub(crate) fn begin_try(&mut self) {
        match &self.entry {
            Some(entry) => entry.ticket.begin_try(),
            None if self.waits => {
                self.entry = Some(Arc::new(QueueEntry {
                    core: Arc::clone(self.core),
                    resources: Arc::clone(self.resources),
                    ticket: self.core.ticket_since(self.since),
                    is_granted: AtomicBool::new(false),
                }));
            }
            None => {}
        }
    }

    /// Returns the resource for which this request takes turns. A request that does not wait takes none, nor does any request while
    /// no majority answers, nor one for several resources: it would keep some of them from others while it waits for one, and two
    /// such requests could wait for each other.
    fn takes_turns_for(&self) -> Option<&'a Resource> {
        match &**self.resources {
            [resource] if self.waits && self.takes_turns => Some(resource),
            _ => None,
        }
    }

    /// Makes this the one request of its owner that waits by turns, if it does. If there is another one, leaves the queues and
    /// returns what to wait for: this request enters what the other one is granted. If that ends without a grant, its ticket says how
    /// long it has waited.
    pub(super) fn wait_alone(&mut self, registry: &Arc<Registry>, owner: &Owner) -> Result<(), OwnedNotified> {
        if let (Some(resource), None) = (self.takes_turns_for(), &self.alone) {
            match registry.wait_for_turns(owner, resource) {
                Ok(alone) => self.alone = Some(alone),
                Err(done) => {
                    let own = self.entry.take().map(|entry| entry.ticket.number());
                    self.since = self.since.or(own).or_else(|| Some(self.core.ticket_number()));
                    return Err(done);
                }
            }
        }
        Ok(())
    }

    /// Runs `start` when it is this request's turn, or at once when it takes none. `None` when the turn was lost.
    pub(crate) async fn in_turn<T: Send + 'static>(
        &mut self,
        start: impl FnOnce(Option<&Arc<Ticket>>) -> T + Send + 'static,
    ) -> Option<T> {
        let resource = match self.takes_turns_for() {
            Some(resource) if self.turn.is_none() => resource,
            _ => return Some(start(self.ticket())),
        };
        let entry = self.entry.clone();
        // Dropped in this order if the request is dropped first.
        let start = move || (start(entry.as_ref().map(|entry| &entry.ticket)), entry);
        // The task of the connections wakes the waiting task when it is about to send what was started. Woken earlier, the waiting
        // task would run on another thread, and the messages would leave one by one.
        let core = Arc::clone(self.core);
        let notify = move |wake| core.nodes[0].then(wake);
        let ((done, _), turn) = self.core.turns.take(resource, start, notify).await?;
        self.turn = Some(turn);
        Some(done)
    }

    /// Notes that a try has failed. When no majority answered, the next request of this process may try.
    pub(crate) fn failed(&mut self, advice: RetryAdvice) {
        if let RetryAdvice::WhenAnswered = advice {
            self.turn = None;
            self.alone = None;
        }
    }

    /// Sets whether the next try waits for its turn.
    pub(crate) fn takes_turns(&mut self, takes_turns: bool) {
        self.takes_turns = takes_turns;
    }

    /// Hands turn and ticket to the lease. The lease keeps the turn until it is over, and then takes the ticket from the wait
    /// queues.
    pub(crate) fn granted(&mut self, leases: &[Arc<Lease>]) {
        for lease in leases {
            lease.is_taken();
        }
        if let (Some(turn), [lease]) = (self.turn.take(), leases) {
            lease.keep_turn(turn);
        }
        // A lease that was entered, as another task of the owner had been granted it, has the ticket of that task.
        if let Some(entry) = self.entry.take() {
            let is_granted = leases.iter().all(|lease| lease.has(&entry.ticket));
            entry.is_granted.store(is_granted, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures::poll;
    use redis::{PushKind, Value};
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::time::timeout;

    use super::super::fake::{confirm, core, lease, resource};
    use super::*;
    use crate::node::fake::Server;

    /// A client of one node, which is connected.
    async fn connected() -> (Arc<Core>, Server, UnboundedReceiver<tokio::io::DuplexStream>) {
        let (core, mut streams) = core(1);
        let mut server = Server::new(streams.recv().await.expect("it connects"));
        server.greet(1).await;
        (core, server, streams)
    }

    fn resources(names: &[&str]) -> Arc<[Resource]> {
        names.iter().map(|name| resource(name)).collect()
    }

    /// Leaves the ticket of the waiter in the wait queue of the node.
    fn enqueue(waiter: &Waiter<'_>) -> String {
        let ticket = waiter.ticket().expect("it waits");
        ticket.leave_on(0);
        ticket.text()
    }

    const SOON: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_waiter_takes_one_ticket_for_all_its_tries_and_its_end_takes_it_back() {
        let (core, mut server, _streams) = connected().await;
        let a = resources(&["a"]);
        let mut waiter = Waiter::new(&core, &a, true);
        assert!(waiter.ticket().is_none());
        waiter.begin_try();
        let ticket = enqueue(&waiter);
        waiter.begin_try();
        assert_eq!(waiter.ticket().map(|ticket| ticket.text()), Some(ticket.clone()));
        drop(waiter);
        let leave = server.command().await.expect("a command");
        assert!(leave.iter().any(|word| word.contains(&ticket)), "{leave:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_before_the_next_try_of_a_waiter_do_not_count() {
        let (core, _streams) = core(3);
        let a = resources(&["a"]);
        let mut waiter = Waiter::new(&core, &a, true);
        waiter.begin_try();
        let number = waiter.ticket().expect("it waits").text().split(':').next().expect("a number").to_owned();
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let call = |node| core.common.tickets.on_push(node, &PushKind::Message, &[text("channel"), text(&number)]);
        assert!(call(0));
        waiter.begin_try();
        assert!(call(1));
        assert!(poll!(pin!(waiter.ticket().expect("it waits").called())).is_pending());
        assert!(call(2));
        assert!(poll!(pin!(waiter.ticket().expect("it waits").called())).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_one_owner_wait_by_turns_one_at_a_time() {
        let (core, _server, _streams) = connected().await;
        let (a, both, owner, registry) = (resources(&["a"]), resources(&["a", "b"]), Owner::new(), Arc::default());
        let [mut first, mut second] = [(); 2].map(|()| Waiter::new(&core, &a, true));
        assert!(first.wait_alone(&registry, &owner).is_ok() && first.wait_alone(&registry, &owner).is_ok());
        assert!(Waiter::new(&core, &a, false).wait_alone(&registry, &owner).is_ok(), "it does not wait");
        assert!(Waiter::new(&core, &both, true).wait_alone(&registry, &owner).is_ok(), "it takes no turns");
        let Err(done) = second.wait_alone(&registry, &owner) else { panic!("the first one waits") };
        first.failed(RetryAdvice::WhenAnswered);
        timeout(SOON, done).await.expect("no majority answers, so each tries by itself");
        assert!(second.wait_alone(&registry, &owner).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_has_waited_behind_another_one_of_its_owner_gets_a_ticket_of_that_time() {
        let (core, _server, _streams) = connected().await;
        let (a, owner, registry) = (resources(&["a"]), Owner::new(), Arc::default());
        let [mut first, mut second] = [(); 2].map(|()| Waiter::new(&core, &a, true));
        assert!(first.wait_alone(&registry, &owner).is_ok());
        assert!(second.wait_alone(&registry, &owner).is_err());
        let later = core.ticket_number();
        assert!(second.wait_alone(&registry, &owner).is_err(), "the first one still waits");
        drop(first);
        assert!(second.wait_alone(&registry, &owner).is_ok());
        second.begin_try();
        assert!(second.ticket().expect("it waits").number() < later);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_that_was_sent_nowhere_is_taken_back_nowhere() {
        let (core, mut server, _streams) = connected().await;
        let a = resources(&["a"]);
        let mut waiter = Waiter::new(&core, &a, true);
        waiter.begin_try();
        drop(waiter);
        assert!(timeout(SOON, server.command()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_granted_lease_takes_the_ticket_over() {
        let (core, mut server, _streams) = connected().await;
        let (a, owner) = (resources(&["a"]), Owner::new());
        let mut waiter = Waiter::new(&core, &a, true);
        waiter.begin_try();
        let ticket = Arc::clone(waiter.ticket().expect("it waits"));
        enqueue(&waiter);
        let pending = protocol_lease(&core, &owner);
        let granted = Lease::new(&core, a[0].clone(), owner, pending, None, Some(ticket));
        waiter.granted(&[granted]);
        drop(waiter);
        assert!(timeout(SOON, server.command()).await.is_err(), "the end of the lease takes it back");
    }

    fn protocol_lease(core: &Arc<Core>, owner: &Owner) -> crate::protocol::LeaseState {
        lease(core, &resource("a"), owner).state().lease.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_of_another_request_does_not_take_the_ticket_over() {
        let (core, mut server, _streams) = connected().await;
        let (a, owner) = (resources(&["a"]), Owner::new());
        let mut waiter = Waiter::new(&core, &a, true);
        waiter.begin_try();
        let ticket = enqueue(&waiter);
        waiter.granted(&[lease(&core, &a[0], &owner)]);
        let leave = server.command().await.expect("a command");
        assert!(leave.iter().any(|word| word.contains(&ticket)), "{leave:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_for_one_resource_take_turns_until_the_lease_is_over() {
        let (core, _server, _streams) = connected().await;
        let (a, owner) = (resources(&["a"]), Owner::new());
        let [mut first, mut second] = [(); 2].map(|()| Waiter::new(&core, &a, true));
        first.begin_try();
        let started = first.in_turn(|ticket| ticket.is_some()).await;
        assert_eq!(started, Some(true));
        let mut other = pin!(second.in_turn(|_| ()));
        assert!(poll!(&mut other).is_pending());
        let held = lease(&core, &a[0], &owner);
        confirm(&held);
        first.granted(std::slice::from_ref(&held));
        drop(first);
        assert!(poll!(&mut other).is_pending(), "the lease keeps the turn");
        let turn = held.state().turn.take();
        drop(turn);
        assert_eq!(timeout(SOON, other).await.expect("it is its turn"), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn some_requests_wait_for_no_turn() {
        let (core, _server, _streams) = connected().await;
        let (a, both) = (resources(&["a"]), resources(&["a", "b"]));
        let mut first = Waiter::new(&core, &a, true);
        assert_eq!(first.in_turn(|_| ()).await, Some(()));
        let mut once = Waiter::new(&core, &a, false);
        once.begin_try();
        let mut set = Waiter::new(&core, &both, true);
        let mut unanswered = Waiter::new(&core, &a, true);
        unanswered.takes_turns(false);
        assert_eq!(
            once.in_turn(|ticket| ticket.is_none()).await,
            Some(true),
            "it does not wait, so it needs no ticket"
        );
        assert_eq!(set.in_turn(|_| ()).await, Some(()));
        assert_eq!(unanswered.in_turn(|_| ()).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_no_majority_answered_gives_its_turn_to_the_next() {
        let (core, _server, _streams) = connected().await;
        let a = resources(&["a"]);
        let [mut first, mut second, mut third] = [(); 3].map(|()| Waiter::new(&core, &a, true));
        assert_eq!(first.in_turn(|_| ()).await, Some(()));
        let mut next = Box::pin(second.in_turn(|_| ()));
        assert!(poll!(&mut next).is_pending());
        first.failed(RetryAdvice::Later);
        assert!(timeout(SOON, &mut next).await.is_err(), "it tries again itself");
        first.failed(RetryAdvice::WhenAnswered);
        assert_eq!(timeout(SOON, next).await.expect("its turn"), Some(()));
        let mut last = pin!(third.in_turn(|_| ()));
        assert!(poll!(&mut last).is_pending());
        drop(second);
        assert_eq!(timeout(SOON, last).await.expect("its turn"), Some(()));
    }
}
