//! The tries of one request. Each sends a round, and learns from its replies what the next one must offer.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};
use futures::poll;
use tokio::sync::futures::OwnedNotified;
use tracing::Instrument as _;

use super::handle::Handle;
use super::holds::Holds;
use super::lease::{Lease, lock_states};
use super::registry::{Reservation, Reserved};
use super::retry::Retry;
use super::round::Round;
use super::send::{Bid, send_hold};
use super::waiter::Waiter;
use crate::environment::Moment;
use crate::error::{AcquireError, ClientError, Holder, OwnHold, Reports};
use crate::export::ExportedLease;
use crate::node::{LastEnd, LastOf};
use crate::owner::{Owner, is_of_this_process};
use crate::protocol::{self, Ballot, Phase, RetryAdvice, VoteResult};
use crate::resource::Resource;
use crate::telemetry::RequestReport;
use crate::waiting::Ticket;

mod explain;

/// How many ends of leases a request names to the nodes at most: the latest ones.
const MOST_ENDS: usize = 32;

/// How long after the wait for it a time of a node is named to that node. Then the node's next answer begins another wait.
const WORD_TAKEN_FOR: Duration = Duration::from_secs(60);

/// A checked request: what all its tries have in common.
#[derive(Clone)]
pub(crate) struct Attempt {
    /// Sorted.
    resources: Arc<[Resource]>,
    first: Resource,
    owner: Owner,
    lease: Duration,
}

/// What a try offers that the tries before have learnt.
#[derive(Clone, Debug, Default)]
struct Offer {
    /// The ballot must be above this one.
    above: Ballot,
    /// Ends of leases that were not released, each with the moment from which on it has been waited for long enough.
    ends: Vec<(LastEnd, Moment)>,
}

impl Offer {
    /// Records how long these leases may be in force. Returns the longest of these times, from now. An end that is known
    /// already keeps its moment, although the node names the full time again. So does what a node may have forgotten, for which
    /// it names its time of each answer: it takes the first one for a minute after the wait, at least.
    fn learn(&mut self, now: Moment, ends: Vec<(LastEnd, Duration)>) -> Option<Duration> {
        let mut longest = None;
        for (end, left) in ends {
            // Not where the node's clock has leapt since.
            let is_taken = |known: &LastEnd, over: Moment| {
                let passed = (now + left).since(over).max(over.since(now + left));
                let shown = Duration::from_millis(known.end.abs_diff(end.end));
                now.since(over) < WORD_TAKEN_FOR && passed.abs_diff(shown) < WORD_TAKEN_FOR
            };
            self.ends.retain(|(known, over)| !is_same_word(known, &end) || is_taken(known, *over));
            let is_known = |known: &LastEnd| *known == end || is_same_word(known, &end);
            let known = self.ends.iter().find(|(known, _)| is_known(known)).map(|(_, over)| *over);
            let over = known.unwrap_or_else(|| {
                if self.ends.len() == MOST_ENDS {
                    self.ends.remove(0);
                }
                self.ends.push((end, now + left));
                now + left
            });
            longest = longest.max(Some(over.since(now)));
        }
        longest
    }

    fn waited_for(&self, now: Moment) -> Vec<LastEnd> {
        self.ends.iter().filter(|(_, over)| *over < now).map(|(end, _)| *end).collect()
    }
}

/// Returns whether both are about what one node may have forgotten.
fn is_same_word(one: &LastEnd, other: &LastEnd) -> bool {
    matches!(one.of, LastOf::Word(_)) && one.of == other.of
}

/// A round that has been sent.
struct Begun {
    holds: Holds,
    round: Arc<Round>,
    /// Dropped after the holds, so the next try of the same owner is sent behind their release.
    reservation: Reservation,
}

/// Why a try failed, and what may help.
type Failed = (AcquireError, RetryAdvice);

impl Attempt {
    /// `resources` are sorted; `first` is the one that was named first.
    pub(crate) fn new(resources: Vec<Resource>, first: Resource, owner: Owner, lease: Duration) -> Self {
        Self { resources: resources.into(), first, owner, lease }
    }

    /// Tries until the request is decided, or the client can be used no more.
    pub(crate) async fn compete(&self, handle: &Arc<Handle>, retry: Retry) -> Result<Holds, AcquireError> {
        let core = &handle.core;
        let mut report = core.common.telemetry.request(&self.resources, &self.owner, retry.limit(), core.now());
        let span = report.span();
        let result = self.until_decided(handle, retry, &mut report).instrument(span).await;
        match &result {
            Ok(holds) => report.granted(holds.granted()),
            Err(error) => report.refused(error),
        }
        result
    }

    async fn until_decided(
        &self,
        handle: &Arc<Handle>,
        retry: Retry,
        report: &mut RequestReport<'_>,
    ) -> Result<Holds, AcquireError> {
        let core = &handle.core;
        let competing = pin!(self.try_until_granted(handle, retry, report));
        match select(competing, pin!(core.common.life.ended())).await {
            Either::Left((Ok(holds), _)) => Ok(holds),
            Either::Left((Err(error), _)) => Err(core.check().map_or_else(Into::into, |()| error)),
            Either::Right(_) => Err(ClientError::RuntimeEnded.into()),
        }
    }

    async fn try_until_granted(
        &self,
        handle: &Arc<Handle>,
        mut retry: Retry,
        report: &mut RequestReport<'_>,
    ) -> Result<Holds, AcquireError> {
        let core = &handle.core;
        let mut waiter = Waiter::new(core, &self.resources, !retry.policy.is_once());
        let mut offer = Offer::default();
        loop {
            core.check()?;
            report.round();
            let (error, advice) = match self.make(handle, &mut offer, &mut retry, &mut waiter).await {
                Ok(holds) => return Ok(holds),
                Err(failed) => failed,
            };
            offer.above = if let RetryAdvice::Above(floor) = advice { floor } else { Ballot::ZERO };
            waiter.failed(advice);
            let answered = retry.wait_after(core, self.lease, error, advice, waiter.ticket()).await?;
            waiter.takes_turns(answered);
        }
    }
}

#[expect(clippy::result_large_err, reason = "the error of a try is the error of the request, and seldom moved")]
impl Attempt {
    /// Sends one round and waits for its result. When that fails, or the future is dropped, the drop of the holds releases what
    /// the round has left on the nodes.
    async fn make(
        &self,
        handle: &Arc<Handle>,
        offer: &mut Offer,
        retry: &mut Retry,
        waiter: &mut Waiter<'_>,
    ) -> Result<Holds, Failed> {
        let core = &handle.core;
        let longest = core.common.learnt_lease();
        let begun = loop {
            let reserved = self.reserve(handle, retry).await?;
            let begun = if self.acquires(&reserved.1) {
                if let Err(done) = waiter.wait_alone(&handle.registry, &self.owner) {
                    drop(reserved);
                    retry.has_met(self.not_our_turn(handle));
                    self.until_ended(done, handle, retry).await?;
                    continue;
                }
                waiter.begin_try();
                self.begin_in_turn(handle, reserved, offer, retry, waiter).await
            } else {
                self.begin(handle, reserved, offer, None)
            };
            if let Some(begun) = begun? {
                break begun;
            }
        };
        let Begun { holds, round, .. } = &begun;
        let limit = retry.policy.limit(core.now(), core.settings.node_timeout(self.lease));
        let verdict = round.decided_within(limit).await;
        let acquires = round.facts().acquires;
        let has_learnt = core.common.learnt_lease() != longest
            && core.common.nodes_differ_on_leases()
            && round.agreed() & core.common.quarantined() != 0;
        if verdict == VoteResult::Won && acquires && has_learnt {
            // A node has reported longer leases meanwhile: the quarantine of a node that granted may have to last longer.
            let resource = self.first.to_string();
            return Err((
                AcquireError::Contended { resource, nodes: round.reports(None) },
                RetryAdvice::Above(Ballot::ZERO),
            ));
        }
        if verdict == VoteResult::Won && !holds.remaining().is_zero() {
            core.common.reachability.majority_answered();
            waiter.granted(holds.leases());
            begun.reservation.fulfil(begun.holds.leases().iter());
            return Ok(begun.holds);
        }
        let waits = offer.learn(core.now(), round.last_ends());
        let (error, advice) = self.explain(core, holds, round, verdict, limit);
        if !matches!(advice, RetryAdvice::WhenAnswered) {
            core.common.reachability.majority_answered();
        }
        Err((error, advice.within(waits)))
    }

    async fn reserve(&self, handle: &Arc<Handle>, retry: &Retry) -> Result<Reserved, Failed> {
        loop {
            match handle.registry.reserve(&self.owner, &self.resources) {
                Ok(reserved) => return Ok(reserved),
                Err(done) => self.until_ended(done, handle, retry).await?,
            }
        }
    }

    /// Waits until another request of the owner has ended, or has ended its try.
    async fn until_ended(&self, done: OwnedNotified, handle: &Handle, retry: &Retry) -> Result<(), Failed> {
        let core = &handle.core;
        let contended = || AcquireError::Contended { resource: self.first.to_string(), nodes: Reports(Vec::new()) };
        match retry.policy.left(core.now()) {
            None => done.await,
            Some(left) => core.within(left, done).await.ok_or_else(|| (contended(), RetryAdvice::Later))?,
        }
        Ok(())
    }

    /// Returns whether a resource is neither held already nor to be joined.
    fn acquires(&self, held: &[Option<Arc<Lease>>]) -> bool {
        let mut missing = self.resources.iter().zip(held).filter(|(_, lease)| lease.is_none());
        missing.any(|(resource, _)| self.inherited(resource).is_none())
    }

    fn inherited(&self, resource: &Resource) -> Option<&ExportedLease> {
        self.owner.inherited().and_then(|export| export.lease(resource))
    }

    /// Sends the round when it is this request's turn in this process. `None` also when the turn was lost.
    async fn begin_in_turn(
        &self,
        handle: &Arc<Handle>,
        reserved: Reserved,
        offer: &Offer,
        retry: &mut Retry,
        waiter: &mut Waiter<'_>,
    ) -> Result<Option<Begun>, Failed> {
        let core = &handle.core;
        let start = {
            let (attempt, handle, offer) = (self.clone(), Arc::clone(handle), offer.clone());
            move |ticket: Option<&Arc<Ticket>>| attempt.begin(&handle, reserved, &offer, ticket)
        };
        let mut begun = pin!(waiter.in_turn(start));
        if let Poll::Ready(begun) = poll!(&mut begun) {
            return begun.unwrap_or(Ok(None));
        }
        // This is also the error when the turn comes too late for a reply.
        retry.has_met(self.not_our_turn(handle));
        let begun = match retry.policy.left(core.now()) {
            None => begun.await,
            Some(left) => {
                let in_time = core.within(left, begun).await;
                in_time.ok_or_else(|| (self.not_our_turn(handle), RetryAdvice::Later))?
            }
        };
        begun.unwrap_or(Ok(None))
    }

    /// Returns whether this holder is the request's own owner, or another owner of this process.
    fn own_hold(&self, by: &Holder) -> Option<OwnHold> {
        match by {
            Holder::Owner { id, .. } if **id == *self.owner.fingerprint() => Some(OwnHold::Owner),
            Holder::Owner { label, .. } if is_of_this_process(label) => Some(OwnHold::Process),
            _ => None,
        }
    }

    /// Returns the error of a request while another one of this process has the lock, or is asking for it.
    fn not_our_turn(&self, handle: &Handle) -> AcquireError {
        let (resource, nodes) = (self.first.to_string(), Reports(Vec::new()));
        let Some(lease) = handle.registry.in_force(&self.first) else {
            return AcquireError::Contended { resource, nodes };
        };
        let state = lease.state();
        let by = Holder::Owner {
            label: lease.owner.label().to_owned(),
            id: lease.owner.fingerprint().into(),
            token: state.lease.token,
        };
        let own = Some(OwnHold::Process);
        AcquireError::Held { resource, by, free_in: Some(state.lease.remaining(handle.core.now())), own, nodes }
    }

    /// Sends the round. `None` when a lease that was to be entered was released meanwhile: reserve again.
    fn begin(
        &self,
        handle: &Arc<Handle>,
        (reservation, held): Reserved,
        offer: &Offer,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<Option<Begun>, Failed> {
        let core = &handle.core;
        let now = core.now();
        let mut free: Vec<&Resource> = self
            .resources
            .iter()
            .zip(&held)
            .filter(|(_, lease)| lease.is_none())
            .map(|(resource, _)| resource)
            .collect();
        free.sort_by_key(|resource| !ticket.is_some_and(|ticket| ticket.asks_first_for(resource)));
        let mut entered: Vec<Arc<Lease>> = held.into_iter().flatten().collect();
        entered.sort_unstable_by_key(|lease| lease.id);

        let created: Vec<Arc<Lease>>;
        let mut states = lock_states(&entered);
        let mut above = offer.above;
        for (lease, state) in entered.iter().zip(&states) {
            // A later lease of the same owner is not the one that was exported, which is over.
            if self.inherited(&lease.resource).is_some_and(|theirs| theirs.token != state.lease.token) {
                return Err(lost(&lease.resource, lease.reports(state)));
            }
            match state.lease.phase(now) {
                Phase::Held | Phase::Endangered => above = above.max(state.sent),
                Phase::Lost => return Err(lost(&lease.resource, lease.reports(state))),
                Phase::Pending | Phase::Released => return Ok(None),
            }
        }
        let known = free.iter().filter_map(|resource| self.inherited(resource)).map(|lease| lease.known);
        let ballot = core.propose_above(&self.owner, known.fold(above, Ballot::max));
        // New leases have larger ids than all before, so the order by id holds.
        let create = |resource: &Resource| {
            let exported = self.inherited(resource);
            // Joining must not revive an expired lease. With `known = 0` no node recreates a missing key until a majority has
            // confirmed the lease.
            let (token, known) = exported.map_or((ballot.into(), ballot), |lease| (lease.token, Ballot::ZERO));
            let lease = protocol::LeaseState::pending(token, known, self.lease, core.settings.schedule, now);
            let ticket = ticket.filter(|_| exported.is_none()).cloned();
            Lease::new(core, resource.clone(), self.owner.clone(), lease, exported.map(|lease| lease.share), ticket)
        };
        created = free.into_iter().map(create).collect();
        states.extend(lock_states(&created));

        let leases: Vec<Arc<Lease>> = entered.iter().chain(&created).cloned().collect();
        let holds = Holds::enter(Arc::clone(handle), leases, &mut states, self.first.clone());
        let mut borrowed = states.iter_mut().map(|state| &mut **state).collect::<Vec<_>>();
        let bid = Bid { ballot: Some(ballot), waited_for: offer.waited_for(now) };
        let round = send_hold(core, holds.leases(), &mut borrowed, self.lease, &bid);
        Ok(Some(Begun { holds, round, reservation }))
    }
}

fn lost(resource: &Resource, nodes: Reports) -> Failed {
    (AcquireError::Lost { resource: resource.to_string(), nodes }, RetryAdvice::Never)
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::super::fake::{LEASE, core, resource};
    use super::*;
    use crate::error::Answer;
    use crate::node::fake::Server;
    use crate::node::{Refusal, Vote, parse_hold};
    use crate::protocol::Outage;

    const SECOND: Duration = Duration::from_secs(1);

    /// Asks three nodes once, which give these answers to the first message. Returns the result, and how many further messages
    /// acquire.
    async fn ask(answers: [&str; 3]) -> (Result<Holds, AcquireError>, usize) {
        ask_with(answers, &[]).await
    }

    /// The same, where these nodes have had a quarantine.
    async fn ask_with(answers: [&str; 3], quarantined: &[usize]) -> (Result<Holds, AcquireError>, usize) {
        let (core, mut streams) = core(3);
        let owner = Owner::new();
        let mut servers = Vec::new();
        for number in 0..answers.len() {
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet_as(number, 3).await;
            servers.push(server);
        }
        core.sleep(Duration::from_millis(1)).await;
        let handle = Handle::new(core);
        let now = handle.core.now();
        for node in quarantined {
            handle.core.common.has_quarantine(*node, true);
        }
        let attempt = Attempt::new(vec![resource("a")], resource("a"), owner, LEASE);
        let competing = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move { attempt.compete(&handle, Retry::once(now)).await }
        });
        let mut acquires = String::new();
        for server in &mut servers {
            acquires = server.command().await.expect("a command").swap_remove(1);
        }
        for (server, answer) in servers.iter_mut().zip(answers) {
            server.reply(answer).await;
        }
        let mut again = 0;
        while let Ok(Some(command)) = tokio::time::timeout(SECOND / 10, servers[1].command()).await {
            again += usize::from(command[1] == acquires);
            for server in &mut servers {
                server.reply(":1\r\n").await;
            }
        }
        (competing.await.expect("no panic"), again)
    }

    const GRANTED: &str = ":1\r\n";
    /// Granted by a record whose longest lease is twice that of the other nodes.
    const GRANTED_BY_LONGER: &str = "*2\r\n:1\r\n$41\r\n00000000000000af 20000 0 0 300000 - 1 abc\r\n";
    const HELD: &str = "*5\r\n:2\r\n:1790000000000000\r\n:1\r\n:1500\r\n$1\r\nx\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_shows_longer_leases_than_were_known_is_acquired_anew() {
        let (granted, again) = ask([GRANTED, GRANTED, GRANTED]).await;
        assert_eq!((granted.is_ok(), again), (true, 0));
        for (quarantined, tries) in [(&[][..], 0), (&[1], 1), (&[0, 2], 1)] {
            let (granted, again) = ask_with([GRANTED_BY_LONGER, GRANTED, GRANTED], quarantined).await;
            assert_eq!((granted.is_ok(), again), (true, tries), "{quarantined:?}");
        }
        let (refused, again) = ask_with([GRANTED_BY_LONGER, HELD, HELD], &[0, 1, 2]).await;
        assert!(matches!(refused, Err(AcquireError::Held { .. })) && again == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_answer_was_not_waited_for_is_not_reported_as_silent() {
        let (refused, _) = ask([HELD, HELD, ""]).await;
        let Err(error) = refused else { panic!("it is held") };
        let answers: Vec<_> = error.nodes().iter().map(|report| report.answer.clone()).collect();
        assert!(matches!(answers[..], [Answer::Held { .. }, Answer::Held { .. }, Answer::Up]), "{answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_another_one_of_its_owner_until_its_end() {
        let (core, _streams) = core(3);
        let (owner, handle) = (Owner::new(), Handle::new(core));
        let Ok((_other, _)) = handle.registry.reserve(&owner, &[resource("a")]) else { panic!("it is free") };
        let attempt = Attempt::new(vec![resource("a")], resource("a"), owner, LEASE);
        let began = tokio::time::Instant::now();
        let retry = Retry::until(handle.core.now(), Some(SECOND), Outage::default());
        let waited = tokio::time::timeout(2 * SECOND, attempt.compete(&handle, retry)).await.expect("it ends");
        let Err(error) = waited else { panic!("the other request goes on") };
        assert!(matches!(error, AcquireError::TimedOut { .. }), "{error:?}");
        assert_eq!(began.elapsed(), SECOND);
    }

    /// The end of a lease.
    fn end(at: i64) -> LastEnd {
        end_of(at, "ql1 7 af me:1 ab/1:1")
    }

    /// The end of a lease that a node may have forgotten: the node's time.
    fn forgotten(at: i64) -> LastEnd {
        end_of(at, "af")
    }

    fn end_of(at: i64, what: &str) -> LastEnd {
        let fields = [7, 0, 1, 1000, at].map(Value::Int).into_iter().chain([Value::BulkString(what.into())]);
        match parse_hold(&Value::Array(fields.collect())) {
            Vote::No(Refusal::Early { last, .. }) => last,
            other => panic!("{other:?}"),
        }
    }

    fn at(seconds: u32) -> Moment {
        Moment::new(seconds * SECOND)
    }

    #[test]
    fn an_end_that_is_named_again_has_been_waited_for_since_the_first_time() {
        let mut offer = Offer::default();
        assert_eq!(offer.learn(at(0), vec![]), None);
        assert_eq!(offer.learn(at(0), vec![(end(1), 5 * SECOND), (end(2), 3 * SECOND)]), Some(5 * SECOND));
        assert_eq!(offer.learn(at(2), vec![(end(1), 5 * SECOND)]), Some(3 * SECOND));
        assert_eq!(offer.learn(at(2), vec![(end(3), SECOND), (end(2), 9 * SECOND)]), Some(SECOND));
        assert_eq!(offer.waited_for(at(3)), []);
        assert_eq!(offer.waited_for(at(4)), [end(2), end(3)]);
        assert_eq!(offer.waited_for(at(6)), [end(1), end(2), end(3)]);
    }

    #[test]
    fn what_a_node_may_have_forgotten_is_waited_for_since_its_first_answer() {
        let mut offer = Offer::default();
        for second in 0..10 {
            let left = offer.learn(at(second), vec![(forgotten(i64::from(second) * 1000), 10 * SECOND)]);
            assert_eq!(left, Some((10 - second) * SECOND));
        }
        assert_eq!(offer.waited_for(at(11)), [forgotten(0)]);
        assert_eq!(
            offer.learn(at(12), vec![(forgotten(72_000), 10 * SECOND)]),
            Some(10 * SECOND),
            "its clock has leapt"
        );
        offer = Offer::default();
        offer.learn(at(0), vec![(forgotten(0), 10 * SECOND)]);
        assert_eq!(offer.learn(at(69), vec![(forgotten(69_000), 10 * SECOND)]), Some(Duration::ZERO));
        assert_eq!(offer.learn(at(70), vec![(forgotten(70_000), 10 * SECOND)]), Some(10 * SECOND), "another wait");
        assert_eq!(offer.waited_for(at(81)), [forgotten(70_000)]);
    }

    #[test]
    fn of_too_many_ends_the_latest_are_kept() {
        let mut offer = Offer::default();
        let ends = |range: std::ops::RangeInclusive<i64>| range.map(end).collect::<Vec<_>>();
        let most = i64::try_from(MOST_ENDS).expect("a small number");
        offer.learn(at(0), ends(1..=most).into_iter().map(|end| (end, SECOND)).collect());
        assert_eq!(offer.waited_for(at(2)), ends(1..=most));
        offer.learn(at(0), vec![(end(most + 1), SECOND)]);
        assert_eq!(offer.waited_for(at(2)), ends(2..=most + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_known_as_this_owner_or_as_one_of_this_process() {
        let (core, _streams) = core(3);
        let (owner, other) = (Owner::new(), Owner::new());
        let attempt = Attempt::new(vec![resource("a")], resource("a"), owner.clone(), LEASE);
        let token = core.propose_above(&owner, Ballot::ZERO).into();
        let by = |owner: &Owner, label: &str| Holder::Owner {
            id: owner.fingerprint().into(),
            label: label.to_owned(),
            token,
        };
        assert_eq!(attempt.own_hold(&by(&owner, "elsewhere:1")), Some(OwnHold::Owner));
        assert_eq!(attempt.own_hold(&by(&other, other.label())), Some(OwnHold::Process));
        assert_eq!(attempt.own_hold(&by(&other, "elsewhere:1")), None);
        assert_eq!(attempt.own_hold(&Holder::Foreign), None);
    }
}
