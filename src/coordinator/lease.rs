//! A lease in use: the pure [state](protocol::LeaseState) behind a lock, and what its changes set in motion.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures::future::select;
use tokio::sync::Notify;

use super::core::Core;
use super::reasons::Reasons;
use super::watchdog::LONGEST_NAP;
use crate::environment::Moment;
use crate::error::{Answer, Holder, NodeReport, Reports};
use crate::node::Facts;
use crate::owner::Owner;
use crate::protocol::{self, Ballot, Phase, Schedule, Share, Token};
use crate::resource::Resource;
use crate::sync::locked;
use crate::telemetry::{Event, Extension, LossCause, lock_name};
use crate::waiting::{Ticket, Turn};

/// How soon after a contested acquisition the nodes that refused get an extension.
const CONTESTED_EXTENSION_DELAY: Duration = Duration::from_millis(5);
/// How often the time to the next early extension is doubled at most.
const MOST_DOUBLINGS: u32 = 10;

/// A message that was sent for a lease, as the lease looks back at it.
pub(super) trait Message: Send + Sync {
    /// Returns whether the same message, sent again now, would only be queued behind it: it waits in this client's own queues,
    /// where no majority can have answered it, or at nodes that still have time to answer.
    fn is_under_way(&self, now: Moment) -> bool;

    /// What each node has answered, or what is known of the node.
    fn reports(&self) -> Reports;
}

/// One resource held, or asked for, by one owner in this process. All its guards share it.
pub(crate) struct Lease {
    pub(crate) core: Arc<Core>,
    /// Tells leases apart in the watchdog's calendar, orders their locks, and makes their shares differ.
    pub(crate) id: u64,
    pub(crate) resource: Resource,
    pub(crate) owner: Owner,
    /// Of a join: the share that was exported to it.
    pub(super) exporter: Option<Share>,
    state: Mutex<State>,
    reasons: Mutex<Reasons>,
    /// The phase changed.
    pub(super) changed: Notify,
    /// One bit for each node that was sent something that may have left a key.
    sent_to: AtomicU64,
    /// The ticket of the request that asks, or asked, for it. The end of the lease takes it from the nodes' wait queues.
    pub(super) ticket: Option<Arc<Ticket>>,
}

pub(crate) struct State {
    pub(crate) lease: protocol::LeaseState,
    /// Not confirmed yet, and to be acquired anew.
    pub(crate) fresh: bool,
    /// The largest ballot that was sent for it, confirmed or not.
    pub(crate) sent: Ballot,
    /// The ballot from which the next one runs with the monotonic clock, and since when: the last that a majority has honoured, or that
    /// was sent to go on.
    pub(super) runs_from: (Ballot, Moment),
    /// The next ballot is above this one, which a node has met.
    pub(super) above: Ballot,
    /// How often the lease has been extended early to go above a ballot, since all nodes have honoured it.
    overtakes: u32,
    /// The latest end that was sent for it: of this machine's wall clock, in ms.
    pub(super) end: u64,
    /// The request that asked for it has not returned its guard yet.
    awaited: bool,
    /// The latest extension that was sent.
    pub(super) extension: Option<Weak<dyn Message>>,
    /// The moment at which the watchdog's calendar has it.
    pub(super) scheduled: Option<Moment>,
    /// Lets the next one in this process ask for the resource when the lease is over.
    pub(crate) turn: Option<Turn>,
    began: Moment,
    /// Since when a guard has held it. `None` again when its end has been reported.
    held_since: Option<Moment>,
    /// The latest hold message, as long as answers are awaited.
    pub(super) latest: Option<Weak<dyn Message>>,
}

impl State {
    /// Lets the next ballot run from this one, unless it runs from a larger one already.
    pub(super) fn runs_from(&mut self, ballot: Ballot, since: Moment) {
        if ballot > self.runs_from.0 {
            self.runs_from = (ballot, since);
        }
    }

    /// Takes the time for which a guard has held the lease, which is over now. `None` if none has, or if the end was reported.
    pub(super) fn take_held(&mut self, now: Moment) -> Option<Duration> {
        self.held_since.take().map(|since| now.since(since))
    }

    /// Returns whether a guard holds the lease.
    pub(super) fn is_held(&self) -> bool {
        self.held_since.is_some()
    }

    /// Returns whether the task of the request has not run for so long that it may never run again. Then the lease is not
    /// extended.
    pub(super) fn is_left(&self, now: Moment) -> bool {
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
        lease: protocol::LeaseState,
        exporter: Option<Share>,
        ticket: Option<Arc<Ticket>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::clone(core),
            id: core.next_id(),
            resource,
            owner,
            exporter,
            state: Mutex::new(State {
                sent: lease.known,
                runs_from: (lease.known, core.now()),
                above: Ballot::ZERO,
                overtakes: 0,
                end: 0,
                lease,
                fresh: exporter.is_none(),
                awaited: true,
                extension: None,
                scheduled: None,
                turn: None,
                began: core.now(),
                held_since: None,
                latest: None,
            }),
            reasons: Mutex::default(),
            changed: Notify::new(),
            sent_to: AtomicU64::new(0),
            ticket,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Locks the state, and returns it with the time: read after the lock, so it never runs backwards for the state.
    pub(super) fn state_now(&self) -> (MutexGuard<'_, State>, Moment) {
        let state = self.state();
        let now = self.core.now();
        (state, now)
    }

    /// Returns the share of this client in it.
    pub(crate) fn share(&self) -> Share {
        Share { client: self.core.common.client, lease: self.id }
    }

    pub(crate) fn phase(&self) -> Phase {
        let (state, now) = self.state_now();
        state.lease.phase(now)
    }

    pub(crate) fn mark_sent(&self, node: usize) {
        self.sent_to.fetch_or(1 << node, Ordering::Relaxed);
    }

    /// Notes that this node refused the acquisition, so there is nothing to release there.
    pub(crate) fn left_nothing_on(&self, node: usize) {
        // For any other lease another message may be under way to the node.
        if self.state().fresh {
            self.sent_to.fetch_and(!(1 << node), Ordering::Relaxed);
        }
    }

    /// Returns whether this node may hold something of it that a release takes away. A ticket keeps its place while its request
    /// tries again.
    pub(crate) fn may_hold_state(&self, node: usize) -> bool {
        let is_queued = || self.ticket.as_ref().is_some_and(|ticket| ticket.may_be_on(node)) && !self.state().fresh;
        self.sent_to.load(Ordering::Relaxed) & (1 << node) != 0 || is_queued()
    }

    /// Returns whether its end takes this ticket from the wait queues.
    pub(crate) fn has(&self, ticket: &Arc<Ticket>) -> bool {
        self.ticket.as_ref().is_some_and(|own| Arc::ptr_eq(own, ticket))
    }

    /// Notes that the request that asked for it returns its guard now.
    pub(crate) fn is_taken(self: &Arc<Self>) {
        let (mut state, now) = self.state_now();
        // The watchdog may have left out an extension.
        if state.is_left(now) && matches!(state.lease.phase(now), Phase::Held | Phase::Endangered) {
            state.lease.extend_before(now);
            self.reschedule(&mut state);
        }
        state.awaited = false;
        // Otherwise it is over, and its end is not reported any more.
        if !state.is_held() && state.lease.next_due().is_some() {
            self.core.common.telemetry.count_lease();
            state.held_since = Some(now);
            drop(state);
            self.core.common.telemetry.lease_begins(&self.resource);
        }
    }

    /// Reports that the end of its validity is near.
    pub(super) fn report_endangered(&self, token: Token, left: Duration, nodes: &Reports) {
        let (lock, owner) = (lock_name(&self.resource), &self.owner);
        self.core.common.telemetry.emit(&Event::Endangered { lock, owner, token, left, nodes });
    }

    /// Reports that it was lost `held` after the grant.
    pub(super) fn report_loss(&self, token: Token, cause: LossCause, held: Duration, nodes: &Reports) {
        let says_revoked =
            |report: &NodeReport| matches!(report.answer, Answer::Held { by: Holder::Revoked { .. }, .. });
        let is_revoked = cause == LossCause::Refused && nodes.0.iter().any(says_revoked);
        let cause = if is_revoked { LossCause::Revoked } else { cause };
        let (lock, owner) = (lock_name(&self.resource), &self.owner);
        self.core.common.telemetry.emit(&Event::Lost { lock, owner, token, cause, held, nodes });
    }

    /// Reports how an extension ended, unless the lease has ended meanwhile. Does not wait for the state, which the sender may have
    /// locked.
    pub(super) fn report_extension(&self, extension: &Extension<'_>) {
        if !self.state.try_lock().is_ok_and(|state| !state.is_held()) {
            self.core.common.telemetry.extension(&self.resource, &self.owner, extension);
        }
    }

    /// Reports that it was given back at `now`, or that it had been lost before without being noticed.
    pub(super) fn report_end(&self, now: Moment) {
        let mut state = self.state();
        let Some(held) = state.take_held(now) else { return };
        let token = state.lease.token;
        if state.lease.is_spent(now) {
            let nodes = self.reports(&state);
            drop(state);
            return self.report_loss(token, LossCause::Expired, held, &nodes);
        }
        drop(state);
        let (lock, owner) = (lock_name(&self.resource), &self.owner);
        self.core.common.telemetry.emit(&Event::Released { lock, owner, token, held });
    }

    /// Keeps the turn that led to this lease until it is over.
    pub(crate) fn keep_turn(self: &Arc<Self>, turn: Turn) {
        let mut state = self.state();
        if matches!(state.lease.phase(self.core.now()), Phase::Held | Phase::Endangered) {
            state.turn = Some(turn);
        }
    }

    /// Resolves when the phase satisfies `wanted`.
    pub(crate) async fn reaches(&self, wanted: impl Fn(Phase) -> bool) {
        loop {
            let changed = self.changed.notified();
            let (phase, left) = {
                let (state, now) = self.state_now();
                (state.lease.phase(now), state.lease.until_next_phase(now))
            };
            if wanted(phase) {
                return;
            }
            // By a timer of its own: the watchdog ends with the client's runtime. From then on it looks again after a nap, as a timer
            // stands still while the machine is suspended.
            let life = &self.core.common.life;
            let has_ended = life.has_ended();
            let told = async {
                if has_ended {
                    changed.await;
                } else {
                    select(pin!(changed), pin!(life.ended())).await;
                }
            };
            match left {
                Some(left) => {
                    let nap = if has_ended { left.min(LONGEST_NAP) } else { left };
                    let _ = self.core.within(nap, told).await;
                }
                None => told.await,
            }
        }
    }

    /// Records how many nodes honour the round of this ballot by now, and how many have not answered.
    pub(crate) fn voted(&self, ballot: Ballot, votes: usize, awaited: usize) {
        let mut state = self.state();
        if votes == self.core.nodes.len() {
            state.overtakes = 0;
        }
        state.lease.voted(ballot, votes, awaited);
    }

    /// Records that a majority honours the round with these facts.
    pub(super) fn confirmed(self: &Arc<Self>, &Facts { started, ballot, length, acquires }: &Facts) {
        let (mut state, now) = self.state_now();
        let before = state.lease.phase(now);
        let after = state.lease.confirmed(now, started, ballot, length);
        state.runs_from(ballot, started);
        self.core.common.use_lease(length);
        state.lease.extend_before(started + Schedule::extend_after(length).saturating_sub(self.spread(length)));
        state.fresh &= after == Phase::Pending;
        locked(&self.reasons).is_confirmed(started);
        self.reschedule(&mut state);
        let is_extended = !acquires && state.is_held() && matches!(after, Phase::Held | Phase::Endangered);
        let votes = state.lease.votes();
        drop(state);
        if before != after {
            self.changed.notify_waiters();
        }
        if is_extended {
            let margin = votes.saturating_sub(self.core.settings.quorum);
            self.report_extension(&Extension::Confirmed { margin });
        }
    }

    /// Returns what each node answered to the latest message about the lease, or what is known of the node. Of a lease that is
    /// over these are the same from the first call on.
    pub(crate) fn reports(&self, state: &State) -> Reports {
        let known = locked(&self.reasons).reports.clone();
        let of_latest = || state.latest.as_ref().and_then(Weak::upgrade).map(|message| message.reports());
        let reports = known.or_else(of_latest).unwrap_or_else(|| self.core.reports(|_| None));
        if state.lease.phase(self.core.now()) == Phase::Lost {
            self.lost(reports.clone());
        }
        reports
    }

    /// Records that the hold message that was sent then got no majority, and that no further answer to it comes. Does not lock the
    /// state, which the sender may have locked.
    pub(super) fn failed(&self, sent: Moment, reports: Reports) {
        locked(&self.reasons).is_failed(sent, reports);
    }

    /// Records why the lease is lost.
    pub(super) fn lost(&self, reports: Reports) {
        locked(&self.reasons).is_over(reports);
    }

    /// Returns by how much this lease is extended earlier than others: many that were granted at once are not all extended at once.
    fn spread(&self, length: Duration) -> Duration {
        // The golden ratio spreads numbers that follow each other.
        let share = (self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32;
        length / 12 * share / 256
    }

    /// Extends earlier than usual, as a few nodes have refused what a majority honours, and may become free soon. A node that goes
    /// on refusing is asked less and less often: each time when the lease has lasted twice as long.
    pub(crate) fn extend_soon(self: &Arc<Self>) {
        let (mut state, now) = self.state_now();
        let lasted = now.since(state.began);
        state.lease.extend_before(now + lasted.max(CONTESTED_EXTENSION_DELAY));
        self.reschedule(&mut state);
    }

    /// Extends earlier than usual, with a ballot above this one, which a node without a key of the lease has met. When a majority has
    /// confirmed that, the node can be repaired. A ballot that is far ahead of the nodes' clocks is left alone: nodes whose clocks are
    /// right would take none above it. A node that goes on naming newer ones is followed less and less often.
    pub(crate) fn overtake(self: &Arc<Self>, ballot: Ballot) {
        if !self.core.may_overtake(ballot) {
            return;
        }
        let (mut state, now) = self.state_now();
        state.above = state.above.max(ballot);
        let wait = Schedule::retry_after(state.lease.length).saturating_mul(1 << state.overtakes.min(MOST_DOUBLINGS));
        state.overtakes = state.overtakes.saturating_add(1);
        state.lease.extend_before(now + wait);
        self.reschedule(&mut state);
    }

    /// Moves its entry in the watchdog's calendar to what is due next.
    pub(crate) fn reschedule(self: &Arc<Self>, state: &mut State) {
        let due = state.lease.next_due();
        if due != state.scheduled {
            self.core.watchdog.move_to(self.id, self, state.scheduled, due);
            state.scheduled = due;
        }
    }
}

/// Locks the states of several leases, in an order that cannot deadlock: `leases` must be sorted by id.
pub(crate) fn lock_states(leases: &[Arc<Lease>]) -> Vec<MutexGuard<'_, State>> {
    debug_assert!(leases.is_sorted_by(|a, b| a.id < b.id));
    leases.iter().map(|lease| lease.state()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use futures::FutureExt as _;

    use super::super::fake::{LEASE, confirm, core, core_in, lease, resource};
    use super::super::watchdog::Tick as _;
    use super::*;
    use crate::environment::{Connecting, Environment, Fake};
    use crate::error::{Answer, NodeReport};

    /// A clock that tells whether it was read while the state of this lease was not locked.
    #[derive(Debug)]
    struct Watching {
        clock: Fake,
        lease: OnceLock<Arc<Lease>>,
        too_early: AtomicU64,
    }

    impl Environment for Watching {
        fn now(&self) -> Moment {
            if self.lease.get().is_some_and(|lease| lease.state.try_lock().is_ok()) {
                self.too_early.fetch_add(1, Ordering::Relaxed);
            }
            self.clock.now()
        }

        fn wall(&self) -> Duration {
            self.clock.wall()
        }

        fn fill(&self, bytes: &mut [u8]) {
            self.clock.fill(bytes);
        }

        fn connect<'a>(&'a self, address: &'a redis::ConnectionAddr) -> Connecting<'a> {
            self.clock.connect(address)
        }
    }

    /// Otherwise one that was seen as lost could be confirmed by an older time.
    #[tokio::test(start_paused = true)]
    async fn the_clock_is_read_once_the_state_of_the_lease_is_locked() {
        let (clock, _streams) = Fake::new();
        let environment = Arc::new(Watching { clock, lease: OnceLock::new(), too_early: AtomicU64::new(0) });
        let core = core_in(Arc::clone(&environment) as Arc<dyn Environment>, 3, LEASE);
        let lease = lease(&core, &resource("a"), &Owner::new());
        let facts = Facts { started: core.now(), ballot: lease.state().sent, length: LEASE, acquires: true };
        assert!(environment.lease.set(Arc::clone(&lease)).is_ok());
        lease.confirmed(&facts);
        lease.is_taken();
        assert_eq!(lease.phase(), Phase::Held);
        lease.extend_soon();
        Arc::clone(&lease).tick();
        assert_eq!(environment.too_early.load(Ordering::Relaxed), 0);
    }

    fn said(answer: Answer) -> Reports {
        Reports(vec![NodeReport { node: "node".to_owned(), answer }])
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_may_hold_what_it_was_sent_unless_it_refused_the_acquisition() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        let nodes = |lease: &Lease| [0, 1, 2].map(|node| lease.may_hold_state(node));
        assert_eq!(nodes(&lease), [false; 3]);
        lease.mark_sent(1);
        lease.mark_sent(2);
        assert_eq!(nodes(&lease), [false, true, true]);
        lease.left_nothing_on(2);
        assert_eq!(nodes(&lease), [false, true, false]);
        confirm(&lease);
        lease.left_nothing_on(1);
        assert_eq!(nodes(&lease), [false, true, false], "another message may be under way to it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_lease_takes_back_its_ticket_once_it_was_granted() {
        let (core, _streams) = core(3);
        let (owner, ticket) = (Owner::new(), core.ticket_since(None));
        let pending = lease(&core, &resource("a"), &owner).state().lease.clone();
        let lease = Lease::new(&core, resource("a"), owner, pending, None, Some(Arc::clone(&ticket)));
        assert!(lease.has(&ticket) && !lease.has(&core.ticket_since(None)));
        ticket.leave_on(1);
        assert!(!lease.may_hold_state(1), "its request tries again with it");
        confirm(&lease);
        assert_eq!([0, 1, 2].map(|node| lease.may_hold_state(node)), [false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_wakes_its_waiters() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        let mut held = Box::pin(lease.reaches(|phase| phase == Phase::Held));
        assert_eq!((&mut held).now_or_never(), None);
        confirm(&lease);
        assert_eq!(held.now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_is_explained_by_what_the_nodes_answered_last() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        let reports = || lease.reports(&lease.state());
        assert_eq!(reports(), core.reports(|_| None));
        lease.failed(core.now(), said(Answer::Stale));
        assert_eq!(reports(), said(Answer::Stale));
        lease.lost(said(Answer::Gone));
        assert_eq!(reports(), said(Answer::Gone));
    }

    /// A caller may notice the end before it is recorded.
    #[tokio::test(start_paused = true)]
    async fn the_reports_of_a_loss_do_not_change() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        confirm(&lease);
        let reports = || lease.reports(&lease.state());
        lease.state().lease.refused();
        assert_eq!(lease.phase(), Phase::Lost);
        let heard = reports();
        lease.failed(core.now() + LEASE, said(Answer::Stale));
        assert_eq!(reports(), heard);
    }

    #[tokio::test(start_paused = true)]
    async fn the_votes_of_the_latest_ballot_are_known() {
        let (core, _streams) = core(3);
        let lease = lease(&core, &resource("a"), &Owner::new());
        confirm(&lease);
        let ballot = lease.state().sent;
        lease.voted(ballot, 3, 0);
        assert_eq!(lease.state().lease.votes(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_of_one_moment_are_extended_at_different_times() {
        let (core, _streams) = core(3);
        let owner = Owner::new();
        let spreads = [(); 3].map(|()| lease(&core, &resource("a"), &owner).spread(12 * Duration::from_millis(256)));
        // The share is 256 times the fraction of a multiple of the golden ratio.
        assert_eq!(spreads, [0, 158, 60].map(Duration::from_millis));
        assert_eq!(LEASE / 12 * 158 / 256, lease_of(1, &core).spread(LEASE));
    }

    fn lease_of(id: u64, core: &Arc<Core>) -> Arc<Lease> {
        let mut lease = lease(core, &resource("a"), &Owner::new());
        Arc::get_mut(&mut lease).expect("the only one").id = id;
        lease
    }
}
