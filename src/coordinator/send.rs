//! The messages about leases, and what they say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Cmd;

use super::core::Core;
use super::lease::{Lease, State};
use super::round::Round;
use crate::environment::Moment;
use crate::node::{self, Entry, Facts, LastEnd, RoundArgs};
use crate::owner::Owner;
use crate::protocol::{Ballot, Purpose};
use crate::resource::Resource;
use crate::waiting::Ticket;

/// What a request says of the resources that it does not hold yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Bid {
    /// The round's ballot, and the token of what it acquires. `None` when the leases only go on: then it follows from theirs.
    pub(super) ballot: Option<Ballot>,
    /// Ends of other leases that this client has waited for by its own clock.
    pub(super) waited_for: Vec<LastEnd>,
}

/// Sends a round that says how many holds these shares have. The caller keeps the states locked, so that two rounds of one
/// lease leave in the order in which their numbers were read.
pub(super) fn send_hold(
    core: &Arc<Core>,
    leases: &[Arc<Lease>],
    states: &mut [&mut State],
    length: Duration,
    bid: &Bid,
) -> Arc<Round> {
    let (round, command) = hold_round(core, leases, states, length, bid);
    for state in states.iter_mut() {
        state.latest = Some(Arc::<Round>::downgrade(&round));
    }
    round.send(&command);
    round
}

/// Makes the round of [`send_hold`] and its command, and records in the states that it is sent.
pub(super) fn hold_round(
    core: &Arc<Core>,
    leases: &[Arc<Lease>],
    states: &mut [&mut State],
    length: Duration,
    bid: &Bid,
) -> (Arc<Round>, Cmd) {
    let started = core.now();
    let owner = &leases[0].owner;
    let ballot = bid.ballot.unwrap_or_else(|| continued(owner, states, started));
    // Read after `started`, and rounded up by a millisecond, so the lease does not end on the nodes before it ends here.
    let shown = core.wall() / 1000 + 1 + node::millis(length);
    // For a lease that goes on it grows with every message, also for a shorter length: an end names the last message.
    let end = states.iter().filter(|state| !state.fresh).map(|state| state.end + 1).max().unwrap_or(0).max(shown);
    for state in states.iter_mut() {
        (state.sent, state.sent_at) = (ballot, started);
        state.end = state.end.max(end);
    }
    let acquires = states.iter().any(|state| state.fresh);
    let ticket = ticket_of(leases, states);
    let args = RoundArgs { owner, ballot, end, raised: end - shown };
    let command = node::hold(&entries(leases, states), &args, length, &bid.waited_for);
    let facts = Facts { started, ballot, length, acquires };
    (Round::new(core, Purpose::Hold, facts, leases.to_vec(), ticket), command)
}

/// Returns the next ballot of leases that go on. It runs with the monotonic clock: a wall clock that is set meanwhile must not
/// carry it to where no node takes it.
fn continued(owner: &Owner, states: &[&mut State], now: Moment) -> Ballot {
    let next = |state: &&mut State| {
        let passed = u64::try_from(now.since(state.sent_at).as_micros()).unwrap_or(u64::MAX);
        Ballot::from_wire(state.sent.get().saturating_add(passed.max(1))).unwrap_or(state.sent)
    };
    let ballot = states.iter().map(next).max().unwrap_or_default();
    owner.last_ballot().fetch_max(ballot.get(), Ordering::Relaxed);
    ballot
}

/// Sends a round that takes these shares' holds away. It reuses the largest ballot sent for these leases: no delayed message
/// can carry a larger one.
pub(super) fn send_release(core: &Arc<Core>, leases: &[Arc<Lease>], states: &mut [&mut State]) -> Arc<Round> {
    let started = core.now();
    let ballot = largest_sent(states);
    let end = states.first().map_or(0, |state| state.end);
    let command =
        node::release(&entries(leases, states), &RoundArgs { owner: &leases[0].owner, ballot, end, raised: 0 });
    let facts = Facts { started, ballot, length: Duration::ZERO, acquires: false };
    let round = Round::new(core, Purpose::Release, facts, leases.to_vec(), ticket_of(leases, states));
    round.send(&command);
    round
}

/// Takes the ticket of a request that has stopped waiting for these resources from the nodes' wait queues. The message leaves
/// behind those that may enqueue the ticket, and only for nodes that may have it.
pub(super) fn send_leave(core: &Arc<Core>, resources: &[Resource], ticket: &Arc<Ticket>) {
    let command = node::leave(resources, ticket);
    let facts = Facts { started: core.now(), ballot: Ballot::ZERO, length: Duration::ZERO, acquires: false };
    Round::new(core, Purpose::Leave, facts, Vec::new(), Some(Arc::clone(ticket))).send(&command);
}

/// Returns the ticket of the request that asks for those of the leases that are not granted yet.
fn ticket_of(leases: &[Arc<Lease>], states: &[&mut State]) -> Option<Arc<Ticket>> {
    let mut fresh = leases.iter().zip(states).filter(|(_, state)| state.fresh);
    fresh.find_map(|(lease, _)| lease.ticket.clone())
}

fn largest_sent(states: &[&mut State]) -> Ballot {
    states.iter().map(|state| state.sent).max().unwrap_or(Ballot::ZERO)
}

fn entries<'a>(leases: &'a [Arc<Lease>], states: &'a [&mut State]) -> Vec<Entry<'a>> {
    let pairs = leases.iter().zip(states);
    let entry = |(lease, state): (&'a Arc<Lease>, &'a &mut State)| Entry {
        resource: &lease.resource,
        lease: &state.lease,
        share: lease.share(),
        exporter: lease.exporter,
        fresh: state.fresh,
        ticket: lease.ticket.as_deref(),
    };
    pairs.map(entry).collect()
}
