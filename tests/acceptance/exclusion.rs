//! Rows 03, 06 and 30: one holder at a time, independent resources, and tokens that order the holders.

use std::time::Duration;

use quorlock_testkit::worker::Worker;
use quorlock_testkit::{Cluster, Stopwatch, eventually};
use rustix::process::Signal;

use crate::register::Register;

const WORKERS: usize = 8;
const TIMES: u64 = 200;

fn begin(cluster: &Cluster) -> (Register, Vec<Worker>) {
    let path = cluster.dir().join("register");
    let register = Register::create(&path);
    let (urls, path) = (cluster.urls().join(","), path.display().to_string());
    let workers = (0..WORKERS).map(|_| Worker::spawn(&["add", &urls, "register", &path, &TIMES.to_string()]));
    (register, workers.collect())
}

fn check(register: &Register, reports: Vec<String>) {
    let interval = |line: &String| {
        let (enter, leave) = line.split_once(' ').expect("two moments");
        (enter.parse::<u64>().expect("a moment"), leave.parse::<u64>().expect("a moment"))
    };
    let mut intervals: Vec<_> = reports.iter().map(interval).collect();
    intervals.sort_unstable();
    assert_eq!(intervals.len() as u64, WORKERS as u64 * TIMES);
    for pair in intervals.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two held it at once: {pair:?}");
    }
    assert_eq!(register.read(), WORKERS as u64 * TIMES, "updates were lost");
}

#[tokio::test]
async fn acc_03_eight_processes_add_up() {
    let cluster = Cluster::start(5);
    let (register, workers) = begin(&cluster);
    check(&register, workers.into_iter().flat_map(Worker::finish).collect());
}

#[tokio::test]
async fn acc_03_eight_processes_add_up_while_nodes_stall() {
    let mut cluster = Cluster::start(5);
    let (register, workers) = begin(&cluster);
    let adding = tokio::task::spawn_blocking(|| workers.into_iter().flat_map(Worker::finish).collect::<Vec<_>>());
    let mut pauses = 0;
    while !adding.is_finished() {
        let node = rand::random_range(0..cluster.len());
        cluster.pause(node);
        tokio::time::sleep(Duration::from_millis(500)).await; // How long a node stalls, not a wait for an event.
        cluster.resume(node);
        pauses += 1;
    }
    assert!(pauses > 1, "nothing was disturbed");
    check(&register, adding.await.expect("the workers"));
}

#[tokio::test]
async fn acc_06_separate_resources_do_not_wait_for_each_other() {
    let cluster = Cluster::quiet(5);
    let locks = cluster.client(Duration::from_secs(10)).await;
    let start = Stopwatch::new();
    let hold = |name: &'static str| {
        let locks = locks.clone();
        tokio::spawn(async move {
            let guard = locks.lock(name).acquire().await.expect("a free lock");
            tokio::time::sleep(Duration::from_millis(500)).await; // How long it is held, not a wait for an event.
            guard.release().await.expect("a release");
        })
    };
    for task in [hold("a"), hold("b"), hold("c"), hold("d")] {
        task.await.expect("a task");
    }
    // One after the other would take two seconds.
    let limit = Duration::from_millis(800) + start.contended().min(Duration::from_secs(1));
    assert!(start.elapsed() < limit, "took {:?}, {limit:?} allowed", start.elapsed());
}

#[tokio::test]
async fn acc_30_tokens_grow_over_500_grants_with_random_kills() {
    let cluster = Cluster::start(5);
    let urls = cluster.urls().join(",");
    let (sender, reports) = std::sync::mpsc::channel::<String>();
    let spawn = || {
        let (urls, sender) = (urls.clone(), sender.clone());
        // Each runs its worker for a while, kills it at a random grant, and starts another one.
        std::thread::spawn(move || {
            loop {
                let mut worker = Worker::spawn(&["grants", &urls, "fenced"]);
                for _ in 0..rand::random_range(5..40) {
                    let Some(report) = worker.next() else { break };
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            }
        })
    };
    let threads: Vec<_> = (0..WORKERS).map(|_| spawn()).collect();
    let mut grants: Vec<(u64, u64)> = (0..500)
        .map(|_| {
            let line = reports.recv_timeout(Duration::from_secs(60)).expect("grants continue");
            let (at, token) = line.split_once(' ').expect("a moment and a token");
            (at.parse().expect("a moment"), token.parse().expect("a token"))
        })
        .collect();
    drop(reports);
    for thread in threads {
        thread.join().expect("a thread");
    }
    grants.sort_unstable();
    for pair in grants.windows(2) {
        assert!(pair[0].1 < pair[1].1, "tokens must strictly increase: {pair:?}");
    }
}

#[tokio::test]
async fn acc_30_a_paused_holders_write_is_refused() {
    let cluster = Cluster::start(5);
    let mut store = Fenced::default();
    let mut old = Worker::spawn(&["stale-writer", &cluster.urls().join(","), "fenced", "1000"]);
    let first: u64 = old.next().expect("a token").parse().expect("a number");
    assert!(store.write(first), "the only holder may write");
    old.signal(Signal::STOP);

    let locks = cluster.client(Duration::from_secs(10)).await;
    let guard = locks.lock("fenced").wait(Duration::from_secs(20)).acquire().await.expect("after the lease");
    assert!(store.write(guard.token().get()), "the new holder may write");
    old.signal(Signal::CONT);
    let report = old.next().expect("a write");
    let late: u64 = report.strip_prefix("write ").expect("a write").parse().expect("a token");
    assert_eq!(late, first, "a lost lease keeps its token");
    assert!(!store.write(late), "the old holder's write must be refused");
    guard.release().await.expect("a release");
    eventually(Duration::from_secs(5), "the old holder must not change the key", || {
        cluster.count_keys(&Cluster::lock_key("fenced")) == 0
    })
    .await;
}

/// A protected store that checks tokens.
#[derive(Default)]
struct Fenced(u64);

impl Fenced {
    fn write(&mut self, token: u64) -> bool {
        let accepted = token >= self.0;
        self.0 = self.0.max(token);
        accepted
    }
}
