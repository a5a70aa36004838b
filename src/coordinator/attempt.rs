//! The tries of one request. Each sends a round, and learns from its replies what the next one must offer.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};
use futures::poll;
use tokio::sync::futures::OwnedNotified;
use tracing::Instrument as _;

use self::offer::Offer;
use super::handle::Handle;
use super::holds::Holds;
use super::lease::{Lease, lock_states};
use super::registry::{Reservation, Reserved};
use super::retry::Retry;
use super::round::Round;
use super::send::{Bid, continued, send_hold};
use super::waiter::Waiter;
use crate::error::{AcquireError, ClientError, Holder, OwnHold, Reports};
use crate::export::ExportedLease;
use crate::owner::{Owner, is_of_this_process};
use crate::protocol::{self, Ballot, Phase, RetryAdvice, VoteResult};
use crate::resource::Resource;
use crate::telemetry::RequestReport;
use crate::waiting::Ticket;

mod explain;
mod offer;

/// How long a node is waited for at least that may know of longer leases; longer only if the majority took long.
const LEAST_HEARING: Duration = Duration::from_millis(50);

/// A checked request: what all its tries have in common.
#[derive(Clone)]
pub(crate) struct Attempt {
    /// Sorted.
    resources: Arc<[Resource]>,
    first: Resource,
    owner: Owner,
    lease: Duration,
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
        let mut offer = Offer::of(self.resources.len() * core.nodes.len());
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
        let is_doubtful = round.agreed() & core.common.quarantined() != 0;
        if verdict == VoteResult::Won && acquires && is_doubtful {
            let now = core.now();
            let slower = LEAST_HEARING.max(2 * now.since(round.facts().started));
            // Also beyond the request's own limit: it has its majority.
            core.hear_all(core.settings.node_timeout(self.lease).min(slower)).await;
        }
        let has_learnt = core.common.learnt_lease() != longest && core.common.nodes_differ_on_leases() && is_doubtful;
        if verdict == VoteResult::Won && acquires && has_learnt {
            // A node has reported longer leases meanwhile: the quarantine of a node that granted may have to last longer.
            core.common.reachability.majority_answered();
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
        // A lease that time has ended shows nothing of the nodes.
        let answers = round.refusals().len() + round.agreed().count_ones() as usize;
        let is_answered = !matches!(error, AcquireError::Lost { .. }) || answers >= core.settings.quorum;
        if !matches!(advice, RetryAdvice::WhenAnswered) && is_answered {
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
        let now = core.now();
        for (lease, state) in entered.iter().zip(&states) {
            // A later lease of the same owner is not the one that was exported, which is over.
            if self.inherited(&lease.resource).is_some_and(|theirs| theirs.token != state.lease.token) {
                return Err(lost(&lease.resource, lease.reports(state)));
            }
            match state.lease.phase(now) {
                Phase::Held | Phase::Endangered => {}
                Phase::Lost => return Err(lost(&lease.resource, lease.reports(state))),
                Phase::Pending | Phase::Released => return Ok(None),
            }
        }
        let ballot = (!free.is_empty()).then(|| {
            let going_on = continued(core, states.iter().map(|state| &**state), now);
            let known = free.iter().filter_map(|resource| self.inherited(resource)).map(|lease| lease.known);
            core.propose_above(&self.owner, known.fold(offer.above.max(going_on), Ballot::max))
        });
        // New leases have larger ids than all before, so the order by id holds.
        let create = |resource: &Resource| {
            let exported = self.inherited(resource);
            // Joining must not revive an expired lease. With `known = 0` no node recreates a missing key until a majority has
            // confirmed the lease.
            let fresh = ballot.unwrap_or_default();
            let (token, known) = exported.map_or((fresh.into(), fresh), |lease| (lease.token, Ballot::ZERO));
            let lease = protocol::LeaseState::pending(token, known, self.lease, core.settings.schedule, now);
            let ticket = ticket.filter(|_| exported.is_none()).cloned();
            Lease::new(core, resource.clone(), self.owner.clone(), lease, exported.map(|lease| lease.share), ticket)
        };
        created = free.into_iter().map(create).collect();
        states.extend(lock_states(&created));

        let leases: Vec<Arc<Lease>> = entered.iter().chain(&created).cloned().collect();
        let holds = Holds::enter(Arc::clone(handle), leases, &mut states, self.first.clone());
        let mut borrowed = states.iter_mut().map(|state| &mut **state).collect::<Vec<_>>();
        let bid = Bid { ballot, above: offer.above, waited_for: offer.waited_for(now) };
        let round = send_hold(core, holds.leases(), &mut borrowed, self.lease, &bid);
        Ok(Some(Begun { holds, round, reservation }))
    }
}

fn lost(resource: &Resource, nodes: Reports) -> Failed {
    (AcquireError::Lost { resource: resource.to_string(), nodes }, RetryAdvice::Never)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{LEASE, confirm, core, lease, resource};
    use super::*;
    use crate::error::Answer;
    use crate::node::fake::Server;
    use crate::protocol::Outage;

    const SECOND: Duration = Duration::from_secs(1);

    /// A client with connections to three nodes, and the servers' ends of these.
    async fn client() -> (Arc<Handle>, Vec<Server>) {
        let (core, mut streams) = core(3);
        let mut servers = Vec::new();
        for number in 0..3 {
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet_as(number, 3).await;
            servers.push(server);
        }
        core.sleep(Duration::from_millis(1)).await;
        (Handle::new(core), servers)
    }

    /// Asks three nodes once, which give these answers to the first message. Returns the result, and how many further messages
    /// acquire.
    async fn ask(answers: [&str; 3]) -> (Result<Holds, AcquireError>, usize) {
        ask_with(answers, &[]).await
    }

    /// The same, where these nodes have had a quarantine.
    async fn ask_with(answers: [&str; 3], quarantined: &[usize]) -> (Result<Holds, AcquireError>, usize) {
        let (result, again, _) = ask_for(&["a"], answers, quarantined, None).await;
        (result, again)
    }

    /// The same for these resources, in alphabetical order, and with this limit instead of once. Also returns how long it took.
    async fn ask_for(
        names: &[&str],
        answers: [&str; 3],
        quarantined: &[usize],
        limit: Option<Duration>,
    ) -> (Result<Holds, AcquireError>, usize, Duration) {
        let (handle, mut servers) = client().await;
        let (owner, now) = (Owner::new(), handle.core.now());
        for node in quarantined {
            handle.core.common.has_quarantine(*node, Some(now));
        }
        let resources = names.iter().map(|name| resource(name)).collect();
        let attempt = Attempt::new(resources, resource(names[0]), owner, LEASE);
        let competing = tokio::spawn({
            let handle = Arc::clone(&handle);
            let retry = limit.map_or(Retry::once(now), |limit| Retry::until(now, Some(limit), Outage::default()));
            async move {
                let result = attempt.compete(&handle, retry).await;
                (result, handle.core.now().since(now))
            }
        });
        let mut acquires = (String::new(), 0);
        for server in &mut servers {
            let command = server.command().await.expect("a command");
            acquires = (command[1].clone(), command.len());
        }
        // The first one last: it is slow.
        for (server, answer) in servers.iter_mut().zip(answers).rev() {
            server.reply(answer).await;
            tokio::time::sleep(SECOND / 100).await;
        }
        let mut again = 0;
        while let Ok(Some(command)) = tokio::time::timeout(SECOND / 10, servers[1].command()).await {
            // An extension says more.
            again += usize::from((command[1].clone(), command.len()) == acquires);
            for server in &mut servers {
                server.reply(":1\r\n").await;
            }
        }
        let (result, took) = competing.await.expect("no panic");
        (result, again, took)
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

    /// The same, with longer leases than this client knows of.
    const HELD_BY_LONGER: &str = "*6\r\n:2\r\n:1790000000000000\r\n:1\r\n:1500\r\n$1\r\nx\r\n*1\r\n:20000\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_slow_refusal_that_tells_of_longer_leases_is_waited_for_where_a_node_may_have_forgotten() {
        for (quarantined, tries) in [(&[][..], 0), (&[0], 0), (&[1], 1)] {
            let (granted, again) = ask_with([HELD_BY_LONGER, GRANTED, GRANTED], quarantined).await;
            assert_eq!((granted.is_ok(), again), (true, tries), "{quarantined:?}");
        }
        // Also beyond the limit of the request.
        let answers = [HELD_BY_LONGER, GRANTED, GRANTED];
        let (refused, ..) = ask_for(&["a"], answers, &[1], Some(15 * SECOND / 1000)).await;
        assert!(refused.is_err());
        let (granted, again) = ask_with(["", GRANTED, GRANTED], &[1]).await;
        assert_eq!(
            (granted.is_ok(), again),
            (true, 0),
            "one that does not answer is not waited for longer than others"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_resource_that_is_held_is_named_and_not_the_first_one() {
        let second_is_held = HELD.replacen(":1\r\n", ":2\r\n", 1);
        let (refused, ..) = ask_for(&["a", "b"], [&second_is_held, &second_is_held, &second_is_held], &[], None).await;
        assert!(matches!(&refused, Err(AcquireError::Held { resource, .. }) if resource == "b"), "{:?}", refused.err());
        let (refused, ..) = ask_for(&["a", "b"], [HELD, HELD, HELD], &[], None).await;
        assert!(matches!(&refused, Err(AcquireError::Held { resource, .. }) if resource == "a"), "{:?}", refused.err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_lease_by_time_does_not_count_as_an_answer_of_the_nodes() {
        let (core, _streams) = core(3);
        let (owner, handle) = (Owner::new(), Handle::new(core));
        let core = &handle.core;
        let held = lease(core, &resource("a"), &owner);
        let Ok((reservation, _)) = handle.registry.reserve(&owner, &[resource("a")]) else { panic!("it is free") };
        reservation.fulfil(std::iter::once(&held));
        confirm(&held);
        let left = held.state().lease.remaining(core.now());
        tokio::time::advance(left.saturating_sub(SECOND / 100)).await;
        let attempt = Attempt::new(vec![resource("a")], resource("a"), owner, LEASE);
        let retry = Retry::until(core.now(), Some(SECOND / 50), Outage::default());
        let (re_entered, answered) = futures::future::join(attempt.compete(&handle, retry), core.next_try()).await;
        assert!(matches!(re_entered, Err(AcquireError::Lost { .. })), "{:?}", re_entered.err());
        assert!(!answered, "no node has answered");
    }

    /// Asks three nodes once, which give these answers. Returns whether that ends the wait of a request that no majority has answered.
    async fn ends_waits(answers: [&str; 3]) -> bool {
        let (handle, mut servers) = client().await;
        let attempt = Attempt::new(vec![resource("a")], resource("a"), Owner::new(), LEASE);
        let answers = async {
            for (server, answer) in servers.iter_mut().zip(answers) {
                server.command().await.expect("a command");
                server.reply(answer).await;
            }
        };
        let asks = async {
            drop(futures::future::join(attempt.compete(&handle, Retry::once(handle.core.now())), answers).await.0);
            // The wait has a pause of its own, which ends later.
            futures::future::pending::<()>().await;
        };
        match select(pin!(handle.core.next_try()), pin!(asks)).await {
            Either::Left((answered, _)) => answered,
            Either::Right(_) => unreachable!("it never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_a_majority_ends_the_waits_of_others_also_if_it_refuses() {
        assert!(ends_waits([GRANTED, GRANTED, ""]).await);
        assert!(ends_waits([HELD, HELD, ""]).await);
        assert!(ends_waits([GRANTED, HELD, HELD]).await);
        let failed = "-ERR of another kind\r\n";
        assert!(!ends_waits([HELD, failed, failed]).await);
        assert!(!ends_waits([failed, failed, failed]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_is_not_waited_for_unless_one_may_have_forgotten() {
        for (quarantined, least) in [(&[][..], Duration::ZERO), (&[1], LEAST_HEARING)] {
            let took = ask_for(&["a"], ["", GRANTED, GRANTED], quarantined, None).await.2;
            assert!(took >= least && took < least + LEAST_HEARING, "{quarantined:?}: {took:?}");
        }
        let took = ask_for(&["a"], ["", HELD, HELD], &[1], None).await.2;
        assert!(took < LEAST_HEARING, "a request that is refused waits for nothing: {took:?}");
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
