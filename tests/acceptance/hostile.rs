//! Row 39: one node of five is hostile, and only its own vote is lost.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorlock::{NodeError, Quorlock};
use quorlock_testkit::hostile::{HOSTILE, Hostile, Kind};
use quorlock_testkit::{Cluster, within};

const SECOND: Duration = Duration::from_secs(1);
/// How long the node is honest and hostile in turn.
const STRETCH: Duration = Duration::from_millis(120);
const STRETCHES: u32 = 5;
const TRIES: usize = 4;

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

/// Makes the node honest and hostile in turn. Returns the rate of the others beside that kind, as a share of their usual one,
/// and the largest memory.
async fn compare(hostile: &Hostile, kind: Kind, count: &AtomicU64) -> (f64, u64) {
    let (mut rates, mut most) = ([Vec::new(), Vec::new()], 0);
    for _ in 0..STRETCHES {
        for (rates, kind) in rates.iter_mut().zip([Kind::Honest, kind]) {
            hostile.set(kind);
            let (start, counted) = (Instant::now(), count.load(Ordering::Relaxed));
            while start.elapsed() < STRETCH {
                tokio::time::sleep(Duration::from_millis(10)).await; // The interval of reads of the memory.
                most = most.max(memory());
            }
            let cycles = u32::try_from(count.load(Ordering::Relaxed) - counted).expect("a few");
            rates.push(f64::from(cycles) / start.elapsed().as_secs_f64());
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let [mut usual, mut beside] = rates;
    (median(&mut beside) / median(&mut usual), most)
}

#[tokio::test(flavor = "multi_thread")]
async fn acc_39_a_hostile_node_does_not_slow_the_others() {
    let cluster = Cluster::quiet(5);
    let hostile = Hostile::start(cluster.ports()[4]);
    let urls = cluster.urls().into_iter().take(4).chain([hostile.url()]);
    let locks = Quorlock::builder().nodes(urls).connect().await.expect("settings that work");
    locks.flush().await;
    let (count, tasks) = cycle_for_ever(&locks);
    tokio::time::sleep(SECOND).await; // Until memory and processor are warm.
    let before = memory();
    for kind in HOSTILE {
        // Other load on the machine may fall on either period. The cost of the node falls on each try.
        let mut ratios = Vec::new();
        while ratios.last().is_none_or(|ratio| *ratio < 0.8) {
            assert!(ratios.len() < TRIES, "{kind:?}: {ratios:.2?} of the usual rate");
            let (ratio, most) = compare(&hostile, kind, &count).await;
            let more = most.saturating_sub(before);
            assert!(more <= 16 << 10, "{kind:?}: {more} KiB more memory than {before}");
            eprintln!("{kind:?}: {ratio:.2} of the usual rate, {more} KiB more memory");
            ratios.push(ratio);
        }
    }
    for task in tasks {
        task.abort();
    }
}

#[tokio::test]
async fn acc_39_a_hostile_node_is_named_avoided_and_readmitted() {
    let cluster = Cluster::start(5);
    let hostile = Hostile::start(cluster.ports()[4]);
    let urls = cluster.urls().into_iter().take(4).chain([hostile.url()]);
    let locks = Quorlock::builder().nodes(urls).connect().await.expect("settings that work");
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
