//! No grant without a majority, and no vote from a node that has lost its memory.

use super::Verdict;
use super::guard::drift;
use super::model::{Answer, Ask, Model};
use crate::chaos::history::Refusal;

/// Checks that every grant has validity left, and that enough nodes can have answered it.
pub fn no_false_grant(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("NoFalseGrant", "every grant has validity left, and a majority can have granted it");
    for hold in &model.holds {
        let first = &hold.readings[0];
        // A process that did not run between the grant and the reading finds no validity left.
        let was_stopped = model.pauses(hold.ask.worker, hold.ask.at, hold.granted).next().is_some();
        if !was_stopped && !model.was_busy(hold.ask.at, hold.granted) {
            verdict
                .check(hold.granted, first.remaining > 0, || format!("{} was spent when it was granted", hold.named()));
        }
    }
    for hold in &model.holds {
        for reading in hold.readings.iter().filter(|reading| reading.remaining > 0) {
            // The earliest start of the round that can have given this validity.
            let lease = hold.ask.lease.saturating_sub(drift(hold.ask.lease));
            let began = (reading.from + reading.remaining).saturating_sub(lease);
            if model.silent(hold.ask.worker, reading.from, reading.from).len() <= model.spare() {
                continue;
            }
            let silent = model.silent(hold.ask.worker, began.min(reading.from), reading.from);
            verdict.check(reading.at, silent.len() <= model.spare(), || {
                format!("{} was extended while nodes {silent:?} could not answer", hold.named())
            });
        }
    }
    for (ask, at) in answered(model) {
        let silent = model.silent(ask.worker, ask.at, at);
        if silent.len() > model.spare() {
            let granted = matches!(ask.answer, Answer::Granted(_));
            verdict.check(at, !granted, || format!("{} while nodes {silent:?} could not answer", named(ask)));
        }
    }
    verdict
}

/// Checks that no majority needs a node that has lost its votes.
pub fn quarantine_holds(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("QuarantineHolds", "a node that may have forgotten its votes is not counted for one lease");
    for (ask, at) in answered(model) {
        let silent = model.silent(ask.worker, ask.at, at);
        let mut missing = model.quarantined(ask.at, at);
        missing.extend(&silent);
        // When unanswering nodes alone are the reason, quarantine was not exercised.
        if silent.len() <= model.spare() && missing.len() > model.spare() {
            let granted = matches!(ask.answer, Answer::Granted(_));
            verdict.check(at, !granted, || {
                format!("{} by nodes that were in quarantine: without {missing:?}", named(ask))
            });
        }
    }
    verdict
}

/// Returns the requests that asked for votes and got enough of them, or did not, with the times of their answers. Others may
/// have sent no message.
fn answered(model: &Model) -> impl Iterator<Item = (&Ask, u64)> {
    let asks = model.asks.iter().filter_map(|ask| Some((ask, ask.answered()?)));
    asks.filter(|(ask, _)| {
        matches!(ask.answer, Answer::Granted(_) | Answer::Refused(Refusal::NoQuorum | Refusal::TooLate, _))
    })
}

fn named(ask: &Ask) -> String {
    format!("worker {} op {} on {} was granted", ask.worker + 1, ask.op, ask.names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_spent_grant_violates_no_false_grant() {
        for (remaining, expected) in [(1, State::Held), (0, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, 100, 1, remaining);
            assert_eq!(no_false_grant(&history.model()).state, expected);
        }
    }

    #[test]
    fn a_grant_that_was_spent_while_the_machine_stood_still_violates_nothing() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(600), 1, 0);
        history.stalled(0, ms(100)..ms(590));
        assert_ne!(no_false_grant(&history.model()).state, State::Violated);
    }

    #[test]
    fn a_grant_during_an_outage_violates_no_false_grant() {
        for (silent, expected) in [(1, State::Held), (2, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Cut, &[0], ms(100)..ms(900));
            if silent == 2 {
                history.fault(2, Kind::Pause, &[2], ms(100)..ms(900));
            }
            history.asked(1, "a", "x", ms(300));
            history.grant(1, "a", 10, ms(310), 1, ms(500));
            assert_eq!(no_false_grant(&history.model()).state, expected, "{silent} silent");
        }
    }

    #[test]
    fn an_extension_during_an_outage_violates_no_false_grant() {
        for (remaining, expected) in [(ms(500), State::Held), (ms(950), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(50), 1, ms(900));
            history.fault(1, Kind::Cut, &[0, 1], ms(200)..ms(900));
            history.valid(1, ms(400), remaining, 10);
            assert_eq!(no_false_grant(&history.model()).state, expected, "{remaining} us");
        }
    }

    #[test]
    fn an_outage_that_ends_during_the_request_does_not_count() {
        let mut history = TestHistory::new(3);
        history.fault(1, Kind::Cut, &[0, 1], ms(100)..ms(305));
        history.asked(1, "a", "x", ms(300));
        history.grant(1, "a", 10, ms(310), 1, ms(500));
        assert_eq!(no_false_grant(&history.model()).state, State::Held);
    }

    #[test]
    fn a_vote_from_quarantine_violates_quarantine_holds() {
        for (asked, expected) in [(600, State::Violated), (1200, State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Forget, &[0], ms(100)..ms(200));
            history.fault(2, Kind::Cut, &[1], ms(100)..ms(1500));
            history.asked(1, "a", "x", ms(asked));
            history.grant(1, "a", 10, ms(asked + 10), 1, ms(500));
            assert_eq!(quarantine_holds(&history.model()).state, expected, "asked at {asked} ms, the lease is 1 s");
        }
    }

    #[test]
    fn clocks_set_ahead_end_no_quarantine() {
        for seen in [true, false] {
            let mut history = TestHistory::new(3);
            history.stepped(3, &[0, 1, 2], ms(300)..ms(2000), 600_000);
            history.fault(2, Kind::Cut, &[1], ms(100)..ms(1500));
            history.fault(1, Kind::Flush, &[0], ms(100)..ms(101));
            if !seen {
                history.doubted();
            }
            history.asked(1, "a", "x", ms(600));
            history.grant(1, "a", 10, ms(610), 1, ms(500));
            let expected = if seen { State::Violated } else { State::NotExercised };
            assert_eq!(quarantine_holds(&history.model()).state, expected);
        }
    }

    #[test]
    fn a_refusal_exercises_quarantine_holds() {
        let mut history = TestHistory::new(3);
        history.fault(1, Kind::Forget, &[0], ms(100)..ms(200));
        history.fault(2, Kind::Cut, &[1], ms(100)..ms(1500));
        history.asked(1, "a", "x", ms(600));
        history.refused(1, Refusal::NoQuorum, ms(900));
        assert_eq!(quarantine_holds(&history.model()).state, State::Held);
    }
}
