//! Rows 22 and 34: nodes that lose their memory. A restarted node that voted again for the same resource would cause two
//! holders.

use std::time::{Duration, Instant};

use quorlock::{Answer, NodeError, Quorlock};
use quorlock_testkit::{CUT_OFF, Cluster, Setup, eventually};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn acc_22_a_node_that_lost_its_vote_does_not_vote_twice() {
    let mut cluster = Setup::new(5).longest(LEASE).start();
    let urls = cluster.urls();
    // A holds the lock on exactly three of five nodes. The other two have no part in it.
    let reached = urls[..3].iter().cloned().chain([CUT_OFF.to_owned(), "redis://127.0.0.2:1".to_owned()]);
    let builder = Quorlock::builder().node_timeout(LEASE / 4).nodes(reached).lease(LEASE).auto_extend(false);
    let holder = builder.connect().await.expect("settings that work");
    holder.flush().await;
    let knows = cluster.client(LEASE).await;
    let guard = holder.lock("forgotten").acquire().await.expect("three nodes are up");
    holder.flush().await;
    assert_eq!((guard.margin(), cluster.count_keys(&Cluster::lock_key("forgotten"))), (0, 3));
    let forgot = Instant::now();
    cluster.restart(2, true);

    // An old client and a new one.
    let newcomer = cluster.client(LEASE).await;
    let mut quarantined = 0;
    while !guard.remaining().is_zero() {
        for locks in [&newcomer, &knows] {
            let outcome = locks.lock("forgotten").try_acquire().await;
            let left = guard.remaining();
            assert!(outcome.is_err() || left.is_zero(), "two holders, {left:?} before the end of the first");
            let Err(error) = outcome else { continue };
            let answer = &error.nodes()[2].answer;
            assert!(left.is_zero() || *answer != Answer::Agreed, "{error}");
            quarantined += usize::from(matches!(answer, Answer::Failed(NodeError::Quarantined { .. })));
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // Between tries.
    }
    assert!(quarantined > 0, "it was never asked");
    let next = newcomer.lock("forgotten").wait(20 * SECOND).acquire().await.expect("after lease and quarantine");
    eventually(20 * SECOND, "the node votes again", || next.margin() == 2).await;
    assert!(forgot.elapsed() >= LEASE, "it votes {:?} after it has forgotten", forgot.elapsed());
    next.release().await.expect("a release");
}

// The start of a server blocks a thread. The clients have another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_34_a_rolling_restart_of_empty_nodes_keeps_the_lease() {
    let lease = LEASE;
    let mut cluster = Setup::new(5).longest(lease).start();
    let holder = cluster.client(lease).await;
    let guard = holder.lock("rolling").acquire().await.expect("the lock");
    let mut contenders = Vec::new();
    for _ in 0..3 {
        let locks = cluster.client(lease).await;
        contenders.push(tokio::spawn(async move {
            let guard = locks.lock("rolling").acquire().await.expect("after the release");
            guard.token()
        }));
    }
    for node in 0..5 {
        cluster.restart(node, true);
        // As soon as the last one's quarantine is over, which the holder sees as its margin.
        eventually(60 * SECOND, "a vote is missed", || guard.margin() < 2 || guard.is_lost()).await;
        eventually(60 * SECOND, "the margin is back", || guard.margin() == 2 || guard.is_lost()).await;
        assert!(!guard.is_lost(), "lost after the restart of node {node}");
        assert!(contenders.iter().all(|contender| !contender.is_finished()), "granted while it was held");
    }
    let token = guard.token();
    guard.release().await.expect("a release");
    for contender in contenders {
        let granted = tokio::time::timeout(30 * SECOND, contender).await.expect("granted").expect("a task");
        assert!(granted > token, "the token must grow over restarts, too");
    }
}
