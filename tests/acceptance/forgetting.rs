//! Row 36: nodes that lose their memory while their connections stay open, and the longest lease that nodes store.

use std::time::{Duration, Instant};

use quorlock::{Answer, Guard, NodeError, Quorlock};
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{CUT_OFF, Cluster, Setup, eventually, within};

const SECOND: Duration = Duration::from_secs(1);
/// Of the holder, and of any client.
const LONGEST: Duration = Duration::from_millis(2500);
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

async fn client(urls: impl IntoIterator<Item = String>, lease: Duration) -> Quorlock {
    let builder = Quorlock::builder()
        .node_timeout((lease / 4).min(2 * SECOND))
        .nodes(urls)
        .lease(lease)
        .auto_extend(lease < LONGEST);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    locks
}

/// A client holds the lock on nodes 0 and 1. Node 1 loses its memory.
struct Scene {
    cluster: Cluster,
    /// The proxy in front of node 1.
    proxy: Proxy,
}

impl Scene {
    async fn start(options: &[&str]) -> Self {
        let at_once = [options, &["--repl-diskless-sync-delay", "0"]].concat();
        let cluster = Setup::new(3).spare(1).options(&at_once).longest(LONGEST).start();
        let proxy = Proxy::start(cluster.ports()[1]).await;
        Self { cluster, proxy }
    }

    fn ask(&self, command: &str, words: &[&str]) {
        redis::cmd(command).arg(words).exec(&mut self.cluster.redis(1)).expect(command);
    }

    async fn is_replica(&self) {
        let is_up = || {
            let info: String =
                redis::cmd("INFO").arg("replication").query(&mut self.cluster.redis(1)).expect("an answer");
            info.contains("master_link_status:up")
        };
        eventually(20 * SECOND, "it is a copy of another node", is_up).await;
    }

    fn urls(&self) -> [String; 3] {
        let mut urls = self.cluster.urls();
        [urls.swap_remove(0), self.proxy.url(), urls.swap_remove(2)]
    }
}

/// Checks that no other client gets the lock while the lease lasts, neither an old client nor a new one, and that the node
/// votes again when no forgotten lease can be in force.
async fn forgets(options: &[&str], forget: impl AsyncFn(&mut Scene)) {
    // A machine that stands still for longer than the lease shows nothing.
    for _ in 0..5 {
        if is_shown_to_forget(options, &forget).await {
            return;
        }
    }
    panic!("the node was never asked before the lease was over");
}

/// Requests the lock, and returns whether the node has answered that it does not agree, before the lease was over.
async fn is_refused(locks: &Quorlock, guard: &Guard) -> bool {
    let outcome = locks.lock("x").try_acquire().await;
    let left = guard.remaining();
    assert!(outcome.is_err() || left.is_zero(), "two holders, {left:?} apart");
    let has_answered = |answer: &Answer| match answer {
        Answer::Failed(error) => {
            matches!(error, NodeError::Quarantined { .. } | NodeError::Forgot | NodeError::Replica)
        }
        answer => *answer != Answer::Agreed,
    };
    !left.is_zero() && outcome.is_err_and(|error| has_answered(&error.nodes()[1].answer))
}

async fn is_shown_to_forget(options: &[&str], forget: &impl AsyncFn(&mut Scene)) -> bool {
    let mut scene = Scene::start(options).await;
    let [first, second, third] = scene.urls();
    let idle = client([first.clone(), second.clone(), third.clone()], SECOND).await;
    let holder = client([first.clone(), second.clone(), CUT_OFF.to_owned()], LONGEST).await;
    let guard = holder.lock("x").acquire().await.expect("two of three");
    holder.flush().await;
    assert_eq!(guard.margin(), 0);
    let forgot = Instant::now();
    forget(&mut scene).await;
    // Before any client has a connection to the node in its present state.
    let mut refusals = 0;
    for _ in 0..3 {
        refusals += u32::from(is_refused(&idle, &guard).await);
    }
    let newcomer = client([first, second, third], SECOND).await;
    while !guard.remaining().is_zero() {
        for locks in [&idle, &newcomer] {
            refusals += u32::from(is_refused(locks, &guard).await);
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // Between tries.
    }
    let probe = newcomer.lock("probe").wait(20 * SECOND).acquire().await.expect("the other two");
    eventually(20 * SECOND, "the node votes again", || probe.margin() == 1).await;
    assert!(forgot.elapsed() >= LONGEST, "it votes {:?} after it has forgotten", forgot.elapsed());
    drop(guard);
    drop(idle.lock("x").wait(20 * SECOND).acquire().await.expect("that lease is over"));
    refusals > 0
}

#[tokio::test]
async fn acc_36_a_node_that_was_flushed_does_not_vote_twice() {
    forgets(&[], async |scene| scene.ask("FLUSHALL", &[])).await;
}

#[tokio::test]
async fn acc_36_a_node_whose_databases_were_swapped_does_not_vote_twice() {
    forgets(&[], async |scene| scene.ask("SWAPDB", &["0", "5"])).await;
}

async fn there_and_back(scene: &mut Scene) {
    let port = scene.cluster.ports()[2].to_string();
    scene.ask("REPLICAOF", &["127.0.0.1", &port]);
    scene.is_replica().await;
    scene.ask("REPLICAOF", &["NO", "ONE"]);
}

#[tokio::test]
async fn acc_36_a_former_replica_does_not_vote_twice() {
    forgets(&[], there_and_back).await;
}

#[tokio::test]
async fn acc_36_a_durable_former_replica_does_not_vote_twice() {
    forgets(&DURABLE, there_and_back).await;
}

async fn promoted(scene: &mut Scene) {
    scene.cluster.restart_as_replica(1, 2);
    scene.is_replica().await;
    scene.ask("REPLICAOF", &["NO", "ONE"]);
}

#[tokio::test]
async fn acc_36_a_promoted_replica_does_not_vote_twice() {
    forgets(&[], promoted).await;
}

#[tokio::test]
async fn acc_36_a_durable_promoted_replica_does_not_vote_twice() {
    forgets(&DURABLE, promoted).await;
}

#[tokio::test]
async fn acc_36_another_server_at_a_nodes_address_does_not_vote_twice() {
    forgets(&[], async |scene| scene.proxy.lead_to(scene.cluster.ports()[3])).await;
}

/// Checks that the lock is refused while the lease lasts, with this pause between tries. Returns how often node 1 said that it is in
/// quarantine.
async fn is_refused_while_held(locks: &Quorlock, guard: &Guard, pause: Duration) -> usize {
    let mut quarantined = 0;
    while !guard.remaining().is_zero() {
        let outcome = locks.lock("x").try_acquire().await;
        assert!(outcome.is_err() || guard.remaining().is_zero(), "two holders, {:?} apart", guard.remaining());
        let Err(error) = outcome else { break };
        let answer = &error.nodes()[1].answer;
        quarantined += usize::from(matches!(answer, Answer::Failed(NodeError::Quarantined { .. })));
        tokio::time::sleep(pause).await;
    }
    quarantined
}

/// How a client learns of the holder's longer lease.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Learns {
    /// From its settings.
    FromTheStart,
    /// From another node, after it has connected to the flushed one.
    Late,
}

/// A client that knows of short leases only writes the record of the flushed node. The quarantine is then over for that
/// client, but not for a client that knows of longer leases.
#[tokio::test]
async fn acc_36_a_short_lease_client_ends_no_quarantine_for_longer_ones() {
    for learns in [Learns::FromTheStart, Learns::Late] {
        let cluster = Setup::new(3).longest(SECOND).start();
        let urls = cluster.urls();
        let holder = client([urls[0].clone(), urls[1].clone(), CUT_OFF.to_owned()], 8 * SECOND).await;
        let guard = holder.lock("x").acquire().await.expect("two of three");
        redis::cmd("FLUSHALL").exec(&mut cluster.redis(1)).expect("a flush");
        // This client is cut off from the node that stores the holder's lease.
        let short = client([CUT_OFF.to_owned(), urls[1].clone(), urls[2].clone()], SECOND).await;
        drop(short.lock("other").wait(20 * SECOND).acquire().await.expect("the node votes after a short lease"));
        let seen: String = redis::cmd("GET").arg("quorlock:node").query(&mut cluster.redis(1)).expect("a record");
        assert_eq!(seen.split(' ').nth(1), Some("1000"), "the longest lease that it knows of: {seen}");

        let knows = Proxy::start(cluster.ports()[0]).await;
        let builder = Quorlock::builder().nodes([knows.url(), urls[1].clone(), urls[2].clone()]).lease(SECOND);
        let builder = if learns == Learns::FromTheStart { builder.longest_lease(8 * SECOND) } else { builder };
        knows.set(if learns == Learns::Late { Mode::LoseRequests } else { Mode::Pass });
        let locks = builder.connect().await.expect("settings that work");
        let have_answered = async |count| {
            let seen = locks.inspect("").await.expect("a name");
            seen.nodes.iter().filter(|node| node.state.is_ok()).count() >= count
        };
        within(20 * SECOND, "two nodes have answered", async || have_answered(2).await).await;
        knows.set(Mode::Pass);
        within(20 * SECOND, "all nodes have answered", async || have_answered(3).await).await;
        let quarantined = is_refused_while_held(&locks, &guard, Duration::from_millis(5)).await;
        assert!(quarantined > 0, "{learns:?}: the node was never asked");
        let is_granted = async || locks.lock("x").try_acquire().await.is_ok();
        within(20 * SECOND, "that lease is over", is_granted).await;
    }
}

/// A client that is connected to all nodes since before a longer lease, and asks only for what that lease holds, has met no
/// record that shows it. The refusal tells it.
#[tokio::test]
async fn acc_36_a_refusal_tells_how_long_a_flushed_node_must_wait() {
    let cluster = Setup::new(3).longest(SECOND).start();
    let urls = cluster.urls();
    let idle = client(urls.clone(), SECOND).await;
    drop(idle.lock("other").acquire().await.expect("a free lock"));
    idle.flush().await;
    let holder = client([urls[0].clone(), urls[1].clone(), CUT_OFF.to_owned()], 8 * SECOND).await;
    let guard = holder.lock("x").acquire().await.expect("two of three");
    redis::cmd("FLUSHALL").exec(&mut cluster.redis(1)).expect("a flush");
    let quarantined = is_refused_while_held(&idle, &guard, Duration::from_millis(200)).await;
    assert!(quarantined > 0, "the node was never asked");
}
