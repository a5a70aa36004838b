//! `LockRequest::run`: work that runs entirely under a lock.

use std::time::Duration;

use futures::FutureExt as _;
use quorlock_testkit::Cluster;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn work_runs_under_the_lock_and_its_release_is_awaited() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let key = Cluster::lock_key("x");
    let other = locks.clone();
    let work = async move |guard: &quorlock::Guard| {
        let again = other.lock("x").try_acquire().await;
        (guard.token(), again.expect_err("it is held").is_held())
    };
    let (token, is_held) = tokio::spawn(locks.lock("x").run(work)).await.expect("a task").expect("the lock");
    assert!(is_held);
    assert!(cluster.count_keys(&key) < 2, "a majority has released");

    let failed = locks.lock("x").run(async |_| Err::<(), _>("on purpose")).await;
    assert_eq!(failed, Ok(Err("on purpose")));
    assert!(cluster.count_keys(&key) < 2, "a majority has released");

    let panics = locks.lock("x").run(async |_| std::panic::resume_unwind(Box::new("on purpose")));
    let unwound: Result<Result<(), _>, _> = std::panic::AssertUnwindSafe(panics).catch_unwind().await;
    assert_eq!(unwound.expect_err("it unwinds").downcast_ref(), Some(&"on purpose"));
    assert!(cluster.count_keys(&key) < 2, "a majority has released");

    let last = locks.lock("x").try_acquire().await.expect("free");
    assert!(last.token() > token);
    let held = locks.lock("x").wait(SECOND / 10).run(async |_| unreachable!("it is held")).await;
    assert!(matches!(held, Err(quorlock::RunError::Acquire(error)) if error.is_held()));
}

#[tokio::test]
async fn work_is_dropped_when_its_lock_is_lost() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(SECOND).await;
    let error = locks
        .lock("x")
        .run(async |_| {
            cluster.pause(0);
            cluster.pause(1);
            std::future::pending::<()>().await;
        })
        .await
        .expect_err("the lease ends");
    assert!(error.is_lost(), "{error}");
}
