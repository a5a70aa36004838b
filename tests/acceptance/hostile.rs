//! Row 39: one node of five is hostile, and only its own vote is lost.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quorlock::{NodeError, Quorlock};
use quorlock_testkit::hostile::{HOSTILE, Hostile, Kind};
use quorlock_testkit::{Cluster, within};
use tokio::runtime::Builder;

const SECOND: Duration = Duration::from_secs(1);
/// How long the node is honest and hostile in turn.
const STRETCH: Duration = Duration::from_millis(120);
const STRETCHES: u32 = 5;
const TRIES: usize = 4;
/// The name of the threads of the client.
const CLIENT: &str = "acc-39-client";
/// The part of one core that a hostile node may cost the client.
const MOST_COST: f64 = 0.25;
/// The part of the usual rate that remains beside a hostile node, at least. It takes processor time itself, which is not the
/// client's cost.
const LEAST_RATE: f64 = 0.2;
/// The rate says something of the node where the client's two threads together wait for a processor for less than this part of the
/// time. Alone on two cores they wait for half of it, beside other tests for all of it.
const MOST_WAITED: f64 = 0.7;

/// Returns the memory of this process, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("this process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().split(' ').next().and_then(|size| size.parse().ok()).expect("a size")
}

/// Locks and unlocks in several tasks. Returns the counter of cycles.
fn cycle_for_ever(locks: &Quorlock) -> (Arc<AtomicU64>, Vec<tokio::task::JoinHandle<()>>) {
    let count = Arc::new(AtomicU64::new(0));
    let task = |task: usize| {
        let (locks, count) = (locks.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            loop {
                let guard = locks.lock(format!("cycle:{task}")).acquire().await.expect("four of five nodes are well");
                guard.release().await.expect("a release");
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let tasks = (0..4).map(task).collect();
    (count, tasks)
}

async fn error_of(locks: &Quorlock, node: usize) -> Option<NodeError> {
    locks.inspect("x").await.expect("a name").nodes.remove(node).state.err()
}

/// Returns the processor time of the client's threads, and for how long they have waited for a processor.
fn thread_times() -> [Duration; 2] {
    let threads =
        fs::read_dir("/proc/self/task").expect("this process's threads").map(|it| it.expect("a thread").path());
    // A thread of another test may end meanwhile.
    let of_thread = |thread: PathBuf| {
        let is_client = fs::read_to_string(thread.join("comm")).ok()?.trim() == CLIENT;
        let times = fs::read_to_string(thread.join("schedstat")).ok().filter(|_| is_client)?;
        let times: Vec<u64> = times.split_whitespace().map(|time| time.parse().expect("a number")).collect();
        Some([times[0], times[1]].map(Duration::from_nanos))
    };
    threads.filter_map(of_thread).fold([Duration::ZERO; 2], |[cpu, waited], of| [cpu + of[0], waited + of[1]])
}

/// What the client did while the node was of one kind.
#[derive(Default)]
struct Work {
    cycles: f64,
    cpu: Duration,
    waited: Duration,
    time: Duration,
}

/// What a hostile node costs the client.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// The part of one core, beyond what the same cycles cost beside an honest node.
    core: f64,
    /// The rate of cycles, as a part of the usual one. `None` when the machine had too little time for the client: what the node
    /// costs then is taken from the cycles.
    rate: Option<f64>,
    /// The largest memory, in KiB.
    memory: u64,
}

/// Makes the node honest and hostile in turn.
fn compare(hostile: &Hostile, kind: Kind, count: &AtomicU64) -> Cost {
    let (mut work, mut most) = ([Work::default(), Work::default()], 0);
    for _ in 0..STRETCHES {
        for (work, kind) in work.iter_mut().zip([Kind::Honest, kind]) {
            hostile.set(kind);
            let (start, counted, [cpu, waited]) = (Instant::now(), count.load(Ordering::Relaxed), thread_times());
            while start.elapsed() < STRETCH {
                thread::sleep(Duration::from_millis(10)); // The interval of reads of the memory.
                most = most.max(memory());
            }
            let cycles = u32::try_from(count.load(Ordering::Relaxed) - counted).expect("a few");
            work.cycles += f64::from(cycles);
            let until = thread_times();
            (work.cpu, work.waited) = (work.cpu + until[0] - cpu, work.waited + until[1] - waited);
            work.time += start.elapsed();
        }
    }
    let [usual, beside] = work;
    let of_cycles = if usual.cycles > 0.0 { usual.cpu.mul_f64(beside.cycles / usual.cycles) } else { Duration::ZERO };
    let core = beside.cpu.saturating_sub(of_cycles).div_duration_f64(beside.time);
    let waited = (usual.waited + beside.waited).div_duration_f64(usual.time + beside.time);
    let has_time = waited < MOST_WAITED && usual.cycles > 0.0;
    let rate =
        has_time.then(|| (beside.cycles / beside.time.as_secs_f64()) / (usual.cycles / usual.time.as_secs_f64()));
    Cost { core, rate, memory: most }
}

#[test]
fn acc_39_a_hostile_node_does_not_slow_the_others() {
    let cluster = Cluster::quiet(5);
    let hostile = Hostile::start(cluster.ports()[4]);
    let urls = cluster.urls().into_iter().take(4).chain([hostile.url()]);
    let client = Builder::new_multi_thread().worker_threads(2).thread_name(CLIENT).enable_all().build();
    let client = client.expect("a runtime");
    let locks = client
        .block_on(Quorlock::builder().nodes(urls).node_timeout(5 * SECOND).connect())
        .expect("settings that work");
    client.block_on(locks.flush());
    let inside = client.enter();
    let (count, tasks) = cycle_for_ever(&locks);
    drop(inside);
    thread::sleep(SECOND); // Until memory and processor are warm.
    let before = memory();
    for kind in HOSTILE {
        // Time in which the machine does other things may fall on either kind. What the node costs falls on each try.
        let mut costs = Vec::new();
        while costs
            .last()
            .is_none_or(|cost: &Cost| cost.core > MOST_COST || cost.rate.is_some_and(|rate| rate < LEAST_RATE))
        {
            assert!(costs.len() < TRIES, "{kind:?}: {costs:.2?}");
            let cost = compare(&hostile, kind, &count);
            let more = cost.memory.saturating_sub(before);
            assert!(more <= 16 << 10, "{kind:?}: {more} KiB more memory than {before}");
            eprintln!("{kind:?}: {cost:.2?}, {more} KiB more memory");
            costs.push(cost);
        }
    }
    for task in tasks {
        assert!(!task.is_finished(), "a task has failed");
        task.abort();
    }
}

#[tokio::test]
async fn acc_39_a_hostile_node_is_named_avoided_and_readmitted() {
    let cluster = Cluster::start(5);
    let hostile = Hostile::start(cluster.ports()[4]);
    let urls = cluster.urls().into_iter().take(4).chain([hostile.url()]);
    let locks = Quorlock::builder().node_timeout(2 * SECOND).nodes(urls).connect().await.expect("settings that work");
    locks.flush().await;
    for kind in HOSTILE {
        hostile.set(kind);
        let is_named = async || {
            let error = error_of(&locks, 4).await;
            match kind {
                Kind::Answers | Kind::Garbage => matches!(error, Some(NodeError::Nonsense(_))),
                Kind::Line | Kind::Length | Kind::Count | Kind::Value | Kind::Nested => {
                    matches!(error, Some(NodeError::TooLarge { .. }))
                }
                _ => error.is_some(),
            }
        };
        within(10 * SECOND, &format!("{kind:?} is named in the error"), is_named).await;
        let made = hostile.connections();
        let start = Instant::now();
        while start.elapsed() < SECOND {
            locks.lock("x").try_acquire().await.expect("the others are well").release().await.expect("a release");
        }
        let often = hostile.connections() - made;
        // The first pauses are short, and the longest half a second.
        let most = 8 + start.elapsed().as_secs() * 4;
        assert!(often as u64 <= most, "{kind:?}: {often} connections in {:?}", start.elapsed());
        hostile.set(Kind::Honest);
        within(10 * SECOND, "the node votes again", async || error_of(&locks, 4).await.is_none()).await;
    }
}
