//! Locks that must end.

use super::Verdict;
use super::model::{Answer, Ask, Model, Sight, Trouble};
use crate::chaos::history::Refusal;

/// How much later than its lease a lock may be granted again, in µs: a waiter that is not called tries again after one to
/// two seconds, and may lose a race.
pub(super) const LOOKING: u64 = 2_500_000;

/// Checks that no node has a lock key when every lease is over.
pub fn no_orphan(model: &Model, complete: bool) -> Verdict {
    let mut verdict = Verdict::of("NoOrphan", "one lease after everything was given back, no node has a lock key");
    for (node, keys) in &model.scans {
        let left = keys.iter().map(String::as_str).filter(|key| !may_be_left(model, *node, key)).collect::<Vec<_>>();
        verdict.check(model.end, left.is_empty(), || format!("node {} has {}", node + 1, left.join(" ")));
    }
    if complete && model.scans.len() < model.setting.nodes {
        verdict.unknown("not every node could be scanned");
    }
    verdict
}

/// Returns whether this key may outlive its lease: it was stored before the node's clock was set back, and no client has named
/// it since.
fn may_be_left(model: &Model, node: usize, key: &str) -> bool {
    let has_key = |name: &str| key.strip_prefix(model.setting.prefix.as_str()) == Some(name);
    let shows = |sight: &&Sight| {
        let mut of_node = sight.nodes.iter().filter(|shown| shown.node == node);
        of_node.any(|shown| shown.keys.iter().any(|key| has_key(&key.name)))
    };
    model.sights.iter().rfind(shows).is_some_and(|last| model.was_set_back_since(node, last.from))
}

/// Checks that no node keeps a key for longer than its lease, and that a killed holder's lock is granted again when its lease is
/// over, or one lease later when a clock was set.
pub fn free_after_ttl(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("FreeAfterTtl", "a killed process's lock is granted again after one lease");
    for seen in model.seen.iter().filter(|seen| seen.held > 0) {
        let Some(hold) = model.hold(seen.op) else { continue };
        // A clock that is set meanwhile shows another time.
        let is_set = |step: &Trouble| step.kind.sets_clocks() && step.from <= seen.at && hold.ask.at <= step.healed;
        if !model.troubles.iter().any(is_set) {
            let most = hold.ask.lease + hold.ask.lease / 50;
            verdict.check(seen.at, seen.ttl <= most, || {
                format!("{}: a node keeps it for {} us, and not for {most} us", hold.named(), seen.ttl)
            });
        }
    }
    for (_, life, from, down) in &model.deaths {
        let held = model.holds.iter().filter(|hold| {
            hold.ask.life == *life
                && hold.ask.within.is_none()
                && hold.granted < *from
                && hold.leave.is_none_or(|(at, _)| at > *from)
        });
        for hold in held {
            let due = down + hold.ask.lease + hold.ask.lease / 50 + LOOKING;
            let due = model.due_by_clocks(hold.granted, due, LOOKING);
            for name in &hold.ask.names {
                let next = model.holds.iter().find(|next| next.granted > *down && next.ask.names.contains(name));
                if next.is_some_and(|next| next.granted <= due) {
                    verdict.check(due, true, String::new);
                    continue;
                }
                let free = next.map_or(model.end, |next| next.granted);
                let asks_in_vain = |ask: &&Ask| {
                    waits_in_vain(model, ask, name, *down, due) || meets_the_dead(model, ask, name, *down, due, free)
                };
                if let Some(ask) = model.asks.iter().find(asks_in_vain) {
                    verdict.check(due, false, || {
                        format!(
                            "{name}: worker {} op {} has met, past its lease, {}",
                            ask.worker + 1,
                            ask.op,
                            hold.named()
                        )
                    });
                }
            }
        }
    }
    verdict
}

/// Returns whether this request waited for `name` alone, from before the lock had to be free until long after, while a
/// majority of the nodes was well. A request does not count when another worker was stopped, killed or cut off while it
/// requested the same lock: the votes that it got from a minority of the nodes last for its own lease, and beside nodes in
/// trouble may block a majority.
fn waits_in_vain(model: &Model, ask: &Ask, name: &str, down: u64, due: u64) -> bool {
    let until = ask.answered().unwrap_or(model.end);
    ask.waits
        && ask.names == [name]
        && ask.at <= due - LOOKING
        && until >= due
        && model.most_disturbed(ask.worker, down, due) <= model.spare()
        && !model.worker_was_troubled(ask.worker, ask.at, due)
        && !model.stood_still(down, due)
        && !model.asks.iter().any(|other| was_cut_short(model, other, name, down, due))
}

/// Returns whether this request for `name` alone began when the lock had to be free, and was refused as held, although it has
/// not been granted since its holder died. The same requests as above do not count.
fn meets_the_dead(model: &Model, ask: &Ask, name: &str, down: u64, due: u64, free: u64) -> bool {
    let Answer::Refused(Refusal::Held, at) = ask.answer else { return false };
    ask.names == [name]
        && (due..free).contains(&ask.at)
        && at <= free
        && model.most_disturbed(ask.worker, down, at) <= model.spare()
        && !model.worker_was_troubled(ask.worker, ask.at, at)
        && !model.stood_still(down, at)
        && !model.asks.iter().any(|other| was_cut_short(model, other, name, down, at))
}

fn was_cut_short(model: &Model, ask: &Ask, name: &str, down: u64, due: u64) -> bool {
    let until = ask.answered().unwrap_or(model.end).min(due);
    ask.names.iter().any(|asked| asked == name) && until >= down && model.worker_was_troubled(ask.worker, ask.at, until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};
    use crate::chaos::fault::Kind;
    use crate::chaos::sight::Key;

    #[test]
    fn a_remaining_key_violates_no_orphan() {
        for (keys, expected) in [(&[][..], State::Held), (&["quorlock:lock:x"][..], State::Violated)] {
            let mut history = TestHistory::new(2);
            history.scanned(0, &[]);
            history.scanned(1, keys);
            assert_eq!(no_orphan(&history.model(), true).state, expected);
        }
    }

    #[test]
    fn a_key_from_before_a_clock_was_set_back_is_no_orphan() {
        for (seen_again, amount, expected) in
            [(false, -5000, State::Held), (false, 5000, State::Held), (true, -5000, State::Violated)]
        {
            let key = Key { name: "x".to_owned(), ballot: 1, ..Key::default() };
            let mut history = TestHistory::new(1);
            history.sight(ms(100), &[0], &key);
            history.stepped(0, &[0], ms(200)..ms(300), amount);
            if seen_again {
                history.sight(ms(400), &[0], &Key { ballot: 2, ..key });
            }
            history.scanned(0, &["x"]);
            assert_eq!(no_orphan(&history.model(), true).state, expected, "{amount} ms, {seen_again}");
        }
    }

    #[test]
    fn a_node_without_a_scan_is_unknown() {
        let mut history = TestHistory::new(2);
        history.scanned(0, &[]);
        assert_eq!(no_orphan(&history.model(), true).state, State::Unknown);
        assert_eq!(no_orphan(&history.model(), false).state, State::Held);
    }

    #[test]
    fn a_key_that_outlives_the_lease_violates_free_after_ttl() {
        for (ttl, expected) in [(ms(1000), State::Held), (ms(1100), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.seen_for(1, ms(150), 3, 3, ttl);
            assert_eq!(free_after_ttl(&history.model()).state, expected, "{ttl} us");
        }
    }

    #[test]
    fn a_lock_that_stays_taken_violates_free_after_ttl() {
        for (next, expected) in [(ms(1300), State::Held), (ms(5000), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.killed(0, ms(200));
            history.asked_by(2, 1, "x", ms(150));
            history.grant(2, "b", 11, next, 1, ms(900));
            assert_eq!(free_after_ttl(&history.model()).state, expected, "granted at {next} us");
        }
    }

    #[test]
    fn a_dead_holder_that_is_met_after_its_lease_violates_free_after_ttl() {
        for (asked, expected) in [(ms(1500), State::NotExercised), (ms(5000), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.killed(0, ms(200));
            history.asked_by(2, 1, "x", asked);
            history.refused(2, Refusal::Held, asked + ms(5));
            assert_eq!(free_after_ttl(&history.model()).state, expected, "asked at {asked} us");
        }
    }

    #[test]
    fn votes_of_a_stopped_request_last_for_its_own_lease() {
        for (stopped, expected) in [(ms(1200), State::NotExercised), (ms(4900), State::Violated)] {
            let mut history = TestHistory::new(5);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.killed(0, ms(200));
            history.asked_by(2, 1, "x", ms(150));
            history.asked_by(3, 2, "x", ms(1000));
            history.worker_fault(1, Kind::WorkerPause, 2, stopped..ms(5500));
            history.grant(2, "b", 11, ms(5000), 1, ms(900));
            assert_eq!(free_after_ttl(&history.model()).state, expected, "stopped at {stopped} us");
        }
    }

    #[test]
    fn a_clock_step_may_keep_a_dead_holders_lock_one_lease_longer() {
        for (next, expected) in [(ms(5000), State::Held), (ms(7000), State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, ms(100), 1, ms(900));
            history.killed(0, ms(200));
            history.asked_by(2, 1, "x", ms(150));
            history.stepped(1, &[0, 1, 2], ms(300)..ms(2000), -30_000);
            history.grant(2, "b", 11, next, 1, ms(900));
            assert_eq!(free_after_ttl(&history.model()).state, expected, "granted at {next} us");
        }
    }
}
