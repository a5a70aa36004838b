//! Replicas of nodes that become nodes themselves.

use std::time::Duration;

use futures::future::join_all;
use quorlock_testkit::{Cluster, Setup, eventually};

const SECOND: Duration = Duration::from_secs(1);
const NODE_KEY: &str = "quorlock:node";
const CLIENTS: usize = 6;
const TIMES: usize = 10;
const PROMOTED: usize = 1;
const COPIED: usize = 2;

fn ask<T: redis::FromRedisValue>(cluster: &Cluster, node: usize, command: &str, words: &[&str]) -> T {
    redis::cmd(command).arg(words).query(&mut cluster.redis(node)).expect("an answer")
}

/// Returns the record of a node.
fn record(cluster: &Cluster, node: usize) -> String {
    ask(cluster, node, "GET", &[NODE_KEY])
}

/// A replica that becomes a master has the record of the node that it copied. Clients that meet both at once must not take the
/// original for the copy: a majority would be in quarantine.
#[tokio::test]
async fn a_promoted_replica_does_not_put_the_node_that_it_copied_into_quarantine() {
    let cluster = Setup::new(3).options(&["--repl-diskless-sync-delay", "0"]).longest(SECOND).start();
    let clients = join_all((0..CLIENTS).map(|_| cluster.client(SECOND))).await;
    let (before, port) = (record(&cluster, COPIED), cluster.ports()[COPIED].to_string());
    for _ in 0..TIMES {
        let () = ask(&cluster, PROMOTED, "REPLICAOF", &["127.0.0.1", &port]);
        let is_copy = || ask::<String>(&cluster, PROMOTED, "INFO", &["replication"]).contains("master_link_status:up");
        eventually(20 * SECOND, "it is a copy of the other node", is_copy).await;
        let () = ask(&cluster, PROMOTED, "REPLICAOF", &["NO", "ONE"]);
        for node in [PROMOTED, COPIED] {
            let _: usize = ask(&cluster, node, "CLIENT", &["KILL", "TYPE", "pubsub"]);
        }
        eventually(20 * SECOND, "it is in quarantine", || record(&cluster, PROMOTED) != before).await;
        for locks in &clients {
            Cluster::until_all_answer(locks).await;
        }
        assert_eq!(record(&cluster, COPIED), before);
    }
}
