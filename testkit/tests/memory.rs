//! What each fault of a cluster in memory does, as the shipped client sees it.

use std::time::Duration;

use quorlock::{AcquireError, Quorlock};
use quorlock_testkit::MemoryCluster;
use tokio::time::{Instant, sleep, timeout};

const LEASE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// Returns the nodes that answer and are not in quarantine.
async fn nodes(locks: &Quorlock) -> Vec<usize> {
    let seen = locks.inspect("job").await.expect("a name").nodes;
    let answers = |node: &usize| matches!(&seen[*node].state, Ok(state) if state.quarantine.is_none());
    (0..seen.len()).filter(answers).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stopped_node_refuses_and_has_its_data_when_it_starts_again() {
    let cluster = MemoryCluster::new(3);
    let locks = cluster.client(LEASE).await;
    let guard = locks.lock("job").acquire().await.expect("a free lock");
    for node in 0..3 {
        cluster.stop(node);
    }
    sleep(SECOND).await;
    assert_eq!(nodes(&locks).await, [0; 0]);
    for node in 0..3 {
        cluster.start(node);
    }
    sleep(2 * SECOND).await;
    assert_eq!(nodes(&locks).await, [0, 1, 2]);
    sleep(5 * LEASE).await;
    assert!(!guard.is_lost());
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_during_a_cut_arrives_afterwards() {
    let cluster = MemoryCluster::new(3);
    let (locks, other) = (cluster.client(LEASE).await, cluster.client(LEASE).await);
    let guard = locks.lock("job").acquire().await.expect("a free lock");
    (0..3).for_each(|node| cluster.cut(node));
    drop(guard); // Its release is under way.
    sleep(Duration::from_millis(5)).await; // No client doubts a connection so early.
    (0..3).for_each(|node| cluster.heal(node));
    assert!(other.lock("job").try_acquire().await.is_ok(), "the release has not arrived");
}

#[tokio::test(start_paused = true)]
async fn a_cut_of_all_nodes_leaves_no_majority() {
    let cluster = MemoryCluster::new(3);
    let locks = cluster.client(LEASE).await;
    (0..3).for_each(|node| cluster.cut(node));
    let refused = locks.lock("job").try_acquire().await;
    assert!(matches!(refused, Err(AcquireError::NoQuorum { .. })), "{refused:?}");
    (0..3).for_each(|node| cluster.heal(node));
    assert!(locks.lock("job").acquire().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cut_of_one_host_leaves_the_other_alone() {
    let cluster = MemoryCluster::new(3);
    let (first, second) = (cluster.host(), cluster.host());
    let (locks, other) = (first.client(LEASE).await, second.client(LEASE).await);
    first.cut(0);
    assert_eq!(nodes(&locks).await, [1, 2]);
    assert_eq!(nodes(&other).await, [0, 1, 2]);
    first.cut_all();
    assert_eq!(nodes(&locks).await, [0; 0]);
    assert!(other.lock("job").acquire().await.is_ok());
    first.heal_all();
    sleep(5 * SECOND).await;
    assert_eq!(nodes(&locks).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_forgot_has_no_vote_for_a_lease() {
    let cluster = MemoryCluster::new(3);
    let locks = cluster.client(LEASE).await;
    assert!(locks.lock("job").acquire().await.is_ok());
    cluster.forget(0);
    cluster.forget(1);
    let began = Instant::now();
    assert!(locks.lock("job").wait(3 * LEASE).acquire().await.is_ok());
    assert!(began.elapsed() >= LEASE, "no quarantine: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clock_ahead_ends_the_votes_of_its_node() {
    let cluster = MemoryCluster::new(3);
    let locks = cluster.client(LEASE).await;
    let guard = locks.lock("job").acquire().await.expect("a free lock");
    let votes = async || locks.inspect("job").await.expect("a name").nodes.iter().filter(|node| is_held(node)).count();
    assert_eq!(votes().await, 3);
    cluster.step_clock(2, 11_000);
    assert_eq!(votes().await, 2);
    sleep(LEASE).await; // An extension repairs the key.
    assert_eq!(votes().await, 3);
    assert!(!guard.is_lost());
}

fn is_held(node: &quorlock::NodeView) -> bool {
    matches!(&node.state, Ok(state) if state.holder.is_some())
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_is_free_when_its_lease_would_have_ended() {
    let cluster = MemoryCluster::new(5);
    let (locks, other) = (cluster.client(LEASE).await, cluster.client(LEASE).await);
    let guard = locks.lock("job").acquire().await.expect("a free lock");
    cluster.stop(4); // The fault reaches each node's data, also of one that is down.
    let began = Instant::now();
    cluster.lose("job");
    guard.lost().await;
    // The first extension shows it. Timers count whole milliseconds.
    assert!(began.elapsed() <= LEASE / 3 + SECOND / 1000, "{:?}", began.elapsed());
    let next = other.lock("job").acquire().await.expect("a free lock");
    assert!(began.elapsed() >= LEASE - SECOND && next.token() > guard.token());
}

#[tokio::test]
#[should_panic(expected = "the lock \"job\" is not held")]
async fn a_lock_that_is_not_held_cannot_be_lost() {
    MemoryCluster::new(3).lose("job");
}

#[tokio::test(start_paused = true)]
async fn clients_with_another_prefix_have_locks_of_their_own() {
    let cluster = MemoryCluster::new(3);
    let team = cluster.builder().lease(LEASE).prefix("team:").connect().await.expect("a prefix");
    let (mine, theirs) = (cluster.client(LEASE).await.lock("job").acquire().await, team.lock("job").acquire().await);
    let (mine, theirs) = (mine.expect("a free lock"), theirs.expect("a free lock"));
    cluster.lose("job");
    sleep(LEASE).await;
    assert!(mine.is_lost() && !theirs.is_lost());
}

/// The course of a test: when it does what, with which token.
async fn course(seed: u64) -> Vec<(Duration, String)> {
    let cluster = MemoryCluster::with_seed(3, seed);
    let (began, mut course) = (Instant::now(), Vec::new());
    let (locks, other) = (cluster.client(LEASE).await, cluster.client(LEASE).await);
    for node in 0..3 {
        let guard = locks.lock("job").acquire().await.expect("a lock");
        course.push((began.elapsed(), guard.token().to_string()));
        cluster.lose("job");
        guard.lost().await;
        cluster.stop(node);
        let guard = other.lock("job").acquire().await.expect("a lock");
        course.push((began.elapsed(), guard.token().to_string()));
        cluster.start(node);
    }
    course
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_course() {
    let (first, again, other) = (course(1).await, course(1).await, course(2).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

/// On running time, several threads and without a pause of the clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_on_running_time() {
    let cluster = MemoryCluster::new(3);
    let (locks, other) = (cluster.client(SECOND).await, cluster.client(SECOND).await);
    let guard = locks.lock("job").acquire().await.expect("a free lock");
    let waiting = tokio::spawn(async move { other.lock("job").acquire().await });
    cluster.lose("job");
    timeout(60 * SECOND, guard.lost()).await.expect("a loss");
    let next = timeout(60 * SECOND, waiting).await.expect("a turn").expect("no panic").expect("a free lock");
    assert!(next.token() > guard.token());
}
