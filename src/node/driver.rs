//! All connections of a client as one future. A task polls it while the client's runtime lives, and so does each guard that is
//! dropped.

use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use futures::FutureExt as _;
use futures::future::{join_all, poll_fn};
use futures::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::task::unconstrained;

use super::common::Common;

/// How often a thread polls in a row while others send: the one that drops a guard is not kept for as long as they do.
const MOST_POLLS: u32 = 64;

type Connections = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct Driver {
    /// `None` when all connections have ended.
    connections: Mutex<Option<Connections>>,
    task: Arc<Task>,
    /// They are to be polled once more: another thread wanted to, and found them locked.
    is_due: AtomicBool,
    /// How often the task polled them.
    polls: AtomicU64,
    runtime: Handle,
    common: Arc<Common>,
}

impl Driver {
    pub(crate) fn new(connections: Vec<impl Future<Output = ()> + Send + 'static>, common: Arc<Common>) -> Self {
        // One task for all: on its way to the nodes and back a round keeps one thread busy, and wakes no other. Should the
        // code for one connection panic, the others go on. Each bounds by itself what it does at once: tokio's bound would
        // be for all of them, and the first in the list would use it up.
        let apart = connections.into_iter().map(|connection| AssertUnwindSafe(connection).catch_unwind());
        let all: Connections = Box::pin(unconstrained(join_all(apart)).map(drop));
        Self {
            connections: Mutex::new(Some(all)),
            task: Arc::default(),
            is_due: AtomicBool::new(false),
            polls: AtomicU64::new(0),
            runtime: Handle::current(),
            common,
        }
    }

    /// Returns the future of the task. It ends when the client is gone, or when the runtime drops it.
    pub(crate) fn run(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let running = Running(Arc::clone(self));
        poll_fn(move |cx| {
            running.0.polls.fetch_add(1, Ordering::Relaxed);
            // Registered first: if another thread is polling, its polls have to wake this task.
            running.0.task.0.register(cx.waker());
            running.0.poll()
        })
    }

    /// Returns the runtime in which the client connected.
    #[cfg(feature = "blocking")]
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Returns how often the task has polled. If that stays the same although something was sent, no thread runs the task.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Does on this thread what the task would do next, unless it is at it: what was sent leaves at once, as far as the sockets
    /// take it, whether or not the task ever runs again. Never waits. Not to be called with the state of a lease locked.
    pub(crate) fn send_now(&self) {
        // A thread that is ending has no place for a runtime to be in.
        if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
            return;
        }
        let _inside = self.runtime.enter(); // Connections that are made meanwhile belong there.
        if self.poll().is_ready() {
            self.task.0.wake();
        }
    }

    /// Does the same if the runtime has ended, so that the task does not run again.
    pub(crate) fn send_last(&self) {
        if self.common.life.has_ended() {
            self.send_now();
        }
    }

    fn poll(&self) -> Poll<()> {
        if self.common.life.is_copy() {
            return Poll::Pending;
        }
        self.is_due.store(true, Ordering::SeqCst);
        // Dropped last: the observer may call the client, and not while the connections are locked.
        let _postponed = self.common.telemetry.postpone();
        let (mut ended, mut polls) = (Poll::Pending, 0);
        // If another thread polls already, or this one further up its stack, that one sees `is_due` and polls once more.
        while self.is_due.load(Ordering::SeqCst) {
            if polls == MOST_POLLS && !self.common.life.has_ended() {
                // The task does the rest. The connections are unlocked here: it, and who has found them locked, find them free.
                self.task.0.wake();
                break;
            }
            polls += 1;
            let mut connections = match self.connections.try_lock() {
                Ok(connections) => connections,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Poll::Pending,
            };
            self.is_due.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&self.task));
            let polled = connections.as_mut().map(|all| all.as_mut().poll(&mut Context::from_waker(&waker)));
            if polled != Some(Poll::Pending) {
                let over = connections.take();
                drop(connections);
                drop(over);
                ended = Poll::Ready(());
            }
        }
        ended
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The sockets are registered with the runtime of the process that connected: closing them here would take them from it.
        if self.common.life.is_copy() {
            // Not locked: another thread may have had the lock when the process was copied, and is not in the copy.
            mem::forget(self.connections.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// Wakes the task, also after another thread has polled the connections.
#[derive(Default)]
struct Task(AtomicWaker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

/// The task. Its end is the end of the runtime, or of the client.
struct Running(Arc<Driver>);

impl Drop for Running {
    fn drop(&mut self) {
        let Self(driver) = self;
        if !driver.common.life.is_copy() {
            driver.common.end_of_runtime();
            driver.send_last();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{OnceLock, Weak};
    use std::time::Duration;

    use super::*;
    use crate::environment::{Environment, Fake};
    use crate::telemetry::Telemetry;

    fn common() -> Arc<Common> {
        let second = Duration::from_secs(1);
        let environment: Arc<dyn Environment> = Arc::new(Fake::new().0);
        let telemetry = Telemetry::silent(&environment, 1);
        Arc::new(Common::new(environment, telemetry, Vec::new(), second, 300 * second, 10 * second))
    }

    /// A connection that counts its polls, and whether it is to be polled at once after each.
    fn counting(polls: &Arc<AtomicUsize>, goes_on: bool) -> impl Future<Output = ()> + Send + 'static {
        let polls = Arc::clone(polls);
        poll_fn(move |cx| {
            if polls.fetch_add(1, Ordering::SeqCst) < 7 && goes_on {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn the_task_polls_the_connections_when_they_wake_it() {
        let polls = Arc::default();
        let driver = Arc::new(Driver::new(vec![counting(&polls, true)], common()));
        assert_eq!(driver.polls(), 0);
        let task = tokio::spawn(driver.run());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!((driver.polls(), task.is_finished()), (8, false));
        assert_eq!(polls.load(Ordering::SeqCst), 8);
    }

    #[tokio::test]
    async fn another_thread_sends_at_once_and_in_the_end() {
        let (polls, common) = (Arc::default(), common());
        let driver = Driver::new(vec![counting(&polls, false)], Arc::clone(&common));
        let polled = || polls.load(Ordering::SeqCst);
        driver.send_last();
        assert_eq!(polled(), 0, "the task does it");
        driver.send_now();
        assert_eq!(polled(), 1);
        common.life.end();
        driver.send_last();
        assert_eq!(polled(), 2);
    }

    /// Whenever it is polled, another thread finds the connections locked.
    #[tokio::test]
    async fn a_thread_that_sends_leaves_to_the_task_what_others_send_all_the_time() {
        let (polls, driver): (Arc<AtomicUsize>, Arc<OnceLock<Weak<Driver>>>) = Default::default();
        let others = {
            let (polls, driver) = (Arc::clone(&polls), Arc::clone(&driver));
            poll_fn(move |_| {
                if polls.fetch_add(1, Ordering::SeqCst) < 1000 {
                    driver.get().and_then(Weak::upgrade).expect("it polls this").send_now();
                }
                Poll::Pending
            })
        };
        let made = Arc::new(Driver::new(vec![others], common()));
        assert!(driver.set(Arc::downgrade(&made)).is_ok());
        made.send_now();
        assert_eq!(polls.load(Ordering::SeqCst), MOST_POLLS as usize);
        let task = tokio::spawn(made.run());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(Ordering::SeqCst), 1001, "no poll that is due is left out");
        task.abort();
    }

    #[tokio::test]
    async fn the_end_of_the_task_is_the_end_of_the_runtime_and_sends_what_is_left() {
        let (polls, common) = (Arc::default(), common());
        let driver = Arc::new(Driver::new(vec![counting(&polls, false)], Arc::clone(&common)));
        let task = driver.run();
        assert!(!common.life.has_ended());
        drop(task);
        assert!(common.life.has_ended());
        assert_eq!(polls.load(Ordering::SeqCst), 1);
    }
}
