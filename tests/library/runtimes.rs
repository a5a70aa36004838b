//! Runtimes that end, and clients that do.

use std::time::{Duration, Instant};

use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);

fn connections(cluster: &Cluster) -> usize {
    let lists: Vec<String> = cluster.each(redis::cmd("CLIENT").arg("LIST"));
    lists.iter().map(|list| list.lines().count() - 1).sum() // One of each is the test's own.
}

#[test]
fn guards_may_outlive_their_runtime() {
    let cluster = Cluster::start(3);
    for multi_thread in [false, true] {
        let mut builder = if multi_thread {
            tokio::runtime::Builder::new_multi_thread()
        } else {
            tokio::runtime::Builder::new_current_thread()
        };
        let runtime = builder.enable_all().build().expect("a runtime");
        // The lease of the first lock is still in force, so the second has another name.
        let name = if multi_thread { "left by many" } else { "left by one" };
        let (locks, guard) = runtime.block_on(async {
            let locks = cluster.client(60 * SECOND).await;
            let guard = locks.lock(name).acquire().await.expect("the lock");
            (locks, guard)
        });
        let start = Instant::now();
        drop(runtime);
        assert!(!guard.is_lost(), "the lease runs on");
        drop(guard);
        drop(locks);
        assert!(start.elapsed() < 5 * SECOND, "dropping took {:?}", start.elapsed());
    }
}

#[test]
fn a_guard_dropped_while_unwinding_out_of_the_runtime_releases() {
    let cluster = Cluster::start(3);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let locks = cluster.client(60 * SECOND).await;
            let _guard = locks.lock("unwound").acquire().await.expect("the lock");
            panic!("on purpose");
        });
    }));
    assert!(unwound.is_err());
    let key = Cluster::lock_key("unwound");
    let free = async { eventually(5 * SECOND, "it is released", || cluster.count_keys(&key) == 0).await };
    runtime.block_on(free);
}

#[tokio::test]
async fn a_dropped_client_closes_all_its_connections() {
    let mut cluster = Cluster::start(3);
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let locks = cluster.client(10 * SECOND).await;
    let guard = locks.lock("x").acquire().await.expect("the lock");
    let clone = locks.clone();
    drop(locks);
    assert_eq!(connections(&cluster), 3);
    drop(clone);
    guard.extend().await.expect("a guard keeps its client");
    cluster.kill(1);
    cluster.pause(2);
    drop(guard);
    let metrics = tokio::runtime::Handle::current().metrics();
    eventually(10 * SECOND, "all tasks have ended", || metrics.num_alive_tasks() == before).await;
    cluster.resume(2);
    let key = Cluster::lock_key("x");
    eventually(5 * SECOND, "the last release was sent", || cluster.count_keys(&key) == 0).await;
    eventually(5 * SECOND, "all connections are closed", || connections(&cluster) == 0).await;
}

/// The requesting task and the task of the connections run in parallel: the result of the last vote is returned only when it is
/// in force.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_grant_returns_only_when_it_is_in_force() {
    let cluster = Cluster::start(3);
    let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    let cycles = (0..8).map(|task| {
        let locks = locks.clone();
        tokio::spawn(async move {
            for _ in 0..400 {
                let guard = locks.lock(format!("task-{task}")).try_acquire().await.expect("a free lock");
                guard.release().await.expect("a release");
            }
        })
    });
    for task in cycles.collect::<Vec<_>>() {
        task.await.expect("a task");
    }
}

/// The drop of each request polls the connections, also while their task starts.
#[test]
fn a_client_works_after_its_first_requests_were_dropped() {
    let cluster = Cluster::start(1);
    for client in 0..400 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let works = async {
            let locks = cluster.builder().node_timeout(2 * SECOND).connect().await.expect("settings that work");
            for _ in 0..client % 40 {
                let mut request = Box::pin(locks.lock("cancelled").acquire());
                drop(futures::poll!(&mut request));
            }
            locks.lock("x").acquire().await.map(drop)
        };
        let runtime = runtime.expect("a runtime");
        runtime.block_on(works).unwrap_or_else(|error| panic!("client {client}: {error}"));
        runtime.shutdown_background(); // Its threads would slow the next clients.
    }
}
