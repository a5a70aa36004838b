//! Fewer wake-ups for a task that polls both ends of a channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use futures::task::AtomicWaker;

/// The waker of what this task polls itself: redis-rs's driver, and the answers that it hands over. Both ends of those
/// channels are in this very task, so what one has for the other is polled before the task rests and need not go through the
/// scheduler. What rings at any other time, a socket that has become readable, wakes the task.
#[derive(Default)]
pub(super) struct Bell {
    task: AtomicWaker,
    /// The task is running, and will poll again before it rests if this has rung.
    attended: AtomicBool,
    rung: AtomicBool,
}

impl Bell {
    pub(super) fn attend(&self, task: &Context<'_>) {
        self.task.register(task.waker());
        self.attended.store(true, Ordering::SeqCst);
    }

    /// Everything that could have rung is about to be polled.
    pub(super) fn silence(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    /// The task rests now. Whoever rings first sees this, or is seen here.
    pub(super) fn leave(&self) {
        self.attended.store(false, Ordering::SeqCst);
        if self.rung.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.attended.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}
