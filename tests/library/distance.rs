//! Nodes with long delays.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorlock::Quorlock;

use crate::clocks::Ahead;
use quorlock_testkit::link::Link;
use quorlock_testkit::{Cluster, within};

const SECOND: Duration = Duration::from_secs(1);

async fn far_away(cluster: &Cluster, round_trip: Duration) -> Vec<Link> {
    let mut links = Vec::new();
    for port in cluster.ports() {
        let link = Link::start(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("a link");
        link.change(|state| state.delay = round_trip / 2);
        links.push(link);
    }
    links
}

fn url(link: &Link) -> String {
    format!("redis://127.0.0.1:{}", link.port())
}

async fn all_connect(locks: &Quorlock) {
    let connected = async || locks.inspect("x").await.expect("a name").nodes.iter().all(|node| node.state.is_ok());
    within(30 * SECOND, "all are connected", connected).await;
}

#[tokio::test]
async fn nodes_half_a_second_away_lock_with_a_longer_node_timeout() {
    let (cluster, round_trip) = (Cluster::start(3), SECOND / 2);
    let links = far_away(&cluster, round_trip).await;
    let builder = Quorlock::builder().nodes(links.iter().map(url)).node_timeout(2 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    all_connect(&locks).await;
    let start = Instant::now();
    let guard = locks.lock("x").try_acquire().await.expect("they are far away, and well");
    assert!(start.elapsed() >= round_trip);
    guard.release().await.expect("a release");
}

/// The handshake with an undeclared node writes its record and its list: more round trips, each within the node timeout.
#[tokio::test]
async fn undeclared_nodes_may_be_far_away() {
    let (cluster, round_trip) = (Cluster::undeclared(3, &[]), Duration::from_millis(1200));
    let links = far_away(&cluster, round_trip).await;
    // A stream takes two round trips: for TCP, and for TLS.
    let environment = Arc::new(Ahead::that_connects_after(2 * round_trip));
    let builder = Quorlock::builder().nodes(links.iter().map(url)).node_timeout(2 * SECOND);
    let builder = builder.environment(environment);
    all_connect(&builder.connect().await.expect("settings that work")).await;
}
