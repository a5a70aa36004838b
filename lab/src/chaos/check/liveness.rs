//! Liveness: grants that must happen, and holders that keep their locks.

use super::Verdict;
use super::endings::LOOKING;
use super::model::{Answer, Ask, Hold, Model};
use crate::chaos::history::{OWN_LOCK, Refusal};

/// The longest time without any grant of a shared lock while a majority of the nodes is well, in longest leases and in looks: two
/// holders in a row, and those that wait next, may have been stopped or killed.
const LONGEST_SILENCE: u64 = 4;
const LOOKS_OF_SILENCE: u64 = 2;

/// Checks that a holder that runs, and reaches a majority of the nodes, keeps its lock by extending the lease.
pub fn keeps_while_well(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("KeepsWhileWell", "a holder keeps its lock while it and a majority of the nodes are well");
    for hold in model.holds.iter().filter(|hold| hold.ask.within.is_none()) {
        let ends = [hold.lost.map(|(at, _)| at), hold.leave.map(|(at, _)| at), hold.killed];
        let until = ends.into_iter().flatten().min().unwrap_or(model.end);
        let was_extended = until > hold.granted + hold.ask.lease;
        let (worker, from) = (hold.ask.worker, hold.ask.at);
        let was_well = !model.worker_was_troubled(worker, from, until)
            && !model.stood_still(from, until)
            && !model.was_overloaded(until.saturating_sub(hold.ask.lease), until)
            && model.most_disturbed(worker, from, until) <= model.spare()
            && !model.may_have_stray_votes(&hold.ask, from, until);
        if was_well && (was_extended || hold.lost.is_some()) {
            let lost = hold.lost.is_some_and(|(at, _)| at <= until);
            verdict.check(until, !lost, || {
                format!("{} was lost {} us after its grant", hold.named(), until - hold.granted)
            });
        }
    }
    verdict
}

/// A request with a short lease, and so with a short node timeout, fails within this time, in µs. On a busy machine that takes no more
/// than a few processes that are not run at once, each for less than a check of the machine sees. One may fail so, and then one in
/// so many.
const BRIEF: u64 = 250_000;
const ONE_BRIEF_IN: usize = 100;

/// Checks that no request fails for want of a quorum, or for a reason that no fault explains, while at most a minority of the
/// nodes is in trouble, that grants continue, and that every worker acquires every lock after the faults. Only what happens
/// beside nodes in trouble exercises it.
pub fn minority_fault_live(model: &Model, complete: bool) -> Verdict {
    let mut verdict =
        Verdict::of("MinorityFaultLive", "locks are still granted while a minority of the nodes has failed");
    let (mut judged, mut brief) = (0, Vec::new());
    for ask in &model.asks {
        let (at, without_quorum, failed) = match ask.answer {
            Answer::Granted(at) => (at, false, false),
            Answer::Refused(why, at) => {
                let without_quorum = matches!(why, Refusal::NoQuorum | Refusal::TooLate);
                (at, without_quorum, without_quorum || matches!(why, Refusal::Other))
            }
            Answer::Cancelled(_) | Answer::None => continue,
        };
        // A lock that was won in a race may for a moment be held by a bare quorum, until an extension repairs the other nodes.
        // When a node of that quorum dies, a re-entry without a wait is refused.
        let may_be_bare = ask.within.is_some() && !ask.waits;
        let troubled = model.worker_was_troubled(ask.worker, ask.at, at)
            || model.was_busy(ask.at, at)
            || model.may_wait_for_quarantine(ask.worker, ask.life, ask.at);
        if may_be_bare || troubled {
            continue;
        }
        let disturbed = model.most_disturbed(ask.worker, ask.at, at);
        let fails_when_all_is_well = failed && disturbed == 0 && !model.is_young(ask.life, ask.at);
        if (1..=model.spare()).contains(&disturbed) || fails_when_all_is_well {
            judged += 1;
            if without_quorum && at - ask.at < BRIEF {
                brief.push((at, ask, disturbed));
                continue;
            }
            verdict.check(at, !failed, || failure(ask, at, disturbed));
        }
    }
    let is_machine = brief.len().saturating_sub(1) * ONE_BRIEF_IN <= judged;
    for (at, ask, disturbed) in brief {
        verdict.check(at, is_machine, || failure(ask, at, disturbed));
    }
    grants_continue(model, &mut verdict);
    for (worker, acquired, of) in &model.calms {
        verdict.check(model.end, acquired == of, || {
            format!("worker {} had {acquired} of {of} locks when all was well", worker + 1)
        });
    }
    if complete && model.calms.is_empty() {
        verdict.unknown("no worker has reported its locks after the faults");
    }
    verdict
}

fn failure(ask: &Ask, at: u64, disturbed: usize) -> String {
    format!(
        "worker {} op {} on {} failed after {} us, with {disturbed} nodes in trouble: {}",
        ask.worker + 1,
        ask.op,
        ask.names.join(" "),
        at - ask.at,
        ask.detail.as_deref().unwrap_or_default()
    )
}

/// Checks the length of each stretch without any grant of a lock that several workers use.
fn grants_continue(model: &Model, verdict: &mut Verdict) {
    let limit = LONGEST_SILENCE * model.setting.lease + LOOKS_OF_SILENCE * LOOKING;
    // At the end of a run there are no more requests.
    let Some(last) = model.asks.last() else { return };
    let is_shared =
        |hold: &&Hold| hold.ask.within.is_none() && !hold.ask.names.iter().all(|name| name.starts_with(OWN_LOCK));
    let grants = model.holds.iter().filter(is_shared).map(|hold| hold.granted).filter(|at| *at <= last.at);
    let mut before = model.begin;
    for at in grants.chain([last.at]) {
        if at.saturating_sub(before) > limit {
            let no_worker = usize::MAX; // Faults of a single worker do not count.
            let disturbed = model.most_disturbed(no_worker, before, at);
            verdict.check(at, disturbed > model.spare() || model.stood_still(before, at), || {
                format!("no worker was granted a shared lock for {} us, with {disturbed} nodes in trouble", at - before)
            });
        }
        before = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;

    #[test]
    fn a_loss_without_a_reason_violates_keeps_while_well() {
        for (nodes, expected) in [(&[0][..], State::Violated), (&[0, 1][..], State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.fault(1, Kind::Pause, nodes, ms(200)..ms(900));
            history.lost(1, ms(1000), ms(1000));
            assert_eq!(keeps_while_well(&history.model()).state, expected, "{nodes:?}");
        }
    }

    #[test]
    fn waits_for_a_processor_excuse_a_loss() {
        for (waits, expected) in [(6, State::NotExercised), (4, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            (0..waits).for_each(|i| history.waited(ms(300 + 60 * i)..ms(350 + 60 * i)));
            history.lost(1, ms(1000), ms(1000));
            assert_eq!(keeps_while_well(&history.model()).state, expected, "{waits} times 50 ms of a lease of 1 s");
        }
    }

    #[test]
    fn an_extended_lease_exercises_keeps_while_well() {
        for (released, expected) in [(900, State::NotExercised), (1500, State::Held)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.released(1, ms(released), 0);
            assert_eq!(keeps_while_well(&history.model()).state, expected, "released at {released} ms");
        }
    }

    #[test]
    fn no_quorum_beside_a_minority_violates_minority_fault_live() {
        for (nodes, expected) in [(&[0][..], State::Violated), (&[0, 1][..], State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Pause, nodes, ms(100)..ms(900));
            history.asked(1, "a", "x", ms(300));
            history.refused(1, Refusal::NoQuorum, ms(600));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "{nodes:?}");
        }
    }

    #[test]
    fn a_clock_step_extends_a_quarantine() {
        for (stepped, expected) in [(0, State::NotExercised), (2, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.fault_with_tail(1, Kind::Flush, &[0], ms(100)..ms(101), ms(1500));
            history.stepped(2, &[stepped], ms(1200)..ms(1500), -60_000);
            history.fault(3, Kind::Pause, &[1], ms(2000)..ms(4000));
            history.asked(1, "a", "x", ms(2100));
            history.refused(1, Refusal::NoQuorum, ms(2400));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "the clock of {stepped}");
        }
    }

    #[test]
    fn a_clock_set_back_into_a_quarantine_affects_new_clients() {
        for (amount, expected) in [(-60_000, State::NotExercised), (-1_000, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.fault_with_tail(1, Kind::Flush, &[0], ms(100)..ms(101), ms(1500));
            history.stepped(2, &[0, 1, 2], ms(3000)..ms(4000), amount);
            history.fault(3, Kind::Pause, &[1], ms(3000)..ms(4000));
            history.asked(1, "a", "x", ms(3100));
            history.refused(1, Refusal::NoQuorum, ms(3400));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "{amount} ms");
        }
    }

    #[test]
    fn only_a_clock_beyond_the_window_costs_its_node() {
        for (amount, expected) in [(-600_000, State::NotExercised), (60_000, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.stepped(1, &[0], ms(100)..ms(900), amount);
            history.fault(2, Kind::Pause, &[1], ms(100)..ms(900));
            history.asked(1, "a", "x", ms(300));
            history.refused(1, Refusal::NoQuorum, ms(600));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "{amount} ms");
        }
    }

    #[test]
    fn a_stall_of_the_machine_violates_nothing() {
        let mut history = TestHistory::new(3);
        history.fault(1, Kind::Pause, &[0], ms(100)..ms(900));
        history.asked(1, "a", "x", ms(300));
        history.stalled(0, ms(310)..ms(580));
        history.refused(1, Refusal::NoQuorum, ms(600));
        assert_eq!(minority_fault_live(&history.model(), false).state, State::NotExercised);
    }

    #[test]
    fn a_wait_for_a_processor_excuses_a_request_without_a_quorum() {
        for (waited, expected) in [(ms(310), State::NotExercised), (ms(100), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Pause, &[0], ms(100)..ms(900));
            history.asked(1, "a", "x", ms(300));
            history.waited(waited..waited + ms(50));
            history.refused(1, Refusal::NoQuorum, ms(600));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "waited from {waited} us on");
        }
    }

    #[test]
    fn one_request_and_then_one_of_a_hundred_may_fail_within_a_short_node_timeout() {
        for (took, failed, others, expected) in [
            (ms(249), 1, 1, State::Held),
            (ms(250), 1, 99, State::Violated),
            (ms(249), 2, 98, State::Held),
            (ms(249), 2, 97, State::Violated),
        ] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Pause, &[0], ms(100)..ms(9000));
            for op in 0..others {
                history.held(op, "a", "x", op + 10, ms(300 + 50 * op)..ms(310 + 50 * op));
            }
            for op in 1000..1000 + failed {
                history.asked(op, "a", "y", ms(400));
                history.refused(op, Refusal::NoQuorum, ms(400) + took);
            }
            let state = minority_fault_live(&history.model(), false).state;
            assert_eq!(state, expected, "{failed} within {took} us, {others} others");
        }
    }

    #[test]
    fn a_new_process_waits_for_quarantines_that_began_under_clocks_ahead() {
        for (up, kind, expected) in [
            (ms(3000), Kind::Flush, State::NotExercised),
            (ms(3000), Kind::Reset, State::Violated),
            (ms(900), Kind::Flush, State::Violated),
        ] {
            let mut history = TestHistory::new(3);
            history.up(0, up);
            history.fault(1, Kind::Leap, &[0, 1, 2], ms(10)..ms(15));
            history.fault(2, kind, &[0], ms(500)..ms(501));
            history.fault(3, Kind::Pause, &[1], ms(3000)..ms(5000));
            history.asked(1, "a", "x", ms(3200));
            history.refused(1, Refusal::NoQuorum, ms(3800));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "up at {up} us, {kind}");
        }
    }

    #[test]
    fn a_process_that_was_stopped_under_clocks_ahead_waits_for_quarantines_as_a_new_one() {
        for (resumed, expected) in [(ms(3000), State::NotExercised), (ms(900), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.up(0, 0);
            history.fault(1, Kind::Leap, &[0, 1, 2], ms(10)..ms(15));
            history.fault(2, Kind::Flush, &[0], ms(500)..ms(501));
            history.worker_fault(3, Kind::WorkerPause, 0, ms(400)..resumed);
            history.fault(4, Kind::Pause, &[1], ms(3000)..ms(5000));
            history.asked(1, "a", "x", ms(3800));
            history.refused(1, Refusal::NoQuorum, ms(4400));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "resumed at {resumed} us");
        }
    }

    #[test]
    fn votes_of_a_request_that_was_cut_short_excuse_a_loss() {
        for (killed, name, expected) in
            [(ms(100), "x", State::NotExercised), (ms(100), "y", State::Violated), (ms(20), "x", State::Violated)]
        {
            let mut history = TestHistory::new(3);
            history.up(1, ms(1));
            history.asked_by(1, 1, name, ms(15));
            history.worker_fault(2, Kind::WorkerKill, 1, killed..killed + 1);
            history.killed(1, killed + 1);
            history.granted(2, "a", "x", 10, ms(1030), 1, ms(900));
            history.lost(2, ms(2400), ms(2400));
            assert_eq!(keeps_while_well(&history.model()).state, expected, "killed at {killed} us, {name}");
        }
    }

    #[test]
    fn a_request_that_fails_when_all_is_well_violates_minority_fault_live() {
        for (why, expected) in [
            (Refusal::NoQuorum, State::Violated),
            (Refusal::Other, State::Violated),
            (Refusal::Held, State::NotExercised),
        ] {
            let mut history = TestHistory::new(3);
            history.asked(1, "a", "x", ms(300));
            history.refused(1, why, ms(900));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "{why:?}");
        }
    }

    #[test]
    fn a_standstill_violates_minority_fault_live() {
        for (later, expected) in [(2000, State::NotExercised), (9300, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.held(1, "a", "x", 10, ms(100)..ms(200));
            history.held(2, "b", "x", 11, ms(later)..ms(later + 100));
            assert_eq!(minority_fault_live(&history.model(), false).state, expected, "the lease is 1 s");
        }
    }

    #[test]
    fn a_worker_without_locks_at_the_end_violates_minority_fault_live() {
        for (acquired, expected) in [(5, State::Held), (4, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.calm(0, acquired, 5);
            assert_eq!(minority_fault_live(&history.model(), true).state, expected);
        }
        assert_eq!(minority_fault_live(&TestHistory::new(3).model(), true).state, State::Unknown);
    }
}
