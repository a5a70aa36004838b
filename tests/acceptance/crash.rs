//! Rows 10, 11 and 25: holders that die, panic or are cancelled.

use std::time::{Duration, Instant};

use quorlock_testkit::worker::Worker;
use quorlock_testkit::{Cluster, Stopwatch, eventually, within};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn acc_10_a_killed_process_never_leaves_a_key_without_an_end() {
    let cluster = Cluster::start(5);
    let urls = cluster.urls().join(",");
    let mut seen = 0;
    for _ in 0..100 {
        let mut worker = Worker::spawn(&["hammer", &urls, "hammered", "10000"]);
        assert_eq!(worker.next().as_deref(), Some("ready"));
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..10_000))).await;
        worker.kill();
        for node in 0..cluster.len() {
            let mut redis = cluster.redis(node);
            let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut redis).expect("its keys");
            // The record of a node stays.
            for key in keys.iter().filter(|key| *key != b"quorlock:node" && !key.starts_with(b"quorlock:list:")) {
                let ttl: i64 = redis::cmd("PTTL").arg(key).query(&mut redis).expect("a TTL");
                assert_ne!(ttl, -1, "{} has no end", key.escape_ascii());
                seen += 1;
            }
        }
        // The lock of the dead holder would block the next one for the rest of its lease.
        cluster.each::<i64>(redis::cmd("DEL").arg(Cluster::lock_key("hammered")));
    }
    assert!(seen > 100, "the workers did too little: {seen} keys seen");
}

#[tokio::test]
async fn acc_10_a_killed_holder_and_two_nodes_leave_no_key_past_the_lease() {
    let mut cluster = Cluster::start(5);
    let urls = cluster.urls().join(",");
    let key = Cluster::lock_key("killed");
    let locks = cluster.client(SECOND).await;
    let mut held = 0;
    for round in 0..5 {
        // The margin of this guard shows when restarted nodes have votes again. A machine that stands still may cost its lease.
        let ask = async || locks.lock("all count").acquire().await.expect("a quorum is up");
        let mut all_count = ask().await;
        let all_do = async || {
            if all_count.is_lost() {
                all_count = ask().await;
            }
            all_count.margin() == 2
        };
        within(40 * SECOND, "all five nodes count", all_do).await;
        let mut worker = Worker::spawn(&["hammer", &urls, "killed", "1000"]);
        assert_eq!(worker.next().as_deref(), Some("ready"));
        let victims = [round, (round + 2) % 5];
        for victim in victims {
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..30_000))).await; // The moment.
            cluster.kill(victim);
        }
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..30_000))).await; // The moment.
        worker.kill();
        let ttls: Vec<i64> = cluster.each(redis::cmd("PTTL").arg(&key));
        assert!(ttls.len() == 3 && ttls.iter().all(|ttl| *ttl != -1 && *ttl <= 1000), "{ttls:?}");
        held += ttls.iter().filter(|ttl| **ttl > 0).count();
        eventually(5 * SECOND, "all is gone with the lease", || cluster.count_keys(&key) == 0).await;
        for victim in victims {
            cluster.restart(victim, false);
        }
        assert_eq!(cluster.count_keys(&key), 0);
    }
    assert!(held > 0, "no node had a key of the killed holder in any round");
}

#[tokio::test]
async fn acc_11_a_waiter_gets_the_lock_when_the_dead_holders_lease_ends() {
    let cluster = Cluster::quiet(5);
    let mut holder = Worker::spawn(&["hold", &cluster.urls().join(","), "orphaned", "2000"]);
    holder.next().expect("it holds");
    let locks = cluster.client(10 * SECOND).await;
    let waiter = tokio::spawn(async move {
        let guard = locks.lock("orphaned").acquire().await.expect("after the lease");
        (Instant::now(), guard)
    });
    holder.kill();
    let watch = Stopwatch::new();
    // A node that is slower than the majority may not have its key yet.
    let end_at = |node: usize| {
        let pttl: i64 =
            redis::cmd("PTTL").arg(Cluster::lock_key("orphaned")).query(&mut cluster.redis(node)).expect("a TTL");
        assert_ne!(pttl, -1, "a key without an end");
        Some(Instant::now() + Duration::from_millis(u64::try_from(pttl).ok()?))
    };
    let ends: Vec<Instant> = (0..5).filter_map(end_at).collect();
    assert!(ends.len() >= 3, "{} nodes have a key", ends.len());
    let (first, last) = (*ends.iter().min().expect("three nodes"), *ends.iter().max().expect("three nodes"));
    let (granted, guard) = waiter.await.expect("the waiter");
    // The answer of a node to this test may be late, which makes its end seem later.
    let limit = Duration::from_millis(300) + watch.contended();
    assert!(granted + Duration::from_millis(50) + watch.contended() >= first, "{:?} before the end", first - granted);
    assert!(granted <= last + limit, "{:?} after the end, {limit:?} allowed", granted - last);
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn acc_25_panic_error_and_cancellation_release_at_once() {
    let cluster = Cluster::quiet(5);
    let locks = cluster.client(60 * SECOND).await;
    let key = Cluster::lock_key("section");
    for how in ["panic", "error", "cancel"] {
        let (entered, inside) = tokio::sync::oneshot::channel();
        let task_locks = locks.clone();
        let task = tokio::spawn(async move {
            let guard = task_locks.lock("section").acquire().await.expect("the lock");
            let inner = task_locks.lock("section").owner(guard.owner()).acquire().await.expect("a re-entry");
            task_locks.flush().await;
            entered.send(()).expect("the test listens");
            match how {
                "panic" => panic!("on purpose"),
                "error" => Err("on purpose"),
                _ => {
                    std::future::pending::<()>().await;
                    drop(inner);
                    Ok(())
                }
            }
        });
        inside.await.expect("the task holds the lock");
        assert!(how != "cancel" || cluster.count_keys(&key) == 5);
        if how == "cancel" {
            task.abort();
        }
        drop(task.await);
        eventually(10 * SECOND, "all keys are gone", || cluster.count_keys(&key) == 0).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn acc_25_dropping_never_blocks_even_when_every_node_hangs() {
    let mut cluster = Cluster::quiet(5);
    let locks = cluster.client(60 * SECOND).await;
    let guard = locks.lock("hung").acquire().await.expect("the lock");
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.lock("hung").acquire().await.map(drop) }
    });
    tokio::task::yield_now().await;
    for node in 0..5 {
        cluster.pause(node);
    }
    let start = Stopwatch::new();
    waiting.abort();
    drop(guard);
    drop(locks);
    tokio::task::yield_now().await;
    assert!(start.took() < Duration::from_millis(250), "blocked for {:?}", start.took());
    for node in 0..5 {
        cluster.resume(node);
    }
    let key = Cluster::lock_key("hung");
    eventually(5 * SECOND, "the hold is gone when the nodes are back", || cluster.count_keys(&key) == 0).await;
}
