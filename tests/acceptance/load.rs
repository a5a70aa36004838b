//! Rows 38, 41 and 45: the cost of outages, sets of locks and crowds is limited.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use quorlock::Quorlock;
use quorlock_testkit::worker::Worker;
use quorlock_testkit::{Cluster, Setup, Stopwatch, eventually};
use tokio::task::JoinHandle;

const SECOND: Duration = Duration::from_secs(1);

const KEEPS_EVERY_WRITE: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];

// Queries to the nodes and waits for processes block a thread. The holder has another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_38_an_outage_does_not_flood_the_remaining_nodes() {
    const PROCESSES: usize = 10;
    const WAITERS_EACH: usize = 5;
    const OUTAGE: Duration = Duration::from_secs(10);
    let mut cluster = Setup::new(5).options(&KEEPS_EVERY_WRITE).quiet().start();
    let holder = cluster.client(60 * SECOND).await;
    let mut guards = Vec::new();
    for i in 0..WAITERS_EACH {
        guards.push(holder.lock(format!("outage {i}")).acquire().await.expect("a free lock"));
    }
    let (urls, each) = (cluster.urls().join(","), WAITERS_EACH.to_string());
    let processes: Vec<Worker> =
        (0..PROCESSES).map(|_| Worker::spawn(&["wait-for-each", &urls, "outage", &each])).collect();
    let wait =
        |i| cluster.wait_queues(&format!("outage {i}")).iter().all(|line| line.matches(':').count() == PROCESSES);
    eventually(20 * SECOND, "all wait", || (0..WAITERS_EACH).all(wait)).await;

    (2..5).for_each(|node| cluster.kill(node));
    drop(guards);
    let (began, before) = (Instant::now(), cluster.scripts_run());
    tokio::time::sleep(OUTAGE).await; // How long the outage lasts, not a wait for an event.
    let waiters = (PROCESSES * WAITERS_EACH) as f64;
    for (before, after) in before.iter().zip(cluster.scripts_run()) {
        let rate = (after - before) as f64 / waiters / began.elapsed().as_secs_f64();
        println!("{rate:.2} commands per waiter, second and living node");
        assert!(rate <= 20.0, "{rate:.1} commands per waiter, second and living node");
    }
    (2..5).for_each(|node| cluster.restart(node, false));
    let back = Stopwatch::new();
    for process in processes {
        let served = process.finish();
        assert_eq!(served.len(), WAITERS_EACH, "{served:?}");
    }
    // Ten processes with fifty requests share the cores with other programs. `cluster/bench --case outage` measures the row.
    let (took, limit) = (back.took(), SECOND + back.contended().min(20 * SECOND));
    println!("all are served {took:?} after the nodes are back");
    assert!(took <= limit, "all are served {took:?} after the nodes are back, {limit:?} allowed");
}

/// Returns a client that waits for the answers of nodes on a busy machine.
async fn patient(cluster: &Cluster) -> Quorlock {
    let locks = cluster.builder().lease(10 * SECOND).node_timeout(5 * SECOND);
    let locks = locks.connect().await.expect("settings that work");
    locks.flush().await;
    locks
}

/// Clients that contend for one lock all the time.
struct Contenders {
    turns: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Contenders {
    async fn start(cluster: &Cluster, name: &'static str, clients: usize, keep: Duration) -> Self {
        let (turns, mut tasks) = (Arc::new(AtomicUsize::new(0)), Vec::new());
        for _ in 0..clients {
            let (locks, turns) = (patient(cluster).await, Arc::clone(&turns));
            tasks.push(tokio::spawn(async move {
                loop {
                    let guard = locks.lock(name).acquire().await.expect("its turn");
                    tokio::time::sleep(keep).await; // How long it holds the lock.
                    guard.release().await.expect("a release");
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { turns, tasks }
    }

    /// Returns the number of turns per second, over a short time.
    async fn rate(&self) -> f64 {
        let (before, began) = (self.turns.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(2 * SECOND).await; // How long is counted.
        (self.turns.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    }
}

impl Drop for Contenders {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_41_waiting_sets_block_no_lock_and_get_their_turn() {
    const SETS: usize = 16;
    let cluster = Cluster::quiet(5);
    let holder = patient(&cluster).await;
    let mut held = Vec::new();
    for i in 0..SETS {
        held.push(holder.lock(format!("b{i}")).acquire().await.expect("a free lock"));
    }
    let contenders = Contenders::start(&cluster, "a", 4, Duration::from_millis(3)).await;
    let locks = patient(&cluster).await;
    let wait = |i| {
        let set = locks.lock_all(["a", &format!("b{i}")]).acquire();
        tokio::spawn(async move { set.await.expect("both locks").release().await.expect("a release") })
    };
    // Alternating, so that other load on the machine affects both alike. Such load also comes and goes: of several pairs the
    // second best counts.
    let (mut pairs, mut sets) = (Vec::new(), Vec::<JoinHandle<_>>::new());
    for _ in 0..5 {
        sets.iter().for_each(JoinHandle::abort);
        locks.flush().await;
        let alone = contenders.rate().await;
        sets = (0..SETS).map(wait).collect();
        pairs.push((contenders.rate().await / alone, alone));
    }
    pairs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (ratio, alone) = pairs[pairs.len() - 2];
    println!("{alone:.0} turns a second alone, {ratio:.2} of that beside {SETS} sets that wait");
    // On an idle machine it is about 1. Where waiting sets stand in the way it was below 0.2.
    assert!(ratio >= 0.5, "beside {SETS} sets that wait, of the turns a second: {pairs:.2?}");

    let released = Instant::now();
    drop(held);
    for set in sets {
        tokio::time::timeout(20 * SECOND, set).await.expect("it is served").expect("a task");
    }
    println!("all sets had their turn within {:?}", released.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_45_a_crowd_hardly_slows_hand_overs_and_loses_no_lease() {
    const CROWDS: [usize; 2] = [20, 300];
    const HELD: usize = 20;
    let cluster = Cluster::quiet(5);
    let bystander = patient(&cluster).await;
    let mut held = Vec::new();
    for i in 0..HELD {
        held.push(bystander.lock(format!("beside {i}")).acquire().await.expect("a free lock"));
    }
    let mut seen = Vec::new();
    // Other load on the machine comes and goes.
    for _ in 0..4 {
        let (mut rates, mut cycles) = ([0.0; 2], [Vec::new(), Vec::new()]);
        for (i, clients) in CROWDS.into_iter().enumerate() {
            let crowd = Contenders::start(&cluster, "wanted", clients, Duration::ZERO).await;
            let turns_before = crowd.turns.load(Ordering::Relaxed);
            eventually(60 * SECOND, "the lock is handed over", || {
                crowd.turns.load(Ordering::Relaxed) > turns_before + clients
            })
            .await;
            rates[i] = crowd.rate().await;
            for cycle in 0..20 {
                let began = Instant::now();
                let guard = bystander.lock(format!("free {cycle}")).acquire().await.expect("a free lock");
                guard.release().await.expect("a release");
                cycles[i].push(began.elapsed());
            }
        }
        assert!(held.iter().all(|guard| !guard.is_lost()), "a bystander loses nothing");
        // The median, as a busy machine may stop one cycle for as long as all others take.
        let cycles = cycles.map(|mut all| {
            all.sort_unstable();
            all[all.len() / 2]
        });
        let (ratio, slower) = (rates[1] / rates[0], cycles[1].as_secs_f64() / cycles[0].as_secs_f64());
        println!("300 clients: {ratio:.2} times the hand-overs of 20; a bystander takes {slower:.1} times as long");
        // The row asks for 0.5 and 5. `cluster/bench --case crowd` measures that; this shows that there is no collapse.
        if ratio >= 0.3 && slower <= 8.0 {
            return;
        }
        seen.push((rates, cycles));
    }
    panic!("hand-overs a second and cycles of a bystander, beside 20 and 300 clients: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_45_many_leases_are_kept_while_every_core_is_busy() {
    // The row asks for 45,000. `cluster/bench --case many` measures that; this build is not optimized, and other programs may run.
    const MOST: usize = 5_000;
    const ASKED_AT_ONCE: usize = 200;
    const LEAST: usize = 100;
    let cluster = Cluster::quiet(5);
    let locks = cluster.client(10 * SECOND).await;
    let ask = |i: usize| locks.lock(format!("held {i}")).acquire();
    let done = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let spin = |_| {
        let done = Arc::clone(&done);
        std::thread::spawn(move || while !done.load(Ordering::Relaxed) {})
    };
    let busy: Vec<_> = (0..=cores).map(spin).collect();
    // Each lease is extended every 3.3 s, which takes as much as an acquisition: so the machine can extend those that it grants in
    // a second, also when other programs begin to run.
    let in_time = tokio::time::sleep(SECOND);
    let guards: Vec<_> = stream::iter(0..MOST)
        .map(ask)
        .take_until(in_time)
        .buffer_unordered(ASKED_AT_ONCE)
        .try_collect()
        .await
        .expect("locks");
    let leases = guards.len();
    assert!(leases >= LEAST, "{leases} leases in a second");
    tokio::time::sleep(12 * SECOND).await; // Longer than a lease.
    done.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().expect("a loop"));
    let lost = guards.iter().filter(|guard| guard.is_lost()).count();
    println!("{lost} of {leases} leases lost");
    assert!(lost * 100 <= leases, "{lost} of {leases} leases lost");
}
