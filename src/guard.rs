use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{join, join_all, select_all};

use crate::client::{Core, Handle};
use crate::error::{ClientError, ExtendError, LostError, ReleaseError, Reports};
use crate::export::{Export, ExportedLease};
use crate::lease::{Bid, Lease, State, lock_states, send_hold, send_release};
use crate::owner::Owner;
use crate::protocol::{Phase, Token, Verdict};
use crate::released::Released;
use crate::resource::Resource;
use crate::round::Round;

/// Between two tries of an extension that found nodes away.
const RETRY_PAUSE: Duration = Duration::from_millis(15);
/// It doubles with each try, up to this.
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// One hold on one resource, or on several that were acquired together.
///
/// While it lives, the lease behind it is extended in the background. Dropping it gives the hold back without waiting;
/// [`release`](Self::release) does the same and tells how that went, and [`LockRequest::run`](crate::LockRequest::run) awaits it
/// in any case. A drop writes the release to the sockets itself, as far as they take it at once, unless the client's task
/// is at it. When the last hold of an owner on a resource in this process goes, so does this process's share in the lease.
///
/// A guard over several resources answers for the weakest of them.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    handle: Arc<Handle>,
    /// Sorted by id. Empty only once the holds were given back.
    leases: Vec<Arc<Lease>>,
    /// The resource that was named first.
    first: Resource,
}

impl Guard {
    /// Takes one more hold on each lease, whose states the caller has locked.
    pub(crate) fn enter(
        handle: Arc<Handle>,
        leases: Vec<Arc<Lease>>,
        states: &mut [MutexGuard<'_, State>],
        first: Resource,
    ) -> Self {
        for state in states {
            state.lease.holds += 1;
        }
        Self { handle, leases, first }
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.0
    }

    pub(crate) fn leases(&self) -> &[Arc<Lease>] {
        &self.leases
    }

    fn first(&self) -> &Lease {
        // `first` is one of the resources of the leases, of which there is at least one until the guard is consumed.
        self.leases.iter().find(|lease| lease.resource == self.first).unwrap_or(&self.leases[0])
    }

    /// The fencing token of the resource that was named first. After an acquisition without re-entry all resources of a
    /// guard have the same token; otherwise see [`token_of`](Self::token_of).
    #[must_use]
    pub fn token(&self) -> Token {
        self.first().state().lease.token
    }

    /// The fencing token of one of several resources.
    #[must_use]
    pub fn token_of(&self, name: impl AsRef<[u8]>) -> Option<Token> {
        let lease = self.leases.iter().find(|lease| lease.resource.name() == name.as_ref())?;
        Some(lease.state().lease.token)
    }

    /// Whoever holds it; pass it to [`owner`](crate::LockRequest::owner) to enter again.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.first().owner
    }

    /// How deep this owner is nested on the resource in this process: 1 for an outermost hold.
    ///
    /// This is the client's own count. A node may show another one for a while ([`inspect`](crate::Quorlock::inspect)): an
    /// extension that was sent before a re-entry and arrives after it writes the older count there, until the next
    /// message of this client. No rule depends on it.
    #[must_use]
    pub fn holds(&self) -> u32 {
        self.first().state().lease.holds
    }

    /// How long the lease can still be relied on. Zero when it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let now = self.core().now();
        self.leases.iter().map(|lease| lease.state().lease.remaining(now)).min().unwrap_or_default()
    }

    /// Returns how many nodes may yet fail without costing the lease: the votes beyond the quorum in the latest round that a majority
    /// honoured. It grows for a moment after an acquisition, as the slower nodes answer. A node that has not answered that round
    /// counts as in the round before.
    #[must_use]
    pub fn margin(&self) -> usize {
        let votes = self.leases.iter().map(|lease| lease.state().lease.votes()).min().unwrap_or_default();
        votes.saturating_sub(self.core().settings.quorum)
    }

    /// Is the lease over? Once true it stays true.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.leases.iter().any(|lease| lease.phase() == Phase::Lost)
    }

    /// Is the lease near its end, or over? An extension that succeeds after all makes this false again.
    #[must_use]
    pub fn is_endangered(&self) -> bool {
        self.leases.iter().any(|lease| is_endangered(lease.phase()))
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
    /// validity is left then is a [setting](crate::Builder::danger).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn endangered(&self) {
        self.any(is_endangered).await;
    }

    async fn any(&self, wanted: impl Fn(Phase) -> bool) {
        let mut told = select_all(self.leases.iter().map(|lease| Box::pin(lease.reaches(&wanted))));
        poll_fn(|cx| {
            // A process that was stopped past the end of the lease may be here before any timer has fired.
            if self.leases.iter().any(|lease| wanted(lease.phase())) {
                return Poll::Ready(());
            }
            told.poll_unpin(cx).map(drop)
        })
        .await;
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

    fn lost_error(&self) -> LostError {
        let lost = self.leases.iter().find(|lease| lease.phase() == Phase::Lost);
        let resource = lost.map_or(&self.first, |lease| &lease.resource).to_string();
        LostError { resource, nodes: self.reports() }
    }

    /// What each node said to the latest message about the lease, or what is known of it: why the lease is
    /// [endangered](Self::endangered) or [lost](Self::lost).
    #[must_use]
    pub fn reports(&self) -> Reports {
        let core = self.core();
        let now = core.now();
        let weakest = self.leases.iter().min_by_key(|lease| lease.state().lease.remaining(now));
        let weakest = weakest.unwrap_or(&self.leases[0]);
        weakest.reports(&weakest.state())
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
        let lease = shortest(self.leases.iter().map(|lease| lease.state().lease.length));
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
                let mut states = lock_states(&self.leases);
                let now = core.now();
                let remaining = states.iter().map(|state| state.lease.remaining(now)).min().unwrap_or_default();
                if remaining.is_zero() {
                    drop(states);
                    return Err(self.lost_error().into());
                }
                let length = shortest(states.iter().map(|state| state.lease.length));
                let pairs = self.leases.iter().zip(&mut states);
                let rounds: Vec<Arc<Round>> =
                    pairs.map(|(lease, state)| hold_one(core, lease, state, length)).collect();
                (rounds, core.settings.node_timeout(length).min(remaining))
            };
            let left = limit.saturating_sub(core.now().since(began));
            let verdicts = join_all(rounds.iter().map(|round| round.decided_within(left))).await;
            if self.is_lost() {
                return Err(self.lost_error().into());
            }
            let Some(missing) = verdicts.iter().position(|verdict| *verdict != Verdict::Won) else { return Ok(()) };
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

    /// The lease as a string that another process (or the same one) can [`join`](crate::Quorlock::join) while it lasts.
    /// Whoever has the string can hold the lock: pass it on as you would a key.
    #[must_use]
    pub fn export(&self) -> String {
        let owner = self.owner();
        let export = |lease: &Arc<Lease>| {
            let state = lease.state();
            let lock_key = lease.resource.lock_key().to_vec();
            ExportedLease { lock_key, token: state.lease.token, known: state.lease.known }
        };
        let leases: Vec<ExportedLease> = self.leases.iter().map(export).collect();
        // What the owner has inherited is passed on, or a process two steps down would wait for its own forebear.
        let inherited = owner.inherited().into_iter().flat_map(Export::all);
        let inherited = inherited.filter(|old| leases.iter().all(|lease| lease.lock_key != old.lock_key)).cloned();
        let inherited = inherited.collect();
        Export { owner: owner.number(), label: owner.label().to_owned(), leases, inherited }.to_string()
    }

    /// Gives the hold back and says how that went. It is on its way to every node before this first waits; it returns
    /// when a majority has confirmed.
    ///
    /// # Errors
    ///
    /// [`ReleaseError::NotHeld`] when the lease had been lost before: what the lock protected may have met somebody
    /// else's work. [`ReleaseError::Unconfirmed`] when no majority has answered within the node timeout.
    /// [`ReleaseError::Client`] when the client can be used no more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the release is sent when the future is first polled, or when it is dropped before that.
    pub async fn release(mut self) -> Result<Released, ReleaseError> {
        if let Err(why @ ClientError::Forked { .. }) = self.core().check() {
            return Err(why.into());
        }
        let parting = self.part();
        let limit = self.core().settings.node_timeout(parting.lease);
        let decided = |round: Option<Arc<Round>>| async move {
            let round = round?;
            let verdict = round.decided_within(limit).await;
            Some((round, verdict))
        };
        let lowered = join_all(parting.lower.into_iter().map(|round| decided(Some(round))));
        let (released, lowered) = join(decided(parting.release), lowered).await;
        if let Some(resource) = parting.lost {
            return Err(ReleaseError::NotHeld { resource, nodes: parting.said });
        }
        if let Some((round, Verdict::Lost)) = &released {
            return Err(ReleaseError::NotHeld { resource: round.first_over(), nodes: round.reports(None) });
        }
        if let Some(lease) = parting.lowered.iter().find(|lease| lease.phase() == Phase::Lost) {
            let (resource, nodes) = (lease.resource.to_string(), lease.reports(&lease.state()));
            return Err(ReleaseError::NotHeld { resource, nodes });
        }
        let mut pending = Vec::new();
        for (round, verdict) in [released].into_iter().chain(lowered).flatten() {
            if verdict != Verdict::Won {
                self.core().check()?;
                return Err(ReleaseError::Unconfirmed { nodes: round.reports(Some(limit)) });
            }
            pending.extend(round.pending());
        }
        pending.sort_unstable();
        pending.dedup();
        Ok(Released { pending, holds: parting.holds })
    }

    /// Takes the holds back and sends what that changes. Never waits.
    fn part(&mut self) -> Parting {
        let leases = mem::take(&mut self.leases);
        let core = self.core();
        let now = core.now();
        let mut states = lock_states(&leases);
        let lease = shortest(states.iter().map(|state| state.lease.length));
        let mut parting = Parting {
            release: None,
            lower: Vec::new(),
            lowered: Vec::new(),
            lost: None,
            said: Reports(Vec::new()),
            lease,
            holds: 0,
        };
        let mut release = (Vec::new(), Vec::new());
        let mut turns = Vec::new();
        for (lease, state) in leases.iter().zip(&mut states) {
            let phase = state.lease.phase(now);
            state.lease.holds -= 1;
            if phase == Phase::Lost && parting.lost.is_none() {
                (parting.lost, parting.said) = (Some(lease.resource.to_string()), lease.reports(state));
            }
            if lease.resource == self.first {
                parting.holds = state.lease.holds;
            }
            if state.lease.holds == 0 {
                turns.extend(state.turn.take());
                // What was lost was released on the nodes when that was noticed.
                if state.lease.released() {
                    lease.reschedule(state);
                    release.0.push(Arc::clone(lease));
                    release.1.push(&mut **state);
                }
            } else if matches!(phase, Phase::Held | Phase::Endangered) {
                let length = state.lease.length;
                parting.lower.push(hold_one(core, lease, state, length));
                parting.lowered.push(Arc::clone(lease));
            }
        }
        if !release.0.is_empty() {
            parting.release = Some(send_release(core, &release.0, &mut release.1));
        }
        // Whoever is next in this process asks behind the release, on the same connections. Until now the next of the same owner
        // has found the lease, and waits for its state.
        for (lease, _) in leases.iter().zip(&states).filter(|(_, state)| state.lease.holds == 0) {
            core.table.remove(lease);
        }
        drop(states);
        drop(turns);
        core.driver.send_last();
        parting
    }
}

/// Says how many holds this client has in one lease.
fn hold_one(core: &Arc<Core>, lease: &Arc<Lease>, state: &mut State, length: Duration) -> Arc<Round> {
    send_hold(core, std::slice::from_ref(lease), &mut [state], length, &Bid::default())
}

/// Leases are renewed together only for as long as the shortest of them asked for: none outlives what was asked.
fn shortest(leases: impl Iterator<Item = Duration>) -> Duration {
    leases.min().unwrap_or_default()
}

fn is_endangered(phase: Phase) -> bool {
    matches!(phase, Phase::Endangered | Phase::Lost)
}

/// What giving holds back has set in motion.
struct Parting {
    release: Option<Arc<Round>>,
    lower: Vec<Arc<Round>>,
    /// The leases of those rounds.
    lowered: Vec<Arc<Lease>>,
    /// A resource whose lease had been lost before.
    lost: Option<String>,
    /// What the nodes said of it.
    said: Reports,
    lease: Duration,
    holds: u32,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.leases.is_empty() && self.core().common.life.is_copy() {
            mem::forget(mem::take(&mut self.leases)); // It is the parent's, and its locks may be, too.
        }
        if !self.leases.is_empty() {
            self.part();
            self.core().driver.send_now();
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("leases", &self.leases).finish_non_exhaustive()
    }
}
