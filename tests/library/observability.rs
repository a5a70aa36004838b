//! What a client reports of itself when it is asked: its counters, and whether it is ready.

use std::pin::pin;
use std::time::Duration;

use futures::poll;
use quorlock::{AcquireStats, Answer, ErrorKind, ExtensionStats, LossStats, Quorlock, ReadyError};
use quorlock_testkit::{Cluster, Setup, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until this client finds a node in this state.
pub async fn until_state(locks: &Quorlock, node: usize, state: &str) {
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
    let locks = cluster.builder().node_timeout(SECOND).connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    // On a busy machine an answer may have been overdue already.
    let before = locks.stats().nodes;
    for node in &before {
        assert_eq!(node.state(), "up", "{node:?}");
        assert!(node.round_trip.is_some_and(|took| took < 5 * SECOND), "{node:?}");
    }
    cluster.pause(0);
    locks.flush().await;
    eventually(10 * SECOND, "an answer is overdue", || locks.stats().nodes[0].timeouts > before[0].timeouts).await;
    cluster.resume(0);
    until_state(&locks, 0, "up").await;
    cluster.kill(1);
    until_state(&locks, 1, "unreachable").await;
    cluster.restart(1, false);
    until_state(&locks, 1, "quarantined").await; // It keeps nothing.
    let nodes = locks.stats().nodes;
    assert!(nodes[1].reconnections > before[1].reconnections, "{nodes:?}");
    let is_steady = |node: usize| nodes[node].timeouts == before[node].timeouts;
    assert!(!is_steady(2) || nodes[2].reconnections == before[2].reconnections, "{nodes:?}");
    assert_eq!(nodes[1].node, format!("127.0.0.1:{}", cluster.ports()[1]));
}

#[tokio::test]
async fn a_client_is_ready_while_a_majority_is_known_to_vote() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.builder().node_timeout(SECOND).connect().await.expect("settings that work");
    let early = locks.ready().expect_err("it is connecting");
    assert!(early.is_retryable(), "{early}");
    // On a busy machine it takes more than the second of one attempt.
    eventually(10 * SECOND, "all nodes vote", || locks.ready() == Ok(())).await;
    locks.flush().await;
    cluster.kill(0);
    until_state(&locks, 0, "unreachable").await;
    assert_eq!(locks.ready(), Ok(()), "two of three");
    cluster.restart(0, false);
    until_state(&locks, 0, "quarantined").await;
    cluster.pause(1);
    assert_eq!(locks.ready(), Ok(()), "it asks nothing");
    locks.flush().await;
    until_state(&locks, 1, "silent").await;
    let error = locks.ready().expect_err("one is quarantined, one is silent");
    let text = error.to_string();
    assert!(text.starts_with("not ready: 2 of 3 nodes must be up (127.0.0.1:"), "{text}");
    assert!(
        matches!(&error, ReadyError::NoQuorum { needed: 2, nodes, .. } if nodes.0[2].answer == Answer::Up),
        "{text}"
    );
    cluster.resume(1);
    eventually(5 * SECOND, "a majority votes", || locks.ready().is_ok()).await;
}

#[tokio::test]
async fn a_client_with_another_list_is_not_ready() {
    let cluster = Setup::new(3).listed(5).start();
    let locks = cluster.builder().connect().await.expect("settings that work");
    eventually(5 * SECOND, "the nodes refuse it", || {
        locks.ready().is_err_and(|error| error.kind() == ErrorKind::Misconfigured && !error.is_retryable())
    })
    .await;
}
