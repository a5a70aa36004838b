//! What a client reports: counters, events, metrics, and whether it is ready.

use std::pin::pin;
use std::time::Duration;

use futures::poll;
use quorlock::{AcquireStats, ExtensionStats, LossStats, Quorlock};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until this client finds a node in this state.
async fn until_state(locks: &Quorlock, node: usize, state: &str) {
    eventually(10 * SECOND, state, || locks.stats().nodes[node].state() == state).await;
}

#[tokio::test]
async fn each_request_and_each_lease_is_counted_once() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let outer = locks.lock("x").acquire().await.expect("a free lock");
    let inner = locks.lock("x").owner(outer.owner()).acquire().await.expect("the same owner");
    let stats = locks.stats();
    assert_eq!((stats.acquires.granted, stats.held, stats.waiting), (2, 1, 0));

    other.lock("x").try_acquire().await.expect_err("it is held");
    {
        let mut waits = pin!(other.lock("x").acquire());
        assert!(poll!(&mut waits).is_pending());
        assert_eq!(other.stats().waiting, 1);
    }
    other.lock_all(Vec::<&str>::new()).acquire().await.expect_err("no name");
    let stats = other.stats();
    assert_eq!((stats.acquires.held, stats.acquires.cancelled, stats.acquires.usage, stats.waiting), (1, 1, 1, 0));
    assert_eq!((stats.acquires.granted, stats.held, stats.released), (0, 0, 0));

    outer.extend().await.expect("a majority");
    inner.release().await.expect("a release");
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released), (1, 0), "the outer guard holds it");
    assert!(stats.extensions.extended >= 1 && stats.extensions.refused == 0, "{stats:?}");
    drop(outer);
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released, stats.losses), (0, 1, LossStats::default()));
}

#[tokio::test]
async fn a_lease_that_expires_is_counted_as_lost_and_not_as_released() {
    let cluster = Cluster::start(1);
    let builder = cluster.builder().lease(SECOND).auto_extend(false);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    guard.lost().await;
    eventually(5 * SECOND, "it is counted", || locks.stats().losses.expired == 1).await;
    drop(guard);
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released, stats.endangered, stats.losses.refused), (0, 0, 1, 0), "{stats:?}");
    assert_eq!(stats.extensions, ExtensionStats::default());
    assert_eq!(stats.acquires.granted, 1);
    assert_ne!(stats.acquires, AcquireStats::default());
}

#[tokio::test]
async fn the_numbers_of_a_node_follow_its_connections() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.builder().node_timeout(Duration::from_millis(100)).connect().await.expect("settings that work");
    locks.flush().await;
    for node in locks.stats().nodes {
        assert_eq!((node.state(), node.timeouts, node.reconnections), ("up", 0, 0), "{node:?}");
        assert!(node.round_trip.is_some_and(|took| took < 5 * SECOND), "{node:?}");
    }
    cluster.pause(0);
    locks.flush().await;
    eventually(10 * SECOND, "an answer is overdue", || locks.stats().nodes[0].timeouts == 1).await;
    cluster.resume(0);
    until_state(&locks, 0, "up").await;
    cluster.kill(1);
    until_state(&locks, 1, "unreachable").await;
    cluster.restart(1, false);
    until_state(&locks, 1, "up").await;
    let nodes = locks.stats().nodes;
    assert_eq!((nodes[1].reconnections, nodes[2].reconnections), (1, 0), "{nodes:?}");
    assert_eq!(nodes[1].node, format!("127.0.0.1:{}", cluster.ports()[1]));
}
