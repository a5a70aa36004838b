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
use crate::protocol::{Ballot, Purpose};
use crate::resource::Resource;
use crate::waiting::Ticket;

/// What a request says of the resources that it does not hold yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Bid {
    /// The round's ballot, and the token of what it acquires. `None` when the leases only go on: then it follows from theirs.
    pub(super) ballot: Option<Ballot>,
    /// Where it follows from theirs, it is above this one.
    pub(super) above: Ballot,
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
    let ballot = bid.ballot.unwrap_or_else(|| {
        let ballot = continued(core, states.iter().map(|state| &**state), started).max(after(bid.above, 1));
        owner.last_ballot().fetch_max(ballot.get(), Ordering::Relaxed);
        for state in states.iter_mut() {
            state.runs_from(ballot, started);
        }
        ballot
    });
    // Read after `started`, and rounded up by a millisecond, so the lease does not end on the nodes before it ends here.
    let shown = core.wall() / 1000 + 1 + node::millis(length);
    // For a lease that goes on it grows with every message, also for a shorter length: an end names the last message.
    let end = states.iter().filter(|state| !state.fresh).map(|state| state.end + 1).max().unwrap_or(0).max(shown);
    for state in states.iter_mut() {
        state.sent = state.sent.max(ballot);
        state.end = state.end.max(end);
    }
    let acquires = states.iter().any(|state| state.fresh);
    let ticket = ticket_of(leases, states);
    let args = RoundArgs { owner, ballot, end, raised: end - shown };
    let command = node::hold(&entries(leases, states), &args, length, &bid.waited_for);
    let facts = Facts { started, ballot, length, acquires };
    (Round::new(core, Purpose::Hold, facts, leases.to_vec(), ticket), command)
}

/// Returns the next ballot of leases that go on, above those that nodes have met. It runs with the monotonic clock: a wall clock that
/// is wrong, or is set meanwhile, must not carry it to where no node takes it. So it follows no ballot that was sent for an acquisition
/// beside the lease and is far ahead of the nodes' clocks.
pub(super) fn continued<'a>(core: &Core, states: impl Iterator<Item = &'a State>, now: Moment) -> Ballot {
    let next = |state: &State| {
        let (from, since) = state.runs_from;
        let passed = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
        let sent = if core.may_overtake(state.sent) { state.sent } else { Ballot::ZERO };
        after(from, passed.max(1)).max(after(sent.max(state.above), 1))
    };
    states.map(next).max().unwrap_or_default()
}

fn after(ballot: Ballot, micros: u64) -> Ballot {
    // Nodes take no ballot that is far ahead of their clocks, so the limit is centuries away.
    Ballot::from_wire(ballot.get().saturating_add(micros)).unwrap_or(ballot)
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::fake::{LEASE, confirm, core, lease, resource};
    use super::*;
    use crate::owner::Owner;

    /// The ballot and the end of the next hold message for this length, and what it says.
    fn hold(lease: &Arc<Lease>, length: Duration) -> (u64, u64, String) {
        let mut state = lease.state();
        let leases = std::slice::from_ref(lease);
        let (round, command) = hold_round(&lease.core, leases, &mut [&mut state], length, &Bid::default());
        let text = String::from_utf8_lossy(&command.get_packed_command()).into_owned();
        (round.facts().ballot.get(), state.end, text)
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_lease_that_goes_on_grows_with_every_message() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        let wall = 1_790_000_000_000;
        let end = |length| hold(&lease, length).1;
        assert_eq!([end(LEASE), end(LEASE)], [wall + 10_001; 2], "the same acquisition");
        confirm(&lease);
        let (_, end, text) = hold(&lease, LEASE / 2);
        assert_eq!(end, wall + 10_002);
        assert!(text.contains(" +5001\r\n"), "it says how much that is later than its own length: {text}");
        let (_, end, text) = hold(&lease, LEASE);
        assert_eq!(end, wall + 10_003);
        assert!(text.contains(" +2\r\n"), "{text}");
        advance(Duration::from_secs(1)).await;
        let (_, end, text) = hold(&lease, LEASE);
        assert_eq!((end, text.contains(" +")), (wall + 11_001, false), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_ballot_of_a_lease_that_goes_on_runs_with_the_monotonic_clock() {
        let (core, _streams) = core(3);
        let owner = Owner::new();
        let lease = lease(&core, &resource("a"), &owner);
        let first = lease.state().sent.get();
        assert_eq!([hold(&lease, LEASE).0, hold(&lease, LEASE).0], [first + 1, first + 2]);
        advance(Duration::from_millis(5)).await;
        let (ballot, _, text) = hold(&lease, LEASE);
        assert_eq!(ballot, first + 5002);
        assert!(text.contains(&resource("a").to_string()) && text.contains(&ballot.to_string()), "{text}");
        assert!(owner.last_ballot().load(Ordering::Relaxed) >= ballot, "no later acquisition has a smaller one");
        let released = send_release(&core, std::slice::from_ref(&lease), &mut [&mut lease.state()]);
        assert_eq!(released.facts().ballot.get(), ballot);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_goes_on_from_what_a_majority_honoured_and_follows_no_ballot_that_is_far_ahead() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        confirm(&lease);
        let first = lease.state().sent.get();
        let beside = |ahead: u64| {
            let bid = Bid { ballot: Ballot::from_wire(first + ahead), ..Bid::default() };
            let leases = std::slice::from_ref(&lease);
            let round = hold_round(&core, leases, &mut [&mut lease.state()], LEASE, &bid).0;
            assert_eq!(round.facts().ballot.get(), first + ahead);
        };
        beside(1_000_000);
        assert_eq!(hold(&lease, LEASE).0, first + 1_000_001, "nodes take what is a little ahead");
        beside(600_000_000);
        assert_eq!([hold(&lease, LEASE).0, hold(&lease, LEASE).0], [first + 1_000_002, first + 1_000_003]);
        advance(Duration::from_secs(1)).await;
        assert_eq!(hold(&lease, LEASE).0, first + 2_000_003);
        let released = send_release(&core, std::slice::from_ref(&lease), &mut [&mut lease.state()]);
        assert_eq!(released.facts().ballot.get(), first + 600_000_000, "what is late has no larger one");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_not_granted_yet_is_asked_for_with_a_ticket() {
        let (core, _streams) = core(3);
        let (owner, ticket) = (Owner::new(), core.ticket_since(None));
        let pending = lease(&core, &resource("a"), &owner).state().lease.clone();
        let lease = Lease::new(&core, resource("a"), owner, pending, None, Some(Arc::clone(&ticket)));
        assert!(hold(&lease, LEASE).2.contains(&ticket.text()));
        let asks = |lease: &Arc<Lease>| ticket_of(std::slice::from_ref(lease), &[&mut lease.state()]);
        assert!(asks(&lease).is_some_and(|asked| Arc::ptr_eq(&asked, &ticket)));
        confirm(&lease);
        assert!(asks(&lease).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_of_what_is_asked_for_again_is_none_of_the_usual_ones() {
        let (core, _streams) = core(3);
        let owner = Owner::new();
        let pending = lease(&core, &resource("a"), &owner).state().lease.clone();
        let release = |ticket| {
            let lease = Lease::new(&core, resource("a"), owner.clone(), pending.clone(), None, ticket);
            let mut state = lease.state();
            let args = RoundArgs { owner: &owner, ballot: state.sent, end: 77, raised: 0 };
            let command = node::release(&entries(std::slice::from_ref(&lease), &[&mut state]), &args);
            String::from_utf8_lossy(&command.get_packed_command()).into_owned()
        };
        assert!(release(None).contains(" 0000000000077 ql1 "));
        assert!(release(Some(core.ticket_since(None))).contains(" 0000000000000 ql1 "), "its ticket keeps its place");
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_names_the_share_that_was_exported_to_it_until_it_is_confirmed() {
        let (core, _streams) = core(3);
        let owner = Owner::new();
        let token = lease(&core, &resource("a"), &owner).state().lease.token;
        let pending =
            crate::protocol::LeaseState::pending(token, Ballot::ZERO, LEASE, core.settings.schedule, core.now());
        let exporter = crate::protocol::Share { client: 0xabc, lease: 7 };
        let lease = Lease::new(&core, resource("a"), owner, pending, Some(exporter), None);
        let named = format!(" {exporter} ");
        assert!(hold(&lease, LEASE).2.contains(&named));
        confirm(&lease);
        assert!(!hold(&lease, LEASE).2.contains(&named));
    }
}
