//! A request for a lock, and what can be done with it: to wait for the lock, to try for it, or to run work under it.

use std::fmt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;

use crate::coordinator::{Attempt, Handle, Retry};
use crate::error::{AcquireError, ConfigError, LostError, ReleaseError, RunError};
use crate::guard::Guard;
use crate::owner::Owner;
use crate::resource::Resource;
use crate::text::readable;

const MOST_NAMES: usize = 500;

/// A lock that is being asked for; nothing happens before [`acquire`](Self::acquire) or
/// [`try_acquire`](Self::try_acquire).
#[must_use = "a request does nothing until acquire() or try_acquire()"]
pub struct LockRequest {
    handle: Arc<Handle>,
    names: Vec<Vec<u8>>,
    owner: Option<Owner>,
    lease: Option<Duration>,
    wait: Option<Duration>,
}

impl LockRequest {
    pub(crate) fn new(handle: Arc<Handle>, names: Vec<Vec<u8>>) -> Self {
        Self { handle, names, owner: None, lease: None, wait: None }
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

    /// How long [`acquire`](Self::acquire) waits.
    ///
    /// Defaults to no limit while another owner holds the lock. Without a limit, it is an error when no majority has answered
    /// for half a lease.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// Acquires, waiting while another owner holds the lock.
    ///
    /// # Errors
    ///
    /// [`AcquireError::TimedOut`] when the time to wait is over, [`AcquireError::NoQuorum`] when no majority
    /// answers, [`AcquireError::Lost`] when a lease that was to be entered again is over, [`AcquireError::Config`] for a
    /// request that cannot work, [`AcquireError::Client`] when the client can be used no more. Each names the nodes that it is
    /// about.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what may have been granted is released in the background, also what a node grants later. A future that is
    /// neither polled nor dropped keeps its turn in this process; a lease that it is granted meanwhile is not renewed.
    pub async fn acquire(self) -> Result<Guard, AcquireError> {
        let retry = Retry::until(self.handle.core.now(), self.wait);
        self.compete(retry).await
    }

    /// Acquires if no other owner holds the lock, without waiting for it: one round (a second one when a node has seen a
    /// newer ballot).
    ///
    /// # Errors
    ///
    /// [`AcquireError::Held`] or [`AcquireError::Contended`] when it is not to be had, and as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(self) -> Result<Guard, AcquireError> {
        let retry = Retry::once(self.handle.core.now());
        self.compete(retry).await
    }

    /// Acquires, runs `work`, and awaits the release, also when the work fails or panics. The work is dropped at its next `.await`
    /// once the lease is lost, as by [`protect`](Guard::protect).
    ///
    /// ```
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let written = locks.lock("report").run(async |guard| format!("with token {}", guard.token())).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// A release that no majority has confirmed in time is no error here: the lock was held while the work ran.
    ///
    /// # Errors
    ///
    /// [`RunError::Acquire`] when the work has not begun, [`RunError::Lost`] when the lock was lost before its end.
    ///
    /// # Panics
    ///
    /// When the work does, after the release.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the work, and releases in the background.
    pub async fn run<T>(self, work: impl AsyncFnOnce(&Guard) -> T) -> Result<T, RunError> {
        let guard = self.acquire().await?;
        let protected = async { guard.protect(work(&guard)).await };
        let outcome = AssertUnwindSafe(protected).catch_unwind().await;
        let released = guard.release().await;
        let output = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        match released {
            Err(ReleaseError::NotHeld { resource, nodes }) => Err(LostError { resource, nodes }.into()),
            _ => Ok(output),
        }
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
        let owner = self.owner.clone().or_else(Owner::scoped).unwrap_or_else(|| core.anonymous());
        Ok(Attempt::new(resources, first, owner, lease))
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
            .finish_non_exhaustive()
    }
}
