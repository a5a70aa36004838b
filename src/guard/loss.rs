//! Signals before and at the loss of a lease, and work that ends with it.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use futures::FutureExt as _;
use futures::future::{Either, select, select_all};

use super::Guard;
use crate::coordinator::Lease;
use crate::error::{LostError, Reports, RunError};
use crate::protocol::Phase;

impl Guard {
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
    ) -> thread::Result<Result<T, RunError<E, T>>> {
        let done = async {
            match select(pin!(over), pin!(self.owner().scope(work))).await {
                Either::Left(_) => Err(self.lost_error().into()),
                Either::Right((Err(error), _)) => Err(RunError::Work(error)),
                Either::Right((Ok(output), _)) => match self.check() {
                    Ok(()) => Ok(output),
                    Err(error) => Err(RunError::Late { output, error }),
                },
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::time::Duration;

    use futures::future::join;
    use tokio::time::{Instant, sleep, timeout};

    use super::super::tests::{GONE, HONOURED, LEASE, NOT_HELD, Test, suspend};
    use crate::error::{ReleaseError, RunError};
    use crate::owner::Owner;

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

    #[cfg(feature = "blocking")]
    #[tokio::test(start_paused = true)]
    async fn a_loss_that_the_drop_of_the_guard_notices_first_is_told() {
        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let mut loss = std::pin::pin!(guard.loss());
        assert!(futures::poll!(&mut loss).is_pending());
        suspend().await;
        drop(guard);
        assert!(futures::poll!(&mut loss).is_ready(), "it was lost while the guard lived");

        let mut test = Test::new().await;
        let guard = test.held(&Owner::new()).await;
        let mut loss = std::pin::pin!(guard.loss());
        drop(guard);
        assert!(futures::poll!(&mut loss).is_pending(), "it was given back in time");
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
    async fn a_run_returns_at_once_when_its_lock_is_lost() {
        let mut test = Test::new().await;
        let began = Instant::now();
        let dropped = test.locks.lock("a").run(async |_| pending::<Result<(), Infallible>>().await);
        let (dropped, ()) = join(dropped, test.reply(HONOURED)).await;
        assert!(matches!(dropped, Err(RunError::Lost(_))), "{dropped:?}");
        assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());

        let mut test = Test::new().await;
        let began = Instant::now();
        let late = test.locks.lock("a").run(async |_| {
            suspend().await;
            Ok::<_, Infallible>(7)
        });
        let (late, ()) = join(late, test.reply(HONOURED)).await;
        assert_eq!(began.elapsed(), LEASE);
        assert_ne!(test.script().await, test.hold, "the release is on its way");
        assert_eq!(late.expect_err("the lease was over").into_output(), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_output_of_work_whose_release_is_not_confirmed_is_returned() {
        let mut test = Test::new().await;
        let run = test.locks.lock("a").run(async |_| Ok::<_, Infallible>(7));
        let (run, ()) = join(run, test.reply(HONOURED)).await;
        let error = run.expect_err("the node does not answer the release");
        assert!(matches!(error, RunError::Release { output: 7, error: ReleaseError::Unconfirmed { .. } }), "{error}");
        let passed_on: RunError = error.without_output();
        assert!(matches!(passed_on, RunError::Release { output: (), .. }), "{passed_on}");
    }

    /// Another owner was there before the work ended, and the release finds that out.
    #[tokio::test(start_paused = true)]
    async fn the_output_of_work_whose_lock_had_been_lost_is_returned() {
        let mut test = Test::new().await;
        let run = test.locks.lock("a").run(async |_| Ok::<_, Infallible>(7));
        let (run, ()) = join(run, async {
            test.reply(HONOURED).await;
            test.reply(NOT_HELD).await;
        })
        .await;
        assert!(matches!(run, Err(RunError::Late { output: 7, .. })), "{run:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_awaits_its_release_when_the_work_fails() {
        let mut test = Test::new().await;
        let began = Instant::now();
        let pause = Duration::from_millis(100);
        let run = test.locks.lock("a").run(async |_| Err::<Infallible, _>("on purpose"));
        let (run, ()) = join(run, async {
            test.reply(HONOURED).await;
            test.script().await;
            sleep(pause).await;
            test.server.reply(HONOURED).await;
        })
        .await;
        assert_eq!((run, began.elapsed()), (Err(RunError::Work("on purpose")), pause));
    }
}
