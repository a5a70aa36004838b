//! Leases and their ends.

use super::Verdict;
use super::model::{Answer, Model};

/// The allowed delay of a signal, in µs: the delay of a timer on a machine that is busy with servers and workers.
const LATENESS: u64 = 250_000;

/// Readings are cut to whole µs: two of them may be too small by this much.
const CUT_OFF: u64 = 2;

/// Checks that a lost lease is never valid or entered again.
pub fn no_resurrection(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("NoResurrection", "a lease that was lost is never valid again, nor entered again");
    for hold in &model.holds {
        let Some((lost, _)) = hold.lost else { continue };
        let revived = hold.readings.iter().find(|reading| reading.from > lost && reading.remaining > 0);
        verdict.check(revived.is_none(), || format!("{} was valid after its loss", hold.named()));
    }
    for ask in &model.asks {
        let outer = ask.within.and_then(|op| model.hold(op)).and_then(|outer| Some((outer, outer.lost?.0)));
        let Some((outer, lost)) = outer else { continue };
        if ask.at > lost && outer.ask.names.len() == 1 {
            let entered = matches!(ask.answer, Answer::Granted(_));
            verdict.check(!entered, || format!("{} was entered again after its loss", outer.named()));
        }
    }
    verdict
}

/// Checks that the loss is signalled when the lease is over by the holder's own clock.
pub fn loss_on_time(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("LossOnTime", "a loss is signalled when the lease is over, or before");
    for hold in &model.holds {
        let awake = model.excused(hold.ask.worker, hold.ask.life, hold.deadline(), LATENESS);
        let due = awake.saturating_add(LATENESS);
        let over = [hold.leave.map(|(at, _)| at), hold.killed, Some(model.end)].into_iter().flatten().min();
        match hold.lost {
            // A signal cannot be judged then.
            Some((at, _)) if at > due && model.stood_still(hold.deadline(), at) => {}
            None if over.is_some_and(|over| over > due && model.stood_still(hold.deadline(), over)) => {}
            Some((at, _)) => {
                verdict.check(at <= due, || format!("{}: the loss was signalled {} us late", hold.named(), at - awake));
            }
            None if over.is_some_and(|over| over > due) => {
                verdict.check(false, || format!("{}: the loss was never signalled", hold.named()));
            }
            None => {}
        }
    }
    verdict
}

/// Checks that neither an extension nor a re-entry with a shorter lease shortens a lease.
pub fn lease_never_shrinks(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("LeaseNeverShrinks", "no extension or re-entry makes a lease end earlier");
    for hold in &model.holds {
        let mut certain = 0;
        for reading in hold.readings.iter().filter(|reading| reading.remaining > 0) {
            // The end lies between these: the guard was read at some time from `from` to `at`.
            let (earliest, latest) = (reading.from + reading.remaining, reading.at + reading.remaining + CUT_OFF);
            if certain > 0 {
                verdict.check(latest >= certain, || {
                    format!("{} ends {} us earlier than its guard had shown", hold.named(), certain - latest)
                });
            }
            certain = certain.max(earliest);
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::story::{Story, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_revived_lease_violates_no_resurrection() {
        for (later, expected) in [(None, State::Held), (Some(700), State::Violated)] {
            let mut story = Story::new(3);
            story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            story.lost(1, ms(500), ms(500));
            if let Some(later) = later {
                story.valid(1, ms(later), ms(100), 10);
            }
            assert_eq!(no_resurrection(&story.model()).state, expected);
        }
    }

    #[test]
    fn entering_a_lost_lease_violates_no_resurrection() {
        let mut story = Story::new(3);
        story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        story.lost(1, ms(500), ms(500));
        story.nested(2, 1, "a", "x", 10, ms(600), 2);
        assert_eq!(no_resurrection(&story.model()).state, State::Violated);
    }

    #[test]
    fn a_late_signal_violates_loss_on_time() {
        for (signalled, expected) in [(480, State::Held), (700, State::Held), (800, State::Violated)] {
            let mut story = Story::new(3);
            story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            story.lost(1, ms(signalled), ms(500));
            assert_eq!(loss_on_time(&story.model()).state, expected, "at {signalled} ms");
        }
    }

    #[test]
    fn no_signal_at_all_violates_loss_on_time() {
        let mut story = Story::new(3);
        story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        story.released(1, ms(2000), 0);
        assert_eq!(loss_on_time(&story.model()).state, State::Violated);
    }

    #[test]
    fn a_stopped_process_may_signal_the_loss_when_it_continues() {
        let mut story = Story::new(3);
        story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        story.worker_fault(1, Kind::WorkerPause, 0, ms(200)..ms(1500));
        story.lost(1, ms(1510), ms(500));
        assert_eq!(loss_on_time(&story.model()).state, State::Held);
    }

    #[test]
    fn lateness_during_a_stall_of_the_machine_is_not_judged() {
        for (during, expected) in [(ms(450)..ms(900), State::NotExercised), (ms(910)..ms(950), State::Violated)] {
            let mut story = Story::new(3);
            story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            story.stalled(2, during.clone());
            story.lost(1, ms(905), ms(500));
            assert_eq!(loss_on_time(&story.model()).state, expected, "{during:?}");
        }
    }

    #[test]
    fn an_earlier_end_violates_lease_never_shrinks() {
        for (remaining, expected) in [(ms(400), State::Held), (ms(100), State::Violated)] {
            let mut story = Story::new(3);
            story.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            story.valid(1, ms(200), remaining, 10);
            assert_eq!(lease_never_shrinks(&story.model()).state, expected);
        }
    }
}
