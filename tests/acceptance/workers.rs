//! The jobs of worker processes.

use std::time::Duration;

use quorlock::{Owner, Quorlock};
use quorlock_testkit::monotonic_micros;
use quorlock_testkit::worker::report;

use crate::register::Register;

pub async fn run(job: &[String]) {
    let words: Vec<&str> = job.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["demo", urls, name, register, start, seconds] => {
            demo(urls, name, register, start.parse().unwrap(), seconds.parse().unwrap()).await;
        }
        ["add", urls, name, register, times] => add(urls, name, register, times.parse().unwrap()).await,
        ["hold", urls, name, lease_ms] => hold(urls, name, lease_ms.parse().unwrap()).await,
        ["hammer", urls, name, lease_ms] => hammer(urls, name, lease_ms.parse().unwrap()).await,
        ["take-turns", urls, name, millis] => take_turns(urls, name, millis.parse().unwrap()).await,
        ["wait-for-each", urls, name, count] => wait_for_each(urls, name, count.parse().unwrap()).await,
        ["grants", urls, name] => grants(urls, name).await,
        ["stale-writer", urls, name, lease_ms] => stale_writer(urls, name, lease_ms.parse().unwrap()).await,
        ["try", urls, name] => {
            let outcome = client(urls, 10_000).await.lock(name).try_acquire().await;
            report(outcome.map_or_else(|error| format!("refused {}", error.is_held()), |_| "entered".to_owned()));
        }
        other => panic!("an unknown job: {other:?}"),
    }
}

/// With the node timeout of `Cluster::client`.
async fn client(urls: &str, lease_ms: u64) -> Quorlock {
    let lease = Duration::from_millis(lease_ms);
    let node_timeout = (lease / 4).min(Duration::from_secs(2));
    let builder = Quorlock::builder().nodes(urls.split(',')).lease(lease).node_timeout(node_timeout);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    locks
}

async fn sleep_until(micros: u64) {
    tokio::time::sleep(Duration::from_micros(micros.saturating_sub(monotonic_micros()))).await;
}

/// S0's worker: takes the lock, works for some seconds, and adds 15 in an inner function that takes the lock again.
async fn demo(urls: &str, name: &str, register: &str, start: u64, seconds: u64) {
    async fn inner(locks: &Quorlock, name: &str, register: &Register) -> u64 {
        let guard = locks.lock(name).acquire().await.expect("a re-entry");
        assert_eq!(guard.hold_count(), 2);
        let sum = register.add(15, Duration::ZERO).await;
        guard.release().await.expect("an inner release");
        sum
    }
    // With the usual node timeout: before the start, the client waits for nodes that are paused.
    let builder = Quorlock::builder().nodes(urls.split(',')).lease(Duration::from_secs(60));
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let register = Register::new(register);
    sleep_until(start).await;
    Owner::labelled("demo")
        .scope(async {
            let guard = locks.lock(name).acquire().await.expect("the lock");
            let entered = monotonic_micros();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let sum = inner(&locks, name, &register).await;
            let left = monotonic_micros();
            report(format!("{entered} {left} {sum} {}", guard.token()));
            guard.release().await.expect("a release");
        })
        .await;
}

async fn add(urls: &str, name: &str, register: &str, times: u32) {
    let locks = client(urls, 10_000).await;
    let register = Register::new(register);
    for _ in 0..times {
        let guard = locks.lock(name).acquire().await.expect("the lock");
        let entered = monotonic_micros();
        register.add(1, Duration::from_micros(rand::random_range(0..1500))).await;
        let left = monotonic_micros();
        assert!(!guard.is_lost(), "lost while adding");
        guard.release().await.expect("a release");
        report(format!("{entered} {left}"));
    }
}

async fn hold(urls: &str, name: &str, lease_ms: u64) {
    let locks = client(urls, lease_ms).await;
    let guard = locks.lock(name).acquire().await.expect("the lock");
    report(guard.export());
    guard.lost().await;
    report("lost");
}

async fn hammer(urls: &str, name: &str, lease_ms: u64) {
    let locks = client(urls, lease_ms).await;
    report("ready");
    loop {
        let guard = locks.lock(name).wait(Duration::from_secs(60)).acquire().await.expect("the lock");
        let inner = locks.lock(name).owner(guard.owner()).acquire().await.expect("a re-entry");
        // Either may be unconfirmed while nodes are being killed.
        drop(inner.release().await);
        drop(guard.release().await);
    }
}

/// Reports each grant, holds it for this time, and requests the lock again at once.
async fn take_turns(urls: &str, name: &str, millis: u64) {
    let locks = client(urls, 10_000).await;
    report("ready");
    loop {
        let guard = locks.lock(name).acquire().await.expect("the lock");
        report("granted");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        guard.release().await.expect("a release");
    }
}

/// Waits for this number of locks at once, and reports the first grant.
async fn wait_for_each(urls: &str, name: &str, count: u32) {
    let locks = client(urls, 10_000).await;
    let wait = async |i: u32| {
        let request = locks.lock(format!("{name} {i}")).wait(Duration::from_secs(60));
        let guard = request.acquire().await.expect("the lock, in time");
        report(format!("served {i}"));
        guard.release().await.expect("a release");
    };
    futures::future::join_all((0..count).map(wait)).await;
}

async fn grants(urls: &str, name: &str) {
    let locks = client(urls, 400).await;
    loop {
        let guard = locks.lock(name).acquire().await.expect("the lock");
        report(format!("{} {}", monotonic_micros(), guard.token()));
        if rand::random_bool(0.8) {
            drop(guard.release().await);
        } else {
            drop(guard);
        }
    }
}

/// Takes the lock, is stopped for longer than the lease, and then writes without a check.
async fn stale_writer(urls: &str, name: &str, lease_ms: u64) {
    let locks = client(urls, lease_ms).await;
    let guard = locks.lock(name).acquire().await.expect("the lock");
    report(guard.token());
    guard.lost().await;
    report(format!("write {}", guard.token()));
}
