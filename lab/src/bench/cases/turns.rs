//! One lock under contention: how fast and how fairly it goes from one owner to the next, and what that costs the nodes.

use std::time::Duration;

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::Measured;
use crate::bench::measure::{median, number};
use crate::bench::report::{Entry, Report, Target};
use crate::bench::turns::{Summary, Turns};
use crate::bench::worker::{Kind, Worker};
use crate::exit::Failure;

const CONTENDERS: usize = 8;
pub const INSIDE: Duration = Duration::from_millis(1);
/// A hand-over takes longer than a cycle: the number of usual stretches in one stretch of this case.
const STRETCHES: u32 = 5;

/// The result of one round.
struct Round {
    summary: Summary,
    failed: usize,
    turns: usize,
    per_s: f64,
    /// Commands from clients per node and hand-over.
    commands: f64,
    /// An undisturbed cycle of the same implementation, µs.
    cycle_us: f64,
}

pub fn among_tasks(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let stretch = STRETCHES * bench.flags.stretch;
    let field = bench.field(nodes)?;
    let mut all: Vec<Vec<Round>> = field.iter().map(|_| Vec::new()).collect();
    for _ in 0..bench.flags.rounds {
        for (one, rounds) in field.iter().zip(&mut all) {
            let before = bench.fleet().commands(nodes)?;
            let Some(turns) = one.turns(CONTENDERS, INSIDE, stretch) else { continue };
            let commands = bench.fleet().commands(nodes)? - before;
            rounds.push(round(turns, commands, nodes, stretch, one.as_ref(), bench.flags.stretch));
        }
    }
    for (one, rounds) in field.iter().zip(&all).filter(|(_, rounds)| !rounds.is_empty()) {
        let mut entry = entry(Case::HandOver, nodes, one.name(), rounds);
        if one.name() == "quorlock" {
            let targeted = |target| (nodes == TARGET_NODES).then_some(target);
            let ratio = median(rounds.iter().map(|round| round.summary.p99_us / round.cycle_us).collect());
            let what = format!("{CONTENDERS} tasks, hand-over, p99: / lock and unlock, p50");
            entry.find(what, ratio, " ×", targeted(Target::AtMost(3.0)));
            if let Some(scripts) = field.iter().position(|one| one.name() == "scripts") {
                let pairs = rounds.iter().zip(&all[scripts]);
                let ratio = median(pairs.map(|(ours, bare)| ours.summary.p99_us / bare.summary.p99_us).collect());
                entry.find(format!("{CONTENDERS} tasks, hand-over, p99: quorlock / scripts"), ratio, " ×", None);
            }
            let unfairness = median(rounds.iter().map(|round| round.summary.unfairness).collect());
            let what = format!("{CONTENDERS} tasks, share furthest from equal");
            entry.find(what, unfairness * 100.0, " %", targeted(Target::AtMost(10.0)));
            find_no_fault(&mut entry, "tasks", rounds);
        }
        report.add(entry);
    }
    Ok(())
}

pub fn among_processes(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let stretch = STRETCHES * bench.flags.stretch;
    let field = bench.field(nodes)?;
    let names = ["quorlock"].into_iter().chain(bench.peers.iter().map(|peer| peer.name));
    let field: Vec<_> = names.filter_map(|name| field.iter().find(|one| one.name() == name)).collect();
    let mut rounds: Vec<Vec<Round>> = field.iter().map(|_| Vec::new()).collect();
    for _ in 0..bench.flags.rounds {
        for (one, rounds) in field.iter().zip(&mut rounds) {
            let (turns, commands) = in_processes(bench, one.name(), nodes, stretch)?;
            rounds.push(round(turns, commands, nodes, stretch, one.as_ref(), bench.flags.stretch));
        }
    }
    for (one, rounds) in field.iter().zip(&rounds) {
        let mut entry = entry(Case::Processes, nodes, one.name(), rounds);
        if one.name() == "quorlock" {
            let targeted = |target| (nodes == TARGET_NODES).then_some(target);
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            let what = |what| format!("{CONTENDERS} processes, {what}");
            let p99_ms = of(|round| round.summary.p99_us) / 1e3;
            entry.find(what("hand-over, p99"), p99_ms, " ms", targeted(Target::AtMost(5.0)));
            let unfairness = of(|round| round.summary.unfairness) * 100.0;
            entry.find(what("share furthest from equal"), unfairness, " %", targeted(Target::AtMost(20.0)));
            let commands = of(|round| round.commands);
            entry.find(what("commands per node and hand-over"), commands, "", targeted(Target::AtMost(8.0)));
            find_no_fault(&mut entry, "processes", rounds);
        }
        report.add(entry);
    }
    Ok(())
}

fn round(
    mut turns: Turns,
    commands: u64,
    nodes: usize,
    stretch: Duration,
    one: &dyn Measured,
    cycle_stretch: Duration,
) -> Round {
    let summary = turns.summary();
    let hand_overs = number(summary.hand_overs);
    Round {
        failed: turns.failed,
        turns: turns.len(),
        per_s: hand_overs / stretch.as_secs_f64(),
        commands: number(usize::try_from(commands).unwrap_or(usize::MAX)) / number(nodes) / hand_overs,
        cycle_us: one.cycles(1, cycle_stretch / 4).p50_us(),
        summary,
    }
}

/// No request may fail, and no two contenders may have the lock at the same time.
fn find_no_fault(entry: &mut Entry, contenders: &str, rounds: &[Round]) {
    let sum = |figure: fn(&Round) -> usize| rounds.iter().map(figure).sum();
    find_none(entry, format!("{CONTENDERS} {contenders}, failed"), sum(|round| round.failed));
    find_none(entry, format!("{CONTENDERS} {contenders}, overlaps"), sum(|round| round.summary.overlaps));
}

fn entry(case: Case, nodes: usize, implementation: &'static str, rounds: &[Round]) -> Entry {
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let sum = |figure: fn(&Round) -> usize| rounds.iter().map(figure).sum::<usize>();
    let mut entry = Entry::new(case, nodes, implementation);
    entry.p50_us = Some(of(|round| round.summary.p50_us));
    entry.p99_us = Some(of(|round| round.summary.p99_us));
    entry.cycles_per_s = Some(of(|round| round.per_s));
    entry.add("contenders", CONTENDERS);
    entry.add("inside_us", of(|round| round.summary.inside_us));
    entry.add("turns", sum(|round| round.turns));
    entry.add("hand_overs", sum(|round| round.summary.hand_overs));
    entry.add("same_again_share", of(|round| round.summary.same_share));
    entry.add("share_off_equal", of(|round| round.summary.unfairness));
    if implementation == "quorlock" {
        // Other implementations send commands that a script may also call, and then the two cannot be distinguished.
        entry.add("commands_per_node_and_hand_over", of(|round| round.commands));
    }
    entry.add("cycle_p50_us", of(|round| round.cycle_us));
    entry.add("overlaps", sum(|round| round.summary.overlaps));
    entry.add("failed", sum(|round| round.failed));
    entry
}

/// Returns the turns of separate processes, and the number of their commands to all nodes.
fn in_processes(
    bench: &Bench<'_>,
    name: &'static str,
    nodes: usize,
    stretch: Duration,
) -> Result<(Turns, u64), Failure> {
    let start = |_| Worker::start(bench, Kind::Turns, name, nodes, stretch);
    let mut workers = (0..CONTENDERS).map(start).collect::<Result<Vec<_>, _>>()?;
    let before = bench.fleet().commands(nodes)?;
    workers.iter_mut().try_for_each(Worker::go)?;
    let mut turns = Turns::new(CONTENDERS);
    for (who, worker) in workers.iter_mut().enumerate() {
        let (taken, failed) = worker.turns(who)?;
        turns.add(taken, failed);
    }
    let commands = bench.fleet().commands(nodes)? - before;
    Ok((turns, commands))
}
