//! What a release says, and what it leaves on the nodes.

use super::Verdict;
use super::model::{Answer, Ask, Model, Seen};
use crate::chaos::history::{Leaving, Outcome};

/// Checks that a release after the loss does not claim that the lock was held until then.
pub fn release_safe(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("ReleaseSafe", "a release after the loss says that the lock was not held any more");
    for hold in &model.holds {
        let (Some((lost, _)), Some((left, Leaving::Release))) = (hold.lost, hold.leave) else { continue };
        if let (true, Some((at, outcome, _))) = (lost < left, hold.left) {
            verdict.check(at, outcome != Outcome::Released, || format!("{} was released after its loss", hold.named()));
        }
    }
    verdict
}

/// Checks that a release of a lease that is in force, while all is well, says that the lock was held until then.
pub fn release_is_confirmed(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("ReleaseIsConfirmed", "a release says that the lock was held until then, when it was");
    for hold in &model.holds {
        let (Some((leave, Leaving::Release)), Some((at, outcome, _)), None) = (hold.leave, hold.left, hold.lost) else {
            continue;
        };
        let Ask { worker, .. } = hold.ask;
        let is_well = hold.deadline() > at
            && !model.worker_was_troubled(worker, leave, at)
            && !model.was_busy(leave, at)
            && !model.is_young(hold.ask.life, leave)
            && model.most_disturbed(worker, hold.granted, at) == 0;
        if is_well {
            verdict
                .check(at, outcome == Outcome::Released, || format!("{}: its release said {outcome:?}", hold.named()));
        }
    }
    verdict
}

/// Checks that no majority of the nodes has the lock for its owner after a release that a majority has confirmed, or some time
/// after a drop or a cancelled request.
pub fn release_takes_effect(model: &Model) -> Verdict {
    let mut verdict = Verdict::of(
        "ReleaseTakesEffect",
        "what was released, dropped or cancelled is held by its owner on no majority of the nodes",
    );
    let quorum = model.setting.nodes - model.spare();
    for seen in model.seen.iter().filter(|seen| seen.answered >= quorum && must_be_gone(model, seen)) {
        verdict.check(seen.at, seen.held < quorum, || {
            let what = model.asks.iter().find(|ask| ask.op == seen.op);
            let names = what.map(|ask| ask.names.join(" ")).unwrap_or_default();
            format!("op {} on {names} was given back, and {} of {} nodes have it", seen.op, seen.held, seen.answered)
        });
    }
    verdict
}

fn must_be_gone(model: &Model, seen: &Seen) -> bool {
    let hold = model.hold(seen.op);
    if hold.is_some_and(|hold| hold.leave.is_none_or(|(at, _)| seen.at <= at)) {
        return false;
    }
    if let Some((_, outcome, _)) = hold.and_then(|hold| hold.left) {
        return outcome == Outcome::Released;
    }
    let Some(ask) = model.asks.iter().find(|ask| ask.op == seen.op) else { return false };
    let left = hold.and_then(|hold| hold.leave).map(|(at, _)| at);
    let cancelled = if let Answer::Cancelled(at) = ask.answer { Some(at) } else { None };
    let Some(since) = left.or(cancelled) else { return false };
    // The release was not awaited: it arrives where nothing keeps it.
    !model.worker_was_troubled(ask.worker, since, seen.at)
        && !model.stood_still(since, seen.at)
        && model.most_disturbed(ask.worker, since, seen.at) <= model.spare()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_confirmed_release_after_the_loss_violates_release_safe() {
        for (lost, expected) in [(ms(500), State::Violated), (ms(700), State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.lost(1, lost, ms(500));
            history.released(1, ms(600), 0);
            assert_eq!(release_safe(&history.model()).state, expected, "lost at {lost} us");
        }
    }

    #[test]
    fn a_release_that_says_nothing_was_held_violates_release_is_confirmed() {
        for (outcome, nodes, expected) in [
            (Outcome::Released, &[][..], State::Held),
            (Outcome::NotHeld, &[], State::Violated),
            (Outcome::Unconfirmed, &[], State::Violated),
            (Outcome::Unconfirmed, &[0], State::NotExercised),
        ] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.fault(1, Kind::Cut, nodes, ms(150)..ms(900));
            history.left(1, ms(200), outcome);
            assert_eq!(release_is_confirmed(&history.model()).state, expected, "{outcome:?}, {nodes:?}");
        }
    }

    #[test]
    fn a_majority_that_has_what_was_released_violates_release_takes_effect() {
        for (answered, held, expected) in [(3, 1, State::Held), (3, 2, State::Violated), (1, 1, State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.held(1, "a", "x", 10, ms(100)..ms(200));
            history.seen(1, ms(210), answered, held);
            assert_eq!(release_takes_effect(&history.model()).state, expected, "{held} of {answered}");
        }
    }

    #[test]
    fn a_dropped_hold_may_stay_where_a_fault_keeps_its_release() {
        for (nodes, expected) in [(&[0][..], State::Violated), (&[0, 1][..], State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.dropped(1, ms(200));
            history.fault(1, Kind::Cut, nodes, ms(150)..ms(900));
            history.seen(1, ms(500), 3, 2);
            assert_eq!(release_takes_effect(&history.model()).state, expected, "{nodes:?}");
        }
    }
}
