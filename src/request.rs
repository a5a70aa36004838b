//! A request for a lock, and what can be done with it: to wait for the lock, to try for it, or to run work under it.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::coordinator::{Attempt, Handle, Retry};
use crate::environment::Moment;
use crate::error::{AcquireError, ConfigError, ReleaseError, RunError};
use crate::guard::Guard;
use crate::owner::Owner;
use crate::protocol::Outage;
use crate::resource::Resource;
use crate::text::readable;

const MOST_NAMES: usize = 500;

/// A lock that is being asked for; nothing happens before [`acquire`](Self::acquire), [`try_acquire`](Self::try_acquire) or
/// [`run`](Self::run).
#[derive(Clone)]
#[must_use = "a request does nothing until acquire(), try_acquire() or run()"]
pub struct LockRequest {
    handle: Arc<Handle>,
    names: Vec<Vec<u8>>,
    owner: Option<Owner>,
    lease: Option<Duration>,
    wait: Option<Duration>,
    deadline: Option<Moment>,
    outage: Option<Outage>,
}

impl LockRequest {
    pub(crate) fn new(handle: Arc<Handle>, names: Vec<Vec<u8>>) -> Self {
        Self { handle, names, owner: None, lease: None, wait: None, deadline: None, outage: None }
    }

    /// Acquires for this owner: what it holds already is entered again.
    ///
    /// Defaults to the owner whose [`scope`](Owner::scope) this runs in, or else to a new one.
    pub fn owner(mut self, owner: &Owner) -> Self {
        self.owner = Some(owner.clone());
        self
    }

    /// The lease of this acquisition. A re-entry never shortens a lease.
    ///
    /// Defaults to the client's [setting](crate::Builder::lease).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// How long [`acquire`](Self::acquire) and [`run`](Self::run) wait for the lock. `Duration::MAX` is no limit. With
    /// `Duration::ZERO` they try once, as [`try_acquire`](Self::try_acquire).
    ///
    /// Defaults to the client's [setting](crate::Builder::wait), or else to no limit while another owner holds the lock.
    /// [`outage`](Self::outage) decides what happens while no majority of the nodes answers.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// Until when [`acquire`](Self::acquire) and [`run`](Self::run) wait for the lock. If there is a limit to [`wait`](Self::wait),
    /// too, the earlier end counts. With a deadline that is over they try once, as [`try_acquire`](Self::try_acquire).
    ///
    /// It takes the `Instant` of the standard library and that of tokio. The time that is left is measured at this call, by the clock of
    /// the standard library (that of tokio differs from it where a test has paused it: set [`wait`](Self::wait) there). From then on
    /// the client's own clock counts, which goes on while the machine sleeps.
    ///
    /// Defaults to none.
    pub fn deadline(mut self, deadline: impl Into<Instant>) -> Self {
        let left = deadline.into().saturating_duration_since(Instant::now());
        self.deadline = Some(self.handle.core.now() + left);
        self
    }

    /// What [`acquire`](Self::acquire) and [`run`](Self::run) do while no majority of the nodes answers: fail at once, wait for a
    /// bounded time, or wait until the outage is over.
    ///
    /// Defaults to the client's [setting](crate::Builder::outage), or else to [`Outage::Bounded`].
    pub fn outage(mut self, outage: Outage) -> Self {
        self.outage = Some(outage);
        self
    }

    /// Acquires, waiting while another owner holds the lock.
    ///
    /// # Errors
    ///
    /// [`AcquireError::TimedOut`] when the time to wait is over, [`AcquireError::NoQuorum`] when no majority
    /// answers, [`AcquireError::Lost`] when a lease that was to be entered again is over, [`AcquireError::Config`] for a
    /// request that cannot work, [`AcquireError::Client`] when the client can be used no more, and with a limit of zero
    /// [`AcquireError::TooLate`], as [`try_acquire`](Self::try_acquire). Those of nodes name them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what may have been granted is released in the background, also what a node grants later. A request that is
    /// dropped loses its place among those that wait, so a loop around `select!` must keep the future and poll it by `&mut`. A
    /// future that is neither polled nor dropped keeps its turn in this process; a lease that it is granted meanwhile is not
    /// renewed.
    pub async fn acquire(self) -> Result<Guard, AcquireError> {
        let handle = Arc::clone(&self.handle);
        let core = &handle.core;
        let now = core.now();
        let wait = self.wait.or(core.settings.wait).filter(|wait| *wait < Duration::MAX);
        let left = self.deadline.map(|deadline| deadline.since(now));
        let limit = wait.into_iter().chain(left).min();
        if limit != Some(Duration::ZERO) {
            let retry = Retry::until(now, limit, self.outage.unwrap_or(core.settings.outage));
            return self.compete(retry).await;
        }
        // A round without time for an answer would fail for that alone, and blame the nodes.
        self.compete(Retry::once(now)).await.map_err(|error| match error {
            error if error.is_held() => AcquireError::TimedOut { waited: core.now().since(now), last: Box::new(error) },
            error => error,
        })
    }

    /// Acquires if no other owner holds the lock, without waiting for it. That takes one round, and further ones at once, up to
    /// nine in all, while nodes have seen newer ballots.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Held`] or [`AcquireError::Contended`] when it is not to be had, [`AcquireError::TooLate`] when a majority agreed and
    /// took longer than the lease is valid, and as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(self) -> Result<Guard, AcquireError> {
        let retry = Retry::once(self.handle.core.now());
        self.compete(retry).await
    }

    /// Acquires, runs `work` in the owner's [scope](Owner::scope), and awaits the release, also when the work fails or panics. The
    /// work is dropped at its next `.await` once the lease is lost, as by [`protect`](Guard::protect). After a loss it returns at once:
    /// what of several locks is still held is released in the background, as by a drop of the guard.
    ///
    /// ```
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let rows = locks.lock("report").run(async |guard| {
    ///     let _again = locks.lock("report").acquire().await?; // the same owner: enters at once
    ///     println!("written with token {}", guard.token());
    ///     Ok::<_, quorlock::AcquireError>(7)
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RunError`] says what failed: the acquisition, the work, the lock before the end of the work, or the release. The work's own
    /// error is returned unchanged. So is its output where the work has ended without an error.
    ///
    /// # Panics
    ///
    /// When the work does, after the release.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the work, and releases in the background.
    pub async fn run<T, E>(self, work: impl AsyncFnOnce(&Guard) -> Result<T, E>) -> Result<T, RunError<E, T>> {
        let guard = self.acquire().await?;
        let outcome = guard.run_until(guard.lost(), async { work(&guard).await }).await;
        if was_lost(&outcome) {
            drop(guard);
            return result_of_run(outcome, Ok(()));
        }
        let released = guard.release().await;
        result_of_run(outcome, released.map(drop))
    }

    async fn compete(self, retry: Retry) -> Result<Guard, AcquireError> {
        let core = &self.handle.core;
        let attempt = match self.checked() {
            Ok(attempt) => attempt,
            Err(error) => {
                core.common.telemetry.unusable_request();
                return Err(core.check().map_or_else(Into::into, |()| error.into()));
            }
        };
        attempt.compete(&self.handle, retry).await.map(Guard::new)
    }

    /// Checks everything that can be checked before a command is sent.
    fn checked(&self) -> Result<Attempt, ConfigError> {
        let core = &self.handle.core;
        let lease = self.lease.unwrap_or(core.settings.lease);
        core.settings.check_lease(lease)?;
        if self.names.len() > MOST_NAMES {
            return Err(ConfigError::TooManyNames(self.names.len()));
        }
        let named = self.names.iter().map(|name| core.resource(name));
        let mut resources = named.collect::<Result<Vec<Resource>, ConfigError>>()?;
        let first = resources.first().cloned().ok_or(ConfigError::NoNames)?;
        resources.sort_unstable();
        resources.dedup();
        let owner = self.owner.clone().or_else(Owner::current).unwrap_or_else(|| core.anonymous());
        Ok(Attempt::new(resources, first, owner, lease))
    }
}

/// Returns whether the lock was lost before the work ended without an error. Then nothing of the release is reported, and there is no
/// lock that is free only after it.
pub(crate) fn was_lost<T, E>(outcome: &thread::Result<Result<T, RunError<E, T>>>) -> bool {
    matches!(outcome, Ok(Err(error)) if error.is_lost())
}

/// Joins how the work and its release ended. Continues the panic of the work.
pub(crate) fn result_of_run<T, E>(
    outcome: thread::Result<Result<T, RunError<E, T>>>,
    released: Result<(), ReleaseError>,
) -> Result<T, RunError<E, T>> {
    let output = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
    match released {
        Ok(()) => Ok(output),
        Err(error) => Err(RunError::of_release(output, error)),
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.names.iter().map(|name| readable(name)).collect();
        f.debug_struct("LockRequest")
            .field("names", &names)
            .field("owner", &self.owner)
            .field("lease", &self.lease)
            .field("wait", &self.wait)
            .field("deadline", &self.deadline)
            .field("outage", &self.outage)
            .finish_non_exhaustive()
    }
}
