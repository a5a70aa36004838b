//! The election of a leader: the lock, campaigned for again and again.

use std::ops::{ControlFlow, Range};
use std::panic::resume_unwind;
use std::time::Duration;

use crate::client::Quorlock;
use crate::error::RunError;
use crate::guard::Guard;
use crate::protocol::Outage;
use crate::request::{LockRequest, was_lost};

/// The pause before the next campaign of a candidate that failed, lost the lock or resigned. Candidates that failed together do not
/// campaign together again.
const PAUSE: Range<Duration> = Duration::from_millis(200)..Duration::from_millis(600);

/// A candidate in the election of a leader; [`run`](Self::run) takes part. Start with [`Quorlock::elect`].
#[derive(Clone, Debug)]
#[must_use = "a candidate does nothing until run()"]
pub struct Election {
    locks: Quorlock,
    request: LockRequest,
    grace: Duration,
}

impl Quorlock {
    /// Makes a candidate in the election of this name. The leader is the candidate that holds the lock of this name.
    pub fn elect(&self, name: impl AsRef<[u8]>) -> Election {
        // `run` repeats what failed in an outage. A request that waits for its end would not report what no retry mends.
        let request = self.lock(name).wait(Duration::MAX).outage(Outage::Bounded);
        Election { locks: self.clone(), request, grace: Duration::ZERO }
    }
}

impl Election {
    /// The lease of each term: how long the others wait for a leader that dies.
    ///
    /// Defaults to the client's [setting](crate::Builder::lease).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request = self.request.lease(lease);
        self
    }

    /// How long the work may go on when the lease is [endangered](Guard::endangered), to stop in order. The loss of the lease ends
    /// that time early.
    ///
    /// Defaults to zero: the work is dropped as soon as the lease is endangered.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Campaigns, leads, and campaigns again: waits for the lock, also through outages, and runs `work` for each term.
    ///
    /// `work` gets the guard of the term, whose [token](Guard::token) is the number of the term, and runs in the
    /// [scope](crate::Owner::scope) of its owner. Each term has a new owner. What `work` returns decides how it goes on:
    ///
    /// | `work` returns | the candidate |
    /// |---|---|
    /// | `Ok(ControlFlow::Break(output))` | releases the lock, and the election ends with `output` |
    /// | `Ok(ControlFlow::Continue(()))` | resigns: it releases the lock, lets the others go first, and campaigns again |
    /// | `Err(error)` | releases the lock, and the election ends with [`RunError::Work`] |
    ///
    /// The leader steps down before another one can begin. When the lease could not be extended and is
    /// [endangered](Guard::endangered), which is a third of the lease before its end unless
    /// [`warn_before_expiry`](crate::Builder::warn_before_expiry) says otherwise, `work` is dropped at its next `.await`. There is no
    /// way back, also if an extension succeeds then. If a majority refuses the lease, `work` is dropped at once. Then the lock is
    /// released, and the candidate campaigns again. So `work` needs an `.await` at least every third of a lease. Tasks that it has
    /// spawned are not dropped with it: keep them in a [`JoinSet`](tokio::task::JoinSet), or pass them the token and let what they
    /// write to refuse an older one.
    ///
    /// After a loss, a resignation and a failure, there is a random pause of less than a second before the next campaign.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// # async fn doc(locks: quorlock::Quorlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let jobs = locks.elect("scheduler").run(async |term| {
    ///     println!("leading, term {}", term.token());
    ///     for job in 1..=1000 {
    ///         tokio::time::sleep(std::time::Duration::from_millis(10)).await; // one job
    ///         if job % 100 == 0 && std::fs::exists("resign")? {
    ///             return Ok(ControlFlow::Continue(()));
    ///         }
    ///     }
    ///     Ok::<_, std::io::Error>(ControlFlow::Break(1000))
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RunError::Work`] when the work fails, [`RunError::Acquire`] when no further campaign can succeed: the error is not
    /// [retryable](crate::AcquireError::is_retryable), as for a wrong setting, a refused password or a list of nodes that is not theirs.
    /// [`RunError::Late`] when the work returned `Break` after its lease was lost, or its release shows that it had been. An outage, a
    /// loss before the work has ended, and an unconfirmed release are no errors.
    ///
    /// # Panics
    ///
    /// When the work does, after the release.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the work, and releases in the background: another candidate leads at once.
    pub async fn run<T, E>(
        self,
        mut work: impl AsyncFnMut(&Guard) -> Result<ControlFlow<T>, E>,
    ) -> Result<T, RunError<E, T>> {
        loop {
            match self.request.clone().owner(&self.locks.core().anonymous()).acquire().await {
                Ok(term) => {
                    let outcome = term.run_until(self.is_over(&term), work(&term)).await;
                    let released = if was_lost(&outcome) {
                        drop(term);
                        Ok(())
                    } else {
                        term.release().await.map(drop)
                    };
                    match (outcome.unwrap_or_else(|panic| resume_unwind(panic)), released) {
                        (Ok(ControlFlow::Break(output)), Err(error)) if error.is_lost() => {
                            return Err(RunError::of_release(output, error));
                        }
                        (Ok(ControlFlow::Break(output)), _) => return Ok(output),
                        (Err(RunError::Late { output: ControlFlow::Break(output), error }), _) => {
                            return Err(RunError::Late { output, error });
                        }
                        (Err(RunError::Work(error)), _) => return Err(RunError::Work(error)),
                        _ => {}
                    }
                }
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.into()),
            }
            self.pause().await;
        }
    }

    /// Resolves when the work of the term is to be dropped.
    async fn is_over(&self, term: &Guard) {
        term.endangered().await;
        self.locks.core().within(self.grace, term.lost()).await;
    }

    async fn pause(&self) {
        let core = self.locks.core();
        core.sleep(core.random_time(PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::poll;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::time::{Instant, advance, timeout};

    use super::*;
    use crate::AcquireError;
    use crate::environment::Fake;
    use crate::node::fake::Server;

    const LEASE: Duration = Duration::from_secs(10);
    const HONOURED: &str = ":1\r\n";

    type Work = Result<ControlFlow<u32>, Infallible>;

    /// A client of one node, which honours everything while its switch is on.
    struct Test {
        locks: Quorlock,
        answers: Arc<AtomicBool>,
        _streams: UnboundedReceiver<DuplexStream>,
    }

    impl Test {
        async fn new() -> Self {
            let (environment, mut streams) = Fake::new();
            let builder = Quorlock::builder().nodes(["redis://node"]).lease(LEASE).environment(Arc::new(environment));
            let locks = builder.connect().await.expect("sound settings");
            let mut server = Server::new(streams.recv().await.expect("it connects"));
            server.greet(1).await;
            let answers = Arc::new(AtomicBool::new(true));
            let is_on = Arc::clone(&answers);
            tokio::spawn(async move {
                while server.command().await.is_some() {
                    if is_on.load(Ordering::Relaxed) {
                        server.reply(HONOURED).await;
                    }
                }
            });
            Self { locks, answers, _streams: streams }
        }

        fn cut_off(&self) {
            self.answers.store(false, Ordering::Relaxed);
        }
    }

    /// Notes when it is dropped.
    struct Noted<'a>(Instant, &'a Cell<Duration>);

    impl Drop for Noted<'_> {
        fn drop(&mut self) {
            self.1.set(self.0.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_is_dropped_when_the_lease_is_endangered_and_the_grace_is_over() {
        let percent = |share| LEASE * share / 100;
        for (grace, least, most) in [(0, 60, 70), (10, 70, 80), (100, 90, 99)] {
            let test = Test::new().await;
            let (began, dropped) = (Instant::now(), Cell::new(Duration::MAX));
            let election = test.locks.elect("a").grace(percent(grace)).run(async |_| {
                test.cut_off();
                let _noted = Noted(began, &dropped);
                pending::<Work>().await
            });
            assert!(timeout(2 * LEASE, election).await.is_err(), "an outage ends no election");
            assert!((percent(least)..percent(most)).contains(&dropped.get()), "{grace} %: {dropped:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_term_after_a_resignation_has_a_larger_token_and_another_owner() {
        let test = Test::new().await;
        let (began, mut terms) = (Instant::now(), Vec::new());
        let election = test.locks.elect("a").run(async |term| -> Work {
            terms.push((term.token(), term.owner().clone()));
            Ok(if terms.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(7) })
        });
        assert_eq!(election.await, Ok(7));
        assert!(terms.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1), "{terms:?}");
        assert!((2 * PAUSE.start..2 * PAUSE.end).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert_eq!(test.locks.stats().held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_no_retry_mends_ends_the_election() {
        let test = Test::new().await;
        let failed = test.locks.elect("a").run(async |_| Err::<ControlFlow<()>, _>("on purpose")).await;
        assert_eq!(failed, Err(RunError::Work("on purpose")));
        let election = test.locks.elect("a").lease(Duration::from_millis(1));
        let failed = election.run(async |_| -> Work { unreachable!("it is not granted") }).await;
        assert!(matches!(failed, Err(RunError::Acquire(AcquireError::Config(_)))), "{failed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_the_election_ends_it_also_without_its_lease() {
        let test = Test::new().await;
        let election = test.locks.elect("a").run(async |_| -> Work {
            test.cut_off();
            Ok(ControlFlow::Break(7))
        });
        assert_eq!(election.await, Ok(7), "an unconfirmed release is no error");

        let test = Test::new().await;
        let mut runs = 0;
        let election = test.locks.elect("a").run(async |_| -> Work {
            runs += 1;
            assert_eq!(runs, 1, "it ends");
            assert!(poll!(std::pin::pin!(advance(LEASE))).is_pending());
            Ok(ControlFlow::Break(7))
        });
        let ended = election.await;
        assert!(matches!(ended, Err(RunError::Late { output: 7, .. })), "{ended:?}");
    }
}
