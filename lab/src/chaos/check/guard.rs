//! What a guard shows of its lease.

use super::Verdict;
use super::model::{Hold, Model, Trouble};
use crate::chaos::fault::Kind;

/// The part of a lease that the drift of clocks may take, in µs: 1 % and 2 ms.
pub fn drift(lease: u64) -> u64 {
    lease / 100 + 2000
}

/// Readings are cut to whole µs.
const CUT_OFF: u64 = 2;

/// More than all nodes together are ever slowed by, in µs.
const LONGEST_SLOWNESS: u64 = 100_000;

/// How long an extension may wait for the next try at a node that refused it.
const BETWEEN_TRIES: u64 = 1_000_000;

/// How soon after an acquisition every node that is well has answered, in µs: also those that another request had won first.
const ANSWERED: u64 = 300_000;

/// Checks that the validity that a guard shows is that of a round which began after the request: no more than a lease without
/// its drift, and at the grant no less than that from the request on.
pub fn remaining_is_true(model: &Model) -> Verdict {
    let mut verdict =
        Verdict::of("RemainingIsTrue", "remaining() is what is left of a lease that began with its request");
    for hold in &model.holds {
        let whole = hold.ask.lease.saturating_sub(drift(hold.ask.lease));
        for reading in hold.readings.iter().filter(|reading| reading.remaining > 0) {
            // The round that it comes from took this time at least: from its start on, the lease is counted.
            let took = model.slowness(reading.from.saturating_sub(LONGEST_SLOWNESS), reading.from);
            let most = whole.saturating_sub(took);
            verdict.check(reading.at, reading.remaining <= most, || {
                format!("{} shows {} us of {most} us", hold.named(), reading.remaining)
            });
        }
        let first = &hold.readings[0];
        let asked = hold.ask.asked.saturating_sub(drift(hold.ask.asked));
        let (ends, least) = (first.at + first.remaining + CUT_OFF, hold.ask.at + asked);
        if first.remaining > 0 {
            verdict.check(first.at, ends >= least, || {
                format!("{} ends {} us before a lease from its request", hold.named(), least - ends)
            });
        }
    }
    verdict
}

/// Checks the number of nodes that may fail: nodes that cannot have answered are not counted, and those that are well are.
pub fn margin_is_true(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("MarginIsTrue", "margin() counts the nodes that have answered, and no others");
    for hold in model.holds.iter().filter(|hold| hold.ask.within.is_none()) {
        let (asked, granted) = (hold.ask.at, hold.granted);
        let mut missing = model.silent(hold.ask.worker, asked, granted);
        missing.extend(model.quarantined(asked, granted));
        let shown = hold.readings[0].margin;
        if (1..=model.spare()).contains(&missing.len()) {
            verdict.check(granted, shown + missing.len() <= model.spare(), || {
                format!("{}: a margin of {shown} although nodes {missing:?} could not answer", hold.named())
            });
        }
        all_well(model, &mut verdict, hold);
    }
    for (worker, at, margin) in &model.margins {
        verdict.check(*at, *margin == model.spare(), || {
            format!("worker {}: a margin of {margin} when all was well", worker + 1)
        });
    }
    verdict
}

fn all_well(model: &Model, verdict: &mut Verdict, hold: &Hold) {
    let Some(last) = hold.readings.last().filter(|last| last.from > hold.granted + ANSWERED) else { return };
    let (worker, asked) = (hold.ask.worker, hold.ask.at);
    let troubled = model.worker_was_troubled(worker, asked, last.at)
        || model.stood_still(asked, last.at)
        || model.is_young(hold.ask.life, asked)
        || may_be_left_over(model, asked, last.at)
        || has_forgotten_ahead(model, hold, last.at)
        || model.may_have_stray_votes(&hold.ask, asked, last.at);
    let disturbed = model.most_disturbed(worker, asked, last.at);
    if !troubled && disturbed < model.spare() {
        verdict.check(last.at, last.margin + disturbed >= model.spare(), || {
            format!("{}: a margin of {} with {disturbed} nodes in trouble", hold.named(), last.margin)
        });
    }
}

/// Returns whether a node whose clock was set may still keep the lock of a holder that died, which costs a vote. That is over two
/// leases after the clock was set, with the time between two tries.
fn may_be_left_over(model: &Model, from: u64, to: u64) -> bool {
    let reach = 2 * model.setting.lease + BETWEEN_TRIES;
    let mut steps = model.troubles.iter().filter(|trouble| trouble.kind.sets_clocks());
    steps.any(|step| step.from <= to && from <= step.healed.saturating_add(reach))
}

/// Returns whether a node has lost its memory until then, and has not got the lock's ballot back before the nodes' clocks were
/// ahead of the workers' by more than the window. It refuses the ballots of a worker that uses a lock alone: the others remember
/// ballots by its clock, so none makes it propose a higher one.
fn has_forgotten_ahead(model: &Model, hold: &Hold, to: u64) -> bool {
    let forgets: Vec<&Trouble> =
        model.troubles.iter().filter(|trouble| trouble.forgets && trouble.from <= to).collect();
    let mut leaps = model.troubles.iter().filter(|trouble| trouble.kind == Kind::Leap && trouble.from <= to);
    leaps.any(|leap| forgets.iter().any(|forget| !had_all_nodes(model, &hold.ask.names, forget.healed, leap.from)))
}

/// Returns whether a holder of these locks counted on all nodes at any time between.
fn had_all_nodes(model: &Model, names: &[String], from: u64, to: u64) -> bool {
    let holds = model.holds.iter().filter(|hold| hold.ask.names == names);
    let mut readings = holds.flat_map(|hold| &hold.readings);
    readings.any(|reading| reading.margin == model.spare() && from < reading.from && reading.at < to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};

    #[test]
    fn more_or_less_than_the_lease_violates_remaining_is_true() {
        // The request began 1 us before its grant, and the drift of a second is 12 ms.
        for (remaining, expected) in [
            (ms(988), State::Held),
            (ms(988) + 1, State::Violated),
            (ms(988) - 3, State::Held),
            (ms(987), State::Violated),
        ] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, remaining);
            assert_eq!(remaining_is_true(&history.model()).state, expected, "{remaining} us");
        }
    }

    #[test]
    fn a_lease_counted_from_its_answer_violates_remaining_is_true() {
        for (remaining, expected) in [(ms(967), State::Held), (ms(969), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.slowed(1, ms(100)..ms(900), 20);
            history.asked(1, "a", "x", ms(300));
            history.grant(1, "a", 10, ms(325), 1, remaining);
            assert_eq!(remaining_is_true(&history.model()).state, expected, "{remaining} us");
        }
    }

    #[test]
    fn a_margin_that_never_grows_violates_margin_is_true() {
        for (margin, expected) in [(1, State::Held), (0, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.margin(ms(100), margin);
            assert_eq!(margin_is_true(&history.model()).state, expected);
        }
    }

    #[test]
    fn a_silent_node_that_is_counted_violates_margin_is_true() {
        for (silent, expected) in [(Kind::Cut, State::Violated), (Kind::Slow, State::NotExercised)] {
            let mut history = TestHistory::new(3);
            history.fault(1, silent, &[0], ms(100)..ms(900));
            history.granted(1, "a", "x", 10, ms(300), 1, ms(500));
            assert_eq!(margin_is_true(&history.model()).state, expected, "{silent}");
        }
    }

    #[test]
    fn a_node_that_is_well_and_not_counted_violates_margin_is_true() {
        for (at, margin, expected) in [(700, 1, State::Held), (700, 0, State::Violated), (350, 0, State::NotExercised)]
        {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.shown(1, ms(at), ms(200), 10, margin);
            assert_eq!(margin_is_true(&history.model()).state, expected, "{margin} at {at} ms");
        }
    }

    #[test]
    fn a_node_that_forgot_under_clocks_far_ahead_may_count_for_no_lock() {
        for (kind, expected) in [(Kind::Flush, State::NotExercised), (Kind::Reset, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Leap, &[0, 1, 2], ms(10)..ms(15));
            history.fault(2, kind, &[0], ms(20)..ms(21));
            history.granted(1, "a", "x", 10, ms(5000), 1, ms(900));
            history.shown(1, ms(5700), ms(200), 10, 0);
            assert_eq!(margin_is_true(&history.model()).state, expected, "{kind}");
        }
    }

    #[test]
    fn a_node_that_forgot_shortly_before_clocks_leapt_may_count_for_no_lock_that_was_not_held_between() {
        for (shown, expected) in
            [(None, State::NotExercised), (Some((150, 0)), State::NotExercised), (Some((150, 1)), State::Violated)]
        {
            let mut history = TestHistory::new(3);
            history.fault(1, Kind::Flush, &[0], ms(20)..ms(21));
            history.fault(2, Kind::Leap, &[0, 1, 2], ms(200)..ms(205));
            history.granted(1, "a", "x", 9, ms(10), 1, ms(190));
            if let Some((at, margin)) = shown {
                history.shown(1, ms(at), ms(40), 9, margin);
            }
            history.granted(2, "a", "x", 10, ms(5000), 1, ms(900));
            history.shown(2, ms(5700), ms(200), 10, 0);
            assert_eq!(margin_is_true(&history.model()).state, expected, "{shown:?}");
        }
    }
}
