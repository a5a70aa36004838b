//! The tests that `cargo test` runs.

use std::panic::catch_unwind;
use std::process::ExitCode;

use crate::arguments::Arguments;
use crate::figures::Fault;
use crate::histories;
use crate::invariant::Invariant;
use crate::plan::Broken;
use crate::porcupine;
use crate::reference;
use crate::simulate::{controls, outcome, seeds};

/// The fixed range of seeds.
const SEEDS: u64 = 40;

type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: [Test; 7] = [
    ("illegal_histories_are_noticed", || none(&histories::unnoticed())),
    ("legal_histories_are_legal", || none(&histories::misjudged_legal_histories())),
    ("broken_nodes_are_noticed", || none(&histories::broken_nodes_unnoticed())),
    ("both_ways_to_judge_a_history_agree", reference::agrees),
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
    let found = [1, 2, 5].map(|seed| outcome(seed, Broken::default(), true, true).violations);
    none(&found.into_iter().flatten().map(|found| format!("{}: {}", found.invariant, found.what)).collect::<Vec<_>>())
}

fn fixed_range() -> Result<(), String> {
    let total = seeds(&Arguments { to: Some(SEEDS), ..Arguments::default() }, false);
    print!("{}", total.figures.table());
    if !total.violations.is_empty() {
        return Err(format!("{} seeds failed: {:?}", total.failed_seeds, total.violations));
    }
    // A fault that never occurs, or an action that is never taken, proves nothing.
    let mut absent: Vec<&str> =
        Fault::NAMES.iter().zip(total.figures.faults).filter(|(_, count)| *count == 0).map(|(name, _)| *name).collect();
    let done = [
        ("grants", total.figures.grants),
        ("re-entries", total.figures.reentries),
        ("joins", total.figures.joins),
        ("extensions", total.figures.extensions),
        ("losses", total.figures.losses),
        ("revocations", total.figures.revocations),
        ("stale writes", total.figures.stale_writes_rejected),
    ];
    absent.extend(done.iter().filter(|(_, count)| *count == 0).map(|(name, _)| *name));
    let checks = Invariant::ALL.map(|invariant| (invariant, total.figures.checks.of(invariant)));
    let unchecked: Vec<String> =
        checks.iter().filter(|(_, count)| *count == 0).map(|(invariant, _)| invariant.to_string()).collect();
    absent.extend(unchecked.iter().map(String::as_str));
    let (histories, undecided) = porcupine::counts();
    if undecided > histories / 2 {
        return Err(format!("porcupine-rs left {undecided} of {histories} histories undecided"));
    }
    if absent.is_empty() { Ok(()) } else { Err(format!("these never happened: {}", absent.join(", "))) }
}

fn controls_are_caught() -> Result<(), String> {
    let (caught, _) = controls(&Arguments { soon: true, ..Arguments::default() }, false);
    if caught { Ok(()) } else { Err("not every control was caught".to_owned()) }
}
