//! All connections of a client as one future. A task polls it while the client's runtime lives. After that each release does.

use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker, ready};

use futures::FutureExt as _;
use futures::future::{join_all, poll_fn};
use tokio::task::unconstrained;

use super::Common;
use crate::sync::locked;

pub(crate) struct Driver {
    /// `None` when all connections have ended.
    connections: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    /// Something was sent since the runtime has ended.
    is_due: AtomicBool,
    /// How often they were polled.
    polls: AtomicU64,
    common: Arc<Common>,
}

impl Driver {
    pub(crate) fn new(connections: Vec<impl Future<Output = ()> + Send + 'static>, common: Arc<Common>) -> Self {
        // One task for all: on its way to the nodes and back a round keeps one thread busy, and wakes no other. Should the
        // code for one connection panic, the others go on. Each bounds by itself what it does at once: tokio's bound would
        // be for all of them, and the first in the list would use it up.
        let apart = connections.into_iter().map(|connection| AssertUnwindSafe(connection).catch_unwind());
        let all = unconstrained(join_all(apart)).map(drop);
        Self {
            connections: Mutex::new(Some(Box::pin(all))),
            is_due: AtomicBool::new(false),
            polls: AtomicU64::new(0),
            common,
        }
    }

    /// What the task does: until the client is gone, or the runtime drops it.
    pub(crate) fn run(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let running = Running(Arc::clone(self));
        poll_fn(move |cx| running.0.poll(cx))
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.common.life.is_copy() {
            return Poll::Pending;
        }
        self.polls.fetch_add(1, Ordering::Relaxed);
        let mut connections = locked(&self.connections);
        if let Some(all) = connections.as_mut() {
            ready!(all.as_mut().poll(cx));
        }
        let ended = connections.take();
        drop(connections);
        drop(ended);
        Poll::Ready(())
    }

    /// Grows whenever the task runs: where it stays the same although something was sent, no thread runs the task.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Writes the releases that were sent since the runtime has ended, as far as the sockets take them at once. Never waits. Not to
    /// be called with the state of a lease locked.
    pub(crate) fn send_last(&self) {
        if !self.common.life.has_ended() {
            return;
        }
        self.is_due.store(true, Ordering::SeqCst);
        // Where another thread is about that already, or this one further up, that goes on with it.
        while self.is_due.load(Ordering::SeqCst) {
            let mut connections = match self.connections.try_lock() {
                Ok(connections) => connections,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.is_due.store(false, Ordering::SeqCst);
            let all = connections.as_mut().map(|all| all.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            if all == Some(Poll::Ready(())) {
                *connections = None;
            }
        }
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
