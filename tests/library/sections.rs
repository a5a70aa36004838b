//! `LockRequest::run`: work that runs entirely under a lock. And the limits of a request.

use std::convert::Infallible;
use std::future::pending;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use quorlock::{AcquireError, Guard, Outage, Owner, Quorlock, RunError};
use quorlock_testkit::{CUT_OFF, Cluster};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);
/// The limit for an event that takes a moment, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Acquires "x" for another owner without waiting.
async fn enters(locks: &Quorlock) -> Result<Guard, AcquireError> {
    locks.lock("x").owner(&Owner::new()).try_acquire().await
}

#[tokio::test]
async fn work_runs_under_the_lock_in_the_scope_of_its_owner() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let inner = locks.clone();
    let work = async move |guard: &Guard| {
        assert_eq!(Owner::current().as_ref(), Some(guard.owner()));
        let again = inner.lock("x").acquire().await?;
        assert_eq!((again.token(), guard.hold_count()), (guard.token(), 2));
        drop(again);
        assert!(enters(&inner).await.expect_err("it is held").is_held());
        Ok::<_, AcquireError>(guard.token())
    };
    let token = tokio::spawn(locks.lock("x").run(work)).await.expect("a task").expect("the lock");
    assert_eq!(Owner::current(), None);
    assert!(enters(&locks).await.expect("a majority has released").token() > token);
}

#[tokio::test]
async fn the_error_of_the_work_is_returned_unchanged_after_the_release() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let failed = locks.lock("x").run(async |_| Err::<Infallible, _>("on purpose")).await;
    assert_eq!(failed, Err(RunError::Work("on purpose")));
    drop(enters(&locks).await.expect("a majority has released"));

    let boxed = locks.lock("x").run(async |_| Err::<Infallible, _>(Box::<dyn std::error::Error>::from("boxed"))).await;
    let error: Box<dyn std::error::Error> = boxed.expect_err("it fails").into();
    assert_eq!(error.to_string(), "boxed");
}

#[tokio::test]
async fn a_panic_of_the_work_continues_after_the_release() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let panics = locks.lock("x").run(async |_| -> Result<(), Infallible> { resume_unwind(Box::new("on purpose")) });
    let unwound = AssertUnwindSafe(panics).catch_unwind().await.expect_err("it unwinds");
    assert_eq!(unwound.downcast_ref(), Some(&"on purpose"));
    drop(enters(&locks).await.expect("a majority has released"));
}

#[tokio::test]
async fn a_run_that_is_cancelled_releases() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let (begun, has_begun) = oneshot::channel();
    let run = locks.lock("x").run(async |_| {
        begun.send(()).expect("the test waits");
        pending::<Result<(), Infallible>>().await
    });
    tokio::select! {
        _ = run => unreachable!("the work does not end"),
        has_begun = has_begun => has_begun.expect("it begins"),
    }
    // The release left before this request.
    drop(enters(&locks).await.expect("it is released"));
}

#[tokio::test]
async fn a_lock_that_is_not_had_is_the_error_of_the_acquisition() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let _held = enters(&locks).await.expect("free");
    let run = locks.lock("x").wait(SECOND / 10).run(async |_| -> Result<(), Infallible> { unreachable!("it is held") });
    assert!(matches!(run.await, Err(RunError::Acquire(error)) if error.is_held() && error.is_timed_out()));
}

#[tokio::test]
async fn work_is_dropped_when_its_lock_is_lost() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(SECOND).await;
    let run = locks.lock("x").run(async |_| {
        cluster.pause(0);
        cluster.pause(1);
        pending::<Result<(), Infallible>>().await
    });
    let error = run.await.expect_err("the lease ends");
    assert!(error.is_lost() && !error.is_retryable(), "{error}");
}

#[tokio::test]
async fn the_error_of_work_that_ends_after_the_loss_is_returned() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(SECOND).await;
    let run = locks.lock("x").run(async |guard| {
        cluster.pause(0);
        cluster.pause(1);
        // Without an `.await` the work is not dropped.
        while guard.check().is_ok() {
            std::thread::sleep(SECOND / 100);
        }
        Err::<Infallible, _>(guard.check().expect_err("it is lost"))
    });
    assert!(matches!(run.await, Err(RunError::Work(lost)) if lost.resource == "x"));
}

#[tokio::test]
async fn a_release_without_a_majority_is_an_error_of_its_own() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let run = locks.lock("x").run(async |_| {
        cluster.pause(0);
        cluster.pause(1);
        Ok::<_, Infallible>("a receipt")
    });
    let error = run.await.expect_err("two nodes do not answer");
    assert!(matches!(error, RunError::Release { output: "a receipt", .. }), "{error}");
    assert!(error.to_string().starts_with("the work is done, but the release is not confirmed"), "{error}");
    assert_eq!((error.kind(), error.is_retryable()), (Some(quorlock::ErrorKind::Unconfirmed), false));
}

#[tokio::test]
async fn the_earlier_of_limit_and_deadline_ends_the_wait() {
    let cluster = Cluster::start(3);
    let locks = cluster.builder().wait(SECOND / 10).connect().await.expect("settings that work");
    // It has the turn in this process, so the others ask no node, however slow the nodes are.
    let _held = locks.lock("x").wait(LIMIT).acquire().await.expect("free");
    let waits = async |request: quorlock::LockRequest| {
        let began = Instant::now();
        let error = tokio::time::timeout(LIMIT, request.acquire()).await.expect("a limit").expect_err("it is held");
        assert!(error.is_timed_out() && error.is_held(), "{error}");
        began.elapsed()
    };
    assert!(waits(locks.lock("x")).await >= SECOND / 10, "the limit of the client");
    let later = Instant::now() + LIMIT * 2;
    assert!(waits(locks.lock("x").deadline(later)).await >= SECOND / 10);
    let soon = tokio::time::Instant::now() + SECOND / 10;
    waits(locks.lock("x").wait(LIMIT * 2).deadline(soon)).await;
    assert!(tokio::time::Instant::now() >= soon);
    waits(locks.lock("x").wait(Duration::MAX).deadline(Instant::now())).await;

    let unlimited = locks.lock("x").wait(Duration::MAX).acquire();
    assert!(tokio::time::timeout(SECOND, unlimited).await.is_err(), "the limit of the client does not count");
}

#[tokio::test]
async fn a_request_whose_time_is_over_tries_once() {
    let cluster = Cluster::start(3);
    let builder = || cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND).wait(Duration::ZERO);
    let locks = builder().connect().await.expect("settings that work");
    let other = builder().connect().await.expect("settings that work");
    locks.flush().await;
    other.flush().await;
    let requests = |locks: &Quorlock| {
        let over = Instant::now() - SECOND;
        [locks.lock("x"), locks.lock("x").wait(LIMIT).deadline(over), locks.lock("x").outage(Outage::Wait)]
    };
    for request in requests(&locks) {
        request.acquire().await.expect("free").release().await.expect("a release");
    }
    let held = locks.lock("x").acquire().await.expect("free");
    drop(locks.lock("x").owner(held.owner()).acquire().await.expect("a re-entry"));
    for request in requests(&locks).into_iter().chain(requests(&other)) {
        let error = request.acquire().await.expect_err("it is held");
        assert!(error.is_timed_out() && error.is_held(), "{error}");
    }
}

#[tokio::test]
async fn a_request_says_what_it_does_in_an_outage() {
    let locks = Quorlock::builder().nodes([CUT_OFF]).lease(SECOND).outage(Outage::Fail).connect().await;
    let locks = locks.expect("settings that work");
    for request in [locks.lock("x"), locks.lock("x").wait(LIMIT * 2), locks.lock("x").outage(Outage::Bounded)] {
        let failed = tokio::time::timeout(LIMIT, request.acquire()).await.expect("it fails");
        assert!(failed.as_ref().is_err_and(AcquireError::is_no_quorum), "{failed:?}");
    }
    let waiting = locks.lock("x").outage(Outage::Wait).acquire();
    assert!(tokio::time::timeout(2 * SECOND, waiting).await.is_err(), "longer than half a lease");
}
