//! Many seeds at once, and what came out.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::controls;
use crate::figures::Figures;
use crate::oracle::Violation;
use crate::plan::Broken;
use crate::run::{Outcome, run as run_seed};
use crate::world::lock;

/// Of one seed, so many violations are printed.
const MOST_PRINTED: usize = 3;
/// Of one run, so many failing seeds are printed.
const MOST_SEEDS: u64 = 40;

#[derive(Default)]
pub struct Total {
    pub figures: Figures,
    pub violations: BTreeMap<&'static str, u64>,
    pub failed_seeds: u64,
}

/// A seed; a panic counts as a violation.
pub fn outcome(seed: u64, broken: Broken, traced: bool) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run_seed(seed, broken, traced))).unwrap_or_else(|_| Outcome {
        figures: Figures::default(),
        violations: vec![Violation { invariant: "Panic", at: 0, what: "see above".to_owned() }],
        digest: 0,
        trace: None,
    })
}

/// Runs seeds on all threads until there is no more to do. Every failing seed is printed.
pub fn seeds(arguments: &Arguments, progress: bool) -> Total {
    let &Arguments { from, to, time, .. } = arguments;
    let threads = arguments.threads.unwrap_or_else(cores);
    let traced = arguments.trace && to == Some(from + 1);
    let broken = Broken { steps_under_locks: arguments.clock_steps, ..Broken::default() };
    let total = Mutex::new(Total::default());
    let next = AtomicU64::new(from);
    let working = AtomicUsize::new(threads);
    let began = Instant::now();
    let is_over = |seed: u64| to.is_some_and(|to| seed >= to) || time.is_some_and(|time| began.elapsed() >= time);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if is_over(seed) {
                        break;
                    }
                    let outcome = outcome(seed, broken, traced);
                    account(&mut lock(&total), seed, outcome);
                }
                working.fetch_sub(1, Relaxed);
            });
        }
        let mut shown = Instant::now();
        while working.load(Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(20));
            if progress && shown.elapsed() >= Duration::from_millis(500) {
                shown = Instant::now();
                let total = lock(&total);
                let share = match (time, to) {
                    (Some(time), _) => began.elapsed().as_secs_f64() / time.as_secs_f64(),
                    (None, Some(to)) => total.figures.seeds as f64 / (to - from).max(1) as f64,
                    (None, None) => 0.0,
                };
                show(&total, share.clamp(0.0, 1.0), began.elapsed());
            }
        }
    });
    if progress {
        eprint!("\r\x1b[K");
    }
    total.into_inner().unwrap_or_default()
}

fn account(total: &mut Total, seed: u64, outcome: Outcome) {
    if let Some(trace) = &outcome.trace {
        drop(std::io::stdout().write_all(trace.as_bytes()));
    }
    total.figures.add(&outcome.figures);
    if outcome.violations.is_empty() {
        return;
    }
    total.failed_seeds += 1;
    for violation in &outcome.violations {
        *total.violations.entry(violation.invariant).or_default() += 1;
    }
    if total.failed_seeds > MOST_SEEDS {
        return;
    }
    eprint!("\r\x1b[K");
    eprintln!("seed {seed} failed; repeat it with: cluster/simulate --seed {seed} --trace");
    for Violation { invariant, at, what } in outcome.violations.iter().take(MOST_PRINTED) {
        eprintln!("  {invariant} at {}.{:03} ms: {what}", at / 1000, at % 1000);
    }
    if outcome.violations.len() > MOST_PRINTED {
        eprintln!("  … and {} more", outcome.violations.len() - MOST_PRINTED);
    }
}

fn show(total: &Total, share: f64, elapsed: Duration) {
    const WIDTH: usize = 30;
    let done = (share * WIDTH as f64) as usize;
    let left = if share > 0.0 { elapsed.mul_f64((1.0 - share) / share) } else { Duration::ZERO };
    let figures = &total.figures;
    eprint!(
        "\r\x1b[K[{}{}] {:3.0} %  {} seeds  {:.1} h  {:.0} k commands/s  {} violations  {} s left",
        "#".repeat(done),
        ".".repeat(WIDTH - done),
        share * 100.0,
        figures.seeds,
        figures.simulated_hours(),
        figures.commands as f64 / elapsed.as_secs_f64() / 1000.0,
        total.violations.values().sum::<u64>(),
        left.as_secs(),
    );
    drop(std::io::stderr().flush());
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub fn run(arguments: &Arguments) -> ExitCode {
    let progress = std::io::stderr().is_terminal();
    let began = Instant::now();
    let total = seeds(arguments, progress);
    let took = began.elapsed();
    let mut caught: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut missed = 0;
    for control in controls::ALL.iter().filter(|_| arguments.controls) {
        let by = control.caught().map_or_else(
            || {
                missed += 1;
                "nothing".to_owned()
            },
            |(by, seed)| format!("{by} (seed {seed})"),
        );
        caught.insert(control.name, by);
    }
    if arguments.json {
        println!("{}", total.figures.json(&total.violations, &caught));
    } else {
        print!("{}", total.figures.table());
        println!("{:>28}  {:>14}", "violations", total.violations.values().sum::<u64>());
        for (invariant, count) in &total.violations {
            println!("{invariant:>28}  {count:>14}");
        }
        for (name, by) in &caught {
            println!("control: {name}: caught by {by}");
        }
        let rate = total.figures.commands as f64 / took.as_secs_f64();
        let hours = total.figures.simulated_hours() / (took.as_secs_f64() / 60.0);
        println!("{:.1} s, {rate:.0} commands/s, {hours:.1} simulated hours per minute", took.as_secs_f64());
    }
    if total.violations.is_empty() && missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
