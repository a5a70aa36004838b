//! What can be done with a request: to wait for the lock, to try for it, or to run work under it.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{Either, select};

use crate::error::{AcquireError, ClientError, LostError, ReleaseError, RunError};
use crate::guard::Guard;
use crate::lock::LockRequest;
use crate::patience::Patience;

impl LockRequest {
    /// Acquires, waiting while another owner holds the lock.
    ///
    /// # Errors
    ///
    /// [`AcquireError::TimedOut`] when the time to wait is over, [`AcquireError::NoQuorum`] when no majority could be
    /// heard, [`AcquireError::Lost`] when a lease that was to be entered again is over, [`AcquireError::Config`] for a
    /// request that cannot work, [`AcquireError::Client`] when the client can be used no more. Each names the nodes that it is
    /// about.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what may have been granted is released in the background, also what a node grants later. A future that is
    /// neither polled nor dropped keeps its turn in this process; a lease that it is granted meanwhile is not renewed.
    pub async fn acquire(self) -> Result<Guard, AcquireError> {
        let patience = Patience::until(self.handle.0.now(), self.wait);
        self.compete(patience).await
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
        let patience = Patience::none(self.handle.0.now());
        self.compete(patience).await
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

    /// Asks until the request is decided, or the client can be used no more.
    pub(crate) async fn compete(self, patience: Patience) -> Result<Guard, AcquireError> {
        let core = Arc::clone(&self.handle.0);
        let competing = pin!(self.try_until_granted(patience));
        match select(competing, pin!(core.common.life.ended())).await {
            Either::Left((Ok(guard), _)) => Ok(guard),
            Either::Left((Err(error), _)) => Err(core.check().map_or_else(Into::into, |()| error)),
            Either::Right(_) => Err(ClientError::RuntimeEnded.into()),
        }
    }
}
