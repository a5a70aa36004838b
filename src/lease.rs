//! A lease in use: the pure [state](protocol::Lease) behind a lock, and what its changes set in motion.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use redis::Cmd;
use tokio::sync::Notify;

use crate::client::Core;
use crate::environment::Moment;
use crate::error::Reports;
use crate::node::{self, Entry, Exchange as _, Facts, LastEnd, Share, Words};
use crate::owner::Owner;
use crate::protocol::{self, Ballot, Due, Phase, Schedule};
use crate::resource::Resource;
use crate::round::{Purpose, Round};
use crate::said::Said;
use crate::sync::locked;
use crate::waiting::Ticket;
use crate::waiting::Turn;

/// How soon after a contested acquisition the nodes that refused are asked again.
const SOON: Duration = Duration::from_millis(5);

/// One resource held, or asked for, by one owner in this process. All its guards share it.
pub(crate) struct Lease {
    pub(crate) core: Arc<Core>,
    /// Tells leases apart in the keeper's calendar, orders their locks, and makes their shares differ.
    pub(crate) id: u64,
    pub(crate) resource: Resource,
    pub(crate) owner: Owner,
    state: Mutex<State>,
    said: Mutex<Said>,
    /// The phase changed.
    changed: Notify,
    /// One bit for each node that was ever sent something that may have left a key.
    touched: AtomicU64,
    /// Of the request that asks, or asked, for it: to be taken from the nodes' lines when the lease ends.
    ticket: Option<Arc<Ticket>>,
}

pub(crate) struct State {
    pub(crate) lease: protocol::Lease,
    /// Not confirmed yet, and to be acquired anew.
    pub(crate) fresh: bool,
    /// The largest ballot that was sent for it, confirmed or not.
    pub(crate) sent: Ballot,
    /// When that was.
    sent_at: Moment,
    /// The latest end that was sent for it: of this machine's wall clock, in ms.
    end: u64,
    /// Whoever asked for it has not seen it yet.
    awaited: bool,
    /// The latest that was sent.
    extension: Weak<Round>,
    /// Where the keeper has it.
    scheduled: Option<Moment>,
    /// Lets the next one in this process ask for the resource when the lease is over.
    pub(crate) turn: Option<Turn>,
    began: Moment,
    /// The latest message that was to keep it, as long as answers are awaited.
    latest: Weak<Round>,
}

impl State {
    /// A request whose task has not run for so long may never run again: what it was granted ends by itself.
    fn is_left(&self, now: Moment) -> bool {
        self.awaited && now.since(self.began) >= Schedule::extend_after(self.lease.length)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} {:?})", self.resource, locked(&self.state).lease)
    }
}

impl Lease {
    pub(crate) fn new(
        core: &Arc<Core>,
        resource: Resource,
        owner: Owner,
        lease: protocol::Lease,
        fresh: bool,
        ticket: Option<Arc<Ticket>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::clone(core),
            id: core.next_id(),
            resource,
            owner,
            state: Mutex::new(State {
                sent: lease.known,
                sent_at: core.now(),
                end: 0,
                lease,
                fresh,
                awaited: true,
                extension: Weak::new(),
                scheduled: None,
                turn: None,
                began: core.now(),
                latest: Weak::new(),
            }),
            said: Mutex::default(),
            changed: Notify::new(),
            touched: AtomicU64::new(0),
            ticket,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// This client's part in it, as the nodes know it.
    fn share(&self) -> Share {
        Share { client: self.core.common.client, lease: self.id }
    }

    pub(crate) fn phase(&self) -> Phase {
        let now = self.core.now();
        self.state().lease.phase(now)
    }

    pub(crate) fn mark_sent(&self, node: usize) {
        self.touched.fetch_or(1 << node, Ordering::Relaxed);
    }

    /// This node refused the acquisition: whatever reached it left nothing there, so there is nothing to release.
    pub(crate) fn left_nothing_on(&self, node: usize) {
        // Only of a fresh lease is it certain that no other message is under way to the node.
        if self.state().fresh {
            self.touched.fetch_and(!(1 << node), Ordering::Relaxed);
        }
    }

    /// May there be something of it on this node to take away? What only waited there keeps its place while its request
    /// tries again.
    pub(crate) fn may_hold_state(&self, node: usize) -> bool {
        let is_in_line = || self.ticket.as_ref().is_some_and(|ticket| ticket.may_be_on(node)) && !self.state().fresh;
        self.touched.load(Ordering::Relaxed) & (1 << node) != 0 || is_in_line()
    }

    /// Is this the ticket that it will take from the lines?
    pub(crate) fn has(&self, ticket: &Arc<Ticket>) -> bool {
        self.ticket.as_ref().is_some_and(|own| Arc::ptr_eq(own, ticket))
    }

    /// Whoever asked for it has it from now on.
    pub(crate) fn is_taken(self: &Arc<Self>) {
        let now = self.core.now();
        let mut state = self.state();
        // An extension may have been left out.
        if state.is_left(now) && matches!(state.lease.phase(now), Phase::Held | Phase::Endangered) {
            state.lease.extend_before(now);
            self.reschedule(&mut state);
        }
        state.awaited = false;
    }

    /// Keeps the turn that led to this lease until it is over.
    pub(crate) fn keep_turn(self: &Arc<Self>, turn: Turn) {
        turn.used_for(self);
        let mut state = self.state();
        if matches!(state.lease.phase(self.core.now()), Phase::Held | Phase::Endangered) {
            state.turn = Some(turn);
        }
    }

    /// Resolves when the phase satisfies `wanted`.
    pub(crate) async fn reaches(&self, wanted: impl Fn(Phase) -> bool) {
        loop {
            let changed = self.changed.notified();
            let now = self.core.now();
            let (phase, left) = {
                let state = self.state();
                (state.lease.phase(now), state.lease.until_next_phase(now))
            };
            if wanted(phase) {
                return;
            }
            // By its own timer: the keeper ends with the client's runtime.
            match left {
                Some(left) => drop(self.core.within(left, changed).await),
                None => changed.await,
            }
        }
    }

    /// So many nodes honour the round of this ballot by now, and so many have not answered.
    pub(crate) fn voted(&self, ballot: Ballot, votes: usize, awaited: usize) {
        self.state().lease.voted(ballot, votes, awaited);
    }

    /// A majority honours `round`.
    pub(crate) fn confirmed(self: &Arc<Self>, round: &Round) {
        let &Facts { started, ballot, length, .. } = round.facts();
        let now = self.core.now();
        let mut state = self.state();
        let before = state.lease.phase(now);
        let after = state.lease.confirmed(now, started, ballot, length);
        self.core.common.use_lease(length);
        state.lease.extend_before(started + Schedule::extend_after(length).saturating_sub(self.spread(length)));
        state.fresh &= after == Phase::Pending;
        locked(&self.said).is_confirmed(ballot);
        self.reschedule(&mut state);
        drop(state);
        if before != after {
            self.changed.notify_waiters();
        }
    }

    /// What each node said to the latest message about the lease, or what is known of it.
    pub(crate) fn reports(&self, state: &State) -> Reports {
        let said = locked(&self.said).reports.clone();
        let of_latest = || state.latest.upgrade().map(|round| round.reports(None));
        said.or_else(of_latest).unwrap_or_else(|| self.core.reports(|_| None))
    }

    /// A message that was to keep the lease got no majority, and nothing more will be heard of it. The sender may have the state
    /// locked.
    pub(crate) fn failed(&self, round: &Round) {
        locked(&self.said).is_failed(round.facts().ballot, round.reports(None));
    }

    /// So much earlier than others is this lease extended: many that were granted at once are not all extended at once.
    fn spread(&self, length: Duration) -> Duration {
        // The golden ratio spreads numbers that follow each other.
        let share = (self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32;
        length / 12 * share / 256
    }

    /// A majority refuses: the lease is over.
    pub(crate) fn refused(self: &Arc<Self>, round: &Round) {
        let mut state = self.state();
        let waiting = state.fresh || state.lease.phase(self.core.now()) == Phase::Pending;
        // A lease that is being asked for is not lost by a refusal; its acquisition deals with that.
        if !waiting && state.lease.refused() {
            self.failed(round);
            self.over(state);
        }
    }

    /// A few nodes have refused what a majority honours: extends earlier than usual, when they may have become free. A
    /// node that goes on refusing is asked less and less often, after twice the time that the lease has lasted.
    pub(crate) fn extend_soon(self: &Arc<Self>) {
        let now = self.core.now();
        let mut state = self.state();
        let lasted = now.since(state.began);
        state.lease.extend_before(now + lasted.max(SOON));
        self.reschedule(&mut state);
    }

    /// Asks one node to take the lease up again.
    pub(crate) fn repair(self: &Arc<Self>, node: usize) {
        let now = self.core.now();
        let mut state = self.state();
        if matches!(state.lease.phase(now), Phase::Held | Phase::Endangered) {
            let length = state.lease.length;
            let bid = Bid::default();
            let (round, command) = hold_round(&self.core, std::slice::from_ref(self), &mut [&mut state], length, &bid);
            round.send_to(node, &command);
        }
    }

    /// Does what time has made due. Called by the keeper.
    pub(crate) fn tick(self: &Arc<Self>) {
        let now = self.core.now();
        let mut state = self.state();
        state.scheduled = None;
        let due = state.lease.due(now);
        let extend = match due {
            Due::Loss => return self.over(state),
            Due::Extension => true,
            Due::Danger { extend } => extend,
            Due::Nothing => false,
        };
        let is_under_way = state.extension.upgrade().is_some_and(|round| round.is_under_way(now));
        if extend && !is_under_way && !state.is_left(now) {
            let length = state.lease.length;
            let round = send_hold(&self.core, &[Arc::clone(self)], &mut [&mut state], length, &Bid::default());
            state.extension = Arc::downgrade(&round);
        }
        self.reschedule(&mut state);
        drop(state);
        if matches!(due, Due::Danger { .. }) {
            self.changed.notify_waiters();
        }
    }

    /// The lease was lost just now: everybody hears of it, and what may be left of it on the nodes is taken away.
    fn over(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let reports = self.reports(&state);
        locked(&self.said).is_over(reports);
        send_release(&self.core, &[Arc::clone(self)], &mut [&mut state]);
        self.reschedule(&mut state);
        let turn = state.turn.take();
        drop(state);
        drop(turn);
        self.changed.notify_waiters();
    }

    pub(crate) fn reschedule(self: &Arc<Self>, state: &mut State) {
        let due = state.lease.next_due();
        if due != state.scheduled {
            self.core.keeper.move_to(self, state.scheduled, due);
            state.scheduled = due;
        }
    }
}

/// The states of several leases at once, in an order that cannot deadlock: `leases` must be sorted by id.
pub(crate) fn lock_states(leases: &[Arc<Lease>]) -> Vec<MutexGuard<'_, State>> {
    debug_assert!(leases.is_sorted_by(|a, b| a.id < b.id));
    leases.iter().map(|lease| lease.state()).collect()
}

/// What a request offers for what it does not hold yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bid {
    /// For acquisitions, whose token it is; otherwise the round takes one of its own.
    pub(crate) ballot: Option<Ballot>,
    /// Ends of other leases that this client has waited for by its own clock.
    pub(crate) waited_for: Vec<LastEnd>,
}

/// Sends a round that says how many holds these shares have. The callers hold the states, so that two rounds of one lease
/// leave in the order in which their numbers were read.
pub(crate) fn send_hold(
    core: &Arc<Core>,
    leases: &[Arc<Lease>],
    states: &mut [&mut State],
    length: Duration,
    bid: &Bid,
) -> Arc<Round> {
    let (round, command) = hold_round(core, leases, states, length, bid);
    for state in states.iter_mut() {
        state.latest = Arc::downgrade(&round);
    }
    round.send(&command);
    round
}

fn hold_round(
    core: &Arc<Core>,
    leases: &[Arc<Lease>],
    states: &mut [&mut State],
    length: Duration,
    bid: &Bid,
) -> (Arc<Round>, Cmd) {
    let started = core.now();
    let owner = &leases[0].owner;
    let ballot = bid.ballot.unwrap_or_else(|| continued(owner, states, started));
    // After `started`, and a millisecond more than the clock shows: the nodes must not think it over before this client does.
    let shown = core.wall() / 1000 + 1 + node::millis(length);
    // For a lease that goes on it grows with every message, also for a shorter length: an end names the last message.
    let end = states.iter().filter(|state| !state.fresh).map(|state| state.end + 1).max().unwrap_or(0).max(shown);
    for state in states.iter_mut() {
        (state.sent, state.sent_at) = (ballot, started);
        state.end = state.end.max(end);
    }
    let acquires = states.iter().any(|state| state.fresh);
    let ticket = ticket_of(leases, states);
    let words = Words { owner, ballot, end, raised: end - shown };
    let command = node::hold(&entries(leases, states), &words, length, &bid.waited_for);
    let facts = Facts { started, ballot, length, acquires };
    (Round::new(core, Purpose::Hold, facts, leases.to_vec(), ticket), command)
}

/// The next ballot of leases that go on. It runs with the monotonic clock: a wall clock that is set meanwhile must not carry it to
/// where no node takes it.
fn continued(owner: &Owner, states: &[&mut State], now: Moment) -> Ballot {
    let next = |state: &&mut State| {
        let passed = u64::try_from(now.since(state.sent_at).as_micros()).unwrap_or(u64::MAX);
        Ballot::from_wire(state.sent.get().saturating_add(passed.max(1))).unwrap_or(state.sent)
    };
    let ballot = states.iter().map(next).max().unwrap_or_default();
    owner.last_ballot().fetch_max(ballot.get(), Ordering::Relaxed);
    ballot
}

/// Sends a round that takes these shares' holds away. It needs no ballot of its own: whatever of these leases may yet arrive
/// somewhere has none that is larger than the largest that was sent.
pub(crate) fn send_release(core: &Arc<Core>, leases: &[Arc<Lease>], states: &mut [&mut State]) -> Arc<Round> {
    let started = core.now();
    let ballot = largest_sent(states);
    let end = states.first().map_or(0, |state| state.end);
    let command = node::release(&entries(leases, states), &Words { owner: &leases[0].owner, ballot, end, raised: 0 });
    let facts = Facts { started, ballot, length: Duration::ZERO, acquires: false };
    let round = Round::new(core, Purpose::Release, facts, leases.to_vec(), ticket_of(leases, states));
    round.send(&command);
    round
}

/// Takes the ticket of a request that has stopped waiting for these resources from the nodes' wait queues. Where it may stand is known when the
/// message's turn comes at each of them, behind what may leave it there.
pub(crate) fn send_leave(core: &Arc<Core>, resources: &[Resource], ticket: &Arc<Ticket>) {
    let command = node::leave(resources, ticket);
    let facts = Facts { started: core.now(), ballot: Ballot::ZERO, length: Duration::ZERO, acquires: false };
    Round::new(core, Purpose::Leave, facts, Vec::new(), Some(Arc::clone(ticket))).send(&command);
}

/// Of the request that asks for those of the leases that are not granted yet.
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
        fresh: state.fresh,
        ticket: lease.ticket.as_deref(),
    };
    pairs.map(entry).collect()
}
