//! Mutual exclusion, and the nesting depth of holds.

use std::collections::BTreeMap;

use super::Verdict;
use super::model::{Answer, Hold, Model};
use crate::chaos::history::Outcome;

/// Checks that no lock is granted while another owner believes to hold it.
pub fn mutual_exclusion(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("MutualExclusion", "no two owners believe at the same time that they hold a lock");
    let mut by_name: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    for hold in &model.holds {
        for name in &hold.ask.names {
            by_name.entry(name).or_default().push(hold);
        }
    }
    for (name, holds) in by_name {
        // The holds are in the order of their grants. `longest` is the earlier hold whose holder believes in it for longest.
        let mut longest: Option<&Hold> = None;
        // A lease that was over when its holder first read it was never relied on.
        for hold in holds.into_iter().filter(|hold| hold.believed_until() > hold.granted) {
            if let Some(before) = longest {
                let apart = before.owner == hold.owner || before.believed_until() <= hold.granted;
                verdict.check(hold.granted, apart, || {
                    let overlap = before.believed_until().min(hold.believed_until()).saturating_sub(hold.granted);
                    format!("{name}: {} while {} held it, for {overlap} us", hold.named(), before.named())
                });
            }
            if longest.is_none_or(|before| before.believed_until() < hold.believed_until()) {
                longest = Some(hold);
            }
        }
    }
    verdict
}

/// Checks the depth that guards show at the grant and at the release.
pub fn reentrant_depth(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("ReentrantDepth", "the guard shows the nesting depth at the grant and at the release");
    for hold in &model.holds {
        let outer = model.around(hold).filter(|outer| outer.ask.names.contains(&hold.ask.names[0]));
        let depth = 1 + u32::try_from(outer.count()).unwrap_or(u32::MAX - 1);
        verdict.check(hold.granted, hold.depth == depth, || {
            format!("{}: {} deep and not {depth}", hold.named(), hold.depth)
        });
        if let Some((at, Outcome::Released, Some(left))) = hold.left {
            verdict.check(at, left == depth - 1, || format!("{}: left at {left} and not {}", hold.named(), depth - 1));
        }
    }
    verdict
}

/// Checks that an owner that has a lock, and waits, enters it again while all is well.
pub fn reentry_is_granted(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("ReentryIsGranted", "an owner that holds a lock is granted it again");
    for ask in model.asks.iter().filter(|ask| ask.waits && model.is_mere_reentry(ask)) {
        let (is_granted, at) = match ask.answer {
            Answer::Granted(at) => (true, at),
            Answer::Refused(_, at) => (false, at),
            Answer::Cancelled(_) | Answer::None => continue,
        };
        let is_well = !model.worker_was_troubled(ask.worker, ask.at, at)
            && !model.was_busy(ask.at, at)
            && !model.is_young(ask.life, ask.at)
            && model.most_disturbed(ask.worker, ask.at, at) == 0;
        if is_well {
            verdict.check(at, is_granted, || {
                let (worker, names) = (ask.worker + 1, ask.names.join(" "));
                format!("worker {worker} op {} could not enter {names} again: {:?}", ask.op, ask.answer)
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_lease_that_was_over_at_its_first_reading_overlaps_nothing() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, 0);
        history.lost(1, ms(101), 0);
        history.granted(2, "b", "x", 11, ms(90), 1, ms(400));
        assert_ne!(mutual_exclusion(&history.model()).state, State::Violated);
        assert_ne!(crate::chaos::check::time::loss_on_time(&history.model()).state, State::Violated);
    }

    #[test]
    fn two_consecutive_holds_do_not_overlap() {
        let mut history = TestHistory::new(3);
        history.held(1, "a", "x", 10, 100..200);
        history.held(2, "b", "x", 11, 200..300);
        assert_eq!(mutual_exclusion(&history.model()).state, State::Held);
    }

    #[test]
    fn two_overlapping_holds_violate_mutual_exclusion() {
        let mut history = TestHistory::new(3);
        history.held(1, "a", "x", 10, 100..200);
        history.held(2, "b", "x", 11, 150..160);
        history.held(3, "c", "y", 11, 150..160);
        let verdict = mutual_exclusion(&history.model());
        assert_eq!((verdict.state, verdict.violations), (State::Violated, 1), "{verdict:?}");
    }

    #[test]
    fn a_long_hold_is_compared_after_a_short_one() {
        let mut history = TestHistory::new(3);
        history.held(1, "a", "x", 10, 100..900);
        history.held(2, "a", "x", 10, 200..300);
        history.held(3, "b", "x", 11, 400..500);
        assert_eq!(mutual_exclusion(&history.model()).violations, 1);
    }

    #[test]
    fn a_hold_ends_when_its_loss_is_signalled() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, 100, 1, 1000);
        history.lost(1, 400, 400);
        history.held(2, "b", "x", 11, 500..600);
        assert_eq!(mutual_exclusion(&history.model()).state, State::Held);
    }

    #[test]
    fn a_wrong_depth_violates_reentrant_depth() {
        for (inner, left, expected) in [(2, 1, State::Held), (1, 1, State::Violated), (2, 2, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, 100, 1, 1000);
            history.nested(2, 1, "a", "x", 10, 120, inner);
            history.released(2, 130, left);
            history.released(1, 150, 0);
            assert_eq!(reentrant_depth(&history.model()).state, expected, "{inner} {left}");
        }
    }

    #[test]
    fn a_holder_that_may_not_enter_again_violates_reentry_is_granted() {
        for (nodes, expected) in [(&[][..], State::Violated), (&[0], State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.fault(1, Kind::Cut, nodes, ms(150)..ms(900));
            history.entry_refused(2, 1, "x", ms(300)..ms(310));
            assert_eq!(reentry_is_granted(&history.model()).state, expected, "{nodes:?}");
        }
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
        history.entered_again(2, 1, "x", ms(300)..ms(310));
        assert_eq!(reentry_is_granted(&history.model()).state, State::Held);
        history.entry_refused(3, 1, "x", ms(320)..ms(330));
        history.lost(1, ms(400), ms(400));
        assert_eq!(reentry_is_granted(&history.model()).state, State::NotExercised, "its hold was lost");
    }
}
