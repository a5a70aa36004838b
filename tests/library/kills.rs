//! Connections that are killed.

use std::time::{Duration, Instant};

use quorlock::Quorlock;
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{Cluster, eventually};

const LEASE: Duration = Duration::from_secs(5);
const BETWEEN_KILLS: Duration = Duration::from_millis(100);
/// The variable with the duration in seconds, if it is not the default.
const SECONDS: &str = "QUORLOCK_KILL_SECONDS";

/// Requests in flight on a killed connection are sent again on the next one, so an extension needs no second try.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_survives_connections_killed_in_turn() {
    let seconds = std::env::var(SECONDS).map_or(8, |seconds| seconds.parse().expect("a number"));
    let cluster = Cluster::quiet(3);
    let locks = cluster.client(LEASE).await;
    let guard = locks.lock("long").acquire().await.expect("a free lock");
    let busy = |task: usize| {
        let locks = locks.clone();
        tokio::spawn(async move {
            loop {
                let guard = locks.lock(format!("busy:{task}")).acquire().await.expect("a majority is up");
                guard.release().await.expect("it was held");
            }
        })
    };
    let tasks: Vec<_> = (0..8).map(busy).collect();
    let mut killers: Vec<_> = (0..3).map(|node| cluster.redis(node)).collect();
    let (start, mut least, mut killed) = (Instant::now(), LEASE, 0_i64);
    while start.elapsed() < Duration::from_secs(seconds) {
        for killer in &mut killers {
            tokio::time::sleep(BETWEEN_KILLS).await; // The pace of the kills.
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
    let builder = Quorlock::builder().nodes(proxies.iter().map(Proxy::url)).lease(4 * LEASE);
    let locks = builder.connect().await.expect("settings that work");
    let other = cluster.client(4 * LEASE).await;
    for of_two in [false, true] {
        let names = if of_two { vec!["x", "y"] } else { vec!["x"] };
        let guard = locks.lock_all(&names).acquire().await.expect("a free lock");
        locks.flush().await;
        proxies.iter().for_each(|proxy| proxy.set(Mode::LoseAnswers));
        let release = tokio::spawn(guard.release());
        eventually(LEASE, "it is released", || cluster.count_keys(&Cluster::lock_key("x")) == 0).await;
        let next = other.lock("x").acquire().await.expect("it is free");
        proxies.iter().for_each(|proxy| proxy.set(Mode::Pass));
        release.await.expect("no panic").expect("it was held until then");
        next.release().await.expect("the repeated release leaves the new lease");
    }
}
