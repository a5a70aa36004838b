//! Lock and unlock while nodes are paused: stopped processes, whose kernel still accepts connections and bytes.

use std::time::{Duration, Instant};

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::Ours;
use crate::bench::measure::{Rounds, Stretch};
use crate::bench::report::{Entry, Report, Target};
use crate::exit::Failure;

/// The numbers of paused nodes that are measured.
const PAUSED: [usize; 3] = [0, 1, 2];

const HEAL_LIMIT: Duration = Duration::from_secs(10);

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    if !bench.fleet().can_pause() || nodes < TARGET_NODES {
        bench.skip(Case::Paused.name(), "it needs five servers of its own");
        return Ok(());
    }
    let field = bench.field(nodes)?;
    // The floor waits for all at the end of each stretch.
    let field: Vec<_> = field.iter().filter(|one| !one.is_floor()).collect();
    let urls = bench.fleet().urls(nodes);
    let Ours { locks } = bench.runtime.block_on(Ours::connect(&urls))?;
    let mut rounds = Rounds::default();
    for round in 0..usize::from(bench.flags.rounds) {
        let mut stretches = Vec::new();
        let victims: Vec<usize> = (0..PAUSED[PAUSED.len() - 1]).map(|i| (round + i) % nodes).collect();
        for paused in PAUSED {
            if let Some(victim) = paused.checked_sub(1) {
                bench.fleet().pause(victims[victim])?;
            }
            stretches.extend(field.iter().map(|one| one.cycles(1, bench.flags.stretch)));
        }
        for victim in victims {
            bench.fleet().resume(victim)?;
        }
        bench.runtime.block_on(heal(&locks, nodes));
        rounds.push(stretches);
    }
    for (i, one) in field.iter().enumerate() {
        for paused in PAUSED {
            let (here, all_up) = (paused * field.len() + i, i);
            let mut entry = Entry::new(Case::Paused, nodes, one.name()).with_rounds(&rounds, here);
            entry.add("paused", paused);
            if paused > 0 {
                let (p50, p99) =
                    (rounds.ratio(here, all_up, Stretch::p50_us), rounds.ratio(here, all_up, Stretch::p99_us));
                entry.add("p50_vs_all_up", p50);
                entry.add("p99_vs_all_up", p99);
                if one.name() == "quorlock" {
                    let what = |q| format!("{paused} paused, {q}: / all up");
                    entry.find(what("p50"), p50, " ×", Some(Target::AtMost(1.1)));
                    entry.find(what("p99"), p99, " ×", Some(Target::AtMost(2.0)));
                }
            } else if one.name() == "quorlock" {
                find_none(&mut entry, "all up, failed", rounds.failed(here));
            }
            report.add(entry);
        }
    }
    Ok(())
}

/// Waits until every node takes part in rounds again.
async fn heal(locks: &quorlock::Quorlock, nodes: usize) {
    let spare = nodes - (nodes / 2 + 1);
    let began = Instant::now();
    while began.elapsed() < HEAL_LIMIT {
        if let Ok(guard) = locks.lock("healing").acquire().await {
            locks.flush().await;
            if guard.margin() == spare {
                return;
            }
        }
    }
}
