//! Rows 17 to 19: waiting ends when it should, and leaves nothing.

use std::time::{Duration, Instant};

use quorlock::AcquireError;

use crate::support::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn acc_17_a_waiter_is_granted_soon_after_the_release() {
    let cluster = Cluster::quiet(5);
    let holder = cluster.client(10 * SECOND).await;
    let waiter = cluster.client(10 * SECOND).await;
    for _ in 0..20 {
        let guard = holder.lock("next").acquire().await.expect("the lock");
        let waiting = tokio::spawn({
            let waiter = waiter.clone();
            async move {
                let guard = waiter.lock("next").acquire().await.expect("the lock");
                (Instant::now(), guard)
            }
        });
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..120))).await;
        assert!(!waiting.is_finished());
        let released = Instant::now();
        guard.release().await.expect("a release");
        let (granted, guard) = waiting.await.expect("the waiter");
        assert!(granted - released <= Duration::from_millis(150), "granted after {:?}", granted - released);
        guard.release().await.expect("a release");
    }
}

#[tokio::test]
async fn acc_18_a_limit_is_kept_and_a_try_is_quick() {
    let cluster = Cluster::quiet(5);
    let holder = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    let guard = holder.lock("held").acquire().await.expect("the lock");
    let label = guard.owner().label().to_owned();

    let start = Instant::now();
    let error = other.lock("held").wait(Duration::from_millis(500)).acquire().await.expect_err("it is held");
    let took = start.elapsed();
    assert!((500..=700).contains(&took.as_millis()), "took {took:?}");
    assert!(error.is_timed_out() && error.is_held(), "{error}");
    assert!(error.to_string().contains(&label), "who holds it? {error}");

    let start = Instant::now();
    let error = other.lock("held").try_acquire().await.expect_err("it is held");
    assert!(start.elapsed() < Duration::from_millis(50), "took {:?}", start.elapsed());
    let AcquireError::Held { free_in: Some(free_in), nodes, .. } = &error else { panic!("{error:?}") };
    assert!(*free_in <= 10 * SECOND && !free_in.is_zero());
    assert_eq!(nodes.0.len(), 5);
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_19_nothing_of_a_cancelled_waiter_is_left() {
    let cluster = Cluster::quiet(5);
    let holder = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    let key = Cluster::lock_key("given up");
    for round in 0..20 {
        let guard = holder.lock("given up").acquire().await.expect("the lock");
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { other.lock("given up").acquire().await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..80))).await;
        // Before the release, after it, and at about the same time.
        if round % 2 == 0 {
            waiting.abort();
            guard.release().await.expect("a release");
        } else {
            drop(guard);
            waiting.abort();
        }
        drop(waiting.await);
        eventually(Duration::from_millis(100), "no key is left", || cluster.count_keys(&key) == 0).await;
        other.lock("given up").try_acquire().await.expect("free").release().await.expect("a release");
    }
}

#[tokio::test]
async fn acc_19_an_acquisition_dropped_at_any_await_leaves_nothing() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(60 * SECOND).await;
    let key = Cluster::lock_key("dropped");
    for polls in 0..6 {
        let request = locks.lock("dropped").acquire();
        let mut request = Box::pin(request);
        for _ in 0..polls {
            if futures::poll!(request.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(request);
        locks.flush().await;
        assert_eq!(cluster.count_keys(&key), 0, "dropped after {polls} polls");
    }
}

#[tokio::test]
async fn acc_18_a_held_lock_is_held_also_while_a_minority_is_away() {
    let mut cluster = Cluster::start(5);
    let holder = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    cluster.kill(0);
    cluster.pause(1);
    let guard = holder.lock("held").acquire().await.expect("three nodes are up");
    for _ in 0..50 {
        let error = other.lock("held").try_acquire().await.expect_err("it is held");
        assert!(matches!(error, AcquireError::Held { .. }), "{error}");
    }
    let limit = Duration::from_millis(200);
    let error = other.lock("held").wait(limit).acquire().await.expect_err("it is held");
    assert!(error.is_timed_out() && error.is_held(), "{error}");
    guard.release().await.expect("a release");
}
