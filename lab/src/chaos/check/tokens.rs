//! Fencing tokens, and the store that asks for them.

use std::collections::BTreeMap;

use super::model::{Hold, Model};
use super::{State, Verdict};
use crate::chaos::ledger::Audit;

/// Returns every outermost grant of each name, with its token.
fn outermost(model: &Model) -> BTreeMap<&str, Vec<(u64, &Hold)>> {
    let mut grants: BTreeMap<&str, Vec<(u64, &Hold)>> = BTreeMap::new();
    for hold in model.holds.iter().filter(|hold| hold.ask.within.is_none()) {
        for (name, token) in hold.ask.names.iter().zip(&hold.tokens) {
            grants.entry(name).or_default().push((*token, hold));
        }
    }
    grants
}

pub fn token_unique(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("TokenUnique", "no two acquisitions of a lock have the same token");
    for (name, grants) in outermost(model) {
        let mut seen: BTreeMap<u64, &Hold> = BTreeMap::new();
        for (token, hold) in grants {
            let before = seen.insert(token, hold);
            verdict.check(hold.granted, before.is_none(), || {
                let before = before.map(Hold::named).unwrap_or_default();
                format!("{name}: {} has the token of {before}", hold.named())
            });
        }
    }
    verdict
}

/// Checks that an acquisition that begins after a grant has a larger token.
pub fn token_monotonic(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("TokenMonotonic", "an acquisition that begins after a grant gets a larger token");
    for (name, mut grants) in outermost(model) {
        let mut granted = grants.clone();
        granted.sort_by_key(|(_, hold)| hold.granted);
        grants.sort_by_key(|(_, hold)| hold.ask.at);
        let mut granted = granted.into_iter().peekable();
        let mut largest: Option<(u64, &Hold)> = None;
        for (token, hold) in grants {
            while let Some((before, by)) = granted.next_if(|(_, by)| by.granted < hold.ask.at) {
                if largest.is_none_or(|(most, _)| before > most) {
                    largest = Some((before, by));
                }
            }
            if let Some((most, by)) = largest {
                verdict.check(hold.granted, token > most, || {
                    format!("{name}: {} asked after {} was granted", hold.named(), by.named())
                });
            }
        }
    }
    verdict
}

/// Checks that neither an extension nor a re-entry changes the token.
pub fn token_stable(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("TokenStable", "extension and re-entry keep the token");
    for hold in &model.holds {
        for reading in &hold.readings[1..] {
            verdict.check(reading.at, reading.tokens == hold.tokens, || {
                format!("{} became {:?}", hold.named(), reading.tokens)
            });
        }
        for (name, token) in hold.ask.names.iter().zip(&hold.tokens) {
            let around = model.around(hold).find(|outer| outer.ask.names.contains(name));
            let Some(outer) = around else { continue };
            verdict.check(hold.granted, outer.token_of(name) == Some(*token), || {
                format!("{} inside {}", hold.named(), outer.named())
            });
        }
    }
    verdict
}

/// Checks that the database accepts no stale write, and every holder's write.
pub fn fenced_store(model: &Model, audit: Option<&Audit>) -> Verdict {
    let mut verdict = Verdict::of("FencedStore", "every stale write is rejected, and no holder's write is");
    if !model.setting.fencing {
        return verdict;
    }
    let Some(audit) = audit else {
        verdict.unknown("the ledger could not be read");
        return verdict;
    };
    let mut rejected = 0;
    for hold in &model.holds {
        let Some((_, done, accepted)) = hold.write else { continue };
        rejected += u64::from(!accepted);
        verdict.check(done, accepted || hold.believed_until() < done, || {
            format!("{}: a holder's write was rejected", hold.named())
        });
    }
    verdict
        .check(model.end, audit.stale_accepted == 0, || format!("{} stale writes were accepted", audit.stale_accepted));
    verdict.check(model.end, audit.lost_updates == 0, || format!("{} updates were lost", audit.lost_updates));
    verdict.check(model.end, audit.opened_with == audit.closed_with && audit.wrong_balances == 0, || {
        format!("{} in the beginning, {} in the end", audit.opened_with, audit.closed_with)
    });
    if rejected == 0 && verdict.state == State::Held {
        // No write was rejected, so the fence was not exercised.
        verdict.state = State::NotExercised;
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::test_history::TestHistory;

    #[test]
    fn a_token_given_twice_violates_token_unique() {
        for (second, expected) in [(11, State::Held), (10, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.held(1, "a", "x", 10, 100..200);
            history.held(2, "b", "x", second, 300..400);
            history.held(3, "b", "y", 10, 300..400);
            assert_eq!(token_unique(&history.model()).state, expected);
        }
    }

    #[test]
    fn a_smaller_token_violates_token_monotonic() {
        for (second, expected) in [(11, State::Held), (9, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.held(1, "a", "x", 10, 100..200);
            history.held(2, "b", "x", second, 300..400);
            assert_eq!(token_monotonic(&history.model()).state, expected);
        }
    }

    #[test]
    fn concurrent_requests_have_no_order() {
        let mut history = TestHistory::new(3);
        history.asked(1, "a", "x", 90);
        history.asked(2, "b", "x", 95);
        history.grant(1, "a", 10, 100, 1, 50);
        history.grant(2, "b", 9, 200, 1, 50);
        assert_eq!(token_monotonic(&history.model()).state, State::NotExercised);
    }

    #[test]
    fn a_token_that_changes_violates_token_stable() {
        for (later, inner, expected) in [(10, 10, State::Held), (11, 10, State::Violated), (10, 11, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.granted(1, "a", "x", 10, 100, 1, 1000);
            history.valid(1, 200, 1000, later);
            history.nested(2, 1, "a", "y", 12, 250, 1);
            history.nested(3, 2, "a", "x", inner, 300, 2);
            assert_eq!(token_stable(&history.model()).state, expected, "{later} {inner}");
        }
    }

    #[test]
    fn stale_writes_that_are_accepted_violate_fenced_store() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, 100, 1, 50);
        history.wrote(1, 300, false);
        history.granted(2, "b", "x", 11, 200, 1, 1000);
        history.wrote(2, 250, true);
        let sound = Audit { opened_with: 1, closed_with: 1, ..Audit::default() };
        assert_eq!(fenced_store(&history.model(), Some(&sound)).state, State::Held);
        assert_eq!(fenced_store(&history.model(), None).state, State::Unknown);
        for broken in [
            Audit { stale_accepted: 1, ..sound.clone() },
            Audit { lost_updates: 1, ..sound.clone() },
            Audit { closed_with: 2, ..sound.clone() },
            Audit { wrong_balances: 1, ..sound.clone() },
        ] {
            assert_eq!(fenced_store(&history.model(), Some(&broken)).state, State::Violated, "{broken:?}");
        }
    }

    #[test]
    fn a_holders_write_that_is_rejected_violates_fenced_store() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, 100, 1, 1000);
        history.wrote(1, 300, false);
        let sound = Audit { opened_with: 1, closed_with: 1, ..Audit::default() };
        assert_eq!(fenced_store(&history.model(), Some(&sound)).state, State::Violated);
    }

    #[test]
    fn a_fence_without_a_rejected_write_is_not_exercised() {
        let mut history = TestHistory::new(3);
        history.granted(1, "a", "x", 10, 100, 1, 1000);
        history.wrote(1, 300, true);
        let sound = Audit { opened_with: 1, closed_with: 1, ..Audit::default() };
        assert_eq!(fenced_store(&history.model(), Some(&sound)).state, State::NotExercised);
    }
}
