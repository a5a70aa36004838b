//! Several resources at once: all or none, in any order, re-entering what is held.

use std::time::Duration;

use quorlock::{AcquireError, ConfigError};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_set_is_acquired_entirely_or_not_at_all() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    let held = other.lock("b").acquire().await.expect("the lock");
    let error = locks.lock_all(["a", "b", "c"]).try_acquire().await.expect_err("b is held");
    assert!(matches!(error, AcquireError::Held { .. }), "{error}");
    locks.flush().await;
    for name in ["a", "c"] {
        assert_eq!(cluster.count_keys(&Cluster::lock_key(name)), 0, "{name} was left behind");
    }
    held.release().await.expect("a release");
    let guard = locks.lock_all(["c", "a", "b", "a"]).acquire().await.expect("all are free");
    for name in ["a", "b", "c"] {
        assert_eq!(guard.token_of(name), Some(guard.token()), "one token for all that is new");
        assert!(other.lock(name).try_acquire().await.is_err_and(|error| error.is_held()));
    }
    assert_eq!(guard.token_of("d"), None);
    guard.release().await.expect("a release");
    let free = other.lock_all(["a", "b", "c"]).try_acquire().await.expect("all are free again");
    free.release().await.expect("a release");
}

#[tokio::test]
async fn reentry_of_a_set_keeps_the_token() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let outer = locks.lock("a").acquire().await.expect("the lock");
    let both = locks.lock_all(["b", "a"]).owner(outer.owner()).acquire().await.expect("both");
    assert_eq!(both.token_of("a"), Some(outer.token()));
    assert!(both.token_of("b") > Some(outer.token()));
    assert_eq!(outer.hold_count(), 2);
    both.release().await.expect("a release");
    assert_eq!(outer.hold_count(), 1);
    locks.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("a")), 5);
    assert_eq!(cluster.count_keys(&Cluster::lock_key("b")), 0);

    // The outer hold may be released first.
    let both = locks.lock_all(["a", "b"]).owner(outer.owner()).acquire().await.expect("both");
    outer.release().await.expect("a release");
    assert!(locks.lock("a").try_acquire().await.is_err_and(|error| error.is_held()));
    both.release().await.expect("a release");
    locks.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("a")), 0);
}

#[tokio::test]
async fn a_refused_set_leaves_existing_holds_unchanged() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let other = cluster.client(10 * SECOND).await;
    let outer = locks.lock("a").acquire().await.expect("the lock");
    let theirs = other.lock("b").acquire().await.expect("the lock");
    for _ in 0..3 {
        let error = locks.lock_all(["a", "b"]).owner(outer.owner()).try_acquire().await.expect_err("b is held");
        assert!(error.is_held(), "{error}");
    }
    assert_eq!((outer.hold_count(), outer.is_lost()), (1, false), "a refusal for b is no loss of a");
    outer.extend().await.expect("still held");
    locks.flush().await;
    assert_eq!(locks.inspect("a").await.expect("a look").holds, 1);
    theirs.release().await.expect("a release");
    outer.release().await.expect("a release");
}

#[tokio::test]
async fn opposite_orders_do_not_deadlock() {
    let cluster = Cluster::start(3);
    let transfer = |locks: quorlock::Quorlock, names: [&'static str; 2]| async move {
        for _ in 0..25 {
            let guard = locks.lock_all(names).acquire().await.expect("both");
            guard.release().await.expect("a release");
        }
    };
    let there = tokio::spawn(transfer(cluster.client(10 * SECOND).await, ["a", "b"]));
    let back = tokio::spawn(transfer(cluster.client(10 * SECOND).await, ["b", "a"]));
    let (there, back) =
        tokio::time::timeout(60 * SECOND, async { (there.await, back.await) }).await.expect("no deadlock");
    there.and(back).expect("both went through");
}

#[tokio::test]
async fn invalid_sets_are_refused() {
    let cluster = Cluster::start(1);
    let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    let error = locks.lock_all(Vec::<String>::new()).acquire().await.expect_err("no name");
    assert_eq!(error, AcquireError::Config(ConfigError::NoNames));
    let many = (0..501).map(|i| i.to_string());
    let error = locks.lock_all(many).acquire().await.expect_err("too many");
    assert_eq!(error, AcquireError::Config(ConfigError::TooManyNames(501)));
    let most = locks.lock_all((0..500).map(|i| i.to_string())).acquire().await.expect("as many as there may be");
    most.release().await.expect("a release");
}

/// A waiting set holds none of its resources: no vote of a node, and no turn in this process.
#[tokio::test]
async fn a_waiting_set_blocks_no_single_lock() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(10 * SECOND).await;
    let two = locks.lock("two").acquire().await.expect("the lock");
    let both = tokio::spawn(locks.lock_all(["one", "two"]).acquire());
    eventually(10 * SECOND, "it waits for both", || cluster.count_waiting("two") == 3).await;
    // If the waiting set kept its turn, these two would deadlock.
    let one = locks.lock("one").wait(5 * SECOND).acquire().await.expect("a free lock");
    one.release().await.expect("a release");
    two.release().await.expect("a release");
    both.await.expect("a task").expect("both are free").release().await.expect("a release");
}

/// Another owner holds each of two resources on one of three nodes, on different nodes: each resource has a majority.
async fn each_is_lost_on_another_node() -> (Cluster, quorlock::Quorlock, quorlock::Guard) {
    let cluster = Cluster::start(3);
    let locks = cluster.client(10 * SECOND).await;
    let guard = locks.lock_all(["a", "b"]).acquire().await.expect("both");
    locks.flush().await;
    for (name, node) in [("a", 0), ("b", 2)] {
        let mut redis = cluster.redis(node);
        redis::cmd("SET").arg(Cluster::lock_key(name)).arg("another's").exec(&mut redis).expect("another's key");
    }
    (cluster, locks, guard)
}

#[tokio::test]
async fn a_release_of_a_set_needs_a_majority_per_resource() {
    let (cluster, locks, guard) = each_is_lost_on_another_node().await;
    guard.release().await.expect("each was held");
    locks.flush().await;
    let left = |name: &str| cluster.count_keys(&Cluster::lock_key(name));
    assert_eq!((left("a"), left("b")), (1, 1), "the other's keys, and no more");
}

#[tokio::test]
async fn an_extension_of_a_set_needs_a_majority_per_resource() {
    let (_cluster, locks, guard) = each_is_lost_on_another_node().await;
    guard.extend().await.expect("each is held");
    assert!(!guard.is_lost());
    assert!(guard.remaining() > 5 * SECOND, "{:?}", guard.remaining());
    let entered = locks.lock("a").owner(guard.owner()).try_acquire().await.expect("a re-entry");
    entered.release().await.expect("a release");
    guard.release().await.expect("each was held");
}

#[tokio::test]
async fn a_release_of_a_set_names_the_lost_resource() {
    let (cluster, _locks, guard) = each_is_lost_on_another_node().await;
    let mut redis = cluster.redis(1);
    redis::cmd("SET").arg(Cluster::lock_key("b")).arg("another's").exec(&mut redis).expect("another's key");
    let error = guard.release().await.expect_err("b is another's on two of three");
    assert!(error.is_lost() && error.to_string().contains("the lease on b "), "{error}");
}

#[tokio::test]
async fn one_of_several_names_is_released_before_the_others() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let other = cluster.client(60 * SECOND).await;
    let mut guard = locks.lock_all(["b", "a"]).acquire().await.expect("both are free");
    let token = guard.token();
    assert!(guard.names().eq([b"a", b"b"]));
    assert!(guard.split("c").is_none());
    let b = guard.split("b").expect("one of two");
    assert!(guard.names().eq([b"a"]) && b.names().eq([b"b"]));
    assert_eq!((guard.token(), b.token()), (token, token));
    assert!(guard.split("a").is_none(), "it is the only one");
    b.release().await.expect("a release");
    let freed = other.lock("b").try_acquire().await.expect("it is free");
    assert!(other.lock("a").try_acquire().await.is_err_and(|error| error.is_held()));
    guard.extend().await.expect("it is still held");
    guard.release().await.expect("a release");
    freed.release().await.expect("a release");
}
