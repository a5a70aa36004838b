//! Rows 20, 21 and 24: nodes that die, stall, refuse, and come back.

use std::time::{Duration, Instant};

use quorlock::{Answer, NodeError, Quorlock};
use quorlock_testkit::{Cluster, Stopwatch, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// The allowed delay by a stalled node that should cause none. Each fault that the tests look for costs a node timeout, which is 500 ms
/// here. A node that is needed waits up to 100 ms for a processor of a busy machine.
const NOISE: Duration = Duration::from_millis(200);

async fn cycles(locks: &Quorlock, times: usize) -> Vec<Duration> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        let guard = locks.lock("cycle").acquire().await.expect("a quorum is up");
        guard.release().await.expect("a release");
        took.push(start.elapsed());
    }
    took.sort_unstable();
    took
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

async fn minority(fault: impl Fn(&mut Cluster, usize), heal: impl Fn(&mut Cluster, usize)) {
    let mut cluster = Cluster::quiet(5);
    let locks = cluster.client(60 * SECOND).await;
    cycles(&locks, 50).await;
    let all_up = cycles(&locks, 200).await;
    for down in 1..=2 {
        fault(&mut cluster, down);
        let watch = Stopwatch::new();
        let faulty = cycles(&locks, 200).await;
        assert!(
            p99(&faulty) <= 2 * p99(&all_up) + NOISE + watch.stalled(),
            "{down} down: p99 {:?}, all up: {:?}, stalls: {:?}",
            p99(&faulty),
            p99(&all_up),
            watch.stalled()
        );
    }
    for node in 1..=2 {
        heal(&mut cluster, node);
    }
    let key = Cluster::lock_key("cycle");
    eventually(5 * SECOND, "nothing is left on any node", || cluster.count_keys(&key) == 0).await;
}

#[tokio::test]
async fn acc_20_a_minority_is_killed() {
    minority(Cluster::kill, |cluster, node| cluster.restart(node, false)).await;
}

#[tokio::test]
async fn acc_20_a_minority_is_paused() {
    minority(Cluster::pause, Cluster::resume).await;
}

#[tokio::test]
async fn acc_20_a_minority_refuses() {
    let acl = |rule: &'static str| {
        move |cluster: &mut Cluster, node: usize| {
            let command = redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).to_owned();
            command.query::<()>(&mut cluster.redis(node)).expect("an ACL");
        }
    };
    minority(acl("-evalsha"), acl("+evalsha")).await;
}

#[tokio::test]
async fn acc_20_two_paused_nodes_do_not_slow_a_cycle() {
    let mut cluster = Cluster::quiet(5);
    let locks = cluster.client(60 * SECOND).await;
    cycles(&locks, 100).await;
    let (mut all_up, mut paused) = (Vec::new(), Vec::new());
    // Alternating, so that other load on the machine affects both alike.
    for _ in 0..5 {
        all_up.extend(cycles(&locks, 60).await);
        cluster.pause(1);
        cluster.pause(3);
        paused.extend(cycles(&locks, 60).await);
        cluster.resume(1);
        cluster.resume(3);
        locks.flush().await;
    }
    all_up.sort_unstable();
    paused.sort_unstable();
    let (all_up, paused) = (all_up[all_up.len() / 2], paused[paused.len() / 2]);
    // A client that waits for a paused node takes as long as the node timeout. `cluster/bench` measures the difference.
    assert!(paused <= 2 * all_up + NOISE, "p50 {paused:?} with two paused, {all_up:?} with all up");
}

/// Two clients request the lock at once. One gets a bare majority, and the other the rest, which it releases. Until the winner
/// holds those nodes too, the next failure costs it the lock, so it does not wait for the usual extension, which is 20 s away.
#[tokio::test]
async fn acc_20_the_winner_of_a_race_soon_has_every_node() {
    let mut cluster = Cluster::start(5);
    // Another prefix has a list of its own: this one has two nodes, and the same key.
    let key = Cluster::lock_key("raced");
    let (prefix, name) = key.split_at(key.len() - 1);
    let builder = Quorlock::builder().nodes(cluster.urls().into_iter().skip(3)).prefix(prefix);
    let other = builder.connect().await.expect("two nodes");
    let theirs = other.lock(name).acquire().await.expect("both are free");
    let locks = cluster.client(60 * SECOND).await;
    let guard = locks.lock("raced").acquire().await.expect("three of five");
    theirs.release().await.expect("a release");
    eventually(10 * SECOND, "every node has granted it", || guard.margin() == 2).await;
    cluster.kill(0);
    cluster.kill(1);
    let inner = locks.lock("raced").owner(guard.owner()).wait(10 * SECOND).acquire().await.expect("a re-entry");
    inner.release().await.expect("a release");
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_21_a_stalled_majority_is_no_quorum_and_leaves_nothing() {
    let mut cluster = Cluster::quiet(5);
    // With the node timeout of a usual client.
    let locks = cluster.builder().lease(60 * SECOND).connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    for node in 0..3 {
        cluster.pause(node);
    }
    let start = Stopwatch::new();
    // Well before the client closes the connections, which takes a second.
    let error = locks.lock("stalled").wait(SECOND / 2).acquire().await.expect_err("no majority");
    let took = start.took();
    assert!(error.is_no_quorum(), "{error}");
    assert!(took <= Duration::from_millis(1200), "the limit of half a second took {took:?}");
    assert_eq!(error.nodes().len(), 5);
    for (node, report) in error.nodes().iter().enumerate() {
        let stalled = matches!(report.answer, Answer::Failed(NodeError::NoAnswer(_) | NodeError::Silent(_)));
        assert_eq!(stalled, node < 3, "{report:?}");
        assert!(error.to_string().contains(&report.node), "{error}");
    }
    let start = Stopwatch::new();
    let error = locks.lock("stalled").try_acquire().await.expect_err("no majority");
    assert!(error.is_no_quorum() && start.took() < SECOND, "{error} after {:?}", start.took());

    for node in 0..3 {
        cluster.resume(node);
    }
    let key = Cluster::lock_key("stalled");
    locks.flush().await;
    eventually(10 * SECOND, "no key is left", || cluster.count_keys(&key) == 0).await;
    let guard = locks.lock("stalled").wait(5 * SECOND).acquire().await.expect("a quorum again");
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_21_a_dead_majority_is_no_quorum_without_a_limit() {
    let mut cluster = Cluster::start(5);
    let locks = cluster.client(2 * SECOND).await;
    for node in 1..4 {
        cluster.kill(node);
    }
    let error = tokio::time::timeout(20 * SECOND, locks.lock("dead").acquire()).await.expect("it fails in time");
    let error = error.expect_err("no majority");
    assert!(error.is_no_quorum(), "{error}");
    let dead: Vec<bool> = error.nodes().iter().map(|report| matches!(report.answer, Answer::Failed(_))).collect();
    assert_eq!(dead, [false, true, true, true, false], "{error}");
}

/// Checks that no key is left when what came late is executed. An orphan would live for a minute.
async fn no_orphan(cluster: &Cluster, key: &str) {
    tokio::time::sleep(Duration::from_millis(300)).await; // The row's limit.
    eventually(10 * SECOND, "no orphan is left", || cluster.count_keys(key) == 0).await;
}

#[tokio::test]
async fn acc_24_late_commands_leave_no_orphan() {
    let mut cluster = Cluster::quiet(5);
    let locks = cluster.client(60 * SECOND).await;
    let key = Cluster::lock_key("late");
    // Shorter and longer than the client takes to close the connection.
    for stall in [Duration::from_millis(100), Duration::from_millis(700), Duration::from_millis(2500)] {
        cluster.pause(4);
        let guard = locks.lock("late").acquire().await.expect("four nodes are up");
        guard.release().await.expect("a release");
        tokio::time::sleep(stall).await; // How long the node stalls.
        cluster.resume(4);
        no_orphan(&cluster, &key).await;

        for node in 0..3 {
            cluster.pause(node);
        }
        let error = locks.lock("late").wait(Duration::from_millis(300)).acquire().await.expect_err("no majority");
        assert!(error.is_no_quorum(), "{error}");
        tokio::time::sleep(stall).await; // How long the nodes stall.
        for node in 0..3 {
            cluster.resume(node);
        }
        no_orphan(&cluster, &key).await;
    }
}

#[tokio::test]
async fn a_client_reconnects_to_a_node_that_was_paused() {
    let mut cluster = Cluster::start(5);
    let builder = cluster.builder().lease(10 * SECOND).node_timeout(SECOND / 4);
    let locks = builder.connect().await.expect("a client");
    let guard = locks.lock("margin").acquire().await.expect("the lock");
    locks.flush().await;
    assert_eq!(guard.margin(), 2);
    cluster.pause(0);
    cluster.kill(1);
    guard.extend().await.expect("three nodes are up");
    eventually(5 * SECOND, "the paused node has not answered in time", || guard.margin() == 0).await;
    tokio::time::sleep(Duration::from_millis(1500)).await; // Long enough for the client to close the connection.
    cluster.resume(0);
    cluster.restart(1, true);
    // The restarted node has no vote for ten seconds.
    eventually(60 * SECOND, "the margin is back", || guard.margin() == 2).await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("margin")), 5, "the restarted node was repaired");
    guard.release().await.expect("a release");
}

// The start of a server blocks a thread. The clients have another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovered_node_is_repaired_while_a_request_waits() {
    let mut cluster = Cluster::with_options(3, &["--appendonly", "yes", "--appendfsync", "always"]);
    let holder = cluster.client(6 * SECOND).await;
    let waiter = cluster.client(6 * SECOND).await;
    let guard = holder.lock("wanted").acquire().await.expect("the lock");
    let waiting = tokio::spawn(async move { waiter.lock("wanted").acquire().await });
    cluster.kill(0);
    eventually(20 * SECOND, "the vote is missed", || guard.margin() == 0).await;
    tokio::time::sleep(6500 * Duration::from_millis(1)).await; // Long enough for the node's key to expire.
    cluster.restart(0, false);
    let key = Cluster::lock_key("wanted");
    let mine = |value: String| value.contains(&guard.token().to_string());
    let repaired = || {
        let value: Option<String> = redis::cmd("GET").arg(&key).query(&mut cluster.redis(0)).expect("an answer");
        value.is_some_and(mine)
    };
    eventually(20 * SECOND, "the node has the lease again", repaired).await;
    cluster.kill(1);
    guard.extend().await.expect("two of three hold it");
    assert!(!waiting.is_finished());
    waiting.abort();
    guard.release().await.expect("a release");
}
