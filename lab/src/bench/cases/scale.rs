//! Large numbers: waiters for a held lock, and held leases.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::{LEASE, Ours};
use crate::bench::measure::number;
use crate::bench::report::{Entry, Report, Target};
use crate::bench::worker::{HELD, Kind, MANY, Worker};
use crate::exit::Failure;

const WAITERS: usize = 50;
/// How long they wait before their commands are counted, and how long these are counted.
const SETTLE: Duration = Duration::from_millis(500);
const WAIT: Duration = Duration::from_secs(4);

pub fn waiters(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    const NAME: &str = "waited-for";
    let nodes = bench.nodes();
    let urls = bench.fleet().urls(nodes);
    let (holder, other) = bench
        .runtime
        .block_on(async { Ok::<_, Failure>((Ours::connect(&urls).await?.locks, Ours::connect(&urls).await?.locks)) })?;
    // A lease that is not extended meanwhile.
    let guard = bench.runtime.block_on(holder.lock(NAME).lease(6 * LEASE).acquire())?;
    let wait = |_| bench.runtime.spawn(other.lock(NAME).acquire());
    let waiting: Vec<_> = (0..WAITERS).map(wait).collect();
    std::thread::sleep(SETTLE);
    let before = bench.fleet().commands(nodes)?;
    std::thread::sleep(WAIT);
    let commands = bench.fleet().commands(nodes)? - before;
    let ended = waiting.iter().filter(|task| task.is_finished()).count();
    for task in waiting {
        task.abort();
    }
    bench.runtime.block_on(async {
        drop(guard);
        holder.flush().await;
        other.flush().await;
    });
    let rate =
        number(usize::try_from(commands).unwrap_or(usize::MAX)) / number(nodes) / number(WAITERS) / WAIT.as_secs_f64();
    let mut entry = Entry::new(Case::Waiters, nodes, "quorlock");
    entry.add("waiters", WAITERS);
    entry.add("ended", ended);
    entry.add("commands_per_node_waiter_and_s", rate);
    let target = (nodes == TARGET_NODES).then_some(Target::AtMost(2.0));
    entry.find(format!("{WAITERS} waiters, commands per node, waiter and second"), rate, "", target);
    find_none(&mut entry, format!("{WAITERS} waiters, ended while the lock was held"), ended);
    report.add(entry);
    Ok(())
}

pub fn held(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let findings = [
        ("cpu_share", "CPU, share of one core", 100.0, " %", 25.0),
        ("refused", "not granted", 1.0, "", 0.0),
        ("lost", "lost", 1.0, "", 0.0),
        ("bytes_per_lease", "bytes each", 1.0, "", 2048.0),
    ];
    hold(bench, report, Case::Held, (Kind::Held, HELD), &findings)
}

/// Beside programs that keep every core busy.
pub fn many(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let findings = [
        ("refused", "not granted", 1.0, "", 0.0),
        ("lost", "lost", 100.0 / number(MANY), " %", 1.0),
        ("bytes_per_lease", "bytes each", 1.0, "", 4096.0),
    ];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..=std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let held = hold(bench, report, Case::Many, (Kind::Many, MANY), &findings);
        done.store(true, Ordering::Relaxed);
        held
    })
}

/// A figure: its field, name, factor, unit and target.
type Finding = (&'static str, &'static str, f64, &'static str, f64);

fn hold(
    bench: &mut Bench<'_>,
    report: &mut Report,
    case: Case,
    (kind, leases): (Kind, usize),
    findings: &[Finding],
) -> Result<(), Failure> {
    let nodes = bench.nodes();
    // In a process of its own, whose memory holds nothing else.
    let mut worker = Worker::start(bench, kind, "quorlock", nodes, bench.flags.stretch)?;
    worker.go()?;
    let figures = worker.figures()?;
    let mut entry = Entry::new(case, nodes, "quorlock");
    entry.add("leases", leases);
    let targeted = |target| (nodes == TARGET_NODES).then_some(target);
    for (field, what, factor, unit, limit) in findings {
        let Some(figure) = figures.get(*field).and_then(serde_json::Value::as_f64) else {
            bench.skip(field, "this system does not show it");
            continue;
        };
        entry.add(field, figure);
        let what = format!("{leases} held leases of {LEASE:?}, {what}");
        entry.find(what, figure * factor, unit, targeted(Target::AtMost(*limit)));
    }
    report.add(entry);
    Ok(())
}
