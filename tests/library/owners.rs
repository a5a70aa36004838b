//! Owners: scopes, other tasks, other clients.

use std::time::Duration;

use quorlock::{ExportError, Owner, Quorlock, Verdict};
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_scope_reenters_without_passing_the_owner() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let owner = Owner::labelled("scoped");
    let depth = owner
        .scope(async {
            let outer = locks.lock("x").acquire().await.expect("the lock");
            let inner = locks.lock("x").acquire().await.expect("a re-entry");
            assert_eq!(outer.token(), inner.token());
            assert_eq!(inner.owner(), &owner);
            inner.hold_count()
        })
        .await;
    assert_eq!(depth, 2);
    let guard = locks.lock("x").acquire().await.expect("the scope's holds are gone");
    assert_eq!(guard.hold_count(), 1);
}

#[tokio::test]
async fn tasks_of_one_owner_share_one_acquisition() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let owner = Owner::new();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (locks, owner) = (locks.clone(), owner.clone());
            tokio::spawn(async move { locks.lock("shared").owner(&owner).acquire().await.expect("a hold") })
        })
        .collect();
    let mut guards = Vec::new();
    for task in tasks {
        guards.push(task.await.expect("a task"));
    }
    assert!(guards.iter().all(|guard| guard.token() == guards[0].token() && guard.hold_count() == 20));
    drop(guards);
    locks.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("shared")), 0);
}

#[tokio::test]
async fn a_joined_client_has_its_own_share() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let elsewhere = cluster.client(10 * SECOND).await;
    let outer = locks.lock("joined").acquire().await.expect("the lock");
    let joined = elsewhere.join(&outer.export()).await.expect("it is held");
    assert_eq!((joined.token(), joined.hold_count()), (outer.token(), 1));
    let again = elsewhere.lock("joined").owner(joined.owner()).acquire().await.expect("a re-entry");
    locks.flush().await;
    elsewhere.flush().await;
    let seen = locks.inspect("joined").await.expect("a look");
    assert_eq!((seen.verdict, seen.holds), (Verdict::Held, 3), "the holds of all processes");

    outer.release().await.expect("a release");
    assert!(locks.lock("joined").try_acquire().await.is_err_and(|error| error.is_held()), "the other one holds on");
    again.release().await.expect("a release");
    joined.release().await.expect("the last release");
    let free = locks.lock("joined").try_acquire().await.expect("free");
    free.release().await.expect("a release");
}

#[tokio::test]
async fn a_join_in_the_same_client_is_a_reentry() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let outer = locks.lock_all(["a", "b"]).acquire().await.expect("the locks");
    let joined = locks.join(&outer.export()).await.expect("it is held");
    assert_eq!(joined.hold_count(), 2);
    outer.release().await.expect("a release");
    assert!(locks.lock("b").try_acquire().await.is_err_and(|error| error.is_held()));
    joined.release().await.expect("a release");
    locks.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("a")), 0);
}

#[tokio::test]
async fn a_join_of_a_released_lease_fails_as_lost() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let guard = locks.lock("over").acquire().await.expect("the lock");
    let exported = guard.export();
    guard.release().await.expect("a release");
    locks.flush().await;
    let elsewhere = cluster.client(10 * SECOND).await;
    assert!(elsewhere.join(&exported).await.expect_err("it is over").is_lost());
    assert_eq!(elsewhere.join("nonsense").await.expect_err("no export"), ExportError.into());
    let other_prefix = cluster.builder().prefix("other:").connect().await.expect("a prefix");
    assert_eq!(other_prefix.join(&exported).await.expect_err("another prefix"), ExportError.into());
    eventually(SECOND, "nothing is left", || cluster.count_keys(&Cluster::lock_key("over")) == 0).await;
}

#[tokio::test]
async fn holds_of_an_owner_are_kept_per_client() {
    let cluster = Cluster::start(5);
    let one = cluster.client(10 * SECOND).await;
    let two = cluster.client(10 * SECOND).await;
    let owner = Owner::new();
    let guard = one.lock("x").owner(&owner).acquire().await.expect("the lock");
    let error = two.lock("x").owner(&owner).try_acquire().await.expect_err("the other client holds it");
    assert!(error.is_held(), "{error}");
    guard.extend().await.expect("still held");
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn an_inherited_lease_is_not_joined_but_can_be_entered() {
    let cluster = Cluster::start(3);
    let grandparent = cluster.client(10 * SECOND).await;
    let parent = cluster.client(10 * SECOND).await;
    let child = cluster.client(10 * SECOND).await;
    let a = grandparent.lock("a").acquire().await.expect("the lock");
    let heir = Owner::import(&a.export()).expect("an export");
    let b = parent.lock("b").owner(&heir).acquire().await.expect("another lock, by the same owner");
    let exported = b.export();

    let joined = child.join(&exported).await.expect("b is held");
    assert_eq!((joined.token_of("a"), joined.token_of("b")), (None, Some(b.token())));
    let entered = child.lock("a").owner(joined.owner()).try_acquire().await.expect("a is entered, not waited for");
    assert_eq!(entered.token(), a.token());
}

#[tokio::test]
async fn an_export_does_not_join_a_later_lease_of_its_owner() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = first.lock("x").acquire().await.expect("a free lock");
    let (owner, exported) = (guard.owner().clone(), guard.export());
    guard.release().await.expect("a release");
    let later = second.lock("x").owner(&owner).acquire().await.expect("it is free again");
    let error = second.join(&exported).await.expect_err("that lease is over");
    assert!(error.is_lost(), "{error}");
    later.release().await.expect("a release");
}

/// Three nodes behind proxies, which lose their scripts. The next requests must be repeated. Another client loads the scripts,
/// so the nodes execute later requests before the repeated ones.
struct Forgetful {
    cluster: Cluster,
    elsewhere: Quorlock,
    proxies: Vec<Proxy>,
    locks: Quorlock,
    /// The number of requests to each node.
    asked: u64,
}

impl Forgetful {
    async fn start() -> Self {
        let cluster = Cluster::start(3);
        let elsewhere = cluster.client(60 * SECOND).await;
        let mut proxies = Vec::new();
        for port in cluster.ports() {
            proxies.push(Proxy::start(port).await);
        }
        let builder = Quorlock::builder().nodes(proxies.iter().map(Proxy::url)).lease(60 * SECOND);
        let locks = builder.node_timeout(5 * SECOND).connect().await.expect("settings that work");
        locks.flush().await;
        Self { cluster, elsewhere, proxies, locks, asked: 0 }
    }

    async fn forget(&mut self) {
        self.locks.flush().await;
        self.elsewhere.flush().await;
        self.proxies.iter().for_each(|proxy| proxy.set(Mode::HoldAnswers));
        self.cluster.each::<()>(redis::cmd("SCRIPT").arg("FLUSH"));
        self.asked = self.count();
    }

    /// Loads the scripts into the nodes again, by another client.
    async fn load(&mut self) -> Quorlock {
        let loads = self.cluster.client(60 * SECOND).await;
        let guard = loads.lock("loads").acquire().await.expect("a free lock");
        guard.release().await.expect("a release");
        loads.inspect("loads").await.expect("a name");
        loads.flush().await;
        self.asked = self.count();
        loads
    }

    fn count(&self) -> u64 {
        let calls = |stats: &String| stats.split("cmdstat_evalsha:calls=").nth(1)?.split(',').next()?.parse().ok();
        let stats: Vec<String> = self.cluster.each(redis::cmd("INFO").arg("commandstats"));
        stats.iter().map(|stats| calls(stats).unwrap_or(0)).min().unwrap_or(0)
    }

    /// Waits until every node has got this number of further requests.
    async fn asked(&mut self, more: u64) {
        self.asked += more;
        let what = format!("{} requests", self.asked);
        eventually(5 * SECOND, &what, || self.count() >= self.asked).await;
    }

    /// Delivers the answers to the client.
    async fn remember(&self) {
        self.proxies.iter().for_each(|proxy| proxy.set(Mode::Pass));
        self.locks.flush().await;
        self.locks.flush().await; // Waits for the requests that the first answers caused.
    }
}

/// Each join has its own share, which the late release of the previous join does not affect.
#[tokio::test]
async fn a_repeated_release_leaves_later_shares() {
    let mut nodes = Forgetful::start().await;
    let guard = nodes.elsewhere.lock("repeated").acquire().await.expect("the lock");
    let joined = nodes.locks.join(&guard.export()).await.expect("it is held");
    nodes.forget().await;
    drop(joined);
    nodes.asked(1).await;
    let loads = nodes.load().await;
    let (locks, export) = (nodes.locks.clone(), guard.export());
    let join = tokio::spawn(async move { locks.join(&export).await });
    nodes.asked(1).await;
    nodes.remember().await;
    let joined = join.await.expect("a task").expect("it is held");
    nodes.locks.flush().await;
    let seen = loads.inspect("repeated").await.expect("a look");
    assert_eq!((seen.verdict, seen.holds), (Verdict::Held, 2), "of both clients");
    let on_nodes = seen.nodes.iter().map(|node| node.state.as_ref().expect("every node answers").holds);
    assert!(on_nodes.into_iter().all(|holds| holds == 2), "{seen:?}");
    guard.release().await.expect("a release");
    nodes.elsewhere.flush().await;
    assert!(loads.lock("repeated").try_acquire().await.is_err_and(|error| error.is_held()), "the share counts");
    joined.release().await.expect("a release");
}

#[tokio::test]
async fn a_repeated_request_after_cancellation_leaves_nothing() {
    let mut nodes = Forgetful::start().await;
    let _guard = nodes.elsewhere.lock("repeated").acquire().await.expect("the lock");
    nodes.forget().await;
    let waiting = tokio::spawn(nodes.locks.lock("repeated").acquire());
    nodes.asked(1).await;
    let _loads = nodes.load().await;
    waiting.abort();
    // The lease that was not granted, and the ticket.
    nodes.asked(2).await;
    nodes.remember().await;
    assert_eq!(nodes.cluster.count_waiting("repeated"), 0, "{:?}", nodes.cluster.wait_queues("repeated"));
}
