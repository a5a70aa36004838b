//! Rows 04, 05, 15 and 16: holds nest, are counted, never shorten a lease, and never bring a lost one back.

use std::time::Duration;

use quorlock::{Guard, Owner, Quorlock};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

async fn holds_on_nodes(locks: &Quorlock, name: &str) -> u32 {
    locks.inspect(name).await.expect("a look").holds
}

#[tokio::test]
async fn acc_04_reentry_to_depth_five() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let contender = cluster.client(10 * SECOND).await;
    let key = Cluster::lock_key("deep");
    for depth in 1..=5 {
        let owner = Owner::new();
        let mut guards: Vec<Guard> = Vec::new();
        for level in 1..=depth {
            let guard = locks.lock("deep").owner(&owner).acquire().await.expect("a re-entry");
            assert_eq!(guard.hold_count(), level);
            assert!(guards.iter().all(|outer| outer.token() == guard.token()), "re-entry keeps the token");
            guards.push(guard);
        }
        while let Some(guard) = guards.pop() {
            let error = contender.lock("deep").try_acquire().await.expect_err("it is held");
            assert!(error.is_held(), "{error}");
            assert!(cluster.count_keys(&key) >= 3, "held, but on too few nodes");
            assert_eq!(holds_on_nodes(&locks, "deep").await as usize, guards.len() + 1);
            let released = guard.release().await.expect("a release");
            assert_eq!(released.holds as usize, guards.len());
        }
        let granted = contender.lock("deep").try_acquire().await.expect("free after the last release");
        granted.release().await.expect("a release");
        eventually(SECOND, "no key is left", || cluster.count_keys(&key) == 0).await;
    }
}

#[tokio::test]
async fn acc_05_ten_thousand_steps_agree_with_an_integer() {
    let cluster = Cluster::start(5);
    // Each of some twenty thousand requests is answered, also on a busy machine.
    let locks =
        cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND).connect().await.expect("settings that work");
    locks.flush().await;
    let owner = Owner::new();
    let mut guards: Vec<Guard> = Vec::new();
    for step in 0..10_000_u32 {
        let up = guards.is_empty() || (guards.len() < 12 && rand::random_bool(0.5));
        if up {
            guards.push(locks.lock("count").owner(&owner).acquire().await.expect("an acquisition"));
        } else {
            let guard = guards.swap_remove(rand::random_range(0..guards.len()));
            let released = guard.release().await.expect("a release");
            assert_eq!(released.holds as usize, guards.len(), "step {step}");
        }
        if let Some(guard) = guards.first() {
            assert_eq!(guard.hold_count() as usize, guards.len(), "step {step}");
        }
        if step % 10 == 0 {
            locks.flush().await;
            let seen = locks.inspect("count").await.expect("a look");
            let on_nodes = seen.nodes.iter().map(|view| view.state.as_ref().expect("every node answers").holds);
            assert!(on_nodes.into_iter().all(|holds| holds as usize == guards.len()), "step {step}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn acc_15_reentry_never_shortens_the_lease() {
    let cluster = Cluster::start(5);
    let builder = cluster.builder().node_timeout(SECOND * 9 / 10).lease(30 * SECOND).auto_extend(false);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await; // A node that is connected later gets the lease of the re-entry alone.
    let outer = locks.lock("long").acquire().await.expect("the lock");
    let inner = locks.lock("long").owner(outer.owner()).lease(SECOND).acquire().await.expect("a re-entry");
    locks.flush().await;
    let ttls: Vec<i64> = cluster.each(redis::cmd("PTTL").arg(Cluster::lock_key("long")));
    assert!(ttls.len() == 5 && ttls.iter().all(|ttl| *ttl > 29_000), "{ttls:?}");
    assert!(inner.remaining() > 29 * SECOND, "{:?}", inner.remaining());
    inner.release().await.expect("an inner release");
    locks.flush().await;
    let ttls: Vec<i64> = cluster.each(redis::cmd("PTTL").arg(Cluster::lock_key("long")));
    assert!(ttls.len() == 5 && ttls.iter().all(|ttl| *ttl > 29_000), "{ttls:?}");
    outer.release().await.expect("a release");
}

#[tokio::test]
async fn acc_16_reentry_after_loss_fails_and_releases_no_other_owner() {
    let cluster = Cluster::start(5);
    let locks = cluster.builder().lease(2 * SECOND).auto_extend(false).connect().await.expect("settings that work");
    let contender = cluster.client(10 * SECOND).await;
    let outer = locks.lock("once").acquire().await.expect("the lock");
    let exported = outer.export();
    outer.lost().await;

    let error = locks.lock("once").owner(outer.owner()).acquire().await.expect_err("lost is for good");
    assert!(error.is_lost(), "{error}");

    let theirs = contender.lock("once").wait(20 * SECOND).acquire().await.expect("free now");
    // A node that is slower than the node timeout gets it by the next extension.
    let key = Cluster::lock_key("once");
    eventually(20 * SECOND, "every node has it", || cluster.count_keys(&key) == 5).await;
    let before: Vec<Vec<u8>> = cluster.each(redis::cmd("GET").arg(Cluster::lock_key("once")));
    let error = locks.lock("once").owner(outer.owner()).acquire().await.expect_err("lost is for good");
    assert!(error.is_lost(), "{error}");
    let error = cluster.client(10 * SECOND).await.join(&exported).await.expect_err("lost is for good");
    assert!(error.is_lost(), "{error}");
    assert!(outer.release().await.expect_err("it was lost").is_lost());
    locks.flush().await;
    let after: Vec<Vec<u8>> = cluster.each(redis::cmd("GET").arg(Cluster::lock_key("once")));
    assert_eq!(before, after, "old frames touched the contender's hold");
    assert_eq!(before.len(), 5);
    assert!(!theirs.is_lost());
    theirs.release().await.expect("a release");
}
