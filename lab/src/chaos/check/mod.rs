//! The checks of a history: pure functions, one for each invariant.

mod exclusion;
mod guard;
mod liveness;
mod model;
mod read;
mod release;
mod storm;
#[cfg(test)]
mod story;
mod time;
mod tokens;
mod votes;

use std::time::Duration;

use serde::Serialize;

use super::history::{Event, Setting};
use super::ledger::Audit;
pub use model::{Answer, Ask, Hold, Model, Trouble};

/// The number of violations of one invariant that are described; all are counted.
const DESCRIBED: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Held,
    Violated,
    NotExercised,
    /// Data that the check needs is missing. It counts as a failure.
    Unknown,
}

/// The result of one invariant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    #[serde(skip)]
    pub name: &'static str,
    #[serde(rename = "verdict")]
    pub state: State,
    /// How often it was checked and could have been violated.
    pub checks: u64,
    pub violations: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub described: Vec<String>,
    /// The number of checks below which a run of all kinds of faults has not exercised it.
    pub least: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<First>,
    /// What it states, for people.
    #[serde(skip)]
    pub meaning: &'static str,
    /// When each check was decided.
    #[serde(skip)]
    times: Vec<u64>,
    #[serde(skip)]
    violated_at: Option<u64>,
}

/// The earliest violation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct First {
    /// Since the first worker was ready.
    pub seconds: f64,
    /// The number of checks that were decided until then.
    pub checks: u64,
}

impl Verdict {
    fn of(name: &'static str, meaning: &'static str) -> Self {
        Self {
            name,
            state: State::NotExercised,
            checks: 0,
            violations: 0,
            described: Vec::new(),
            least: 1,
            first: None,
            meaning,
            times: Vec::new(),
            violated_at: None,
        }
    }

    /// Sets how many checks a run with all kinds of faults must make.
    fn at_least(self, least: u64) -> Self {
        Self { least, ..self }
    }

    /// Records a check that was decided at `at`, and whether it held. `what` describes a violation.
    fn check(&mut self, at: u64, is_so: bool, what: impl FnOnce() -> String) {
        self.checks += 1;
        self.times.push(at);
        if is_so {
            if self.state == State::NotExercised {
                self.state = State::Held;
            }
            return;
        }
        self.state = State::Violated;
        self.violations += 1;
        self.violated_at = Some(self.violated_at.map_or(at, |before| before.min(at)));
        if self.described.len() < DESCRIBED {
            self.described.push(what());
        }
    }

    /// Finds the first violation. Where too few checks were made, the invariant was not exercised.
    fn finished(mut self, begin: u64) -> Self {
        if self.state == State::Held && self.checks < self.least {
            self.state = State::NotExercised;
        }
        self.first = self.violated_at.map(|violated| First {
            seconds: Duration::from_micros(violated.saturating_sub(begin)).as_secs_f64(),
            checks: self.times.iter().filter(|at| **at <= violated).count() as u64,
        });
        self.times = Vec::new();
        self
    }

    fn unknown(&mut self, why: &str) {
        if self.state != State::Violated {
            self.state = State::Unknown;
        }
        self.described.push(why.to_owned());
    }
}

/// Input of the checks that is not among the events.
pub struct Beside<'a> {
    pub audit: Option<&'a Audit>,
    /// Whether the run completed, so that the nodes must have been scanned.
    pub complete: bool,
    /// The part of a run with all kinds of faults that this one is, in thousandths. It must make that part of the checks.
    pub thousandths: u64,
}

/// Checks every invariant that a run can exercise.
pub fn all(model: &Model, beside: &Beside<'_>) -> Vec<Verdict> {
    let verdicts = vec![
        exclusion::mutual_exclusion(model),
        exclusion::reentrant_depth(model),
        tokens::token_unique(model),
        tokens::token_monotonic(model),
        tokens::token_stable(model),
        tokens::fenced_store(model, beside.audit),
        release::release_safe(model),
        release::release_takes_effect(model),
        votes::no_false_grant(model),
        time::no_resurrection(model),
        time::loss_on_time(model),
        time::warns_before_loss(model),
        liveness::no_orphan(model, beside.complete),
        time::lease_never_shrinks(model),
        guard::remaining_is_true(model),
        guard::margin_is_true(model),
        liveness::free_after_ttl(model),
        liveness::keeps_while_well(model),
        liveness::minority_fault_live(model, beside.complete),
        votes::quarantine_holds(model),
        storm::no_storm(model),
    ];
    let part = |least: u64| (least * beside.thousandths.min(1000) / 1000).max(1);
    verdicts
        .into_iter()
        .map(|verdict| Verdict { least: part(verdict.least), ..verdict }.finished(model.begin))
        .collect()
}

/// Reads the events, in any order.
pub fn model(events: &[Event], setting: &Setting) -> Model {
    Model::read(events, setting)
}
