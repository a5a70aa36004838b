//! Rows 12, 13 and 14: invalid leases, extended leases, lost leases.

use std::time::{Duration, Instant};

use quorlock::{AcquireError, ConfigError};
use quorlock_testkit::{Cluster, Stopwatch};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn acc_12_invalid_leases_are_refused_before_any_command() {
    let cluster = Cluster::start(5);
    for lease in
        [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(2), Duration::MAX, 8 * 24 * 3600 * SECOND]
    {
        let error = cluster.builder().lease(lease).connect().await.expect_err("it cannot work");
        assert!(matches!(error, ConfigError::LeaseTooShort { .. } | ConfigError::LeaseTooLong { .. }), "{error}");
    }
    let locks = cluster.client(10 * SECOND).await;
    let commands = |cluster: &Cluster| -> Vec<String> {
        let stats: Vec<String> = cluster.each(redis::cmd("INFO").arg("commandstats"));
        stats
            .iter()
            .flat_map(|all| all.lines().filter(|line| line.starts_with("cmdstat_eval")).map(str::to_owned))
            .collect()
    };
    let before = commands(&cluster);
    for lease in [Duration::ZERO, Duration::from_millis(1), Duration::MAX, 8 * 24 * 3600 * SECOND] {
        let error = locks.lock("bad").lease(lease).acquire().await.expect_err("it cannot work");
        assert!(matches!(error, AcquireError::Config(_)), "{error}");
    }
    locks.flush().await;
    assert_eq!(commands(&cluster), before, "something was sent");
}

#[tokio::test]
async fn acc_12_a_lease_longer_than_the_ballot_lifetime_works() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    let guard = locks.lock("long").lease(2 * 3600 * SECOND).acquire().await.expect("a lease of two hours");
    assert!(guard.remaining() > 3600 * SECOND, "{:?}", guard.remaining());
    locks.flush().await;
    assert!(other.lock("long").try_acquire().await.is_err_and(|error| error.is_held()));
    guard.extend().await.expect("an extension");
    // The lease is still held without its keys, until the end that the nodes store.
    cluster.each::<i64>(redis::cmd("DEL").arg(Cluster::lock_key("long")));
    assert!(other.lock("long").try_acquire().await.is_err_and(|error| error.is_held()));
    drop(guard);
    locks.flush().await;
    other.lock("long").wait(10 * SECOND).acquire().await.expect("free").release().await.expect("a release");
}

#[tokio::test]
async fn acc_13_a_section_longer_than_the_lease_keeps_the_lock() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(3 * SECOND).await;
    let contender = cluster.client(10 * SECOND).await;
    let guard = locks.lock("long section").acquire().await.expect("the lock");
    let start = Instant::now();
    let mut tries = 0;
    while start.elapsed() < 10 * SECOND {
        let error = contender.lock("long section").try_acquire().await.expect_err("it is held");
        assert!(error.is_held(), "{error}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(tries > 50, "only {tries} tries");
    assert!(!guard.is_lost());
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_14_loss_is_signalled_before_the_lease_ends_and_is_final() {
    let mut cluster = Cluster::quiet(5);
    let lease = 3 * SECOND;
    let locks = cluster.client(lease).await;
    let guard = locks.lock("endangered").acquire().await.expect("the lock");
    guard.extend().await.expect("an extension");
    for node in [0, 2, 4] {
        cluster.pause(node);
    }
    let paused = Stopwatch::new();
    guard.endangered().await;
    let warned = guard.remaining();
    assert!(warned > lease / 10, "the warning is too late: {warned:?} left");
    assert!(!guard.is_lost());
    guard.lost().await;
    // On a busy machine the client wakes late.
    let limit = lease + paused.contended().min(lease / 2);
    assert!(paused.took() < limit, "signalled {:?} after the pause, the limit is {limit:?}", paused.took());
    assert!(guard.is_lost() && guard.remaining().is_zero());

    let again = || locks.lock("endangered").owner(guard.owner()).acquire();
    assert!(again().await.expect_err("it is lost").is_lost());
    for node in [0, 2, 4] {
        cluster.resume(node);
    }
    locks.flush().await;
    assert!(again().await.expect_err("it is lost for good").is_lost());
    assert!(guard.protect(async {}).await.is_err());
    assert!(guard.release().await.expect_err("it was lost").is_lost());
}

#[tokio::test]
async fn acc_14_loss_is_signalled_at_once_when_a_majority_refuses() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(60 * SECOND).await;
    let guard = locks.lock("taken").acquire().await.expect("the lock");
    locks.flush().await;
    cluster.each::<String>(redis::cmd("SET").arg(Cluster::lock_key("taken")).arg("another's").arg("PX").arg(60_000));
    let error = guard.extend().await.expect_err("a majority refuses");
    assert!(error.is_lost(), "{error}");
    tokio::time::timeout(SECOND, guard.lost()).await.expect("signalled long before the lease ends");
}

#[tokio::test]
async fn acc_14_protect_drops_the_work_when_the_lock_is_lost() {
    let mut cluster = Cluster::start(5);
    let locks = cluster.client(3 * SECOND).await;
    let guard = locks.lock("protected").acquire().await.expect("the lock");
    assert_eq!(guard.protect(async { 7 }).await, Ok(7));
    for node in 0..3 {
        cluster.pause(node);
    }
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let outcome = guard.protect(async move {
        let _alive = alive;
        std::future::pending::<()>().await;
    });
    assert!(tokio::time::timeout(10 * SECOND, outcome).await.expect("the loss ends the work").is_err());
    assert!(dropped.await.is_err(), "the work was dropped");
}
