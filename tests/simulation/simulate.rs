//! Runs many seeds at once, and prints the results.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use quorlock_testkit::breaks;

use crate::arguments::Arguments;
use crate::controls;
use crate::figures::Figures;
use crate::invariant::{Invariant, Violation};
use crate::plan::Broken;
use crate::porcupine;
use crate::run::{Outcome, run as run_seed};
use crate::variant;
use crate::world::lock;

/// The number of violations of one seed that are printed.
const MOST_PRINTED: usize = 3;
/// The number of failing seeds of one run that are printed.
const MOST_SEEDS: u64 = 40;
/// One in this number of seeds is run twice, and must give the same run.
const TWICE_EVERY: u64 = 20;

#[derive(Default)]
pub struct Total {
    pub figures: Figures,
    pub violations: BTreeMap<Invariant, u64>,
    pub failed_seeds: u64,
}

/// Runs a seed, sometimes twice. A panic counts as a violation.
pub fn outcome(seed: u64, broken: Broken, traced: bool, twice: bool) -> Outcome {
    let once = || {
        catch_unwind(AssertUnwindSafe(|| run_seed(seed, broken, traced))).unwrap_or_else(|_| Outcome {
            figures: Figures::default(),
            violations: vec![Violation {
                invariant: Invariant::Simulation,
                at: 0,
                commands: 0,
                what: "it panicked; see above".to_owned(),
            }],
            digest: 0,
            trace: None,
        })
    };
    let mut first = once();
    if twice {
        let different = first.difference(&once());
        first.figures.checks.count(Invariant::Deterministic, 1);
        let (at, commands) = (first.figures.simulated_us, first.figures.commands);
        let violation = |what| Violation { invariant: Invariant::Deterministic, at, commands, what };
        first.violations.extend(different.map(violation));
    }
    first
}

/// Runs seeds on all threads until there is no more to do. Every failing seed is printed.
pub fn seeds(arguments: &Arguments, progress: bool) -> Total {
    let &Arguments { from, to, time, .. } = arguments;
    let threads = threads(arguments);
    let alone = to == Some(from + 1);
    let traced = arguments.trace && alone;
    let broken = Broken { steps_clocks: arguments.clock_steps, forgets: arguments.forgetting, ..Broken::default() };
    let total = Mutex::new(Total::default());
    let next = AtomicU64::new(from);
    let working = AtomicUsize::new(threads);
    let began = Instant::now();
    let is_over = |seed: u64| to.is_some_and(|to| seed >= to) || time.is_some_and(|time| began.elapsed() >= time);
    let clock_steps = if arguments.clock_steps { " --clock-steps" } else { "" };
    let forgetting = if arguments.forgetting { " --forgetting" } else { "" };
    let command = format!("cluster/simulate{clock_steps}{forgetting}");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if is_over(seed) {
                        break;
                    }
                    let outcome = outcome(seed, broken, traced, !alone && seed.is_multiple_of(TWICE_EVERY));
                    account(&mut lock(&total), seed, outcome, &command);
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

fn account(total: &mut Total, seed: u64, outcome: Outcome, command: &str) {
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
    eprintln!("seed {seed} failed; repeat it with: {command} --seed {seed} --trace");
    for Violation { invariant, at, what, .. } in outcome.violations.iter().take(MOST_PRINTED) {
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

fn threads(arguments: &Arguments) -> usize {
    arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Runs the controls: in this build, if its client can be broken, or else in a copy of it. Returns the output, if it is to be
/// captured, and whether each was caught.
pub fn controls(arguments: &Arguments, capture: bool) -> (bool, String) {
    let threads = threads(arguments);
    if variant::choose("") {
        let results = controls::run(threads, arguments.soon, &arguments.only);
        print!("{}", if arguments.json { results.json() + "\n" } else { results.table() });
        return (results.all_caught(), String::new());
    }
    let number = threads.to_string();
    let mut passed_on = vec!["--controls", "--threads", &number];
    passed_on.extend(arguments.json.then_some("--json"));
    passed_on.extend(arguments.soon.then_some("--soon"));
    if !arguments.only.is_empty() {
        passed_on.extend(["--only", &arguments.only]);
    }
    in_copy(&passed_on, capture).unwrap_or_else(|error| {
        eprintln!("the controls could not be tried: {error}");
        (false, String::new())
    })
}

/// Builds the copy with the broken clients, and runs its simulation with these arguments. Returns whether all went well, and its
/// output, if it is to be captured.
fn in_copy(arguments: &[&str], capture: bool) -> io::Result<(bool, String)> {
    let mut command = breaks::Copy::write()?.cargo("test");
    command.args(["--test", "simulation", "--"]).args(arguments);
    if capture {
        let output = command.stderr(Stdio::inherit()).output()?;
        return Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    Ok((command.status()?.success(), String::new()))
}

pub fn run(arguments: &Arguments) -> ExitCode {
    if arguments.only_controls {
        let (caught, _) = controls(arguments, false);
        return if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let progress = std::io::stderr().is_terminal();
    let began = Instant::now();
    let total = seeds(arguments, progress);
    let took = began.elapsed();
    if !arguments.json {
        report(&total, took);
    }
    let (caught, results) =
        if arguments.controls { controls(arguments, arguments.json) } else { (true, "{}".to_owned()) };
    if arguments.json {
        println!("{}", total.figures.json(&total.violations, results.trim()));
    }
    if total.violations.is_empty() && caught { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(total: &Total, took: Duration) {
    let Total { figures, violations, .. } = total;
    print!("{}", figures.table());
    println!("\n{:>28}  {:>14}  {:>14}", "invariant", "checks", "violations");
    for invariant in
        Invariant::ALL.into_iter().chain(violations.keys().copied().filter(|i| *i == Invariant::Simulation))
    {
        let count = violations.get(&invariant).copied().unwrap_or(0);
        let checks = figures.checks.of(invariant);
        println!("{invariant:>28}  {checks:>14}  {count:>14}");
    }
    let (histories, undecided) = porcupine::counts();
    println!("\n{histories} histories were judged by porcupine-rs as well, which decided {}", histories - undecided);
    let rate = figures.commands as f64 / took.as_secs_f64();
    let hours = figures.simulated_hours() / (took.as_secs_f64() / 60.0);
    println!("\n{:.1} s, {rate:.0} commands/s, {hours:.1} simulated hours per minute", took.as_secs_f64());
}
