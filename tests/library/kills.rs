//! Connections that are killed all the time.

use std::time::{Duration, Instant};

use crate::support::Cluster;

const LEASE: Duration = Duration::from_secs(5);
const BETWEEN_KILLS: Duration = Duration::from_millis(100);
/// For how many seconds, if it is not the usual time.
const SECONDS: &str = "QUORLOCK_KILL_SECONDS";

/// What is under way on a killed connection is sent again on the next one, so an extension needs no second try.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlasts_connections_that_are_killed_in_turn() {
    let seconds = std::env::var(SECONDS).map_or(8, |seconds| seconds.parse().expect("a number"));
    let cluster = Cluster::quiet(3);
    let locks = cluster.client(LEASE).await;
    let guard = locks.lock("long").acquire().await.expect("a free lock");
    let busy = |task: usize| {
        let locks = locks.clone();
        tokio::spawn(async move {
            loop {
                let guard = locks.lock(format!("busy:{task}")).acquire().await.expect("a majority is up");
                drop(guard.release().await); // The nodes may not say any more whether it was in time.
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
