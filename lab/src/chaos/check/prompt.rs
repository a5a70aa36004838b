//! How long a request that meets no other owner takes while a node is silent.

use super::Verdict;
use super::model::{Ask, Model, SETTLING};

/// A client that waits for a silent node gives it up after some hundred ms. How long after the beginning of the silence a
/// request certainly would have to wait, in µs.
const UNNOTICED: u64 = 100_000;

/// How long such a request may take from when both it and the silence have begun, in µs.
const PROMPT: u64 = 100_000;

/// On a busy machine a request may be late because a process was not run. One in so many may be. When a client waits for the
/// silent node, nearly all are late.
const TOLERATED: usize = 5;

/// Checks that re-entries do not wait for a node that falls silent while a majority is well.
pub fn reentry_is_prompt(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("ReentryIsPrompt", "a re-entry does not wait for a minority of the nodes that is silent");
    let met = model.asks.iter().filter_map(|ask| Meeting::of(model, ask)).collect::<Vec<_>>();
    let late = met.iter().filter(|meeting| meeting.is_late()).count();
    let is_machine = late * TOLERATED <= met.len();
    for meeting in &met {
        verdict.check(meeting.answered, !meeting.is_late() || is_machine, || {
            format!(
                "worker {} op {} entered {} again {} us after node {} fell silent, as {late} of {} did too late",
                meeting.ask.worker + 1,
                meeting.ask.op,
                meeting.ask.names.join(" "),
                meeting.took,
                meeting.node + 1,
                met.len()
            )
        });
    }
    verdict
}

/// A re-entry that was on its way, or began, when a node fell silent.
struct Meeting<'a> {
    ask: &'a Ask,
    node: usize,
    answered: u64,
    /// Since it and the silence had begun.
    took: u64,
}

impl<'a> Meeting<'a> {
    fn of(model: &Model, ask: &'a Ask) -> Option<Self> {
        let answered = ask.answered()?;
        let silence = model.troubles.iter().find(|trouble| {
            trouble.kind.leaves_unanswered()
                && trouble.doubt.is_none()
                && trouble.concerns(ask.worker)
                && ask.at <= trouble.at + UNNOTICED
                && trouble.at + SETTLING < answered
                && trouble.at.max(ask.at) + PROMPT <= trouble.healing
        })?;
        let is_calm = !model.worker_was_troubled(ask.worker, ask.at, answered)
            && !model.was_busy(ask.at, answered)
            && model.most_disturbed(ask.worker, ask.at, answered) <= model.spare();
        let took = answered - ask.at.max(silence.at);
        (is_calm && model.is_mere_reentry(ask)).then_some(Self { ask, node: *silence.nodes.first()?, answered, took })
    }

    fn is_late(&self) -> bool {
        self.took > PROMPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    /// Returns a history in which a node falls silent beside a holder that enters again ten times, which takes so long for
    /// `late` of them.
    fn entered_again(kind: Kind, nodes: &[usize], late: u64, takes: u64) -> TestHistory {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
        history.fault(1, kind, nodes, ms(110)..ms(900));
        for op in 0..10_u64 {
            let took = if op < late { takes } else { ms(30) };
            history.entered_again(2 + op, 1, "x", ms(120 + op)..ms(120 + op) + took);
        }
        history
    }

    #[test]
    fn reentries_that_wait_for_a_silent_node_violate_reentry_is_prompt() {
        for (kind, nodes, late, takes, expected) in [
            (Kind::Pause, &[0][..], 8, ms(250), State::Violated),
            (Kind::Pause, &[0], 8, ms(90), State::Held),
            (Kind::Pause, &[0], 1, ms(250), State::Held),
            (Kind::Pause, &[0, 1], 8, ms(250), State::NotExercised),
            (Kind::Restart, &[0], 8, ms(250), State::NotExercised),
        ] {
            let history = entered_again(kind, nodes, late, takes);
            assert_eq!(reentry_is_prompt(&history.model()).state, expected, "{kind}, {late} of 10 take {takes} us");
        }
    }

    #[test]
    fn a_request_long_after_the_beginning_of_a_silence_says_nothing() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
        history.fault(1, Kind::Pause, &[0], ms(110)..ms(900));
        history.entered_again(2, 1, "x", ms(400)..ms(650));
        assert_eq!(reentry_is_prompt(&history.model()).state, State::NotExercised);
    }
}
