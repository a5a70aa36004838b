use std::sync::Arc;

use crate::client::Core;
use crate::lease::{Lease, send_leave};
use crate::owner::Owner;
use crate::resource::Resource;
use crate::ticket::Ticket;
use crate::turn::Turn;
use crate::waiting::Again;

/// The places of a request that waits: its ticket in the lines of the nodes, and its turns in this process. Dropping it
/// gives them all up.
pub(crate) struct Waiter<'a> {
    core: &'a Arc<Core>,
    owner: &'a Owner,
    resources: &'a [Resource],
    waits: bool,
    /// Too few nodes could be heard: everybody may try for themselves, and be told so.
    unheard: bool,
    ticket: Option<Arc<Ticket>>,
    /// In the order of the resources, so that two requests cannot wait for each other.
    turns: Vec<Turn>,
}

impl<'a> Waiter<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, owner: &'a Owner, resources: &'a [Resource], waits: bool) -> Self {
        Self { core, owner, resources, waits, unheard: false, ticket: None, turns: Vec::new() }
    }

    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.as_ref()
    }

    /// Takes the turns for `wanted`, in its order, and a ticket before the first. Who does not wait needs neither.
    pub(crate) async fn take_turns(&mut self, wanted: &[&Resource]) {
        if !self.waits || wanted.is_empty() {
            return;
        }
        match &self.ticket {
            Some(ticket) => ticket.begin_try(),
            None => self.ticket = Some(self.core.ticket(self.owner)),
        }
        if self.unheard || wanted.iter().all(|resource| self.turns.iter().any(|turn| turn.resource() == *resource)) {
            return;
        }
        self.turns.clear();
        for resource in wanted {
            self.turns.push(self.core.turns.take(resource).await);
        }
    }

    /// A try has failed.
    pub(crate) fn failed(&mut self, again: Again) {
        self.unheard = matches!(again, Again::WhenHeard);
        if self.unheard {
            self.turns.clear();
        }
    }

    /// The leases keep the turns until they are over, and the ticket to take it from the lines.
    pub(crate) fn granted(&mut self, leases: &[Arc<Lease>]) {
        for turn in self.turns.drain(..) {
            if let Some(lease) = leases.iter().find(|lease| lease.resource == *turn.resource()) {
                lease.keep_turn(turn);
            }
        }
        self.ticket = None;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take().filter(|ticket| ticket.is_left()) {
            send_leave(self.core, self.owner, self.resources, &ticket);
        }
    }
}
