//! Lock and unlock, undisturbed.

use std::sync::Arc;

use tokio::runtime::Builder;

use super::{Case, TARGET_NODES, find_none, in_rounds};
use crate::bench::Bench;
use crate::bench::fleet::failure;
use crate::bench::lockers::{Callers, InRuntime, Measured, Nested, Ours, Place};
use crate::bench::measure::{Rounds, Stretch};
use crate::bench::report::{Entry, Report, Target};
use crate::exit::Failure;

const TASKS: usize = 64;

/// How much longer a cycle may take than redis-rs' fan-out of one-line scripts.
const REDIS_RS: Target = Target::AtMost(1.05);

/// In µs: how much processor time all nodes together may use for one of the cycles of many tasks.
const NODES_CPU: Target = Target::AtMost(62.0);

/// How many locks `lock_all` takes.
const SET: usize = 4;

/// Where `name` is among the columns.
fn column(names: &[&'static str], name: &str) -> Option<usize> {
    names.iter().position(|other| *other == name)
}

pub fn cycle(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    for nodes in bench.counts.clone() {
        let field = bench.field(nodes)?;
        let names: Vec<_> = field.iter().map(|one| one.name()).collect();
        let rounds = in_rounds(bench, names.len(), |column| field[column].cycles(1, bench.flags.stretch));
        let targets = [
            ("floor", Some(Target::AtMost(1.3))),
            ("fenced", None),
            ("scripts", None),
            ("redis-rs", Some(REDIS_RS)),
            ("redis-rs-scripts", None),
            ("rslock", None),
        ];
        for (i, name) in names.iter().enumerate() {
            let mut entry = Entry::new(Case::Cycle, nodes, name).with_rounds(&rounds, i);
            for (other, target) in targets.iter().filter(|_| *name == "quorlock") {
                if let Some(other_column) = column(&names, other) {
                    let target = target.filter(|_| nodes == TARGET_NODES);
                    let ratio = rounds.ratio(i, other_column, Stretch::p50_us);
                    entry.find(format!("lock and unlock, p50: quorlock / {other}"), ratio, " ×", target);
                }
            }
            if *name == "quorlock" {
                find_none(&mut entry, "lock and unlock, failed", rounds.failed(i));
            }
            add_ratios(&mut entry, &rounds, i, &names, Stretch::p50_us);
            report.add(entry);
        }
    }
    Ok(())
}

/// As [`cycle`], from the future that the runtime was entered with, which is where `main` and tests are.
pub fn block_on(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let single = Builder::new_current_thread().enable_all().build().map_err(|error| failure("cannot start", &error))?;
    for (kind, runtime) in [("default", Arc::clone(bench.runtime)), ("current-thread", Arc::new(single))] {
        let all = bench.connect_all(&Place { runtime, callers: Callers::BlockOn }, nodes)?;
        let names: Vec<_> = all.iter().map(|one| one.name()).collect();
        let rounds = in_rounds(bench, names.len(), |column| all[column].cycles(1, bench.flags.stretch));
        for (i, name) in names.iter().enumerate() {
            let mut entry = Entry::new(Case::BlockOn, nodes, name).with_rounds(&rounds, i);
            entry.add("runtime", kind);
            let targets = [("redis-rs", Some(REDIS_RS)), ("redis-rs-scripts", None), ("rslock", None)];
            for (other, target) in targets.into_iter().filter(|_| *name == "quorlock") {
                if let Some(other_column) = column(&names, other) {
                    let target = target.filter(|_| nodes == TARGET_NODES);
                    let ratio = rounds.ratio(i, other_column, Stretch::p50_us);
                    entry.find(format!("block_on, {kind} runtime, p50: quorlock / {other}"), ratio, " ×", target);
                }
            }
            if *name == "quorlock" {
                find_none(&mut entry, format!("block_on, {kind} runtime, failed"), rounds.failed(i));
            }
            report.add(entry);
        }
    }
    Ok(())
}

/// `vs_floor` and the like.
fn add_ratios(entry: &mut Entry, rounds: &Rounds, i: usize, names: &[&'static str], figure: fn(&Stretch) -> f64) {
    let others =
        [("vs_floor", "floor"), ("vs_fenced", "fenced"), ("vs_scripts", "scripts"), ("vs_redis_rs", "redis-rs")];
    for (field, other) in others {
        if let Some(other) = column(names, other).filter(|other| *other != i) {
            entry.add(field, rounds.ratio(i, other, figure));
        }
    }
}

pub fn tasks(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    for nodes in bench.counts.clone() {
        let field = bench.field(nodes)?;
        let names: Vec<_> = field.iter().map(|one| one.name()).collect();
        let rounds = in_rounds(bench, names.len(), |column| field[column].cycles(TASKS, bench.flags.stretch));
        for (i, name) in names.iter().enumerate() {
            let mut entry = Entry::new(Case::Tasks, nodes, name).with_rounds(&rounds, i);
            entry.add("tasks", TASKS);
            for other in ["fenced", "scripts", "redis-rs", "rslock"].into_iter().filter(|_| *name == "quorlock") {
                let Some(other_column) = column(&names, other) else { continue };
                let aimed = |target| (other == "rslock" && nodes == TARGET_NODES).then_some(target);
                let speed = rounds.ratio(i, other_column, Stretch::cycles_per_s);
                let what = format!("{TASKS} tasks, cycles/s: quorlock / {other}");
                entry.find(what, speed, " ×", aimed(Target::AtLeast(1.15)));
                let cpu = rounds.ratio(i, other_column, Stretch::cpu_us_per_cycle);
                let what = format!("{TASKS} tasks, client CPU per cycle: quorlock / {other}");
                entry.find(what, cpu, " ×", aimed(Target::AtMost(0.6)));
            }
            if *name == "quorlock" {
                find_none(&mut entry, format!("{TASKS} tasks, failed"), rounds.failed(i));
            }
            let nodes_cpu = rounds.median(i, Stretch::nodes_cpu_us_per_cycle);
            if *name == "quorlock" && nodes_cpu.is_finite() {
                let target = (nodes == TARGET_NODES).then_some(NODES_CPU);
                entry.find(format!("{TASKS} tasks, CPU of all nodes per cycle"), nodes_cpu, " µs", target);
            }
            report.add(entry);
        }
    }
    Ok(())
}

pub fn reentry(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    const NAME: &str = "entered-again";
    let nodes = bench.nodes();
    let urls = bench.fleet().urls(nodes);
    let Ours { locks } = bench.runtime.block_on(Ours::connect(&urls))?;
    let outer = bench.runtime.block_on(locks.lock(NAME).acquire())?;
    let measured = |locker| InRuntime { name: "quorlock", locker, place: bench.tasks(), waits: true };
    let inner = measured(Nested { locks: locks.clone(), owner: outer.owner().clone(), name: NAME });
    let whole = InRuntime { name: "quorlock", locker: Ours { locks }, place: bench.tasks(), waits: true };
    let both: [&dyn Measured; 2] = [&inner, &whole];
    let rounds = in_rounds(bench, both.len(), |column| both[column].cycles(1, bench.flags.stretch));
    let mut entry = Entry::new(Case::Reentry, nodes, "quorlock").with_rounds(&rounds, 0);
    let ratio = rounds.ratio(0, 1, Stretch::p50_us);
    entry.add("vs_cycle", ratio);
    entry.find("enter again and leave, p50: / lock and unlock", ratio, " ×", None);
    find_none(&mut entry, "enter again and leave, failed", rounds.failed(0));
    report.add(entry);
    drop(outer);
    Ok(())
}

pub fn lock_all(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let field = bench.field(nodes)?;
    let field: Vec<_> = field.iter().filter(|one| !one.is_floor()).collect();
    // Sets first, and then single locks of the same implementations.
    let rounds = in_rounds(bench, 2 * field.len(), |column| match column.checked_sub(field.len()) {
        None => field[column].sets(SET, bench.flags.stretch).unwrap_or_default(),
        Some(single) => field[single].cycles(1, bench.flags.stretch),
    });
    for (i, one) in field.iter().enumerate() {
        let mut entry = Entry::new(Case::LockAll, nodes, one.name()).with_rounds(&rounds, i);
        let ratio = rounds.ratio(i, field.len() + i, Stretch::p50_us);
        entry.add("names", SET);
        entry.add("vs_cycle", ratio);
        entry.add("at_once", one.name() == "quorlock");
        if one.name() == "quorlock" {
            entry.find(format!("lock_all of {SET}, p50: / lock and unlock of one"), ratio, " ×", None);
            find_none(&mut entry, format!("lock_all of {SET}, failed"), rounds.failed(i));
        }
        report.add(entry);
    }
    Ok(())
}
