//! The results of a run: figures, verdicts, and their files.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::check::{self, Beside, Hold, Model, State, Verdict};
use super::code;
use super::fault::{Kind, Scale};
use super::history::{Refusal, Setting};
use super::ledger::Audit;
use super::options::{Options, new_file};
use super::progress::named;
use super::report;
use super::run::{Raw, left_out};
use crate::messages;

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
    pub ledger: LedgerResults,
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

pub struct Outcome {
    pub results: Results,
    pub verdicts: Vec<Verdict>,
    pub model: Model,
}

fn count(items: impl Iterator) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}

impl Outcome {
    #[expect(clippy::too_many_lines, reason = "it fills one table of results")]
    pub fn of(options: &Options, raw: &Raw) -> Self {
        let setting = Setting { nodes: options.nodes, lease: options.lease_ms() * 1000, fencing: options.fencing };
        let model = check::model(&raw.events, &setting);
        let verdicts = check::all(
            &model,
            &Beside {
                audit: raw.audit.as_ref(),
                complete: raw.interrupted.is_none(),
                thousandths: options.thousandths(),
            },
        );
        let ledger = LedgerResults {
            database: if options.postgres.is_some() { "PostgreSQL" } else { "SQLite" },
            fencing: options.fencing,
            stale_writes_rejected: count(model.holds.iter().filter(|hold| hold.write.is_some_and(|(.., done)| !done))),
            stale_writes_accepted: raw.audit.as_ref().map_or(0, |audit| audit.stale_accepted as u64),
            sound: raw.audit.as_ref().is_some_and(Audit::is_sound),
            audit: raw.audit.clone(),
        };
        let mut faults = BTreeMap::new();
        let mut outages = 0;
        for trouble in model.troubles.iter().filter(|trouble| trouble.doubt.is_none()) {
            *faults.entry(trouble.kind.name()).or_default() += 1;
            outages += u64::from(trouble.scale == Scale::Majority && !trouble.kind.forgets());
        }
        let missing = missing(options, raw, &verdicts, &faults, &ledger);
        let mut notes = raw.no_clocks.iter().map(|why| format!("no clock was touched: {why}")).collect::<Vec<_>>();
        if !raw.skipped.is_empty() {
            let skipped: Vec<String> = raw.skipped.iter().map(left_out).collect();
            notes.push(format!("left out, as the machine was too late for the plan: {}", skipped.join("; ")));
        }
        notes.extend(model.troubles.iter().filter_map(not_done));
        if !model.standstills.is_empty() {
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
            grants: count(model.holds.iter().filter(|hold| hold.ask.within.is_none())),
            reentries: count(model.holds.iter().filter(|hold| hold.ask.within.is_some())),
            extensions: extensions(&model),
            losses: count(model.holds.iter().filter(|hold| hold.lost.is_some() && hold.ask.within.is_none())),
            refused: refused(&model),
            standstills: model.standstills.len() as u64,
            standstill_ms: model.standstills.iter().map(|(from, to)| (to - from) / 1000).sum(),
            violations: verdicts.iter().map(|verdict| verdict.violations).sum(),
            invariants: verdicts.iter().map(|verdict| (verdict.name, verdict.clone())).collect(),
            ledger,
            missing,
            problems: raw.problems.clone(),
            notes,
        };
        let mut outcome = Self { results, verdicts, model };
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
        } else if !self.results.missing.is_empty() || !self.results.problems.is_empty() {
            code::NOT_EXERCISED
        } else if !self.results.ledger.fencing {
            code::LOST_UPDATES
        } else {
            0
        }
    }

    fn word(&self) -> &'static str {
        match self.code() {
            0 => "held",
            code::VIOLATED => "violated",
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
            let needs_spare = ["QuarantineHolds"].contains(&verdict.name);
            if !needs_spare || raw.settings.spare() > 0 {
                missing.push(format!("a case of {}", verdict.name));
            }
        }
    }
    missing
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
    if outcome.code() != 0 && raw.interrupted.is_none() {
        messages::error(format_args!("{}; to repeat the plan: {}", outcome.results.verdict, outcome.results.command));
    }
    Ok(())
}

fn summarize(options: &Options, outcome: &Outcome) {
    let Results { seconds, grants, reentries, extensions, losses, violations, commands, ledger, .. } = &outcome.results;
    let faults: u64 = outcome.results.faults.values().sum();
    let say = |text: std::fmt::Arguments<'_>| messages::Verbosity::Normal.notice(text);
    say(format_args!(
        "{seconds} s, {faults} faults: {grants} grants, {reentries} re-entries, {extensions} extensions, {losses} losses, \
         {commands} commands; {violations} violations"
    ));
    let transfers = ledger.audit.as_ref().map_or(0, |audit| audit.transfers);
    let lost = ledger.audit.as_ref().map_or(0, |audit| audit.lost_updates);
    say(format_args!(
        "ledger: {transfers} transfers, {} stale writes rejected, {} accepted, {lost} updates lost",
        ledger.stale_writes_rejected, ledger.stale_writes_accepted
    ));
    for note in outcome.results.notes.iter().filter(|note| note.starts_with("not done")) {
        say(format_args!("{note}"));
    }
    if !outcome.results.missing.is_empty() {
        say(format_args!("not seen: {}", outcome.results.missing.join(", ")));
    }
    say(format_args!("report: {}", options.out.join("report.html").display()));
}
