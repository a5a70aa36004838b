use std::sync::Arc;

use crate::client::Core;
use crate::lease::{Lease, send_leave};
use crate::owner::Owner;
use crate::resource::Resource;
use crate::ticket::Ticket;
use crate::turn::Turn;
use crate::waiting::Again;

/// The places of a request that waits: its ticket in the lines of the nodes, and its turn in this process. Dropping it
/// gives both up.
pub(crate) struct Waiter<'a> {
    core: &'a Arc<Core>,
    owner: &'a Owner,
    resources: &'a [Resource],
    waits: bool,
    /// Too few nodes could be heard: everybody may try for themselves, and be told so.
    unheard: bool,
    ticket: Option<Arc<Ticket>>,
    turn: Option<Turn>,
}

impl<'a> Waiter<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, owner: &'a Owner, resources: &'a [Resource], waits: bool) -> Self {
        Self { core, owner, resources, waits, unheard: false, ticket: None, turn: None }
    }

    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.as_ref()
    }

    /// Another try begins. The first takes a ticket, which says since when the request has waited. Who does not wait needs
    /// none.
    pub(crate) fn begin_try(&mut self) {
        match &self.ticket {
            Some(ticket) => ticket.begin_try(),
            None if self.waits => self.ticket = Some(self.core.ticket(self.owner)),
            None => {}
        }
    }

    /// Does `start` when it is this request's turn, or at once where there is none to wait for: for a request that does not
    /// wait, or as long as too few nodes can be heard. Nor for several resources: some turns would be kept from others while
    /// one is waited for, and two requests could wait for each other. `None` when the turn was lost.
    pub(crate) async fn in_turn<T: Send + 'static>(&mut self, start: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let [resource] = self.resources else { return Some(start()) };
        if !self.waits || self.unheard || self.turn.is_some() {
            return Some(start());
        }
        // Whoever waits is woken when what was started is about to leave, by the task that sends it. Woken before, it would
        // be one task more for the threads of the runtime to share, and the messages would leave one by one.
        let core = Arc::clone(self.core);
        let tell = move |news| core.nodes[0].then(news);
        let (done, turn) = self.core.turns.take(resource, start, tell).await?;
        self.turn = Some(turn);
        Some(done)
    }

    /// A try has failed.
    pub(crate) fn failed(&mut self, again: Again) {
        self.unheard = matches!(again, Again::WhenHeard);
        if self.unheard {
            self.turn = None;
        }
    }

    /// The lease keeps the turn until it is over, and the ticket to take it from the lines.
    pub(crate) fn granted(&mut self, leases: &[Arc<Lease>]) {
        for lease in leases {
            lease.is_taken();
        }
        if let (Some(turn), [lease]) = (self.turn.take(), leases) {
            lease.keep_turn(turn);
        }
        self.ticket = None;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            send_leave(self.core, self.owner, self.resources, &ticket);
        }
    }
}
