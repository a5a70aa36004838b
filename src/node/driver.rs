//! All connections of a client as one future. A task polls it while the client's runtime lives, and so does each guard that is
//! dropped.

use std::cell::Cell;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use futures::FutureExt as _;
use futures::future::{join_all, poll_fn};
use futures::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::task::{self, unconstrained};

use super::common::Common;

/// With more callers than this that have requests under way, the task sends for all of them.
const MOST_CALLERS: usize = 2;

type Connections = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct Driver {
    /// `None` when all connections have ended.
    connections: Mutex<Option<Connections>>,
    task: Arc<Task>,
    /// They are to be polled once more: another thread wanted to, and found them locked.
    is_due: AtomicBool,
    /// How often the task polled them.
    polls: AtomicU64,
    /// How many futures are under way that send.
    callers: AtomicUsize,
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
            callers: AtomicUsize::new(0),
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
            running.0.task.waker.register(cx.waker());
            running.0.task.begins();
            running.0.poll()
        })
    }

    /// Returns the runtime in which the client connected.
    #[cfg(feature = "blocking")]
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Returns how often the task has polled. If that stays the same although the task was woken, no thread runs it.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Wakes the task, if it has not polled since [`polls`](Self::polls) returned this.
    pub(crate) fn probe(&self, polls: u64) {
        if polls == self.polls() {
            self.task.wake_up();
        }
    }

    /// Runs code that sends. Outside of tasks, as in `main` and in tests, what it sends leaves on this thread when it is done: the
    /// task would first have to wake up on another one. It is left to the task if that is about to run, or has work all the time, as
    /// other callers have requests under way: it sends what many have for it at once, and threads would wait for each other. So it is
    /// inside of tasks, as the task of the connections is next on this thread. Not to be called with the state of a lease locked.
    pub(crate) fn sending<T>(&self, send: impl FnOnce() -> T) -> T {
        let is_alone = self.callers.load(Ordering::Relaxed) <= MOST_CALLERS;
        let _sending = (is_alone && task::try_id().is_none()).then(|| Sending::begin(self));
        send()
    }

    /// Runs a future that sends as [`sending`](Self::sending) does.
    pub(crate) async fn sending_in<F: Future>(&self, future: F) -> F::Output {
        let _caller = Caller::new(&self.callers);
        let mut future = pin!(future);
        poll_fn(|cx| self.sending(|| future.as_mut().poll(cx))).await
    }

    /// Does on this thread what the task would do next, unless it is at it: what was sent leaves at once, as far as the sockets
    /// take it, whether or not the task ever runs again. Never waits. Not to be called with the state of a lease locked.
    pub(crate) fn send_now(&self) {
        // A thread that is ending has no place for a runtime to be in.
        if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
            return self.task.wake_up();
        }
        let _inside = self.runtime.enter(); // Connections that are made meanwhile belong there.
        if self.poll().is_ready() {
            self.task.wake_up();
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
        let mut ended = Poll::Pending;
        // If another thread polls already, or this one further up its stack, that one sees `is_due` and polls once more.
        while self.is_due.load(Ordering::SeqCst) {
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
struct Task {
    waker: AtomicWaker,
    /// It was woken, and has not polled since.
    is_woken: AtomicBool,
}

impl Task {
    fn wake_up(&self) {
        self.is_woken.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Notes that it polls now.
    fn begins(&self) {
        self.is_woken.swap(false, Ordering::SeqCst);
    }

    /// Returns whether it polls after this call, and finds what was queued before.
    fn is_about_to_run(&self) -> bool {
        // A write, which `begins` reads: a mere load would not order what was queued before the poll.
        self.is_woken.compare_exchange(true, true, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A thread that is ending sends nothing more here.
        let is_noted = SENDER.try_with(|sender| {
            let is_here = ptr::eq(sender.get().task, Arc::as_ptr(self));
            if is_here {
                sender.set(Sender { is_due: true, ..sender.get() });
            }
            is_here
        });
        if !is_noted.unwrap_or(false) {
            self.wake_up();
        }
    }
}

thread_local! {
    /// What this thread sends at the moment.
    static SENDER: Cell<Sender> = const { Cell::new(Sender { task: ptr::null(), is_due: false }) };
}

/// Code that sends on a thread, and will have the connections polled there.
#[derive(Clone, Copy)]
struct Sender {
    /// The task of the connections, by its address; null for none.
    task: *const Task,
    /// It would have been woken.
    is_due: bool,
}

/// Counts a future that sends, while it lives.
struct Caller<'a>(&'a AtomicUsize);

impl<'a> Caller<'a> {
    fn new(callers: &'a AtomicUsize) -> Self {
        callers.fetch_add(1, Ordering::Relaxed);
        Self(callers)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The part of a thread's time in which it sends.
struct Sending<'a> {
    driver: &'a Driver,
    before: Sender,
}

impl<'a> Sending<'a> {
    fn begin(driver: &'a Driver) -> Self {
        let sender = Sender { task: Arc::as_ptr(&driver.task), is_due: false };
        Self { driver, before: SENDER.replace(sender) }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if SENDER.replace(self.before).is_due {
            if thread::panicking() {
                self.driver.task.wake_up();
            } else if self.driver.common.life.has_ended() || !self.driver.task.is_about_to_run() {
                self.driver.send_now();
            }
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::panic::catch_unwind;
    use std::time::Duration;

    use tokio::task::yield_now;

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

    /// A connection that is woken by this, and counts its polls.
    fn woken_by(wake: &Arc<AtomicWaker>, polls: &Arc<AtomicUsize>) -> impl Future<Output = ()> + Send + 'static {
        let (wake, polls) = (Arc::clone(wake), Arc::clone(polls));
        poll_fn(move |cx| {
            wake.register(cx.waker());
            polls.fetch_add(1, Ordering::SeqCst);
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn what_is_sent_outside_of_tasks_leaves_on_this_thread_without_the_task() {
        let (request, polls): (Arc<AtomicWaker>, Arc<AtomicUsize>) = Default::default();
        let driver = Arc::new(Driver::new(vec![woken_by(&request, &polls)], common()));
        let task = tokio::spawn(Arc::clone(&driver).run());
        yield_now().await;
        let counts = || (driver.polls(), polls.load(Ordering::SeqCst));
        assert_eq!(counts(), (1, 1));
        driver.sending(|| {
            request.wake();
            assert_eq!(counts(), (1, 1), "more may be sent");
        });
        assert_eq!(counts(), (1, 2));
        yield_now().await;
        assert_eq!(counts(), (1, 2), "the task was not woken");
        driver.sending(|| ());
        assert_eq!(counts(), (1, 2), "nothing was sent");

        let panicked = catch_unwind(AssertUnwindSafe(|| {
            driver.sending(|| {
                request.wake();
                panic!("as expected");
            })
        }));
        assert_eq!((panicked.is_err(), counts()), (true, (1, 2)));
        yield_now().await;
        assert_eq!(counts(), (2, 3), "left to the task");

        let (other, woken) = (Arc::clone(&driver), Arc::clone(&request));
        let inside = tokio::spawn(async move { other.sending(|| woken.wake()) });
        inside.await.expect("no panic");
        yield_now().await;
        assert_eq!(counts(), (3, 4), "the task does it");
        task.abort();
    }

    #[tokio::test]
    async fn what_is_sent_is_left_to_a_task_that_is_about_to_run() {
        let (first, second, polls): (Arc<AtomicWaker>, Arc<AtomicWaker>, Arc<AtomicUsize>) = Default::default();
        let connections = vec![woken_by(&first, &polls), woken_by(&second, &Arc::default())];
        let driver = Arc::new(Driver::new(connections, common()));
        let task = tokio::spawn(Arc::clone(&driver).run());
        yield_now().await;
        let counts = || (driver.polls(), polls.load(Ordering::SeqCst));
        first.wake();
        driver.sending(|| second.wake());
        assert_eq!(counts(), (1, 1), "the task sends what many have for it");
        yield_now().await;
        assert_eq!(counts(), (2, 2));
        driver.sending(|| first.wake());
        assert_eq!(counts(), (2, 3));
        driver.probe(1);
        yield_now().await;
        assert_eq!(driver.polls(), 2, "it has run since");
        driver.probe(2);
        yield_now().await;
        assert_eq!(driver.polls(), 3);
        task.abort();
    }

    #[tokio::test]
    async fn what_is_sent_is_left_to_the_task_while_many_have_requests_under_way() {
        let (request, polls): (Arc<AtomicWaker>, Arc<AtomicUsize>) = Default::default();
        let driver = Arc::new(Driver::new(vec![woken_by(&request, &polls)], common()));
        let task = tokio::spawn(Arc::clone(&driver).run());
        yield_now().await;
        let counts = || (driver.polls(), polls.load(Ordering::SeqCst));
        let mut callers: Vec<_> = (0..MOST_CALLERS).map(|_| Box::pin(driver.sending_in(pending::<()>()))).collect();
        for caller in &mut callers {
            assert!(caller.now_or_never().is_none());
        }
        driver.sending(|| request.wake());
        assert_eq!(counts(), (1, 2), "few");
        let mut one_more = Box::pin(driver.sending_in(pending::<()>()));
        assert!((&mut one_more).now_or_never().is_none());
        driver.sending(|| request.wake());
        assert_eq!(counts(), (1, 2), "left to the task");
        yield_now().await;
        assert_eq!(counts(), (2, 3));
        drop(one_more);
        driver.sending(|| request.wake());
        assert_eq!(counts(), (2, 4));
        task.abort();
    }

    /// Sends when its thread ends.
    struct AtEnd(Cell<Option<(Arc<Driver>, Arc<AtomicWaker>)>>);

    impl Drop for AtEnd {
        fn drop(&mut self) {
            let is_over = Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed());
            assert!(is_over, "tokio's part of the thread ends first");
            let (driver, request) = self.0.take().expect("it was set");
            driver.sending(|| request.wake());
        }
    }

    thread_local! {
        static AT_END: AtEnd = const { AtEnd(Cell::new(None)) };
    }

    #[tokio::test]
    async fn what_a_thread_sends_while_it_ends_is_left_to_the_task() {
        let (request, polls): (Arc<AtomicWaker>, Arc<AtomicUsize>) = Default::default();
        let driver = Arc::new(Driver::new(vec![woken_by(&request, &polls)], common()));
        let task = tokio::spawn(Arc::clone(&driver).run());
        yield_now().await;
        let sender = (Arc::clone(&driver), request);
        let thread = thread::spawn(move || {
            AT_END.with(|end| end.0.set(Some(sender)));
            drop(Handle::try_current()); // Later than the other, so it ends before.
        });
        thread.join().expect("no panic");
        yield_now().await;
        assert_eq!((driver.polls(), polls.load(Ordering::SeqCst)), (2, 2));
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
