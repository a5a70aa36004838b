//! A node that does not answer for a long time while clients continue at full load: how much they queue for it, how soon it
//! takes part again, and what is left on it.

use std::time::{Duration, Instant};

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::lock_prefix;
use crate::bench::measure::{number, resident};
use crate::bench::report::{Entry, Report, Target};
use crate::bench::turns::now;
use crate::bench::worker::{Kind, Worker};
use crate::exit::Failure;

/// How long memory takes to reach its full size.
const WARM_UP: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_secs(30);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// The limit for a node to take part again, which is reported when the node exceeds it.
const RETURN_LIMIT: Duration = Duration::from_secs(10);
/// The time by which the node must have executed late messages.
const ORPHANS_AFTER: Duration = Duration::from_millis(300);

const MEBIBYTE: f64 = 1024.0 * 1024.0;

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    if !bench.fleet().can_pause() || nodes < 3 {
        bench.skip(Case::Silent.name(), "it needs three servers of its own");
        return Ok(());
    }
    let mut entry = Entry::new(Case::Silent, nodes, "quorlock");
    let targeted = |target| (nodes == TARGET_NODES).then_some(target);
    let mut worker = Worker::start(bench, Kind::Load, "quorlock", nodes, bench.flags.stretch)?;
    worker.go()?;
    std::thread::sleep(WARM_UP);
    let before = resident(worker.pid());

    bench.fleet().pause(0)?;
    let silent_since = Instant::now();
    let mut most = before;
    while silent_since.elapsed() < SILENCE {
        std::thread::sleep(SAMPLE_EVERY);
        most = most.max(resident(worker.pid()));
    }
    bench.fleet().resume(0)?;
    let answered = now();
    let back = worker.whole_again(answered, RETURN_LIMIT)?;
    let cycles = worker.end()?;
    std::thread::sleep(ORPHANS_AFTER);
    let orphans = bench.fleet().keys(nodes, &lock_prefix(nodes))?;

    entry.add("silent_s", SILENCE.as_secs());
    entry.add("cycles", cycles);
    if let Some((before, most)) = before.zip(most) {
        let grown = number(usize::try_from(most.saturating_sub(before)).unwrap_or(usize::MAX)) / MEBIBYTE;
        entry.add("memory_grown_mib", grown);
        let what = format!("a node silent for {SILENCE:?} under load: client memory, most");
        entry.find(what, grown, " MiB more", targeted(Target::AtMost(8.0)));
    } else {
        bench.skip("memory", "this system does not show it");
    }
    let back = back.map_or(f64::INFINITY, |back| back.as_secs_f64());
    entry.add("back_after_s", back);
    entry.find("part of rounds again after it answers", back, " s", targeted(Target::AtMost(1.0)));
    entry.add("orphans", orphans);
    find_none(&mut entry, "orphans", orphans);
    report.add(entry);
    Ok(())
}
