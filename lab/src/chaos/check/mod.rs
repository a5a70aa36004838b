//! The checks of a history: pure functions, one for each invariant.

mod exclusion;
mod liveness;
mod model;
mod read;
#[cfg(test)]
mod story;
mod time;
mod tokens;
mod votes;

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
    /// What it states, for people.
    #[serde(skip)]
    pub meaning: &'static str,
}

impl Verdict {
    fn of(name: &'static str, meaning: &'static str) -> Self {
        Self { name, state: State::NotExercised, checks: 0, violations: 0, described: Vec::new(), meaning }
    }

    /// Records a check and whether it held. `what` describes a violation.
    fn check(&mut self, is_so: bool, what: impl FnOnce() -> String) {
        self.checks += 1;
        if is_so {
            if self.state == State::NotExercised {
                self.state = State::Held;
            }
            return;
        }
        self.state = State::Violated;
        self.violations += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(what());
        }
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
}

/// Checks every invariant that a run can exercise.
pub fn all(model: &Model, beside: &Beside<'_>) -> Vec<Verdict> {
    vec![
        exclusion::mutual_exclusion(model),
        exclusion::reentrant_depth(model),
        tokens::token_unique(model),
        tokens::token_monotonic(model),
        tokens::token_stable(model),
        tokens::fenced_store(model, beside.audit),
        votes::no_false_grant(model),
        time::no_resurrection(model),
        time::loss_on_time(model),
        liveness::no_orphan(model, beside.complete),
        time::lease_never_shrinks(model),
        liveness::free_after_ttl(model),
        liveness::keeps_while_well(model),
        liveness::minority_fault_live(model, beside.complete),
        votes::quarantine_holds(model),
    ]
}

/// Reads the events, in any order.
pub fn model(events: &[Event], setting: &Setting) -> Model {
    Model::read(events, setting)
}
