//! `quorlock::blocking`: the lock for programs without tokio.

use std::cell::RefCell;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use quorlock::blocking::Quorlock;
use quorlock::{AcquireError, Builder, ConfigError, Event, Observer, Owner, ReleaseError, RunError};
use quorlock_testkit::{CUT_OFF, Cluster};

const SECOND: Duration = Duration::from_secs(1);
/// The limit for an event that takes a moment, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn client(cluster: &Cluster, lease: Duration) -> Quorlock {
    let locks = cluster
        .builder()
        .node_timeout((lease / 4).min(2 * SECOND))
        .lease(lease)
        .connect_blocking()
        .expect("settings that work");
    locks.flush();
    locks
}

fn is_free(locks: &Quorlock, name: &str) -> bool {
    match locks.lock(name).owner(&Owner::new()).try_acquire() {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_held(), "{error}");
            false
        }
    }
}

#[test]
fn a_thread_acquires_and_its_dropped_guard_releases() {
    let cluster = Cluster::start(3);
    let locks = client(&cluster, 60 * SECOND);
    let guard = locks.lock("x").acquire().expect("free");
    assert!(guard.check().is_ok() && guard.remaining() > 50 * SECOND);
    assert!(!is_free(&locks, "x"));
    let held = locks.lock("x").wait(SECOND / 10).acquire().expect_err("it is held");
    assert!(held.is_timed_out(), "{held}");
    let token = guard.token();
    drop(guard);
    let again = locks.lock("x").try_acquire().expect("it is released");
    assert!(again.token() > token);
    again.ensure(55 * SECOND).and_then(|()| again.extend()).expect("an extension");
    again.release().expect("a release");
    assert!(is_free(&locks, "x"));

    let mut both = locks.lock_all(["x", "y"]).acquire().expect("both are free");
    drop(both.split("x").expect("one of two"));
    assert!(is_free(&locks, "x") && !is_free(&locks, "y"));
    let shared = locks.join(&both.export()).expect("an export");
    drop(both);
    assert!(!is_free(&locks, "y"));
    assert!(locks.inspect("y").expect("a name").holder.is_some());
    locks.revoke("y", Some(shared.token())).expect("a revocation");
}

#[test]
fn a_thread_that_sleeps_for_longer_than_its_lease_keeps_its_lock() {
    let cluster = Cluster::start(3);
    let locks = client(&cluster, 3 * SECOND);
    let guard = locks.lock("x").acquire().expect("free");
    thread::sleep(7 * SECOND); // What the test is about.
    guard.check().expect("it was extended meanwhile");
    assert!(!is_free(&locks, "x"));
    guard.release().expect("a release");
}

#[test]
fn a_thread_enters_again_in_the_scope_of_its_owner_and_another_with_the_owner() {
    let cluster = Cluster::start(3);
    let locks = client(&cluster, 60 * SECOND);
    let run = locks.lock("x").run(|guard| {
        let again = locks.lock("x").acquire()?;
        assert_eq!((again.token(), guard.hold_count()), (guard.token(), 2));
        drop(again);
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                assert!(!is_free(&locks, "x"));
                let wait = locks.lock("x").wait(SECOND / 10).acquire();
                assert!(wait.is_err_and(|error| error.is_held()), "the scope is of the other thread");
                guard.owner().sync_scope(|| locks.lock("x").acquire()).map(|entered| entered.token())
            });
            elsewhere.join().expect("no panic")
        })
    });
    assert!(run.is_ok(), "{run:?}");
    assert!(is_free(&locks, "x") && Owner::current().is_none());
}

#[test]
fn work_that_fails_or_panics_releases() {
    let cluster = Cluster::start(3);
    let locks = client(&cluster, 60 * SECOND);
    let failed = locks.lock("x").run(|_| Err::<Infallible, _>("on purpose"));
    assert_eq!(failed, Err(RunError::Work("on purpose")));
    assert!(is_free(&locks, "x"));
    let panics = || locks.lock("x").run(|_| -> Result<(), Infallible> { resume_unwind(Box::new("on purpose")) });
    let unwound = catch_unwind(AssertUnwindSafe(panics)).expect_err("it unwinds");
    assert_eq!(unwound.downcast_ref(), Some(&"on purpose"));
    assert!(is_free(&locks, "x"));
}

#[test]
fn a_loss_is_seen_by_check_and_calls_back() {
    let mut cluster = Cluster::start(3);
    let locks = client(&cluster, 3 * SECOND);
    let kept = locks.lock("y").acquire().expect("free");
    let (sender, told) = mpsc::channel();
    let callback = |what: &'static str| {
        let sender = sender.clone();
        move |lost: quorlock::LostError| sender.send((what, lost)).expect("the test waits")
    };
    {
        let released = locks.lock("z").acquire().expect("free");
        released.on_lost(callback("released"));
        released.release().expect("a release");
    }
    let run = locks.lock("x").run(|guard| {
        guard.on_lost(callback("held"));
        for node in [0, 1] {
            cluster.pause(node);
        }
        let (what, lost) = told.recv_timeout(LIMIT).expect("a callback");
        assert_eq!((what, &*lost.resource), ("held", "x"));
        assert!(guard.check().is_err_and(|error| error.resource == "x"));
        Ok::<_, Infallible>(())
    });
    assert!(run.as_ref().is_err_and(RunError::is_lost), "{run:?}");
    kept.on_lost(callback("late"));
    let (what, lost) = told.recv_timeout(LIMIT).expect("a callback, also after the loss");
    assert_eq!((what, &*lost.resource), ("late", "y"));
    assert!(matches!(kept.release(), Err(ReleaseError::NotHeld { .. })));
    drop((locks, callback));
    drop(sender);
    assert!(
        told.recv_timeout(LIMIT).is_err_and(|error| error == mpsc::RecvTimeoutError::Disconnected),
        "no other call"
    );
}

/// More calls than the budget of a task, each of which waits for answers.
fn lock_often(builder: Builder) {
    let locks = builder.lease(60 * SECOND).connect_blocking().expect("settings that work");
    for _ in 0..300 {
        locks.lock("x").acquire().expect("free").release().expect("a release");
    }
    let run = locks.lock("x").run(|_| locks.lock("x").acquire().map(drop));
    assert_eq!(run, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_a_runtime_of_several_threads_do_not_panic() {
    let cluster = Cluster::start(3);
    let builder = cluster.builder().node_timeout(2 * SECOND);
    tokio::spawn(async move { lock_often(builder) }).await.expect("no panic on a worker thread");
    let builder = cluster.builder().node_timeout(2 * SECOND);
    tokio::task::spawn_blocking(move || lock_often(builder)).await.expect("no panic");
}

#[tokio::test]
async fn calls_in_a_runtime_of_one_thread_do_not_panic() {
    let cluster = Cluster::start(3);
    lock_often(cluster.builder().node_timeout(2 * SECOND));
}

/// Sends when the thread ends whose local it is.
struct End(mpsc::Sender<()>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.send(()).ok(); // The test may be over.
    }
}

thread_local! {
    static END: RefCell<Option<End>> = const { RefCell::new(None) };
}

/// Notices the end of the client's thread.
struct Witness(Mutex<mpsc::Sender<()>>);

impl Observer for Witness {
    fn event(&self, _: &Event<'_>) {
        if thread::current().name() == Some("quorlock") {
            let sender = self.0.lock().expect("no panic").clone();
            END.with_borrow_mut(|end| drop(end.get_or_insert_with(|| End(sender)).0.clone()));
        }
    }
}

#[test]
fn the_thread_ends_with_the_last_handle_after_the_release() {
    let cluster = Cluster::start(3);
    let (sender, ended) = mpsc::channel();
    let witness = Arc::new(Witness(Mutex::new(sender)));
    let builder = cluster.builder().node_timeout(2 * SECOND).lease(60 * SECOND).observer(witness);
    let locks = builder.connect_blocking().expect("settings that work");
    locks.flush();
    let guard = locks.lock("x").acquire().expect("free");
    drop(locks.clone());
    drop(locks);
    guard.extend().expect("the guard keeps the thread");
    assert_eq!(ended.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(guard);
    ended.recv_timeout(LIMIT).expect("the thread ends");
    assert_eq!(cluster.count_keys(&Cluster::lock_key("x")), 0);
}

/// Acquires where it must not: whenever a node is down. Tells how that ended.
struct Caller(Mutex<(mpsc::Sender<bool>, Option<Quorlock>)>);

impl Observer for Caller {
    fn event(&self, event: &Event<'_>) {
        let (sender, locks) = &*self.0.lock().expect("no panic under the lock");
        if let (Event::NodeDown { .. }, Some(locks)) = (event, locks) {
            let call = catch_unwind(AssertUnwindSafe(|| locks.lock("y").wait(LIMIT).acquire().is_ok()));
            sender.send(call.is_err() && thread::current().name() == Some("quorlock")).ok(); // The test may be over.
        }
    }
}

#[test]
fn a_call_that_would_wait_for_the_thread_that_makes_it_panics() {
    let mut cluster = Cluster::start(3);
    let (sender, ended) = mpsc::channel();
    let caller = Arc::new(Caller(Mutex::new((sender, None))));
    let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
    let builder = builder.observer(Arc::clone(&caller) as Arc<dyn Observer>);
    let locks = builder.connect_blocking().expect("settings that work");
    locks.flush();
    caller.0.lock().expect("no panic").1 = Some(locks.clone());
    cluster.kill(0);
    assert_eq!(ended.recv_timeout(LIMIT), Ok(true));
    assert!(is_free(&locks, "x"), "the thread goes on");
    caller.0.lock().expect("no panic").1 = None;
}

#[test]
fn what_cannot_work_is_refused() {
    let refused = quorlock::Quorlock::builder().connect_blocking();
    assert_eq!(refused.err(), Some(ConfigError::NoNodes));
    let locks = quorlock::Quorlock::builder().nodes([CUT_OFF]).lease(SECOND).connect_blocking().expect("settings");
    assert!(locks.ready().is_err());
    let began = Instant::now();
    assert!(locks.lock("x").acquire().is_err_and(|error| error.is_no_quorum()));
    assert!(began.elapsed() >= SECOND / 2);
    assert!(matches!(locks.lock_all([""; 0]).try_acquire(), Err(AcquireError::Config(ConfigError::NoNames))));
}
