//! Leases and their ends.

use super::Verdict;
use super::model::{Answer, Hold, Model};
use crate::chaos::history::Signal;

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
        let at = revived.map_or(lost, |reading| reading.at);
        verdict.check(at, revived.is_none(), || format!("{} was valid after its loss", hold.named()));
    }
    for ask in &model.asks {
        let outer = ask.within.and_then(|op| model.hold(op)).and_then(|outer| Some((outer, outer.lost?.0)));
        let Some((outer, lost)) = outer else { continue };
        if ask.at > lost && outer.ask.names.len() == 1 {
            let entered = matches!(ask.answer, Answer::Granted(_));
            verdict.check(ask.answered().unwrap_or(ask.at), !entered, || {
                format!("{} was entered again after its loss", outer.named())
            });
        }
    }
    verdict
}

/// Checks that every way to hear of a loss tells it when the lease is over by the holder's own clock, or when the first of them
/// does.
pub fn loss_on_time(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("LossOnTime", "lost(), is_lost() and protect() tell a loss when the lease is over, or before");
    for hold in &model.holds {
        let given = |signal| hold.signals.get(&signal).copied();
        let ways = [
            ("lost()", hold.lost.map(|(at, _)| at)),
            (Signal::IsLost.words(), given(Signal::IsLost)),
            (Signal::Protect.words(), given(Signal::Protect)),
        ];
        let first = ways.iter().filter_map(|(_, at)| *at).min();
        for (name, at) in ways {
            match first {
                // It is judged even if the machine had no time for other processes: this one did run.
                Some(first) if at != Some(first) => after_another(model, &mut verdict, hold, first, at, name),
                _ => given_by(model, &mut verdict, hold, hold.deadline(), at, name),
            }
        }
    }
    verdict
}

/// Checks that the holder is warned before its lease is over, when a third of the lease is left.
pub fn warns_before_loss(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("WarnsBeforeLoss", "endangered() and is_endangered() tell it when a third of the lease is left");
    for hold in &model.holds {
        let near = hold.deadline().saturating_sub(hold.ask.lease / 3);
        for signal in [Signal::Endangered, Signal::IsEndangered] {
            given_by(model, &mut verdict, hold, near, hold.signals.get(&signal).copied(), signal.words());
        }
    }
    verdict
}

/// Checks that a signal was given at `at`, soon after another one of the same guard.
fn after_another(model: &Model, verdict: &mut Verdict, hold: &Hold, first: u64, at: Option<u64>, name: &str) {
    let latest = model.excused(hold.ask.worker, hold.ask.life, first, LATENESS).saturating_add(LATENESS);
    let over = [hold.leave.map(|(at, _)| at), hold.killed, Some(model.end)].into_iter().flatten().min();
    let until = at.or(over).unwrap_or(model.end);
    if at.is_some() || until > latest {
        verdict.check(until.min(latest), until <= latest, || {
            format!("{}: {name} told nothing for {} us, when another signal had", hold.named(), until - first)
        });
    }
}

/// Checks that a signal that is due at `due` was given, at `at`, unless the hold was over before.
fn given_by(model: &Model, verdict: &mut Verdict, hold: &Hold, due: u64, at: Option<u64>, name: &str) {
    let awake = model.excused(hold.ask.worker, hold.ask.life, due, LATENESS);
    let latest = awake.saturating_add(LATENESS);
    let over = [hold.leave.map(|(at, _)| at), hold.killed, Some(model.end)].into_iter().flatten().min();
    let until = at.or(over).unwrap_or(model.end);
    // A signal cannot be judged then.
    if until > latest && (model.stood_still(due, until) || model.was_overloaded(due, until)) {
        return;
    }
    match at {
        Some(at) => verdict
            .check(at, at <= latest, || format!("{}: {name} was {} us late", hold.named(), at.saturating_sub(awake))),
        None if until > latest => {
            verdict.check(latest, false, || format!("{}: {name} told nothing", hold.named()));
        }
        None => {}
    }
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
                verdict.check(reading.at, latest >= certain, || {
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
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_revived_lease_violates_no_resurrection() {
        for (later, expected) in [(None, State::Held), (Some(700), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            history.lost(1, ms(500), ms(500));
            if let Some(later) = later {
                history.valid(1, ms(later), ms(100), 10);
            }
            assert_eq!(no_resurrection(&history.model()).state, expected);
        }
    }

    #[test]
    fn entering_a_lost_lease_violates_no_resurrection() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        history.lost(1, ms(500), ms(500));
        history.nested(2, 1, "a", "x", 10, ms(600), 2);
        assert_eq!(no_resurrection(&history.model()).state, State::Violated);
    }

    #[test]
    fn a_late_signal_violates_loss_on_time() {
        for (signalled, expected) in [(480, State::Held), (700, State::Held), (800, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            history.lost(1, ms(signalled), ms(500));
            assert_eq!(loss_on_time(&history.model()).state, expected, "at {signalled} ms");
        }
    }

    #[test]
    fn no_signal_at_all_violates_loss_on_time() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        history.released(1, ms(2000), 0);
        assert_eq!(loss_on_time(&history.model()).state, State::Violated);
    }

    #[test]
    fn a_stopped_process_may_signal_the_loss_when_it_continues() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
        history.worker_fault(1, Kind::WorkerPause, 0, ms(200)..ms(1500));
        history.lost(1, ms(1510), ms(500));
        assert_eq!(loss_on_time(&history.model()).state, State::Held);
    }

    #[test]
    fn lateness_during_a_stall_of_the_machine_is_not_judged() {
        for (during, expected) in [(ms(450)..ms(900), State::NotExercised), (ms(910)..ms(950), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            history.stalled(2, during.clone());
            history.lost(1, ms(905), ms(500));
            assert_eq!(loss_on_time(&history.model()).state, expected, "{during:?}");
        }
    }

    #[test]
    fn lateness_is_not_judged_while_threads_wait_for_a_processor() {
        for (waits, expected) in [(3, State::NotExercised), (2, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            (0..waits).for_each(|i| history.waited(ms(510 + 60 * i)..ms(560 + 60 * i)));
            history.lost(1, ms(905), ms(500));
            assert_eq!(loss_on_time(&history.model()).state, expected, "{waits} times 50 ms of 405");
        }
    }

    #[test]
    fn an_earlier_end_violates_lease_never_shrinks() {
        for (remaining, expected) in [(ms(400), State::Held), (ms(100), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(400));
            history.valid(1, ms(200), remaining, 10);
            assert_eq!(lease_never_shrinks(&history.model()).state, expected);
        }
    }

    #[test]
    fn each_way_to_hear_of_a_loss_must_be_on_time() {
        for late in [Signal::IsLost, Signal::Protect] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            // A majority has refused: the lease has ended before its time.
            history.lost(1, ms(300), ms(1000));
            history.delayed(1, late, ms(800));
            assert_eq!(loss_on_time(&history.model()).violations, 1, "{late:?}");
        }
    }

    #[test]
    fn a_late_warning_violates_warns_before_loss() {
        for (warned, expected) in [(Some(800), State::Held), (Some(970), State::Violated), (None, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            for signal in [Signal::Endangered, Signal::IsEndangered] {
                if let Some(warned) = warned {
                    history.signal(1, signal, ms(warned));
                }
            }
            history.lost(1, ms(1000), ms(1000));
            assert_eq!(warns_before_loss(&history.model()).state, expected, "{warned:?}");
        }
    }

    #[test]
    fn a_hold_that_is_released_early_needs_no_warning() {
        let mut history = TestHistory::new(3);
        history.held(1, "a", "x", 10, ms(100)..ms(700));
        assert_eq!(warns_before_loss(&history.model()).state, State::NotExercised);
    }
}
