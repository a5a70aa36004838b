//! Row 40: dead connections, whose state a middlebox has dropped without notice to either end.

use std::time::{Duration, Instant};

use quorlock::Quorlock;
use quorlock_testkit::proxy::Proxy;
use quorlock_testkit::{Cluster, Stopwatch, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// How long a connection is idle before it is dead.
const IDLE: Duration = Duration::from_secs(3);
/// The allowed duration of a first try on such connections.
const MORE: Duration = Duration::from_millis(200);

struct Forgetful {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    locks: Quorlock,
}

impl Forgetful {
    async fn start() -> Self {
        let cluster = Cluster::quiet(5);
        let mut proxies = Vec::new();
        for port in cluster.ports() {
            proxies.push(Proxy::start(port).await);
        }
        let builder = Quorlock::builder().nodes(proxies.iter().map(Proxy::url)).lease(60 * SECOND);
        let locks = builder.node_timeout(5 * SECOND).connect().await.expect("settings that work");
        locks.flush().await;
        Self { cluster, proxies, locks }
    }

    /// Lets the connections be idle. After that, bytes on the connections to the first nodes are lost.
    async fn forget(&self, nodes: usize) {
        tokio::time::sleep(IDLE).await;
        self.proxies[..nodes].iter().for_each(Proxy::hold_requests);
    }

    fn keys(&self, name: &str) -> usize {
        self.cluster.count_keys(&Cluster::lock_key(name))
    }
}

#[tokio::test]
async fn acc_40_a_first_try_on_dead_connections_is_hardly_delayed() {
    let net = Forgetful::start().await;
    let cycle = async |name: &str| {
        let start = Instant::now();
        let guard = net.locks.lock(name).try_acquire().await.expect("the nodes are well");
        let took = start.elapsed();
        guard.release().await.expect("a release");
        took
    };
    let mut usual = cycle("usual").await;
    for _ in 0..20 {
        usual = usual.max(cycle("usual").await);
    }
    for nodes in [5, 3] {
        net.forget(nodes).await;
        // A connection is doubted after some usual times of an answer. Otherwise the try takes as long as the node timeout.
        let watch = Stopwatch::new();
        let (first, limit) = (cycle("first").await, 4 * usual + MORE + watch.contended().min(SECOND));
        assert!(first <= limit, "{nodes} forgotten: {first:?}, and usually {usual:?}, {limit:?} allowed");
    }
}

#[tokio::test]
async fn acc_40_a_release_on_dead_connections_reaches_the_nodes() {
    let net = Forgetful::start().await;
    for nodes in [5, 2] {
        let guard = net.locks.lock("x").acquire().await.expect("a free lock");
        net.locks.flush().await;
        assert_eq!(net.keys("x"), 5);
        net.forget(nodes).await;
        guard.release().await.expect("a release");
        // As the command does at its end.
        net.locks.flush_majority().await;
        eventually(10 * SECOND, "the release has reached the nodes", || net.keys("x") == 0).await;
    }
}

/// A node that is only slow keeps its connection, and answers there.
#[tokio::test]
async fn acc_40_a_slow_node_keeps_its_connection() {
    let mut net = Forgetful::start().await;
    let guard = net.locks.lock("x").acquire().await.expect("a free lock");
    net.locks.flush().await;
    net.forget(0).await;
    let made = net.proxies[0].connections();
    net.cluster.pause(0);
    let released = tokio::spawn(guard.release());
    tokio::time::sleep(Duration::from_millis(300)).await; // How long the node is paused.
    net.cluster.resume(0);
    released.await.expect("no panic").expect("a release");
    net.locks.flush().await;
    assert_eq!(net.keys("x"), 0);
    assert!(net.proxies[0].connections() <= made + 1, "one other at most was tried");
}
