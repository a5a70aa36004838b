//! The cost of lock and unlock, by the statistics of a node.

use super::Case;
use crate::bench::Bench;
use crate::bench::lockers::{Locker, Ours, fan_out};
use crate::bench::measure::{median, number};
use crate::bench::report::{Entry, Report};
use crate::exit::Failure;

/// Locks that are taken, and then given back.
const LOCKS: usize = 500;

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let urls = bench.fleet().urls(nodes);
    let mut bare = bench.runtime.block_on(fan_out(&urls))?;
    let mut ours = bench.runtime.block_on(Ours::connect(&urls))?;
    let mut rounds = Vec::new();
    for _ in 0..bench.flags.rounds {
        rounds.push([phases(bench, nodes, &mut bare)?, phases(bench, nodes, &mut ours)?]);
    }
    let of = |one: usize, phase: usize| median(rounds.iter().map(|round| round[one][phase]).collect());
    for (one, name) in ["redis-rs", "quorlock"].into_iter().enumerate() {
        let mut entry = Entry::new(Case::Scripts, nodes, name);
        for (phase, what) in ["acquire", "release"].into_iter().enumerate() {
            entry.add(&format!("{what}_us"), of(one, phase));
            if name == "quorlock" {
                let ratio = median(rounds.iter().map(|round| round[1][phase] / round[0][phase]).collect());
                entry.find(format!("{what}, a node's own time for the script: / one-line script"), ratio, " ×", None);
            }
        }
        report.add(entry);
    }
    Ok(())
}

/// µs per script, as the server counts them, for taking locks and for giving them back.
fn phases(bench: &Bench<'_>, nodes: usize, locker: &mut impl Locker) -> Result<[f64; 2], Failure> {
    let calls = || bench.fleet().calls(nodes, "evalsha");
    let start = calls()?;
    let mut holds = Vec::with_capacity(LOCKS);
    bench.runtime.block_on(async {
        for i in 0..LOCKS {
            holds.extend(locker.acquire(&format!("scripts:{i}")).await);
        }
        locker.settle().await;
    });
    let taken = calls()?;
    bench.runtime.block_on(async {
        for hold in holds {
            locker.release(hold).await;
        }
        locker.settle().await;
    });
    let given_back = calls()?;
    let per_call = |from: crate::bench::fleet::Calls, to: crate::bench::fleet::Calls| {
        let of = |count: u64| number(usize::try_from(count).unwrap_or(usize::MAX));
        of(to.micros - from.micros) / of(to.count - from.count)
    };
    Ok([per_call(start, taken), per_call(taken, given_back)])
}
