//! Rows 22 and 34: nodes that forget. A restarted node that could vote again for the same resource would give two holders.

use std::time::{Duration, Instant};

use quorlock::{Answer, NodeError};

use crate::support::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn acc_22_a_node_that_forgot_its_vote_does_not_give_it_twice() {
    let mut cluster = Cluster::start(5);
    let holder = cluster.builder().lease(3 * SECOND).extend(false).connect().await.expect("settings that work");
    holder.flush().await;
    // A holds on exactly three of five.
    cluster.pause(3);
    cluster.pause(4);
    let guard = holder.lock("forgotten").acquire().await.expect("three nodes are up");
    let granted = Instant::now();
    cluster.resume(3);
    cluster.resume(4);
    let key = Cluster::lock_key("forgotten");
    for node in [3, 4] {
        redis::cmd("DEL").arg(&key).query::<i64>(&mut cluster.redis(node)).expect("a vote taken back");
    }
    assert_eq!(cluster.count_keys(&key), 3);
    cluster.restart(2, true);

    // Both one that knew the node before and one that meets it for the first time.
    let newcomer = cluster.client(3 * SECOND).await;
    while !guard.remaining().is_zero() {
        let refused = newcomer.lock("forgotten").try_acquire().await;
        let still_held = !guard.remaining().is_zero();
        match refused {
            Ok(_) => assert!(!still_held, "two holders {:?} after the grant", granted.elapsed()),
            Err(error) => {
                let forgetful = &error.nodes()[2].answer;
                let quarantined = matches!(forgetful, Answer::Failed(NodeError::Quarantined { .. }));
                assert!(quarantined || !still_held || !matches!(forgetful, Answer::Agreed), "{error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // Between tries.
    }
    let next = newcomer.lock("forgotten").wait(20 * SECOND).acquire().await.expect("after lease and quarantine");
    next.release().await.expect("a release");
}

#[tokio::test]
async fn acc_34_a_rolling_restart_of_empty_nodes_costs_the_holder_nothing() {
    let mut cluster = Cluster::start(5);
    let lease = SECOND;
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
        eventually(20 * lease, "a vote is missed", || guard.margin() < 2 || guard.is_lost()).await;
        eventually(20 * lease, "the margin is back", || guard.margin() == 2 || guard.is_lost()).await;
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
