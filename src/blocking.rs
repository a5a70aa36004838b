//! The lock for programs without tokio: each call blocks its thread.
//!
//! [`Builder::connect_blocking`] starts a thread that has the connections and extends the leases, however long the program's own threads
//! sleep or calculate. It ends when the last [`Quorlock`] and the last [`Guard`] are gone and the last release has been sent.
//!
//! This example is compiled and not run, as it needs nodes:
//!
//! ```no_run
//! use quorlock::Quorlock;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let locks = Quorlock::builder().nodes(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"]).connect_blocking()?;
//!     locks.lock("report:nightly").run(|guard| {
//!         for step in 1..=10 {
//!             guard.check()?; // fails once the lock is lost
//!             println!("step {step} with token {}", guard.token());
//!         }
//!         Ok::<_, quorlock::LostError>(())
//!     })?;
//!     Ok(())
//! }
//! ```
//!
//! It is the asynchronous lock underneath: the types here dereference to those of the crate, for all that does not wait. Calls can be
//! made in a tokio runtime, too. There each blocks its worker thread, so `spawn_blocking` is the place for them. On the client's own
//! thread, where an [observer](crate::Observer) may be called, each call that waits panics.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::unconstrained;

use crate::builder::Builder;
use crate::error::{AcquireError, ConfigError, ExtendError, LostError, ReleaseError, RevokeError, RunError};
use crate::inspect::Inspection;
use crate::owner::Owner;
use crate::protocol::{Outage, Token};
use crate::released::Released;
use crate::request::{result_of_run, was_lost};
use crate::revoke::Revoked;
use crate::{client, guard, request};

/// What the thread of a client is called.
const THREAD: &str = "quorlock";

thread_local! {
    /// This is the thread of a client, which must not wait for itself.
    static IS_THREAD_OF_CLIENT: Cell<bool> = const { Cell::new(false) };
}

impl Builder {
    /// As [`connect`](Self::connect), for a program without tokio: it starts a thread for the client. See [`blocking`](crate::blocking).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for settings that cannot work, and when the thread cannot be started.
    pub fn connect_blocking(self) -> Result<Quorlock, ConfigError> {
        let (sender, connected) = mpsc::channel();
        let thread = thread::Builder::new().name(THREAD.to_owned());
        thread.spawn(move || keep(self, &sender)).map_err(|error| ConfigError::NoThread(error.to_string()))?;
        // The thread sends one answer, unless it panics.
        let connected = connected.recv().map_err(|_| ConfigError::NoThread("it panicked".to_owned()))?;
        connected.map(Quorlock)
    }
}

/// Connects, and runs the tasks of the client until it has ended.
fn keep(builder: Builder, connected: &mpsc::Sender<Result<client::Quorlock, ConfigError>>) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(connected.send(Err(ConfigError::NoThread(error.to_string())))),
    };
    IS_THREAD_OF_CLIENT.set(true);
    runtime.block_on(async {
        let client = builder.connect().await;
        let ended = client.as_ref().ok().map(client::Quorlock::ended);
        if connected.send(client).is_ok()
            && let Some(ended) = ended
        {
            ended.await;
        }
    });
    runtime.shutdown_background(); // A callback may still run.
}

/// Blocks this thread until the future is ready. It enters no runtime, so it can be called in one. There the budget of the task that
/// is blocked must not count: the future would never be ready again once it is used up.
///
/// # Panics
///
/// On the thread of a client: the answer would never come, and no lease of the client would be extended any more.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark {
        thread: Thread,
        is_woken: AtomicBool,
    }
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.is_woken.store(true, Ordering::Release);
            self.thread.unpark();
        }
    }
    assert!(
        !IS_THREAD_OF_CLIENT.get(),
        "a blocking call on the thread of a client, as in its observer, would wait for itself"
    );
    let unpark = Arc::new(Unpark { thread: thread::current(), is_woken: AtomicBool::new(false) });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        // The thread may have been unparked already, and parked again by what the poll has called: an observer or a subscriber of
        // `tracing` that sends to a full channel.
        while !unpark.is_woken.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

/// A client whose calls block. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Quorlock(client::Quorlock);

impl Deref for Quorlock {
    type Target = client::Quorlock;

    fn deref(&self) -> &client::Quorlock {
        &self.0
    }
}

impl Quorlock {
    /// As [`Quorlock::lock`](crate::Quorlock::lock).
    pub fn lock(&self, name: impl AsRef<[u8]>) -> LockRequest {
        LockRequest(self.0.lock(name))
    }

    /// As [`Quorlock::lock_all`](crate::Quorlock::lock_all).
    pub fn lock_all<I>(&self, names: I) -> LockRequest
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        LockRequest(self.0.lock_all(names))
    }

    /// As [`Quorlock::join`](crate::Quorlock::join).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn join(&self, exported: &str) -> Result<Guard, AcquireError> {
        block_on(self.0.join(exported)).map(Guard::new)
    }

    /// As [`Quorlock::inspect`](crate::Quorlock::inspect).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn inspect(&self, name: impl AsRef<[u8]>) -> Result<Inspection, ConfigError> {
        block_on(self.0.inspect(name))
    }

    /// As [`Quorlock::revoke`](crate::Quorlock::revoke).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn revoke(&self, name: impl AsRef<[u8]>, token: Option<Token>) -> Result<Revoked, RevokeError> {
        block_on(self.0.revoke(name, token))
    }

    /// As [`Quorlock::flush`](crate::Quorlock::flush).
    pub fn flush(&self) {
        block_on(self.0.flush());
    }
}

/// A lock that is being asked for; nothing happens before [`acquire`](Self::acquire), [`try_acquire`](Self::try_acquire) or
/// [`run`](Self::run).
#[derive(Debug)]
#[must_use = "a request does nothing until acquire(), try_acquire() or run()"]
pub struct LockRequest(request::LockRequest);

impl LockRequest {
    /// As [`LockRequest::owner`](crate::LockRequest::owner). The scope of a thread is [`Owner::sync_scope`].
    pub fn owner(self, owner: &Owner) -> Self {
        Self(self.0.owner(owner))
    }

    /// As [`LockRequest::lease`](crate::LockRequest::lease).
    pub fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease))
    }

    /// As [`LockRequest::wait`](crate::LockRequest::wait).
    pub fn wait(self, limit: Duration) -> Self {
        Self(self.0.wait(limit))
    }

    /// As [`LockRequest::deadline`](crate::LockRequest::deadline).
    pub fn deadline(self, deadline: impl Into<Instant>) -> Self {
        Self(self.0.deadline(deadline))
    }

    /// As [`LockRequest::outage`](crate::LockRequest::outage).
    pub fn outage(self, outage: Outage) -> Self {
        Self(self.0.outage(outage))
    }

    /// As [`LockRequest::acquire`](crate::LockRequest::acquire).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn acquire(self) -> Result<Guard, AcquireError> {
        block_on(self.0.acquire()).map(Guard::new)
    }

    /// As [`LockRequest::try_acquire`](crate::LockRequest::try_acquire).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_acquire(self) -> Result<Guard, AcquireError> {
        block_on(self.0.try_acquire()).map(Guard::new)
    }

    /// Acquires, runs `work` on this thread in the owner's [scope](Owner::sync_scope), and waits for the release, also when the
    /// work fails or panics, unless the lock was lost before it ended. The work cannot be stopped: call
    /// [`check`](crate::Guard::check) between its steps.
    ///
    /// # Errors
    ///
    /// [`RunError`], as [`LockRequest::run`](crate::LockRequest::run).
    ///
    /// # Panics
    ///
    /// When the work does, after the release.
    pub fn run<T, E>(self, work: impl FnOnce(&Guard) -> Result<T, E>) -> Result<T, RunError<E, T>> {
        let guard = self.acquire()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let output = guard.owner().sync_scope(|| work(&guard)).map_err(RunError::Work)?;
            match guard.check() {
                Ok(()) => Ok(output),
                Err(error) => Err(RunError::Late { output, error }),
            }
        }));
        if was_lost(&outcome) {
            drop(guard);
            return result_of_run(outcome, Ok(()));
        }
        result_of_run(outcome, guard.release().map(drop))
    }
}

/// A hold, as [`Guard`](crate::Guard), to which it dereferences: token, owner, names, time left, and
/// [`check`](crate::Guard::check). Dropping it releases without waiting.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    guard: guard::Guard,
    /// Dropped with the guard, which ends the tasks that wait for a loss.
    held: watch::Sender<()>,
}

impl Deref for Guard {
    type Target = guard::Guard;

    fn deref(&self) -> &guard::Guard {
        &self.guard
    }
}

impl Guard {
    fn new(guard: guard::Guard) -> Self {
        Self { guard, held: watch::Sender::new(()) }
    }

    /// Calls this on a thread of its own when the lock is lost while this guard lives. It is about all that the guard holds at this
    /// call: the loss of a resource that is [split off](Self::split) later counts, too.
    pub fn on_lost(&self, callback: impl FnOnce(LostError) + Send + 'static) {
        let (loss, mut held) = (self.guard.loss(), self.held.subscribe());
        self.guard.runtime().spawn(async move {
            if let Either::Left((lost, _)) = select(pin!(loss), pin!(held.changed())).await {
                tokio::task::spawn_blocking(move || callback(lost));
            }
        });
    }

    /// As [`Guard::split`](crate::Guard::split).
    #[must_use = "dropping the guard that was split off releases its resource"]
    pub fn split(&mut self, name: impl AsRef<[u8]>) -> Option<Self> {
        self.guard.split(name).map(Self::new)
    }

    /// As [`Guard::ensure`](crate::Guard::ensure).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn ensure(&self, validity: Duration) -> Result<(), ExtendError> {
        block_on(self.guard.ensure(validity))
    }

    /// As [`Guard::extend`](crate::Guard::extend).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn extend(&self) -> Result<(), ExtendError> {
        block_on(self.guard.extend())
    }

    /// As [`Guard::release`](crate::Guard::release).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn release(self) -> Result<Released, ReleaseError> {
        block_on(self.guard.release())
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// As a channel does that is full: the thread is parked, and what unparks it then is not the channel.
    #[test]
    fn a_wake_up_is_not_lost_when_the_poll_parks_the_thread() {
        let (sender, returned) = mpsc::channel();
        thread::spawn(move || {
            let mut is_first = true;
            block_on(poll_fn(|cx| {
                if !is_first {
                    return Poll::Ready(());
                }
                is_first = false;
                cx.waker().wake_by_ref();
                thread::park();
                Poll::Pending
            }));
            sender.send(()).ok(); // The test may be over.
        });
        assert_eq!(returned.recv_timeout(Duration::from_secs(20)), Ok(()));
    }
}
