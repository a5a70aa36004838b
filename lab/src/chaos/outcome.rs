//! The results of a run: figures, verdicts, and their files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;

use super::check::{self, Beside, Grant, Hold, Model, State, Verdict};
use super::code;
use super::fault::{Kind, Scale};
use super::history::{Ending, Refusal, Setting, What};
use super::ledger::Audit;
use super::options::{Options, new_file};
use super::progress::named;
use super::report;
use super::run::{Raw, left_out};
use crate::exit::ended_by;
use crate::messages::{self, shown};

/// `results.json`.
#[derive(Serialize)]
pub struct Results {
    pub command: String,
    pub seeds: Vec<u64>,
    pub verdict: &'static str,
    /// How long there were faults.
    pub seconds: f64,
    pub interrupted: bool,
    pub nodes: usize,
    pub workers: usize,
    pub lease_ms: u64,
    /// The commands that the servers report, without those in the last half second before a kill.
    pub commands: u64,
    pub faults: BTreeMap<String, u64>,
    /// The number of outages of a majority.
    pub outages: u64,
    pub requests: u64,
    pub grants: u64,
    pub reentries: u64,
    /// Extensions of holds without a nested hold, where only an extension can have lengthened the lease.
    pub extensions: u64,
    pub losses: u64,
    pub refused: BTreeMap<&'static str, u64>,
    /// How often the machine did not run a process in time, and for how long in total.
    pub standstills: u64,
    pub standstill_ms: u64,
    pub violations: u64,
    pub invariants: BTreeMap<&'static str, Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerResults>,
    /// The program that was tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramResults>,
    /// Required events that did not occur.
    pub missing: Vec<String>,
    pub problems: Vec<String>,
    pub notes: Vec<String>,
}

#[derive(Serialize)]
pub struct LedgerResults {
    pub database: &'static str,
    pub fencing: bool,
    pub stale_writes_rejected: u64,
    pub stale_writes_accepted: u64,
    /// Whether the sum is unchanged and no update was lost.
    pub sound: bool,
    #[serde(flatten)]
    pub audit: Option<Audit>,
}

#[derive(Serialize)]
pub struct ProgramResults {
    pub command: Vec<String>,
    /// As a shell reports it: 128 and the number of the signal that ended it; `None` when the run was interrupted before.
    pub code: Option<u8>,
    /// Whether it ended before the time was over.
    pub ended_early: bool,
    /// The run had to kill processes that SIGTERM had not ended.
    pub killed: bool,
    /// Whether it ended with 0, or by the SIGTERM that the run had sent.
    pub succeeded: bool,
    /// The number of lines that it wrote.
    pub lines: u64,
    /// The names that a majority of the nodes had.
    pub names: u64,
    /// For how long a majority had any of these names, in total.
    pub held_seconds: f64,
    /// The longest time without a new grant.
    pub longest_wait_seconds: f64,
}

pub struct Outcome {
    pub results: Results,
    pub verdicts: Vec<Verdict>,
    pub model: Model,
    /// What a majority of the nodes showed, where a program was tested.
    pub seen: Vec<Grant>,
}

fn count(items: impl Iterator) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}

impl Outcome {
    #[expect(clippy::too_many_lines, reason = "it fills one table of results")]
    pub fn of(options: &Options, raw: &Raw) -> Self {
        let setting = Setting {
            nodes: options.nodes,
            lease: options.lease_ms() * 1000,
            fencing: options.fencing,
            prefix: options.prefix.clone(),
        };
        let model = check::model(&raw.events, &setting);
        let is_program = !options.program.is_empty();
        let judge = if is_program { check::of_program } else { check::all };
        let verdicts = judge(
            &model,
            &Beside {
                audit: raw.audit.as_ref(),
                complete: raw.interrupted.is_none(),
                thousandths: options.thousandths(),
            },
        );
        let seen = check::grants(&model);
        let program = is_program.then(|| program(options, raw, &model, &seen));
        let ledger = (!is_program).then(|| LedgerResults {
            database: if options.postgres.is_some() { "PostgreSQL" } else { "SQLite" },
            fencing: options.fencing,
            stale_writes_rejected: count(model.holds.iter().filter(|hold| hold.write.is_some_and(|(.., done)| !done))),
            stale_writes_accepted: raw.audit.as_ref().map_or(0, |audit| audit.stale_accepted as u64),
            sound: raw.audit.as_ref().is_some_and(Audit::is_sound),
            audit: raw.audit.clone(),
        });
        let mut faults = BTreeMap::new();
        let mut outages = 0;
        for trouble in model.troubles.iter().filter(|trouble| trouble.doubt.is_none()) {
            *faults.entry(trouble.kind.name()).or_default() += 1;
            outages += u64::from(trouble.scale == Scale::Majority && !trouble.kind.forgets());
        }
        let missing = match &ledger {
            Some(ledger) => missing(options, raw, &verdicts, &faults, ledger),
            None => missing_of_program(raw, &seen),
        };
        let mut notes = raw.no_clocks.iter().map(|why| format!("no clock was touched: {why}")).collect::<Vec<_>>();
        if !raw.skipped.is_empty() {
            let skipped: Vec<String> = raw.skipped.iter().map(left_out).collect();
            notes.push(format!("left out, as the machine was too late for the plan: {}", skipped.join("; ")));
        }
        notes.extend(model.troubles.iter().filter_map(not_done));
        if !model.standstills.is_empty() && !is_program {
            notes.push(format!(
                "the machine had no time for one process or another {} times; whether requests were answered, and losses \
                 signalled, in time is not judged there",
                model.standstills.len()
            ));
        }
        let results = Results {
            command: options.command(),
            seeds: vec![options.seed],
            verdict: "",
            seconds: (raw.elapsed.as_secs_f64() * 10.0).round() / 10.0,
            interrupted: raw.interrupted.is_some(),
            nodes: options.nodes,
            workers: options.workers,
            lease_ms: options.lease_ms(),
            commands: raw.commands,
            faults,
            outages,
            requests: model.asks.len() as u64,
            grants: count(model.holds.iter().filter(|hold| hold.ask.within.is_none())) + distinct(&seen),
            reentries: count(model.holds.iter().filter(|hold| hold.ask.within.is_some())),
            extensions: extensions(&model),
            losses: count(model.holds.iter().filter(|hold| hold.lost.is_some() && hold.ask.within.is_none())),
            refused: refused(&model),
            standstills: model.standstills.len() as u64,
            standstill_ms: model.standstills.iter().map(|(from, to)| (to - from) / 1000).sum(),
            violations: verdicts.iter().map(|verdict| verdict.violations).sum(),
            invariants: verdicts.iter().map(|verdict| (verdict.name, verdict.clone())).collect(),
            ledger,
            program,
            missing,
            problems: raw.problems.clone(),
            notes,
        };
        let mut outcome = Self { results, verdicts, model, seen };
        outcome.results.verdict = outcome.word();
        outcome
    }

    fn is_violated(&self) -> bool {
        let bad = |verdict: &Verdict| matches!(verdict.state, State::Violated | State::Unknown);
        self.verdicts.iter().any(bad)
    }

    pub fn code(&self) -> u8 {
        if self.is_violated() {
            code::VIOLATED
        } else if self.results.program.as_ref().is_some_and(|program| !program.succeeded) {
            code::PROGRAM_FAILED
        } else if !self.results.missing.is_empty() || !self.results.problems.is_empty() {
            code::NOT_EXERCISED
        } else if self.results.ledger.as_ref().is_some_and(|ledger| !ledger.fencing) {
            code::LOST_UPDATES
        } else {
            0
        }
    }

    fn word(&self) -> &'static str {
        match self.code() {
            0 | code::NOT_EXERCISED | code::LOST_UPDATES if self.results.interrupted => "interrupted",
            0 => "held",
            code::VIOLATED => "violated",
            code::PROGRAM_FAILED => "the command failed",
            code::LOST_UPDATES => "updates lost without fencing, as they should be",
            _ => "not exercised",
        }
    }
}

/// Returns the description of a fault without an observed effect.
fn not_done(trouble: &check::Trouble) -> Option<String> {
    let why = trouble.doubt.as_ref()?;
    Some(format!("not done: {}: {why}", named(trouble.kind, &trouble.nodes, trouble.worker)))
}

/// Returns the required events that did not occur.
fn missing(
    options: &Options,
    raw: &Raw,
    verdicts: &[Verdict],
    faults: &BTreeMap<String, u64>,
    ledger: &LedgerResults,
) -> Vec<String> {
    let mut missing = Vec::new();
    if raw.interrupted.is_some() {
        return missing;
    }
    if !ledger.fencing {
        if ledger.sound {
            missing.push("a lost update: run again, longer".to_owned());
        }
        return missing;
    }
    if options.wants_all() {
        let planned = |kind: &Kind| raw.plan.faults.iter().any(|fault| fault.kind == *kind);
        for kind in raw.settings.palette().into_iter().filter(planned) {
            if !faults.contains_key(&kind.name()) {
                missing.push(format!("the fault: {kind}"));
            }
        }
        for verdict in verdicts.iter().filter(|verdict| verdict.state == State::NotExercised) {
            // With one or two nodes no failure is tolerated, and no node may lose its memory.
            let needs_spare = NEED_SPARE.contains(&verdict.name);
            if !needs_spare || raw.settings.spare() > 0 {
                missing.push(format!("a case of {}", verdict.name));
            }
        }
    }
    missing
}

/// The invariants that are exercised only beside nodes in trouble that the lock tolerates.
const NEED_SPARE: [&str; 4] = ["MarginIsTrue", "MinorityFaultLive", "QuarantineHolds", "ReentryIsPrompt"];

fn missing_of_program(raw: &Raw, seen: &[Grant]) -> Vec<String> {
    let missing =
        "a lock that a majority of the nodes has: does the command read QUORLOCK_NODES, and is --prefix its prefix?";
    let none = seen.is_empty() && raw.interrupted.is_none();
    none.then(|| missing.to_owned()).into_iter().collect()
}

/// Counts the leases, each once although it may have been hidden for a while.
fn distinct(seen: &[Grant]) -> u64 {
    let leases: BTreeSet<(&str, u64)> = seen.iter().map(|grant| (grant.name.as_str(), grant.lease.token)).collect();
    leases.len() as u64
}

fn program(options: &Options, raw: &Raw, model: &Model, seen: &[Grant]) -> ProgramResults {
    let ended = raw.events.iter().find(|event| matches!(event.what, What::Exit(_))).map_or(model.end, |event| event.at);
    let starts = || seen.iter().map(|grant| grant.from);
    let waits = std::iter::once(model.begin).chain(starts()).zip(starts().chain([ended]));
    let seconds = |micros: u64| (Duration::from_micros(micros).as_secs_f64() * 10.0).round() / 10.0;
    let names: BTreeSet<&str> = seen.iter().map(|grant| grant.name.as_str()).collect();
    ProgramResults {
        command: options.program.iter().map(|argument| shown(argument)).collect(),
        code: raw.ending.map(shell_code),
        ended_early: raw.ending.is_some_and(|ending| !ending.asked),
        killed: raw.ending.is_some_and(|ending| ending.killed),
        succeeded: raw.ending.is_none_or(has_succeeded),
        lines: count(raw.events.iter().filter(|event| matches!(event.what, What::Line { .. }))),
        names: names.len() as u64,
        held_seconds: seconds(seen.iter().map(|grant| grant.until - grant.from).sum()),
        longest_wait_seconds: seconds(waits.map(|(from, to)| to.saturating_sub(from)).max().unwrap_or(0)),
    }
}

fn shell_code(ending: Ending) -> u8 {
    let code = ending.code.and_then(|code| u8::try_from(code).ok());
    code.unwrap_or_else(|| ended_by(ending.signal.unwrap_or_default()))
}

/// Returns whether it ended with 0, or as SIGTERM ends a process.
fn has_succeeded(ending: Ending) -> bool {
    let code = shell_code(ending);
    !ending.killed && (code == 0 || ending.asked && code == ended_by(Signal::TERM.as_raw()))
}

/// Counts the growths of leases that only an extension explains: those before any nested hold.
fn extensions(model: &Model) -> u64 {
    let mut nested: BTreeMap<u64, u64> = BTreeMap::new();
    for ask in &model.asks {
        if let Some(outer) = ask.within {
            nested.entry(outer).or_insert(ask.at);
        }
    }
    let outermost = model.holds.iter().filter(|hold| hold.ask.within.is_none());
    outermost.map(|hold| grown(hold, nested.get(&hold.ask.op).copied().unwrap_or(u64::MAX))).sum()
}

/// Counts the readings up to then that showed a longer lease than before.
fn grown(hold: &Hold, until: u64) -> u64 {
    let mut known = 0;
    let mut times = 0;
    for reading in hold.readings.iter().filter(|reading| reading.at < until) {
        if known > 0 && reading.from + reading.remaining > known + GROWTH {
            times += 1;
        }
        known = known.max(reading.at + reading.remaining);
    }
    times
}

/// The number of lines of a program that failed that are printed.
const LAST_LINES: usize = 10;

/// The least growth of a lease, in µs, that counts as an extension.
const GROWTH: u64 = 2000;

fn refused(model: &Model) -> BTreeMap<&'static str, u64> {
    let mut refused = BTreeMap::new();
    for ask in &model.asks {
        if let check::Answer::Refused(why, _) = ask.answer {
            let word = match why {
                Refusal::Held => "held",
                Refusal::Contended => "contended",
                Refusal::NoQuorum => "no_quorum",
                Refusal::TooLate => "too_late",
                Refusal::Lost => "lost",
                Refusal::Other => "other",
            };
            *refused.entry(word).or_default() += 1;
        }
    }
    refused
}

/// Writes the files, and prints a summary.
pub fn write(options: &Options, raw: &Raw, outcome: &Outcome) -> io::Result<()> {
    let results = serde_json::to_string_pretty(&outcome.results)? + "\n";
    new_file(&options.out.join("report.html"))?.write_all(report::html(options, raw, outcome)?.as_bytes())?;
    new_file(&options.out.join("results.json"))?.write_all(results.as_bytes())?;
    if options.json {
        // A closed pipe is no failure.
        drop(io::stdout().lock().write_all(results.as_bytes()));
    }
    if !options.quiet {
        summarize(options, outcome);
    }
    for verdict in outcome.verdicts.iter().filter(|verdict| matches!(verdict.state, State::Violated | State::Unknown)) {
        let example = verdict.described.first().map(String::as_str).unwrap_or_default();
        messages::error(format_args!(
            "{}: violations: {} in {} checks; {example}",
            verdict.name, verdict.violations, verdict.checks
        ));
    }
    for problem in &outcome.results.problems {
        messages::error(problem);
    }
    if let Some(program) = outcome.results.program.as_ref().filter(|program| !program.succeeded) {
        messages::error(program.words());
        for line in last_lines(raw) {
            messages::error(format_args!("  {line}"));
        }
    }
    if outcome.code() != 0 && raw.interrupted.is_none() {
        messages::error(format_args!("{}; to repeat the plan: {}", outcome.results.verdict, outcome.results.command));
    }
    Ok(())
}

/// Returns the last lines that the program wrote.
fn last_lines(raw: &Raw) -> impl Iterator<Item = &str> {
    let lines = raw.events.iter().filter_map(|event| match &event.what {
        What::Line { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let lines: Vec<&str> = lines.collect();
    let before = lines.len().saturating_sub(LAST_LINES);
    lines.into_iter().skip(before)
}

impl Results {
    /// Says what a run without a violation has exercised: a short one need not exercise every invariant.
    pub fn exercised(&self) -> String {
        let idle = self.invariants.iter().filter(|(_, verdict)| verdict.state == State::NotExercised);
        let idle: Vec<&str> = idle.map(|(name, _)| *name).collect();
        if idle.is_empty() {
            "every required event occurred".to_owned()
        } else {
            format!("these were not exercised: {}", idle.join(", "))
        }
    }
}

impl ProgramResults {
    /// Says how it ended.
    pub fn words(&self) -> String {
        let Some(code) = self.code else { return "the command was ended as the run was interrupted".to_owned() };
        let when = match (self.ended_early, self.killed) {
            (true, false) => "by itself, before the time was over",
            (true, true) => "by itself, and processes that it had started were killed",
            (false, false) => "after SIGTERM",
            (false, true) => "killed, as SIGTERM did not end all its processes",
        };
        format!("the command ended with {code} {when}")
    }
}

fn summarize(options: &Options, outcome: &Outcome) {
    let Results { seconds, grants, reentries, extensions, losses, violations, commands, .. } = &outcome.results;
    let faults: u64 = outcome.results.faults.values().sum();
    let say = |text: std::fmt::Arguments<'_>| messages::Verbosity::Normal.notice(text);
    if let Some(program) = &outcome.results.program {
        say(format_args!(
            "{seconds} s, {faults} faults: {grants} grants seen of {} names, {} s without one at most, {commands} commands; \
             {violations} violations",
            program.names, program.longest_wait_seconds
        ));
        say(format_args!("{}", program.words()));
    }
    if let Some(ledger) = &outcome.results.ledger {
        say(format_args!(
            "{seconds} s, {faults} faults: {grants} grants, {reentries} re-entries, {extensions} extensions, {losses} \
             losses, {commands} commands; {violations} violations"
        ));
        let transfers = ledger.audit.as_ref().map_or(0, |audit| audit.transfers);
        let lost = ledger.audit.as_ref().map_or(0, |audit| audit.lost_updates);
        say(format_args!(
            "ledger: {transfers} transfers, {} stale writes rejected, {} accepted, {lost} updates lost",
            ledger.stale_writes_rejected, ledger.stale_writes_accepted
        ));
    }
    for note in outcome.results.notes.iter().filter(|note| note.starts_with("not done")) {
        say(format_args!("{note}"));
    }
    if !outcome.results.missing.is_empty() {
        say(format_args!("not seen: {}", outcome.results.missing.join(", ")));
    } else if outcome.code() == 0 {
        say(format_args!("{}", outcome.results.exercised()));
    }
    say(format_args!("report: {}", options.out.join("report.html").display()));
}
