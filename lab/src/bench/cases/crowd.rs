//! Many clients, with a connection each, that contend for one lock all the time: how often it changes hands, what that costs
//! the nodes, and how it affects a client that uses other locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorlock::Quorlock;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinHandle;

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::Ours;
use crate::bench::measure::{number, quantile_us};
use crate::bench::report::{Entry, Report, Target};
use crate::exit::Failure;

const CROWDS: [usize; 4] = [20, 100, 300, 1000];
/// How long the clients take until all of them wait, and how long they are counted.
const SETTLE: Duration = Duration::from_secs(3);
const COUNT: Duration = Duration::from_secs(8);
/// How many leases the client beside them holds, and how often it locks and unlocks another lock.
const BESIDE_HELD: usize = 20;
/// The time of these leases: half of the count, so that one that is not extended is lost before its end.
const BESIDE_LEASE: Duration = Duration::from_secs(4);
const BESIDE_EVERY: Duration = Duration::from_millis(20);

/// The result of one crowd.
struct Seen {
    per_s: f64,
    commands: f64,
    node_us: f64,
    beside_p50_us: f64,
    beside_lost: usize,
}

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let targeted = |target| (nodes == TARGET_NODES).then_some(target);
    let mut smallest: Option<Seen> = None;
    for clients in CROWDS {
        if !may_open(clients * nodes) {
            bench.skip(&format!("{clients} clients"), "too many connections for this process (ulimit -n)");
            continue;
        }
        let seen = crowd(bench, nodes, clients)?;
        let mut entry = Entry::new(Case::Crowd, nodes, "quorlock");
        entry.cycles_per_s = Some(seen.per_s);
        entry.add("clients", clients);
        entry.add("commands_per_node_and_hand_over", seen.commands);
        entry.add("node_us_per_hand_over", seen.node_us);
        entry.add("beside_p50_us", seen.beside_p50_us);
        entry.add("beside_lost", seen.beside_lost);
        let what = |what: &str| format!("{clients} clients, {what}");
        find_none(&mut entry, what("leases lost beside them"), seen.beside_lost);
        if let Some(smallest) = &smallest {
            let ratio = seen.per_s / smallest.per_s;
            let than = format!("{} clients", CROWDS[0]);
            entry.find(what(&format!("hand-overs/s / {than}")), ratio, " ×", targeted(Target::AtLeast(0.5)));
            let ratio = seen.beside_p50_us / smallest.beside_p50_us;
            entry.find(
                what(&format!("lock and unlock beside them / {than}")),
                ratio,
                " ×",
                targeted(Target::AtMost(5.0)),
            );
        }
        report.add(entry);
        smallest = smallest.or(Some(seen));
    }
    Ok(())
}

/// Raises the limit on open files as far as needed. Returns whether that is enough.
fn may_open(connections: usize) -> bool {
    const OTHER_FILES: u64 = 200;
    let limit = getrlimit(Resource::Nofile);
    let needed = Some(number_of(connections) + OTHER_FILES);
    let is_enough = |limit: Option<u64>| limit.is_none() || limit >= needed;
    is_enough(limit.current)
        || (is_enough(limit.maximum) && setrlimit(Resource::Nofile, Rlimit { current: needed, ..limit }).is_ok())
}

fn number_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Counts the hand-overs from one client to another, without those to the same client.
#[derive(Default)]
struct HandOvers {
    count: AtomicUsize,
    /// The latest holder, counted from 1.
    holder: AtomicUsize,
}

impl HandOvers {
    fn enter(&self, who: usize) {
        let before = self.holder.swap(who + 1, Ordering::Relaxed);
        if before != 0 && before != who + 1 {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

fn crowd(bench: &Bench<'_>, nodes: usize, clients: usize) -> Result<Seen, Failure> {
    const NAME: &str = "wanted by a crowd";
    let urls = bench.fleet().urls(nodes);
    let connect = |_| bench.runtime.block_on(Ours::connect(&urls));
    let clients = (0..clients).map(connect).collect::<Result<Vec<Ours>, Failure>>()?;
    let beside = bench.runtime.block_on(Ours::connect(&urls))?.locks;
    let (done, hand_overs) = (Arc::new(AtomicBool::new(false)), Arc::new(HandOvers::default()));
    let want = |(who, one): (usize, &Ours)| {
        let (locks, done, hand_overs) = (one.locks.clone(), Arc::clone(&done), Arc::clone(&hand_overs));
        bench.runtime.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                if let Ok(guard) = locks.lock(NAME).acquire().await {
                    hand_overs.enter(who);
                    drop(guard.release().await); // The count shows its result.
                }
            }
        })
    };
    let wanting: Vec<_> = clients.iter().enumerate().map(want).collect();
    std::thread::sleep(SETTLE);
    let beside = stand_beside(bench, beside, Arc::clone(&done));
    let before = (hand_overs.count(), bench.fleet().calls(nodes, "evalsha")?, Instant::now());
    std::thread::sleep(COUNT);
    let counted = number(hand_overs.count() - before.0);
    let calls = bench.fleet().calls(nodes, "evalsha")?;
    let took = before.2.elapsed();
    done.store(true, Ordering::Relaxed);
    let per_node = |count: u64| number(usize::try_from(count).unwrap_or(usize::MAX)) / number(nodes) / counted;
    let (mut cycles, beside_lost) = bench.runtime.block_on(beside).unwrap_or((Vec::new(), BESIDE_HELD));
    cycles.sort_unstable();
    for task in wanting {
        drop(bench.runtime.block_on(task)); // Nothing in it panics.
    }
    Ok(Seen {
        per_s: counted / took.as_secs_f64(),
        commands: per_node(calls.count - before.1.count),
        node_us: per_node(calls.micros - before.1.micros),
        beside_p50_us: quantile_us(&cycles, 0.5),
        beside_lost,
    })
}

/// Returns the duration of each cycle, and how many of the leases that it held meanwhile were lost.
fn stand_beside(bench: &Bench<'_>, locks: Quorlock, done: Arc<AtomicBool>) -> JoinHandle<(Vec<Duration>, usize)> {
    bench.runtime.spawn(async move {
        let mut held = Vec::new();
        for i in 0..BESIDE_HELD {
            held.extend(locks.lock(format!("beside a crowd {i}")).lease(BESIDE_LEASE).acquire().await.ok());
        }
        let mut cycles = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let began = Instant::now();
            if let Ok(guard) = locks.lock("beside a crowd").acquire().await {
                drop(guard.release().await); // A loss would be one of those that are held, too.
                cycles.push(began.elapsed());
            }
            tokio::time::sleep(BESIDE_EVERY).await;
        }
        let kept = held.iter().filter(|guard| !guard.is_lost()).count();
        (cycles, BESIDE_HELD - kept)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_turn_of_the_same_client_is_no_hand_over() {
        let hand_overs = HandOvers::default();
        for who in [0, 0, 1, 1, 1, 0] {
            hand_overs.enter(who);
        }
        assert_eq!(hand_overs.count(), 2);
    }

    #[test]
    fn a_lease_beside_the_crowd_needs_extensions() {
        assert!(2 * BESIDE_LEASE <= COUNT);
    }
}
