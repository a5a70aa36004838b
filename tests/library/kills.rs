//! Connections that are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorlock::Quorlock;
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{Cluster, eventually};

const LEASE: Duration = Duration::from_secs(5);
/// The limit for an event that takes a moment, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const BETWEEN_KILLS: Duration = Duration::from_millis(100);
/// The variable with the duration in seconds, if it is not the default.
const SECONDS: &str = "QUORLOCK_KILL_SECONDS";

/// Requests in flight on a killed connection are sent again on the next one, so an extension needs no second try.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_survives_connections_killed_in_turn() {
    let seconds = std::env::var(SECONDS).map_or(8, |seconds| seconds.parse().expect("a number"));
    let cluster = Cluster::quiet(3);
    // On a busy machine a new connection takes longer than the default node timeout.
    let builder = cluster.builder().lease(LEASE).node_timeout(LEASE * 2 / 5);
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    let guard = locks.lock("long").acquire().await.expect("a free lock");
    let cycles = Arc::new(AtomicUsize::new(0));
    let busy = |task: usize| {
        let (locks, cycles) = (locks.clone(), Arc::clone(&cycles));
        tokio::spawn(async move {
            loop {
                let guard = locks.lock(format!("busy:{task}")).acquire().await.expect("a majority is up");
                guard.release().await.expect("it was held");
                cycles.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let tasks: Vec<_> = (0..8).map(busy).collect();
    let mut killers: Vec<_> = (0..3).map(|node| cluster.redis(node)).collect();
    let (start, mut least, mut killed) = (Instant::now(), LEASE, 0_i64);
    let mut before = [None; 3];
    while start.elapsed() < Duration::from_secs(seconds) {
        for (node, killer) in killers.iter_mut().enumerate() {
            let reconnections = || locks.stats().nodes[node].reconnections;
            eventually(LIMIT, "it is connected again", || before[node].is_none_or(|count| reconnections() > count))
                .await;
            tokio::time::sleep(BETWEEN_KILLS).await; // The pace of the kills.
            before[node] = Some(reconnections());
            least = least.min(guard.remaining());
            assert!(!guard.is_lost(), "lost after {:?} and {killed} kills", start.elapsed());
            for kind in ["pubsub", "normal"] {
                let kill = redis::cmd("CLIENT").arg(&["KILL", "TYPE", kind, "SKIPME", "yes"]).to_owned();
                killed += kill.query::<i64>(killer).expect("a count");
            }
        }
    }
    println!("{killed} connections killed in {:?}; at least {least:?} of {LEASE:?} were left", start.elapsed());
    assert!(tasks.iter().all(|task| !task.is_finished()), "a task has failed");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(killed > 10, "{killed} connections killed");
    let cycles = cycles.load(Ordering::Relaxed);
    assert!(cycles > 100, "{cycles} other leases");
    guard.release().await.expect("a release");
}

/// The nodes release, and the next client has the lock, before the release is sent again on another connection.
#[tokio::test]
async fn an_executed_release_without_an_answer_is_no_loss() {
    let cluster = Cluster::quiet(3);
    let mut proxies = Vec::new();
    for port in cluster.ports() {
        proxies.push(Proxy::start(port).await);
    }
    let builder = Quorlock::builder().nodes(proxies.iter().map(Proxy::url)).lease(6 * LEASE);
    // The release is sent, executed and sent again within one node timeout.
    let builder = builder.node_timeout(4 * LEASE);
    let locks = builder.connect().await.expect("settings that work");
    let other = cluster.client(6 * LEASE).await;
    for of_two in [false, true] {
        let names = if of_two { vec!["x", "y"] } else { vec!["x"] };
        let guard = locks.lock_all(&names).acquire().await.expect("a free lock");
        locks.flush().await;
        proxies.iter().for_each(|proxy| proxy.set(Mode::LoseAnswers));
        let release = tokio::spawn(guard.release());
        eventually(3 * LEASE, "it is released", || cluster.count_keys(&Cluster::lock_key("x")) == 0).await;
        let next = other.lock("x").acquire().await.expect("it is free");
        proxies.iter().for_each(|proxy| proxy.set(Mode::Pass));
        release.await.expect("no panic").expect("it was held until then");
        next.release().await.expect("the repeated release leaves the new lease");
    }
}
