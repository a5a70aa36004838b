//! quorlock and other lock clients on the same names, with an empty prefix: each keeps the other out, and neither changes the other's
//! keys. docs/migration.md is about this.
//!
//! rslock is always tested. `cluster/test --peers` installs the clients of other languages and tests them, too.

mod peer;
mod program;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peer::{Peer, Start};
use quorlock::{AcquireError, ErrorKind, Holder, Quorlock, RevokeError};
use quorlock_testkit::{Cluster, Setup, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any step of a test takes.
const LONG: Duration = Duration::from_secs(60);
/// What ends within a test.
const SHORT: Duration = SECOND;
/// How long a condition may take that comes about by itself.
const LIMIT: Duration = Duration::from_secs(30);
const TURNS: usize = 10;

/// The value of a key on each node.
type Values = Vec<Option<Vec<u8>>>;

/// quorlock and another client on the same nodes.
struct Pair {
    cluster: Cluster,
    locks: Quorlock,
    peer: Peer,
}

async fn bare(cluster: &Cluster) -> Quorlock {
    let locks = cluster.builder().prefix("").connect().await.expect("an empty prefix");
    Cluster::until_all_answer(&locks).await;
    locks
}

fn values(cluster: &Cluster, name: &str) -> Values {
    cluster.each(redis::cmd("GET").arg(name))
}

/// Returns whether the lock key of each node is quorlock's.
fn are_ours(values: &Values) -> bool {
    values.iter().all(|value| value.as_ref().is_some_and(|value| value.starts_with(b"ql1 ")))
}

/// Puts the key of another client on one node, in place of what is there.
fn put(cluster: &Cluster, node: usize, name: &str) {
    let mut set = redis::cmd("SET");
    set.arg(name).arg("foreign").arg("PX").arg(60_000);
    set.exec(&mut cluster.redis(node)).expect("a node that is up");
}

fn is_foreign(error: &AcquireError) -> bool {
    error.kind() == ErrorKind::Held && matches!(error, AcquireError::Held { by: Holder::Foreign, .. })
}

impl Pair {
    async fn start(nodes: usize, start: Start) -> Self {
        let cluster = Cluster::start(nodes);
        let (locks, peer) = (bare(&cluster).await, start(&cluster.urls()));
        Self { cluster, locks, peer }
    }

    /// Acquires a lock for the peer, and returns its keys when every node has one: a client may be granted before.
    async fn grant_peer(&mut self, name: &str) -> Values {
        assert!(self.peer.try_acquire(name, LONG).await, "{name} is free");
        let nodes = self.cluster.len();
        eventually(LIMIT, "every node has the peer's key", || self.cluster.count_keys(name) == nodes).await;
        values(&self.cluster, name)
    }

    async fn peers_lock_keeps_quorlock_out(&mut self, extends: bool) {
        let name = "of-the-peer";
        let held = self.grant_peer(name).await;
        let error = self.locks.lock(name).try_acquire().await.expect_err("held");
        assert!(is_foreign(&error), "{error}");
        let error = self.locks.revoke(name, None).await.expect_err("not quorlock's");
        assert!(matches!(error, RevokeError::Held { by: Holder::Foreign, .. }), "{error}");
        if extends {
            assert!(self.peer.extend(name, 2 * LONG).await, "its own lock");
            let is_extended = || self.cluster.each(redis::cmd("PTTL").arg(name)).into_iter().all(|ms: u64| ms > 60_000);
            eventually(LIMIT, "the peer's extension is everywhere", is_extended).await;
        }
        let (locks, before) = (self.locks.clone(), self.cluster.scripts_run());
        let waiting = tokio::spawn(async move { locks.lock(name).acquire().await });
        let has_looked = || self.cluster.scripts_run().iter().zip(&before).all(|(now, before)| *now > before + 1);
        eventually(LIMIT, "the waiter has looked twice at each node", has_looked).await;
        assert!(!waiting.is_finished());
        assert_eq!(values(&self.cluster, name), held, "quorlock changed the peer's keys");
        self.peer.release(name).await;
        let guard = waiting.await.expect("no panic").expect("the peer has released");
        guard.release().await.expect("a majority");
    }

    async fn quorlocks_lock_keeps_the_peer_out(&mut self) {
        let name = "of-quorlock";
        let guard = self.locks.lock(name).acquire().await.expect("free");
        self.locks.flush().await;
        let held = values(&self.cluster, name);
        assert!(are_ours(&held));
        assert!(!self.peer.try_acquire(name, LONG).await, "held");
        assert_eq!(values(&self.cluster, name), held, "the peer changed quorlock's keys");
        let again = self.locks.lock(name).owner(guard.owner()).acquire().await.expect("a re-entry");
        again.release().await.expect("a majority");
        for mut keys in self.cluster.each::<Vec<String>>(redis::cmd("KEYS").arg("*of-quorlock")) {
            keys.sort();
            assert_eq!(keys, ["of-quorlock", "quorlock:ballot:of-quorlock"]);
        }
        let (released, ()) = tokio::join!(guard.release(), self.peer.acquire(name, LONG));
        released.expect("a majority");
        self.locks.flush().await;
        let error = self.locks.lock(name).try_acquire().await.expect_err("held by the peer");
        assert!(is_foreign(&error), "{error}");
        self.peer.release(name).await;
        eventually(LIMIT, "the peer's keys are gone", || self.cluster.count_keys(name) == 0).await;
    }

    /// The lease of a client that does not extend it ends. The peer gets the lock, and keeps it when that client releases.
    async fn late_release_of_quorlock_leaves_the_peers_lock(&mut self) {
        let name = "lease-over";
        let short = self.cluster.builder().prefix("").lease(SHORT).auto_extend(false);
        let short = short.connect().await.expect("settings that work");
        let guard = short.lock(name).wait(LIMIT).acquire().await.expect("free");
        eventually(LIMIT, "the lease is over", || self.cluster.count_keys(name) == 0).await;
        let held = self.grant_peer(name).await;
        let owner = guard.owner().clone();
        let error = guard.release().await.expect_err("lost");
        assert!(error.is_lost(), "{error}");
        let error = short.lock(name).owner(&owner).try_acquire().await.expect_err("held by the peer");
        assert!(is_foreign(&error), "{error}");
        short.flush().await;
        assert_eq!(values(&self.cluster, name), held, "quorlock changed the peer's keys");
        self.peer.release(name).await;
    }

    /// A lock of the peer expires. quorlock gets it, and keeps it when the peer extends and releases.
    async fn late_release_of_the_peer_leaves_quorlocks_lock(&mut self, extends: bool) {
        let name = "ttl-over";
        self.peer.acquire(name, SHORT).await;
        let guard = self.locks.lock(name).wait(LIMIT).acquire().await.expect("the peer's keys expire");
        // A node whose key of the peer expired later gets the lock with an extension.
        eventually(LIMIT, "quorlock has the lock everywhere", || are_ours(&values(&self.cluster, name))).await;
        let held = values(&self.cluster, name);
        if extends {
            assert!(!self.peer.extend(name, LONG).await, "its lock is over");
        }
        self.peer.release(name).await;
        assert_eq!(values(&self.cluster, name), held, "the peer changed quorlock's keys");
        guard.extend().await.expect("a majority");
        guard.release().await.expect("a majority");
    }
}

/// Does the work of a turn, and panics if another client is at work.
async fn work(is_held: &AtomicBool) {
    assert!(!is_held.swap(true, Ordering::SeqCst), "two clients hold the lock");
    sleep(Duration::from_millis(5)).await;
    is_held.store(false, Ordering::SeqCst);
}

/// Two tasks with quorlock and two other clients take turns at one lock.
async fn turns_do_not_overlap(cluster: &Cluster, locks: &Quorlock, start: Start) {
    const NAME: &str = "turns";
    let is_held = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let (locks, mut peer) = (locks.clone(), start(&cluster.urls()));
        let [ours, theirs] = [(); 2].map(|()| Arc::clone(&is_held));
        tasks.spawn(async move {
            for _ in 0..TURNS {
                let guard = locks.lock(NAME).acquire().await.expect("its turn");
                work(&ours).await;
                guard.release().await.expect("a majority");
                sleep(Duration::from_millis(50)).await; // So the others get turns between its own.
            }
        });
        tasks.spawn(async move {
            for _ in 0..TURNS {
                peer.acquire(NAME, LONG).await;
                work(&theirs).await;
                peer.release(NAME).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no overlap");
    }
}

async fn exclude_each_other(nodes: usize, start: Start, extends: bool) {
    let mut pair = Pair::start(nodes, start).await;
    pair.peers_lock_keeps_quorlock_out(extends).await;
    pair.quorlocks_lock_keeps_the_peer_out().await;
    pair.late_release_of_quorlock_leaves_the_peers_lock().await;
    pair.late_release_of_the_peer_leaves_quorlocks_lock(extends).await;
    turns_do_not_overlap(&pair.cluster, &pair.locks, start).await;
}

#[tokio::test]
async fn rslock_and_quorlock_exclude_each_other() {
    exclude_each_other(3, Peer::rslock, true).await;
}

#[tokio::test]
#[ignore = "cluster/test --peers installs npm redlock and runs this"]
async fn npm_redlock_4_and_quorlock_exclude_each_other() {
    exclude_each_other(3, Peer::redlock_4, true).await;
}

#[tokio::test]
#[ignore = "cluster/test --peers installs npm redlock and runs this"]
async fn npm_redlock_5_and_quorlock_exclude_each_other() {
    exclude_each_other(3, Peer::redlock_5, true).await;
}

#[tokio::test]
#[ignore = "cluster/test --peers installs redlock-py and runs this"]
async fn redlock_py_and_quorlock_exclude_each_other() {
    exclude_each_other(3, Peer::redlock_py, false).await;
}

/// Where a node is down, redlock-py fails although a majority has granted, and its keys stay.
#[tokio::test]
#[ignore = "cluster/test --peers installs redlock-py and runs this"]
async fn redlock_py_that_fails_for_one_node_keeps_quorlock_out() {
    let mut cluster = Cluster::start(3);
    let locks = bare(&cluster).await;
    let mut peer = Peer::redlock_py(&cluster.urls());
    cluster.kill(2);
    assert!(!peer.try_acquire("job", LONG).await);
    let error = locks.lock("job").try_acquire().await.expect_err("two of three nodes have its keys");
    assert!(is_foreign(&error), "{error}");
}

#[tokio::test]
#[ignore = "cluster/test --peers installs redis-py and runs this"]
async fn redis_py_lock_and_quorlock_on_one_node_exclude_each_other() {
    exclude_each_other(1, Peer::redis_py_lock, true).await;
}

/// redis-py's Lock on a node of three does not keep quorlock out, and stays as it is.
#[tokio::test]
#[ignore = "cluster/test --peers installs redis-py and runs this"]
async fn redis_py_lock_on_one_of_three_nodes_is_no_lock_for_quorlock() {
    let cluster = Cluster::start(3);
    let locks = bare(&cluster).await;
    let mut peer = Peer::redis_py_lock(&cluster.urls()[..1]);
    assert!(peer.try_acquire("job", LONG).await);
    let held = values(&cluster, "job");
    let guard = locks.lock("job").acquire().await.expect("two of three nodes");
    assert!(peer.extend("job", LONG).await, "its own lock");
    guard.release().await.expect("a majority");
    locks.flush().await;
    assert_eq!(values(&cluster, "job"), held);
}

/// A client without a quorum has a key on one node. quorlock does not count on that node, repairs no lock of its own there, and
/// removes nothing.
#[tokio::test]
async fn key_of_another_client_on_one_node_is_neither_counted_nor_replaced() {
    let cluster = Cluster::start(3);
    let locks = bare(&cluster).await;
    put(&cluster, 0, "before");
    let guard = locks.lock("before").acquire().await.expect("two of three nodes");
    locks.flush().await;
    assert_eq!(guard.margin(), 0);

    let extended = locks.lock("extended").acquire().await.expect("free");
    let released = locks.lock("released").acquire().await.expect("free");
    locks.flush().await;
    assert_eq!((extended.margin(), released.margin()), (1, 1));
    put(&cluster, 0, "released");
    released.release().await.expect("a majority");
    put(&cluster, 0, "extended");
    extended.extend().await.expect("two of three nodes");
    locks.flush().await;
    assert_eq!(extended.margin(), 0);

    guard.release().await.expect("a majority");
    extended.release().await.expect("a majority");
    locks.flush().await;
    for name in ["before", "extended", "released"] {
        assert_eq!(values(&cluster, name), [Some(b"foreign".to_vec()), None, None], "{name}");
    }
}

/// Two of three nodes forget a lock of rslock. Another client of rslock gets it at once. quorlock waits for the longest lease that it
/// knows of.
#[tokio::test]
async fn nodes_that_forget_a_peers_lock_need_its_ttl_as_longest_lease() {
    for (longest, may_enter) in [(LONG, false), (SECOND, true)] {
        let mut cluster = Setup::new(3).longest(SECOND).start();
        let settings = cluster.builder().prefix("").lease(SECOND).longest_lease(longest);
        let locks = settings.connect().await.expect("settings that work");
        Cluster::until_all_answer(&locks).await;
        let mut pair = Pair { peer: Peer::rslock(&cluster.urls()), locks: locks.clone(), cluster };
        pair.grant_peer("job").await;
        cluster = pair.cluster;
        for node in 0..2 {
            cluster.restart(node, true);
        }
        let request = locks.lock("job");
        if may_enter {
            let guard = request.wait(LIMIT).acquire().await.expect("the quarantine is shorter than the peer's lock");
            guard.release().await.expect("a majority");
        } else {
            let error = request.wait(3 * SECOND).acquire().await.expect_err("two nodes are in quarantine");
            // The third node still has the peer's key, so the error names the one or the other.
            assert!(matches!(error.kind(), ErrorKind::NoQuorum | ErrorKind::Held), "{error}");
            assert!(Peer::rslock(&cluster.urls()).try_acquire("job", LONG).await, "it knows no quarantine");
        }
    }
}
