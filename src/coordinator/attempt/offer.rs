//! What the tries of a request hand on from one to the next.

use std::time::Duration;

use crate::environment::Moment;
use crate::node::{LastEnd, LastOf};
use crate::protocol::Ballot;

/// How many ends of leases a request keeps at least: those of one node may follow each other.
const LEAST_ENDS: usize = 32;

/// How long after the wait for it a time of a node is named to that node. Then the node's next answer begins another wait.
const WORD_TAKEN_FOR: Duration = Duration::from_secs(60);

/// What a try offers that the tries before have learnt.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// The ballot must be above this one.
    pub(super) above: Ballot,
    /// Ends of leases that were not released, each with the moment from which on it has been waited for long enough.
    ends: Vec<(LastEnd, Moment)>,
    /// How many of them are kept at most: the latest ones.
    most: usize,
}

impl Offer {
    /// The offer of a request that may meet so many ends at once: one of each resource on each node. If it kept fewer, those that it
    /// forgets would be named again, and waited for again, for ever.
    pub(super) fn of(at_once: usize) -> Self {
        Self { above: Ballot::ZERO, ends: Vec::new(), most: at_once.max(LEAST_ENDS) }
    }

    /// Records how long these leases may be in force. Returns the longest of these times, from now. An end that is known
    /// already keeps its moment, although the node names the full time again. So does what a node may have forgotten, for which
    /// it names its time of each answer: it takes the first one for a minute after the wait, at least.
    pub(super) fn learn(&mut self, now: Moment, ends: Vec<(LastEnd, Duration)>) -> Option<Duration> {
        let mut longest = None;
        for (end, left) in ends {
            // Not where the node's clock has leapt since.
            let is_taken = |known: &LastEnd, over: Moment| {
                let passed = (now + left).since(over).max(over.since(now + left));
                let shown = Duration::from_millis(known.end.abs_diff(end.end));
                now.since(over) < WORD_TAKEN_FOR && passed.abs_diff(shown) < WORD_TAKEN_FOR
            };
            self.ends.retain(|(known, over)| !is_same_word(known, &end) || is_taken(known, *over));
            let is_known = |known: &LastEnd| *known == end || is_same_word(known, &end);
            let known = self.ends.iter().find(|(known, _)| is_known(known)).map(|(_, over)| *over);
            let over = known.unwrap_or_else(|| {
                if self.ends.len() >= self.most {
                    self.ends.remove(0);
                }
                self.ends.push((end, now + left));
                now + left
            });
            longest = longest.max(Some(over.since(now)));
        }
        longest
    }

    pub(super) fn waited_for(&self, now: Moment) -> Vec<LastEnd> {
        self.ends.iter().filter(|(_, over)| *over < now).map(|(end, _)| *end).collect()
    }
}

/// Returns whether both are about what one node may have forgotten.
fn is_same_word(one: &LastEnd, other: &LastEnd) -> bool {
    matches!(one.of, LastOf::Word(_)) && one.of == other.of
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;
    use crate::node::{Refusal, Vote, parse_hold};

    const SECOND: Duration = Duration::from_secs(1);

    /// The end of a lease.
    fn end(at: i64) -> LastEnd {
        end_of(at, "ql1 7 af me:1 ab/1:1")
    }

    /// The end of a lease that a node may have forgotten: the node's time.
    fn forgotten(at: i64) -> LastEnd {
        end_of(at, "af")
    }

    fn end_of(at: i64, what: &str) -> LastEnd {
        let fields = [7, 0, 1, 1000, at].map(Value::Int).into_iter().chain([Value::BulkString(what.into())]);
        match parse_hold(&Value::Array(fields.collect())) {
            Vote::No(Refusal::Early { last, .. }) => last,
            other => panic!("{other:?}"),
        }
    }

    fn at(seconds: u32) -> Moment {
        Moment::new(seconds * SECOND)
    }

    #[test]
    fn an_end_that_is_named_again_has_been_waited_for_since_the_first_time() {
        let mut offer = Offer::of(0);
        assert_eq!(offer.learn(at(0), vec![]), None);
        assert_eq!(offer.learn(at(0), vec![(end(1), 5 * SECOND), (end(2), 3 * SECOND)]), Some(5 * SECOND));
        assert_eq!(offer.learn(at(2), vec![(end(1), 5 * SECOND)]), Some(3 * SECOND));
        assert_eq!(offer.learn(at(2), vec![(end(3), SECOND), (end(2), 9 * SECOND)]), Some(SECOND));
        assert_eq!(offer.waited_for(at(3)), []);
        assert_eq!(offer.waited_for(at(4)), [end(2), end(3)]);
        assert_eq!(offer.waited_for(at(6)), [end(1), end(2), end(3)]);
    }

    #[test]
    fn what_a_node_may_have_forgotten_is_waited_for_since_its_first_answer() {
        let mut offer = Offer::of(0);
        for second in 0..10 {
            let left = offer.learn(at(second), vec![(forgotten(i64::from(second) * 1000), 10 * SECOND)]);
            assert_eq!(left, Some((10 - second) * SECOND));
        }
        assert_eq!(offer.waited_for(at(11)), [forgotten(0)]);
        assert_eq!(
            offer.learn(at(12), vec![(forgotten(72_000), 10 * SECOND)]),
            Some(10 * SECOND),
            "its clock has leapt"
        );
        offer = Offer::of(0);
        offer.learn(at(0), vec![(forgotten(0), 10 * SECOND)]);
        assert_eq!(offer.learn(at(69), vec![(forgotten(69_000), 10 * SECOND)]), Some(Duration::ZERO));
        assert_eq!(offer.learn(at(70), vec![(forgotten(70_000), 10 * SECOND)]), Some(10 * SECOND), "another wait");
        assert_eq!(offer.waited_for(at(81)), [forgotten(70_000)]);
    }

    #[test]
    fn of_too_many_ends_the_latest_are_kept() {
        let mut offer = Offer::of(0);
        let ends = |range: std::ops::RangeInclusive<i64>| range.map(end).collect::<Vec<_>>();
        let most = i64::try_from(LEAST_ENDS).expect("a small number");
        offer.learn(at(0), ends(1..=most).into_iter().map(|end| (end, SECOND)).collect());
        assert_eq!(offer.waited_for(at(2)), ends(1..=most));
        offer.learn(at(0), vec![(end(most + 1), SECOND)]);
        assert_eq!(offer.waited_for(at(2)), ends(2..=most + 1));
    }
}
