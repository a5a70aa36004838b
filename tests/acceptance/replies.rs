//! Row 23: the nodes execute the requests, and their answers are lost.

use std::time::Duration;

use quorlock::{Guard, Owner, Quorlock};
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

struct Lossy {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    locks: Quorlock,
}

impl Lossy {
    async fn start() -> Self {
        let cluster = Cluster::start(5);
        let mut proxies = Vec::new();
        for port in cluster.ports() {
            proxies.push(Proxy::start(port).await);
        }
        let urls = proxies.iter().map(Proxy::url);
        let builder = Quorlock::builder().nodes(urls).lease(10 * SECOND).node_timeout(SECOND);
        let locks = builder.connect().await.expect("settings that work");
        locks.flush().await;
        Self { cluster, proxies, locks }
    }

    fn lose(&self, nodes: usize, mode: Mode) {
        for proxy in &self.proxies[..nodes] {
            proxy.set(mode);
        }
    }

    async fn heal(&self, nodes: usize) {
        for proxy in &self.proxies[..nodes] {
            // The other nodes may have decided before this answer arrived.
            eventually(10 * SECOND, "something is lost", || proxy.lost() > 0).await;
            proxy.set(Mode::Pass);
        }
    }

    /// Returns the lock key of every node that answers, over direct connections.
    fn depth_on_nodes(&self, name: &str) -> Vec<Option<u32>> {
        let values: Vec<Option<String>> = self.cluster.each(redis::cmd("GET").arg(Cluster::lock_key(name)));
        let holds = |value: String| value.rsplit(':').next().expect("a count").parse().expect("a number");
        values.into_iter().map(|value| value.map(holds)).collect()
    }

    async fn expect_depth(&self, name: &str, depth: u32) {
        let expected = if depth == 0 { None } else { Some(depth) };
        let what = format!("{name}: every node has {depth} holds");
        eventually(10 * SECOND, &what, || self.depth_on_nodes(name).iter().all(|seen| *seen == expected)).await;
    }

    async fn enter(&self, name: &str, owner: &Owner) -> Guard {
        let request = self.locks.lock(name).owner(owner).wait(10 * SECOND);
        request.acquire().await.expect("an acquisition")
    }
}

async fn lost_on(nodes: usize, mode: Mode) {
    let lossy = Lossy::start().await;
    let owner = Owner::new();
    let majority = nodes < 3;

    // Acquire.
    lossy.lose(nodes, mode);
    let outer = lossy.locks.lock("first").owner(&owner).try_acquire().await;
    assert_eq!(outer.is_ok(), majority, "{outer:?}");
    assert!(outer.as_ref().is_ok() || outer.as_ref().is_err_and(quorlock::AcquireError::is_no_quorum), "{outer:?}");
    lossy.heal(nodes).await;
    if outer.is_err() {
        lossy.expect_depth("first", 0).await;
    }
    let outer = match outer {
        Ok(guard) => guard,
        Err(_) => lossy.enter("first", &owner).await,
    };
    lossy.expect_depth("first", 1).await;

    // Inner acquire.
    lossy.lose(nodes, mode);
    let inner = lossy.locks.lock("first").owner(&owner).try_acquire().await;
    assert_eq!(inner.is_ok(), majority, "{inner:?}");
    lossy.heal(nodes).await;
    assert_eq!(outer.hold_count(), if majority { 2 } else { 1 });
    lossy.expect_depth("first", outer.hold_count()).await;
    let inner = match inner {
        Ok(guard) => guard,
        Err(_) => lossy.enter("first", &owner).await,
    };
    lossy.expect_depth("first", 2).await;

    // Inner release.
    lossy.lose(nodes, mode);
    let released = inner.release().await;
    assert_eq!(released.is_ok(), majority, "{released:?}");
    assert_eq!(outer.hold_count(), 1);
    lossy.heal(nodes).await;
    lossy.expect_depth("first", 1).await;

    // Release.
    lossy.lose(nodes, mode);
    let released = outer.release().await;
    assert_eq!(released.is_ok(), majority, "{released:?}");
    lossy.heal(nodes).await;
    lossy.expect_depth("first", 0).await;

    let other = lossy.cluster.client(10 * SECOND).await;
    other.lock("first").try_acquire().await.expect("nothing is in the way").release().await.expect("a release");
}

#[tokio::test]
async fn acc_23_answers_lost_on_one_node() {
    lost_on(1, Mode::LoseAnswers).await;
}

#[tokio::test]
async fn acc_23_answers_lost_on_two_nodes() {
    lost_on(2, Mode::LoseAnswers).await;
}

#[tokio::test]
async fn acc_23_answers_lost_on_five_nodes() {
    lost_on(5, Mode::LoseAnswers).await;
}

#[tokio::test]
async fn acc_23_requests_lost_on_two_nodes() {
    lost_on(2, Mode::LoseRequests).await;
}
