use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{Either, join, join_all, select, select_all};

use crate::coordinator::{Core, Holds, Lease, Round, hold_one, lock_states, shortest};
use crate::error::{ClientError, ExtendError, LostError, ReleaseError, Reports, RunError};
use crate::export::{Export, ExportedLease};
use crate::owner::Owner;
use crate::protocol::{Phase, Token, VoteResult};
use crate::released::Released;

/// The pause between two tries of an extension that found nodes away.
const RETRY_PAUSE: Duration = Duration::from_millis(15);
/// The pause doubles with each try, up to this.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// One hold on one resource, or on several that were acquired together.
///
/// While it lives, the lease behind it is extended in the background. Dropping it gives the hold back without waiting;
/// [`release`](Self::release) does the same and returns the outcome, and [`LockRequest::run`](crate::LockRequest::run) awaits it
/// in any case. A drop writes the release to the sockets itself, as far as they take it at once, unless the client's task
/// is at it. When the last hold of an owner on a resource in this process goes, so does this process's share in the lease.
///
/// A guard over several resources answers for the weakest of them.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    holds: Holds,
}

impl Guard {
    pub(crate) fn new(holds: Holds) -> Self {
        Self { holds }
    }

    fn core(&self) -> &Arc<Core> {
        self.holds.core()
    }

    fn leases(&self) -> &[Arc<Lease>] {
        self.holds.leases()
    }

    /// The fencing token of the resource that was named first. After an acquisition without re-entry all resources of a
    /// guard have the same token; otherwise see [`token_of`](Self::token_of).
    #[must_use]
    pub fn token(&self) -> Token {
        self.holds.first().state().lease.token
    }

    /// The fencing token of one of several resources.
    #[must_use]
    pub fn token_of(&self, name: impl AsRef<[u8]>) -> Option<Token> {
        self.holds.token_of(name.as_ref())
    }

    /// Returns the names of the resources that it holds, in alphabetical order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut names: Vec<&[u8]> = self.leases().iter().map(|lease| lease.resource.name()).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// Moves the hold on one of several resources into a guard of its own, to release it before the others. Returns `None` if this
    /// guard does not hold the resource, or holds no other. It sends nothing.
    ///
    /// ```
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut guard = locks.lock_all(["draft", "archive"]).acquire().await?;
    /// if let Some(draft) = guard.split("draft") {
    ///     draft.release().await?; // "archive" is still held
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// If the resource that was named first is split off, [`token`](Self::token) and [`hold_count`](Self::hold_count) are about one of
    /// the others from then on.
    #[must_use = "dropping the guard that was split off releases its resource"]
    pub fn split(&mut self, name: impl AsRef<[u8]>) -> Option<Self> {
        self.holds.split(name.as_ref()).map(Self::new)
    }

    /// Returns the owner that holds it. Pass it to [`owner`](crate::LockRequest::owner) to enter again.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.holds.first().owner
    }

    /// How deep this owner is nested on the resource in this process: 1 for an outermost hold.
    ///
    /// This is the client's own count. A node may show another one for a while ([`inspect`](crate::Quorlock::inspect)): an
    /// extension that was sent before a re-entry and arrives after it writes the older count there, until the next
    /// message of this client. No rule depends on it.
    #[must_use]
    pub fn hold_count(&self) -> u32 {
        self.holds.first().state().lease.holds
    }

    /// How long the lease can still be relied on. Zero when it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.holds.remaining()
    }

    /// Returns how many nodes may yet fail without costing the lease: the votes beyond the quorum in the latest round that a
    /// majority honoured. It grows for a moment after an acquisition, as the slower nodes answer. A node that has not answered that round
    /// counts as in the round before.
    #[must_use]
    pub fn margin(&self) -> usize {
        let votes = self.leases().iter().map(|lease| lease.state().lease.votes()).min().unwrap_or_default();
        votes.saturating_sub(self.core().settings.quorum)
    }

    /// Returns whether the lease is over. Once true it stays true.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.leases().iter().any(|lease| lease.phase() == Phase::Lost)
    }

    /// Returns whether the lease is near its end, or over. An extension that succeeds after all makes this false again.
    #[must_use]
    pub fn is_endangered(&self) -> bool {
        self.leases().iter().any(|lease| is_endangered(lease.phase()))
    }

    /// Fails once the lease is over. For code without an `.await`, where [`protect`](Self::protect) has no effect: call it between two
    /// steps.
    ///
    /// # Errors
    ///
    /// [`LostError`], which says what each node answered.
    pub fn check(&self) -> Result<(), LostError> {
        if self.is_lost() { Err(self.lost_error()) } else { Ok(()) }
    }

    /// Resolves when the lease is lost: on time by this client's own clock, also if every node hangs or the runtime of the
    /// client has ended, or at once when a majority refuses to renew it. What the lock protects must have stopped by then; see
    /// [`endangered`](Self::endangered) for the warning before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) {
        self.any(|phase| phase == Phase::Lost).await;
    }

    /// Resolves when the lease could not be renewed and its end is near, or it is lost: time to stop cleanly. How much
    /// validity is left then is a [setting](crate::Builder::warn_before_expiry).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn endangered(&self) {
        self.any(is_endangered).await;
    }

    async fn any(&self, wanted: impl Fn(Phase) -> bool) {
        any(self.leases(), wanted).await;
    }

    /// Resolves with the error when the lease is lost. It holds nothing.
    #[cfg(feature = "blocking")]
    pub(crate) fn loss(&self) -> impl Future<Output = LostError> + Send + use<> {
        let leases = self.leases().to_vec();
        async move {
            any(&leases, |phase| phase == Phase::Lost).await;
            lost_error(&leases)
        }
    }

    /// Returns the runtime in which the client connected.
    #[cfg(feature = "blocking")]
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        self.core().driver.runtime()
    }

    /// Runs `future` and gives its result, or drops it at its next `.await` once the lease is lost.
    ///
    /// Blocking code cannot be dropped, and a request that has left cannot be called back: where that matters, send the
    /// [token](Self::token) along and let the receiver refuse an older one.
    ///
    /// # Errors
    ///
    /// [`LostError`] when the lease was lost first.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops `future`.
    pub async fn protect<F: Future>(&self, future: F) -> Result<F::Output, LostError> {
        let (mut lost, mut future) = (pin!(self.lost()), pin!(future));
        poll_fn(|cx| {
            if lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(self.lost_error()));
            }
            future.as_mut().poll(cx).map(|output| if self.is_lost() { Err(self.lost_error()) } else { Ok(output) })
        })
        .await
    }

    /// Runs `work` in the owner's scope, and drops it when `over` resolves, which must be no later than the loss of the lease. The
    /// outer error is a panic of the work.
    pub(crate) async fn run_until<T, E>(
        &self,
        over: impl Future<Output = ()>,
        work: impl Future<Output = Result<T, E>>,
    ) -> thread::Result<Result<T, RunError<E>>> {
        let done = async {
            match select(pin!(over), pin!(self.owner().scope(work))).await {
                Either::Left(_) => Err(self.lost_error().into()),
                Either::Right((Err(error), _)) => Err(RunError::Work(error)),
                Either::Right((Ok(output), _)) => self.check().map(|()| output).map_err(Into::into),
            }
        };
        AssertUnwindSafe(done).catch_unwind().await
    }

    pub(crate) fn lost_error(&self) -> LostError {
        lost_error(self.leases())
    }

    /// What each node said to the latest message about the lease, or what is known of it: why the lease is
    /// [endangered](Self::endangered) or [lost](Self::lost).
    #[must_use]
    pub fn reports(&self) -> Reports {
        reports(self.leases())
    }

    /// Makes sure of at least this much validity: extends when less is left.
    ///
    /// # Errors
    ///
    /// [`ExtendError::Lost`] when the lease is over, [`ExtendError::NoQuorum`] when no majority agreed in time (the lease
    /// runs on), [`ExtendError::TooLong`] when no extension could give that much.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an extension that is under way still counts when it succeeds.
    pub async fn ensure(&self, validity: Duration) -> Result<(), ExtendError> {
        if self.remaining() >= validity && !self.is_lost() {
            return Ok(());
        }
        let lease = shortest(self.leases().iter().map(|lease| lease.state().lease.length));
        if validity >= lease.saturating_sub(self.core().settings.schedule.validity.drift(lease)) {
            return Err(ExtendError::TooLong { asked: validity, lease });
        }
        self.extend().await?;
        match self.remaining() {
            remaining if remaining >= validity => Ok(()),
            // It was granted, but took too long, or the machine slept meanwhile.
            remaining => Err(ExtendError::NoQuorum { remaining, nodes: Reports(Vec::new()) }),
        }
    }

    /// Extends the lease now. Seldom needed: the background does it in time.
    ///
    /// # Errors
    ///
    /// [`ExtendError::Lost`] when the lease is over, [`ExtendError::NoQuorum`] when no majority agreed within the node
    /// timeout (the lease runs on), [`ExtendError::Client`] when the client can be used no more.
    ///
    /// # Cancel safety
    ///
    /// As [`ensure`](Self::ensure).
    pub async fn extend(&self) -> Result<(), ExtendError> {
        let core = self.core();
        let began = core.now();
        let mut pause = RETRY_PAUSE;
        loop {
            core.check()?;
            // One round for each: all or none of them would be too few where each lacks another node.
            let (rounds, limit) = {
                let mut states = lock_states(self.leases());
                let now = core.now();
                let remaining = states.iter().map(|state| state.lease.remaining(now)).min().unwrap_or_default();
                if remaining.is_zero() {
                    drop(states);
                    return Err(self.lost_error().into());
                }
                let length = shortest(states.iter().map(|state| state.lease.length));
                let pairs = self.leases().iter().zip(&mut states);
                let rounds: Vec<Arc<Round>> =
                    pairs.map(|(lease, state)| hold_one(core, lease, state, length)).collect();
                (rounds, core.settings.node_timeout(length).min(remaining))
            };
            let left = limit.saturating_sub(core.now().since(began));
            let verdicts = join_all(rounds.iter().map(|round| round.decided_within(left))).await;
            if self.is_lost() {
                return Err(self.lost_error().into());
            }
            let Some(missing) = verdicts.iter().position(|verdict| *verdict != VoteResult::Won) else { return Ok(()) };
            let round = &rounds[missing];
            // Connections that broke just now are being made again: there is time for that within the same limit.
            let left = limit.saturating_sub(core.now().since(began));
            if left <= pause {
                core.check()?;
                return Err(ExtendError::NoQuorum { remaining: self.remaining(), nodes: round.reports(Some(limit)) });
            }
            core.sleep(pause).await;
            pause = (2 * pause).min(LONGEST_RETRY_PAUSE);
        }
    }

    /// The lease as a string that another process (or the same one) can [`join`](crate::Quorlock::join) as long as a guard of
    /// this client holds it. A process that has joined exports the lease anew, for those that are to outlive this client.
    /// Any process that has the string can hold the lock: keep it as secret as a key.
    #[must_use]
    pub fn export(&self) -> String {
        let owner = self.owner();
        let export = |lease: &Arc<Lease>| {
            let state = lease.state();
            let lock_key = lease.resource.lock_key().to_vec();
            ExportedLease { lock_key, token: state.lease.token, known: state.lease.known, share: lease.share() }
        };
        let leases: Vec<ExportedLease> = self.leases().iter().map(export).collect();
        // What the owner has inherited is passed on, or a process two steps down would wait for its own forebear.
        let inherited = owner.inherited().into_iter().flat_map(Export::all);
        let inherited = inherited.filter(|old| leases.iter().all(|lease| lease.lock_key != old.lock_key)).cloned();
        let inherited = inherited.collect();
        Export { owner: owner.number(), label: owner.label().to_owned(), leases, inherited }.to_string()
    }

    /// Gives the hold back and returns the outcome. It is on its way to every node before this first waits; it returns
    /// when a majority has confirmed.
    ///
    /// # Errors
    ///
    /// [`ReleaseError::NotHeld`] when the lease had been lost before: another owner may have worked on what the lock protected.
    /// [`ReleaseError::Unconfirmed`] when no majority has answered within the node timeout.
    /// [`ReleaseError::Client`] when the client can be used no more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the release is sent when the future is first polled, or when it is dropped before that.
    pub async fn release(mut self) -> Result<Released, ReleaseError> {
        if let Err(why @ ClientError::Forked { .. }) = self.core().check() {
            return Err(why.into());
        }
        let core = Arc::clone(self.core());
        let pending_release = core.driver.sending(|| self.holds.give_back());
        let limit = self.core().settings.node_timeout(pending_release.lease);
        let decided = |round: Option<Arc<Round>>| async move {
            let round = round?;
            let verdict = round.decided_within(limit).await;
            Some((round, verdict))
        };
        let lowered = join_all(pending_release.lower.into_iter().map(|round| decided(Some(round))));
        let (released, lowered) = join(decided(pending_release.release), lowered).await;
        if let Some(resource) = pending_release.lost {
            return Err(ReleaseError::NotHeld { resource, nodes: pending_release.said });
        }
        if let Some((round, VoteResult::Lost)) = &released {
            return Err(ReleaseError::NotHeld { resource: round.first_over(), nodes: round.reports(None) });
        }
        if let Some(lease) = pending_release.lowered.iter().find(|lease| lease.phase() == Phase::Lost) {
            let (resource, nodes) = (lease.resource.to_string(), lease.reports(&lease.state()));
            return Err(ReleaseError::NotHeld { resource, nodes });
        }
        let mut pending = Vec::new();
        for (round, verdict) in [released].into_iter().chain(lowered).flatten() {
            if verdict != VoteResult::Won {
                self.core().check()?;
                return Err(ReleaseError::Unconfirmed { nodes: round.reports(Some(limit)) });
            }
            pending.extend(round.pending());
        }
        pending.sort_unstable();
        pending.dedup();
        Ok(Released { pending, holds: pending_release.holds })
    }
}

/// Resolves when one of these leases, of which there is at least one, reaches a phase that is wanted.
async fn any(leases: &[Arc<Lease>], wanted: impl Fn(Phase) -> bool) {
    let mut told = select_all(leases.iter().map(|lease| Box::pin(lease.reaches(&wanted))));
    poll_fn(|cx| {
        // A process that was stopped past the end of the lease may be here before any timer has fired.
        if leases.iter().any(|lease| wanted(lease.phase())) {
            return Poll::Ready(());
        }
        told.poll_unpin(cx).map(drop)
    })
    .await;
}

fn lost_error(leases: &[Arc<Lease>]) -> LostError {
    let lost = leases.iter().find(|lease| lease.phase() == Phase::Lost).unwrap_or(&leases[0]);
    LostError { resource: lost.resource.to_string(), nodes: reports(leases) }
}

/// Returns what the nodes said about the lease that ends first.
fn reports(leases: &[Arc<Lease>]) -> Reports {
    let now = leases[0].core.now();
    let weakest = leases.iter().min_by_key(|lease| lease.state().lease.remaining(now)).unwrap_or(&leases[0]);
    weakest.reports(&weakest.state())
}

fn is_endangered(phase: Phase) -> bool {
    matches!(phase, Phase::Endangered | Phase::Lost)
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.leases().iter().map(|lease| lease.resource.to_string()).collect();
        f.debug_struct("Guard").field("names", &names).field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::task::yield_now;
    use tokio::time::{Instant, advance, sleep, timeout};

    use super::*;
    use crate::AcquireError;
    use crate::environment::Fake;
    use crate::error::Holder;
    use crate::node::fake::Server;
    use crate::{Builder, Quorlock};

    const LEASE: Duration = Duration::from_secs(10);
    const HONOURED: &str = ":1\r\n";
    /// The node has no key of the lease, and a newer owner has been there.
    const GONE: &str = "*4\r\n:5\r\n:1790000000000000\r\n:1\r\n:0\r\n";

    /// A client of one node.
    struct Test {
        locks: Quorlock,
        server: Server,
        /// How nodes call the script of the acquisitions.
        hold: String,
        _streams: UnboundedReceiver<DuplexStream>,
    }

    impl Test {
        async fn new() -> Self {
            Self::with(|builder| builder).await
        }

        async fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
            let (environment, mut streams) = Fake::new();
            let builder = Quorlock::builder().nodes(["redis://node"]).lease(LEASE).environment(Arc::new(environment));
            let builder = settings(builder);
            let locks = builder.connect().await.expect("sound settings");
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet(1).await;
            Self { locks, server, hold: String::new(), _streams: streams }
        }

        /// Returns the script of the next command.
        async fn script(&mut self) -> String {
            self.server.command().await.expect("a command").swap_remove(1)
        }

        /// Answers the next command.
        async fn reply(&mut self, reply: &str) {
            self.script().await;
            self.server.reply(reply).await;
        }

        /// Whether no command comes within this time.
        async fn is_idle_for(&mut self, time: Duration) -> bool {
            timeout(time, self.server.command()).await.is_err()
        }

        async fn held(&mut self, owner: &Owner) -> Guard {
            let request = self.locks.lock("a").owner(owner).acquire();
            let (guard, ()) = join(request, async {
                self.hold = self.server.command().await.expect("a command").swap_remove(1);
                self.server.reply(HONOURED).await;
            })
            .await;
            guard.expect("the node agrees")
        }
    }

    /// Lets the clock pass the end of the lease before any timer has fired.
    async fn suspend() {
        assert!(poll!(pin!(advance(LEASE))).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn protected_work_is_dropped_when_the_lease_is_lost() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let work = guard.protect(std::future::pending::<()>());
        assert!(timeout(2 * LEASE, work).await.expect("the lease ends before").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_after_its_lease_does_not_count() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        assert_eq!(guard.protect(async { 7 }).await.ok(), Some(7));
        assert!(guard.protect(suspend()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_is_endangered_before_it_is_lost() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let began = Instant::now();
        assert!(!guard.is_endangered());
        guard.endangered().await;
        assert!(began.elapsed() > LEASE / 2 && began.elapsed() < LEASE * 3 / 4, "{:?}", began.elapsed());
        assert!(guard.is_endangered() && !guard.is_lost());
        guard.lost().await;
        assert!(began.elapsed() > LEASE * 9 / 10 && began.elapsed() < LEASE, "{:?}", began.elapsed());
        assert!(guard.is_endangered() && guard.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn ensure_refuses_what_no_extension_can_give() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let refused = guard.ensure(LEASE).await;
        assert!(matches!(refused, Err(ExtendError::TooLong { asked: LEASE, lease: LEASE })), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn ensure_fails_when_an_extension_leaves_less_than_was_asked_for() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let asked = Duration::from_millis(9800);
        assert!(guard.ensure(guard.remaining()).await.is_ok(), "there is as much without an extension");
        sleep(Duration::from_millis(200)).await;
        let (extended, ()) = join(guard.ensure(asked), async {
            sleep(Duration::from_millis(200)).await;
            test.reply(HONOURED).await;
        })
        .await;
        assert!(matches!(extended, Err(ExtendError::NoQuorum { remaining, .. }) if remaining < asked), "{extended:?}");
        let (extended, ()) = join(guard.ensure(asked), test.reply(HONOURED)).await;
        assert_eq!(test.locks.stats().extensions.extended, 2);
        assert!(extended.is_ok() && guard.remaining() >= asked, "{extended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn ensure_of_nothing_fails_for_a_lost_lease() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        assert!(guard.ensure(Duration::ZERO).await.is_ok());
        suspend().await;
        let lost = guard.ensure(Duration::ZERO).await;
        assert!(matches!(lost, Err(ExtendError::Lost(_))), "{lost:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_without_an_answer_fails_within_the_node_timeout() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let began = Instant::now();
        let failed = guard.extend().await;
        assert!(matches!(failed, Err(ExtendError::NoQuorum { .. })), "{failed:?}");
        assert!(began.elapsed() <= Duration::from_millis(500), "{:?}", began.elapsed());
        assert!(!guard.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_without_an_answer_is_unconfirmed() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let released = guard.release().await;
        assert!(matches!(released, Err(ReleaseError::Unconfirmed { .. })), "{released:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_after_the_end_of_the_lease_is_not_held() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        suspend().await;
        let (released, ()) = join(guard.release(), test.reply(HONOURED)).await;
        assert!(matches!(&released, Err(ReleaseError::NotHeld { resource, .. }) if resource == "a"), "{released:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_inner_release_that_a_majority_refuses_is_not_held() {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let outer = test.held(&owner).await;
        let inner = test.held(&owner).await;
        assert_eq!((outer.hold_count(), outer.token()), (2, inner.token()));
        let (released, ()) = join(inner.release(), test.reply(GONE)).await;
        assert!(matches!(&released, Err(ReleaseError::NotHeld { resource, .. }) if resource == "a"), "{released:?}");
        assert!(outer.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_released_and_passes_its_turn_on_while_its_guard_lives() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let waiting = test.locks.lock("a");
        let waiting = tokio::spawn(async move { waiting.acquire().await });
        yield_now().await;
        let (extended, ()) = join(guard.extend(), test.reply(GONE)).await;
        assert!(matches!(extended, Err(ExtendError::Lost(_))), "{extended:?}");
        let stats = test.locks.stats();
        assert_eq!((stats.losses.refused, stats.extensions.refused, stats.held), (1, 1, 0));
        assert_ne!(test.script().await, test.hold, "the release of the lost lease");
        assert_eq!(test.script().await, test.hold, "the next acquisition");
        test.server.reply(&HONOURED.repeat(2)).await;
        let next = timeout(LEASE, waiting).await.expect("it is its turn").expect("no panic").expect("the node agrees");
        assert!(guard.is_lost() && !next.is_lost());
    }
    #[tokio::test(start_paused = true)]
    async fn a_released_lease_passes_its_turn_on_before_the_release_is_answered() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let waiting = test.locks.lock("a");
        let waiting = tokio::spawn(async move { waiting.acquire().await });
        yield_now().await;
        drop(guard);
        assert_ne!(test.script().await, test.hold, "the release");
        assert_eq!(test.script().await, test.hold, "the next acquisition");
        test.server.reply(&HONOURED.repeat(2)).await;
        assert!(waiting.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_that_is_under_way_is_not_sent_again() {
        let mut test = Test::with(|builder| builder.node_timeout(LEASE / 4)).await;
        let guard = test.held(&Owner::new()).await;
        assert_eq!(test.script().await, test.hold, "the extension");
        assert!(test.is_idle_for(LEASE / 5).await, "the node has time to answer");
        drop(guard);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_whose_request_is_not_polled_is_not_extended() {
        let mut test = Test::new().await;
        let mut request = Box::pin(test.locks.lock("a").try_acquire());
        assert!(poll!(&mut request).is_pending());
        test.reply(HONOURED).await;
        assert!(test.is_idle_for(LEASE * 9 / 10).await);
        test.script().await; // The release at the end.
        assert!(request.await.is_err(), "its lease is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_knows_its_owner_and_the_tokens_of_what_it_holds() {
        let mut test = Test::new().await;
        let owner = Owner::labelled("worker");
        let guard = test.held(&owner).await;
        assert_eq!(guard.owner().id(), owner.id());
        assert_eq!((guard.token_of("a"), guard.token_of("b")), (Some(guard.token()), None));
        assert_eq!(guard.margin(), 0, "one node is all there is");
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_of_one_of_several_is_the_error_of_that_one() {
        let mut test = Test::new().await;
        let (guard, ()) = join(test.locks.lock_all(["a", "b"]).acquire(), async {
            test.server.command().await.expect("a command");
            test.server.reply(HONOURED).await;
        })
        .await;
        let guard = guard.expect("the node agrees");
        let extensions = async {
            for _ in 0..2 {
                let command = test.server.command().await.expect("an extension");
                let is_b = command[3].ends_with('b');
                test.server.reply(if is_b { GONE } else { HONOURED }).await;
            }
        };
        let (lost, ()) = join(guard.protect(std::future::pending::<()>()), extensions).await;
        assert!(matches!(&lost, Err(lost) if lost.resource == "b"), "{lost:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_exported_lease_takes_along_what_its_owner_has_inherited() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let heir = Owner::import(&guard.export()).expect("an export");
        assert_eq!(heir.id(), guard.owner().id());
        let names = |exported: &str| {
            let owner = Owner::import(exported).expect("an export");
            let inherited = owner.inherited().into_iter().flat_map(Export::all);
            let mut keys: Vec<_> =
                inherited.map(|lease| String::from_utf8_lossy(&lease.lock_key).into_owned()).collect();
            keys.sort_unstable();
            keys
        };
        assert_eq!(names(&guard.export()), ["quorlock:lock:a"]);
        let (other, ()) = join(test.locks.lock("b").owner(&heir).acquire(), async {
            test.server.command().await.expect("a command");
            test.server.reply(HONOURED).await;
        })
        .await;
        let other = other.expect("the node agrees");
        assert_eq!(names(&other.export()), ["quorlock:lock:a", "quorlock:lock:b"]);
    }

    /// Re-enters `a`, beside other names, on a node that gives this answer, or none.
    async fn re_entry(names: &[&str], reply: Option<&str>) -> AcquireError {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let _guard = test.held(&owner).await;
        let request = test.locks.lock_all(names).owner(&owner).try_acquire();
        let (error, ()) = join(request, async {
            test.server.command().await.expect("a command");
            if let Some(reply) = reply {
                test.server.reply(reply).await;
            }
        })
        .await;
        error.map(drop).expect_err("it was not granted")
    }

    #[tokio::test(start_paused = true)]
    async fn a_re_entry_fails_for_what_was_in_its_way() {
        let lost = re_entry(&["a"], Some(GONE)).await;
        assert!(matches!(&lost, AcquireError::Lost { resource, .. } if resource == "a"), "{lost:?}");
        let unanswered = re_entry(&["a"], None).await;
        assert!(matches!(unanswered, AcquireError::NoQuorum { .. }), "{unanswered:?}");
        // The second resource is held by something else.
        let held = re_entry(&["a", "b"], Some("*5\r\n:2\r\n:1790000000000000\r\n:2\r\n:1500\r\n$1\r\nx\r\n")).await;
        assert!(matches!(held, AcquireError::Held { by: Holder::Foreign, .. }), "{held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_re_entry_fails_when_the_lease_ends_before_an_answer() {
        let mut test = Test::new().await;
        let owner = Owner::new();
        let _guard = test.held(&owner).await;
        let (error, ()) = join(test.locks.lock("a").owner(&owner).try_acquire(), async {
            test.server.command().await.expect("a command");
            suspend().await;
        })
        .await;
        assert!(matches!(error, Err(AcquireError::Lost { .. })), "{error:?}");
    }
}
