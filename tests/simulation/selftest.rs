//! What `cargo test` runs.

use std::panic::catch_unwind;
use std::process::ExitCode;

use crate::arguments::Arguments;
use crate::figures::Fault;
use crate::plan::Broken;
use crate::simulate::{outcome, seeds};
use crate::{controls, histories};

/// The fixed range.
const SEEDS: u64 = 24;

type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: [Test; 6] = [
    ("illegal_histories_are_noticed", || none(&histories::unnoticed())),
    ("a_legal_history_is_legal", || none(&histories::legal_is_legal())),
    ("broken_nodes_are_noticed", || none(&histories::broken_nodes_unnoticed())),
    ("deterministic", deterministic),
    ("a_fixed_range_of_seeds", fixed_range),
    ("controls_are_caught", controls_are_caught),
];

pub fn run(filter: Option<&str>) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter))) {
        let result = catch_unwind(test).unwrap_or_else(|_| Err("it panicked".to_owned()));
        match result {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(why) => {
                println!("test {name} ... FAILED\n{why}");
                failed += 1;
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn none(wrong: &[String]) -> Result<(), String> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The same seed gives the same trace, byte for byte.
fn deterministic() -> Result<(), String> {
    for seed in [1, 2, 5] {
        let (first, second) = (outcome(seed, Broken::default(), true), outcome(seed, Broken::default(), true));
        let traces =
            first.trace.unwrap_or_default().into_bytes().into_iter().zip(second.trace.unwrap_or_default().into_bytes());
        if let Some((at, _)) = traces.enumerate().find(|(_, (a, b))| a != b) {
            return Err(format!("seed {seed}: the traces differ at byte {at}"));
        }
        if (first.digest, &first.figures) != (second.digest, &second.figures) {
            return Err(format!("seed {seed}: {} and then {}", first.digest, second.digest));
        }
    }
    Ok(())
}

fn fixed_range() -> Result<(), String> {
    let total = seeds(&Arguments { to: Some(SEEDS), ..Arguments::default() }, false);
    print!("{}", total.figures.table());
    if !total.violations.is_empty() {
        return Err(format!("{} seeds failed: {:?}", total.failed_seeds, total.violations));
    }
    // A kind of fault that never happens, or a thing that is never done, proves nothing.
    let mut absent: Vec<&str> =
        Fault::NAMES.iter().zip(total.figures.faults).filter(|(_, count)| *count == 0).map(|(name, _)| *name).collect();
    let done = [
        ("grants", total.figures.grants),
        ("re-entries", total.figures.reentries),
        ("joins", total.figures.joins),
        ("extensions", total.figures.extensions),
        ("losses", total.figures.losses),
        ("stale writes", total.figures.stale_writes_rejected),
    ];
    absent.extend(done.iter().filter(|(_, count)| *count == 0).map(|(name, _)| *name));
    if absent.is_empty() { Ok(()) } else { Err(format!("these never happened: {}", absent.join(", "))) }
}

fn controls_are_caught() -> Result<(), String> {
    let missed: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            controls::ALL.iter().map(|control| (control.name, scope.spawn(|| control.caught()))).collect();
        runs.into_iter()
            .filter_map(|(name, run)| match run.join() {
                Ok(Some((by, seed))) => {
                    println!("  {name}: caught by {by} at seed {seed}");
                    None
                }
                _ => Some(format!("not caught: {name}")),
            })
            .collect()
    });
    none(&missed)
}
