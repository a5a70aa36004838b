//! The checks of a history: pure functions, one for each invariant.

mod endings;
mod exclusion;
mod guard;
mod liveness;
mod model;
mod outside;
mod prompt;
mod read;
mod release;
mod storm;
#[cfg(test)]
mod test_history;
mod time;
mod tokens;
mod votes;

use std::time::Duration;

use serde::Serialize;

use super::history::{Event, Setting};
use super::ledger::Audit;
pub use model::{Answer, Ask, Hold, Model, Trouble};
pub use outside::{Grant, grants};

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
    // About a tenth of what a run of 90 s makes: fewer checks say little.
    let verdicts = vec![
        exclusion::mutual_exclusion(model).at_least(250),
        exclusion::reentrant_depth(model).at_least(300),
        exclusion::reentry_is_granted(model).at_least(20),
        tokens::token_unique(model).at_least(150),
        tokens::token_monotonic(model).at_least(150),
        tokens::token_stable(model).at_least(500),
        tokens::fenced_store(model, beside.audit).at_least(50),
        release::release_safe(model).at_least(2),
        release::release_is_confirmed(model).at_least(20),
        release::release_takes_effect(model).at_least(30),
        votes::no_false_grant(model).at_least(200),
        time::no_resurrection(model).at_least(3),
        time::loss_on_time(model).at_least(10),
        time::warns_before_loss(model).at_least(8),
        endings::no_orphan(model, beside.complete),
        time::lease_never_shrinks(model).at_least(500),
        guard::remaining_is_true(model).at_least(1000),
        guard::margin_is_true(model).at_least(20),
        endings::free_after_ttl(model).at_least(20),
        liveness::keeps_while_well(model).at_least(2),
        liveness::minority_fault_live(model, beside.complete).at_least(100),
        prompt::reentry_is_prompt(model).at_least(5),
        votes::quarantine_holds(model),
        storm::no_storm(model).at_least(50),
    ];
    finished(model, beside, verdicts)
}

/// Checks what the nodes show while a program is tested.
pub fn of_program(model: &Model, beside: &Beside<'_>) -> Vec<Verdict> {
    let verdicts = vec![
        outside::one_holder(model),
        outside::granted_by_vote(model),
        outside::tokens_grow(model),
        endings::no_orphan(model, beside.complete),
    ];
    finished(model, beside, verdicts)
}

fn finished(model: &Model, beside: &Beside<'_>, verdicts: Vec<Verdict>) -> Vec<Verdict> {
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

#[cfg(test)]
mod tests {
    use super::test_history::{TestHistory, ms};
    use super::*;

    #[test]
    fn too_few_checks_exercise_nothing() {
        for (least, expected) in [(2, State::Held), (3, State::NotExercised)] {
            let mut verdict = Verdict::of("X", "").at_least(least);
            verdict.check(5, true, String::new);
            verdict.check(7, true, String::new);
            assert_eq!(verdict.finished(0).state, expected);
        }
    }

    #[test]
    fn the_first_violation_is_the_earliest() {
        let mut verdict = Verdict::of("X", "").at_least(100);
        for (at, is_so) in [(4_000_000, false), (1_000_000, true), (2_500_000, false), (3_000_000, true)] {
            verdict.check(at, is_so, String::new);
        }
        let verdict = verdict.finished(500_000);
        assert_eq!((verdict.state, verdict.first), (State::Violated, Some(First { seconds: 2.0, checks: 2 })));
    }

    #[test]
    fn a_short_run_must_make_a_part_of_the_checks() {
        let mut history = TestHistory::new(3);
        history.held(1, "a", "x", 10, ms(100)..ms(200));
        history.held(2, "b", "x", 11, ms(300)..ms(400));
        for (thousandths, expected) in [(1, State::Held), (1000, State::NotExercised)] {
            let verdicts = all(&history.model(), &Beside { audit: None, complete: false, thousandths });
            let exclusion = verdicts.iter().find(|verdict| verdict.name == "MutualExclusion").map(|it| it.state);
            assert_eq!(exclusion, Some(expected));
        }
    }
}
