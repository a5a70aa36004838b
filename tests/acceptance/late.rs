//! Row 37: late requests do not affect the later shares of their client. What is late also brings back no lease.

use std::time::Duration;

use quorlock::{Guard, Owner, Quorlock};
use quorlock_testkit::proxy::Proxy;
use quorlock_testkit::{CUT_OFF, Cluster, eventually, within};

const SECOND: Duration = Duration::from_secs(1);
const NAME: &str = "late";

/// Three nodes; one client holds the lock, another one joins the lease through proxies.
struct Scene {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    keeper: Quorlock,
    guard: Guard,
    joins: Quorlock,
}

impl Scene {
    /// Starts both clients, which reach the first `reached` nodes only.
    async fn start(reached: usize) -> Self {
        let cluster = Cluster::start(3);
        let mut proxies = Vec::new();
        for port in cluster.ports().into_iter().take(reached) {
            proxies.push(Proxy::start(port).await);
        }
        let and_nowhere = |urls: Vec<String>| urls.into_iter().chain(vec![CUT_OFF.to_owned(); 3 - reached]);
        let direct = and_nowhere(cluster.urls().into_iter().take(reached).collect());
        let keeper = Quorlock::builder().node_timeout(2 * SECOND).nodes(direct).lease(60 * SECOND);
        let keeper = keeper.connect().await.expect("settings that work");
        keeper.flush().await;
        let joins = Quorlock::builder().nodes(and_nowhere(proxies.iter().map(Proxy::url).collect()));
        let joins = joins.lease(60 * SECOND).node_timeout(2 * SECOND).connect().await.expect("settings that work");
        joins.flush().await;
        let guard = keeper.lock(NAME).acquire().await.expect("a free lock");
        keeper.flush().await;
        Self { cluster, proxies, keeper, guard, joins }
    }

    fn hold_requests(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.proxies[*node].hold_requests());
    }

    /// Returns the number of holds of the lease by all clients, on each reached node.
    fn holds(&self) -> Vec<u32> {
        let key = redis::cmd("GET").arg(Cluster::lock_key(NAME)).clone();
        let values = (0..self.proxies.len()).map(|node| key.query(&mut self.cluster.redis(node)).expect("an answer"));
        let count = |word: &str| word.rsplit(':').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let holds = |value: Option<String>| value.map_or(0, |value| value.split(' ').skip(4).map(count).sum());
        values.map(holds).collect()
    }

    /// Also a node that has missed the message gets it, with the next extension.
    async fn expect_holds(&self, holds: u32) {
        let is_so = || self.holds() == vec![holds; self.proxies.len()];
        eventually(60 * SECOND, &format!("{holds} holds on each node"), is_so).await;
    }

    fn scripts_run(&self, node: usize) -> u64 {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query(&mut self.cluster.redis(node)).expect("its counts");
        let calls = |stats: &str| stats.split("cmdstat_evalsha:calls=").nth(1)?.split(',').next()?.parse().ok();
        calls(&stats).unwrap_or(0)
    }

    /// Delivers the held bytes to the nodes, and waits until they are executed.
    async fn deliver(&self, nodes: &[usize]) {
        for node in nodes {
            let before = self.scripts_run(*node);
            self.proxies[*node].deliver();
            eventually(10 * SECOND, "the held requests are executed", || self.scripts_run(*node) > before).await;
        }
    }

    /// Checks that the share that joined last keeps the lock alone.
    async fn expect_held_by(self, joined: Guard) {
        let Self { cluster, keeper, guard, joins, .. } = self;
        joined.extend().await.expect("it is held");
        guard.release().await.expect("a release");
        keeper.flush().await;
        let other = cluster.client(10 * SECOND).await;
        let outcome = other.lock(NAME).try_acquire().await;
        assert!(outcome.as_ref().is_err_and(|error| error.is_held()), "the later share is gone: {outcome:?}");
        assert!(!joined.is_lost());
        joined.release().await.expect("a release");
        joins.flush().await;
        let is_free = async || other.lock(NAME).try_acquire().await.is_ok();
        within(20 * SECOND, "it is free", is_free).await;
    }
}

/// A release is held back on these nodes, and its connection is closed. The client joins again. Then the bytes arrive.
async fn late_release(reached: usize, nodes: &[usize]) {
    let scene = Scene::start(reached).await;
    let first = scene.joins.join(&scene.guard.export()).await.expect("it is held");
    scene.expect_holds(2).await;
    scene.hold_requests(nodes);
    drop(first);
    let all_held = || nodes.iter().all(|node| scene.proxies[*node].held() > 0);
    eventually(10 * SECOND, "the release is in transit", all_held).await;
    // Until it is sent again, on a new connection.
    scene.expect_holds(1).await;
    let again = scene.joins.join(&scene.guard.export()).await.expect("it is held");
    scene.expect_holds(2).await;
    scene.deliver(nodes).await;
    assert_eq!(scene.holds(), vec![2; reached], "the late release has taken the later share");
    scene.expect_held_by(again).await;
}

#[tokio::test]
async fn acc_37_a_late_release_at_margin_0_keeps_the_later_share() {
    late_release(2, &[1]).await;
}

#[tokio::test]
async fn acc_37_a_late_release_at_all_nodes_keeps_the_later_share() {
    late_release(3, &[0, 1, 2]).await;
}

/// The first try of one request and its release are late. The second try joins.
#[tokio::test]
async fn acc_37_a_late_try_keeps_the_share_of_the_next_try() {
    let scene = Scene::start(3).await;
    let owner = Owner::import(&scene.guard.export()).expect("an export");
    scene.hold_requests(&[0, 1, 2]);
    let request = scene.joins.lock(NAME).owner(&owner).wait(20 * SECOND).acquire();
    let joined = request.await.expect("on the next connections");
    assert!(scene.proxies.iter().all(|proxy| proxy.held() > 0), "no request is late");
    scene.expect_holds(2).await;
    scene.deliver(&[0, 1, 2]).await;
    assert_eq!(scene.holds(), vec![2; 3], "the late release has taken the later share");
    scene.expect_held_by(joined).await;
}

/// The release of one share is late at one node, that of the other share at another node. So two of three nodes have a key of the
/// lease, although a majority has released each share.
#[tokio::test]
async fn no_share_joins_a_lease_whose_shares_are_all_released() {
    let cluster = Cluster::start(3);
    let (mut clients, mut proxies) = (Vec::new(), Vec::new());
    for late_at in [0, 1] {
        let mut urls = cluster.urls();
        let proxy = Proxy::start(cluster.ports()[late_at]).await;
        urls[late_at] = proxy.url();
        // So long that no release is sent again before the test ends.
        let client = Quorlock::builder().nodes(urls).lease(60 * SECOND).node_timeout(50 * SECOND);
        let client = client.connect().await.expect("settings that work");
        client.flush().await;
        clients.push(client);
        proxies.push(proxy);
    }
    let first = clients[0].lock(NAME).acquire().await.expect("a free lock");
    clients[0].flush().await;
    let second = clients[1].join(&first.export()).await.expect("it is held");
    clients[1].flush().await;
    let exports = [first.export(), second.export()];
    proxies.iter().for_each(Proxy::hold_requests);
    first.release().await.expect("a majority has the release");
    let third = cluster.client(60 * SECOND).await;
    third.join(&exports[1]).await.expect("the second share is held").release().await.expect("a release");
    let error = third.join(&exports[0]).await.expect_err("the first share is released");
    assert!(error.is_lost(), "{error}");
    second.release().await.expect("a majority has the release");
    assert_eq!(cluster.count_keys(&Cluster::lock_key(NAME)), 2, "the releases are not late");
    for export in &exports {
        let error = third.join(export).await.expect_err("all shares are released");
        assert!(error.is_lost(), "{error}");
    }
}
