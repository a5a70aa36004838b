use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::core::Core;
use super::lease::Lease;
use super::send::send_leave;
use crate::protocol::RetryAdvice;
use crate::resource::Resource;
use crate::waiting::{Ticket, Turn};

/// The places of a request that waits: in the lines of the nodes, and its turn in this process. Dropping it gives both up.
pub(crate) struct Waiter<'a> {
    core: &'a Arc<Core>,
    resources: &'a Arc<[Resource]>,
    waits: bool,
    /// Not while too few nodes can be heard: each request then tries for itself, and is told so.
    takes_turns: bool,
    stand: Option<Arc<Stand>>,
    /// Behind the place, so given up after it.
    turn: Option<Turn>,
}

/// A place in the lines of the nodes. Its end takes the ticket from there, unless a lease has it by then. So whatever may
/// leave the ticket there must be over before: what is begun for a request shares its place with it.
struct Stand {
    core: Arc<Core>,
    resources: Arc<[Resource]>,
    ticket: Arc<Ticket>,
    is_granted: AtomicBool,
}

impl Drop for Stand {
    fn drop(&mut self) {
        if !*self.is_granted.get_mut() {
            send_leave(&self.core, &self.resources, &self.ticket);
            self.core.driver.send_last();
        }
    }
}

impl<'a> Waiter<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, resources: &'a Arc<[Resource]>, waits: bool) -> Self {
        Self { core, resources, waits, takes_turns: true, stand: None, turn: None }
    }

    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.stand.as_ref().map(|stand| &stand.ticket)
    }

    /// Another try begins. The first takes a ticket, which says since when the request has waited. Who does not wait needs
    /// none.
    pub(crate) fn begin_try(&mut self) {
        match &self.stand {
            Some(stand) => stand.ticket.begin_try(),
            None if self.waits => {
                self.stand = Some(Arc::new(Stand {
                    core: Arc::clone(self.core),
                    resources: Arc::clone(self.resources),
                    ticket: self.core.ticket(),
                    is_granted: AtomicBool::new(false),
                }));
            }
            None => {}
        }
    }

    /// Does `start` when it is this request's turn, or at once where there is none to wait for: for a request that does not
    /// wait, or as long as too few nodes can be heard. Nor for several resources: some turns would be kept from others while
    /// one is waited for, and two requests could wait for each other. `None` when the turn was lost.
    pub(crate) async fn in_turn<T: Send + 'static>(
        &mut self,
        start: impl FnOnce(Option<&Arc<Ticket>>) -> T + Send + 'static,
    ) -> Option<T> {
        let resource = match &**self.resources {
            [resource] if self.waits && self.takes_turns && self.turn.is_none() => resource,
            _ => return Some(start(self.ticket())),
        };
        let stand = self.stand.clone();
        // In this order they end should nobody want them any more.
        let start = move || (start(stand.as_ref().map(|stand| &stand.ticket)), stand);
        // Whoever waits is woken when what was started is about to leave, by the task that sends it. Woken before, it would
        // be one task more for the threads of the runtime to share, and the messages would leave one by one.
        let core = Arc::clone(self.core);
        let tell = move |news| core.nodes[0].then(news);
        let ((done, _), turn) = self.core.turns.take(resource, start, tell).await?;
        self.turn = Some(turn);
        Some(done)
    }

    /// A try has failed. Where no majority was heard, the next in this process may try, and be told so.
    pub(crate) fn failed(&mut self, advice: RetryAdvice) {
        if let RetryAdvice::WhenHeard = advice {
            self.turn = None;
        }
    }

    /// The next try waits for its turn, if it has none, or is made without one.
    pub(crate) fn takes_turns(&mut self, takes_turns: bool) {
        self.takes_turns = takes_turns;
    }

    /// Another task of the same owner is asking for the same: what it gets, this one will enter.
    pub(crate) fn stand_aside(&mut self) {
        self.stand = None;
        self.turn = None;
    }

    /// The lease keeps the turn until it is over, and the ticket to take it from the lines.
    pub(crate) fn granted(&mut self, leases: &[Arc<Lease>]) {
        for lease in leases {
            lease.is_taken();
        }
        if let (Some(turn), [lease]) = (self.turn.take(), leases) {
            lease.keep_turn(turn);
        }
        // What another task of the owner has got meanwhile, and is entered now, knows nothing of this ticket.
        if let Some(stand) = self.stand.take() {
            let is_granted = leases.iter().all(|lease| lease.has(&stand.ticket));
            stand.is_granted.store(is_granted, Ordering::Relaxed);
        }
    }
}
