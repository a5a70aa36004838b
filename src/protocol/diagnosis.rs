//! Why a round did not give the lock, and what may help.

use std::time::Duration;

use super::ballot::{AcceptedBallots, Ballot, floor_for_a_quorum};
use super::retry::RetryAdvice;
use super::tally::{Tally, VoteResult};

/// What is known of a round that did not give the lock. A refusal is an answer no; a node that failed gives none.
#[derive(Clone, Debug)]
pub(crate) struct FailedRound<'a> {
    pub(crate) nodes: usize,
    pub(crate) quorum: usize,
    pub(crate) verdict: VoteResult,
    pub(crate) tally: Tally,
    pub(crate) took: Duration,
    pub(crate) ballot: Ballot,
    pub(crate) refusals: usize,
    /// How many nodes took the ballot to be too far ahead of their clocks.
    pub(crate) ahead: usize,
    /// A node has seen a newer ballot.
    pub(crate) is_stale: bool,
    /// The ballots that the nodes that answered would take.
    pub(crate) accepted: &'a [AcceptedBallots],
    /// The ballots that a node would take that has seen none, and whose clock agrees with this machine's.
    pub(crate) accepted_by_fresh_node: AcceptedBallots,
    /// The longest for which a node keeps the resource for another request.
    pub(crate) kept: Option<Duration>,
    pub(crate) holder: Option<MostNamed>,
}

/// The holder that most nodes name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MostNamed {
    pub(crate) votes: usize,
    pub(crate) free_in: Option<Duration>,
    /// It is another kind of client, whose release calls no waiter.
    pub(crate) is_foreign: bool,
}

/// What kept the round from giving the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Diagnosis {
    /// A majority agreed when the validity was spent.
    TooLate,
    NoQuorum,
    /// Other requests, or other ballots, were in the way.
    Contended,
    /// The holder that most nodes name has it.
    Held,
}

impl FailedRound<'_> {
    /// Returns what kept the round from giving the lock, and what may help.
    pub(crate) fn diagnose(&self) -> (Diagnosis, RetryAdvice) {
        if self.verdict == VoteResult::Won {
            return (Diagnosis::TooLate, RetryAdvice::AfterRace(self.took));
        }
        if self.missing() > self.nodes - self.quorum {
            return (Diagnosis::NoQuorum, RetryAdvice::WhenAnswered);
        }
        if let Some(advice) = self.other_ballot() {
            return (Diagnosis::Contended, advice);
        }
        self.in_the_way()
    }

    /// Returns how many nodes count as having given no answer.
    ///
    /// When the round was decided early, a node that has not answered yet does not count. So a refusal that decides the round is
    /// reported as such, also where nodes that are away have made it decisive.
    fn missing(&self) -> usize {
        match self.verdict {
            VoteResult::Pending => self.nodes - self.tally.votes() - self.refusals,
            VoteResult::Won | VoteResult::Lost => self.tally.missing_votes(),
        }
    }

    /// Returns the advice to try another ballot, if a majority may take one.
    fn other_ballot(&self) -> Option<RetryAdvice> {
        if self.ahead >= self.quorum {
            // From now on ballots go by the nodes' clocks.
            return Some(RetryAdvice::Above(Ballot::ZERO));
        }
        if !self.is_stale {
            return None;
        }
        // A node that has not answered a round that was decided early may yet agree to another ballot.
        let unanswered = match self.verdict {
            VoteResult::Lost => self.nodes - self.tally.votes() - self.refusals - self.tally.missing_votes(),
            VoteResult::Pending | VoteResult::Won => 0,
        };
        let floor =
            floor_for_a_quorum(self.accepted, unanswered, self.accepted_by_fresh_node, self.ballot, self.quorum);
        floor.map(RetryAdvice::Above)
    }

    /// Returns the diagnosis when another owner has the lock, or another request is about to have it.
    fn in_the_way(&self) -> (Diagnosis, RetryAdvice) {
        let raced = RetryAdvice::AfterRace(self.took);
        match (self.holder, self.kept) {
            // Another request has been called and is about to take it.
            (holder, Some(left)) if holder.is_none_or(|holder| holder.votes < self.quorum) => {
                (Diagnosis::Contended, RetryAdvice::WhenCalled(left))
            }
            // No owner has a majority, but some nodes are claimed: a race without a winner, or an eroded lease.
            (Some(holder), _) if holder.votes < self.quorum && self.tally.votes() > 0 => (Diagnosis::Contended, raced),
            (Some(MostNamed { free_in, is_foreign, .. }), _) => {
                (Diagnosis::Held, RetryAdvice::WhenFree { free_in, calls: !is_foreign })
            }
            // Nodes have seen newer ballots, and no ballot suits a majority of those that answered. The next round may find others.
            (None, _) if self.is_stale => (Diagnosis::Contended, raced),
            (None, _) => (Diagnosis::NoQuorum, RetryAdvice::WhenAnswered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NOW: u64 = 1_790_000_000_000_000;

    fn ballot(number: u64) -> Ballot {
        Ballot::from_wire(number).unwrap()
    }

    fn accepting(floor: u64) -> AcceptedBallots {
        AcceptedBallots { floor: ballot(floor), clock: NOW, window: 1_000_000 }
    }

    fn tally(yes: usize, no: usize, missing: usize) -> Tally {
        let mut tally = Tally::new(5);
        (0..yes).for_each(|_| tally.yes());
        (0..no).for_each(|_| tally.no());
        (0..missing).for_each(|_| tally.missing());
        tally
    }

    /// Of five nodes. The rest has not answered.
    fn round(verdict: VoteResult, yes: usize, no: usize, missing: usize) -> FailedRound<'static> {
        FailedRound {
            nodes: 5,
            quorum: 3,
            verdict,
            tally: tally(yes, no, missing),
            took: 7 * MS,
            ballot: ballot(NOW),
            refusals: no,
            ahead: 0,
            is_stale: false,
            accepted: &[],
            accepted_by_fresh_node: accepting(0),
            kept: None,
            holder: None,
        }
    }

    fn named(votes: usize) -> MostNamed {
        MostNamed { votes, free_in: Some(9 * MS), is_foreign: false }
    }

    const RACED: RetryAdvice = RetryAdvice::AfterRace(Duration::from_millis(7));
    const NO_QUORUM: (Diagnosis, RetryAdvice) = (Diagnosis::NoQuorum, RetryAdvice::WhenAnswered);
    const HELD: (Diagnosis, RetryAdvice) =
        (Diagnosis::Held, RetryAdvice::WhenFree { free_in: Some(Duration::from_millis(9)), calls: true });

    #[test]
    fn a_majority_that_came_too_late() {
        assert_eq!(round(VoteResult::Won, 3, 0, 0).diagnose(), (Diagnosis::TooLate, RACED));
    }

    #[test]
    fn nodes_that_are_away_are_no_quorum_and_those_that_are_slow_are_not() {
        let table = [
            (round(VoteResult::Lost, 2, 0, 3), NO_QUORUM),
            (FailedRound { holder: Some(named(3)), ..round(VoteResult::Lost, 0, 3, 2) }, HELD),
            (FailedRound { holder: Some(named(1)), ..round(VoteResult::Lost, 0, 1, 2) }, HELD),
            (FailedRound { holder: Some(named(2)), ..round(VoteResult::Pending, 0, 2, 0) }, NO_QUORUM),
            (FailedRound { holder: Some(named(3)), ..round(VoteResult::Pending, 0, 3, 0) }, HELD),
            (
                FailedRound { holder: Some(named(2)), ..round(VoteResult::Pending, 1, 2, 0) },
                (Diagnosis::Contended, RACED),
            ),
            (round(VoteResult::Lost, 0, 3, 0), NO_QUORUM),
        ];
        for (round, expected) in table {
            assert_eq!(round.diagnose(), expected, "{round:?}");
        }
    }

    #[test]
    fn a_stale_ballot_is_replaced_by_one_that_a_majority_takes() {
        let above = |floor| (Diagnosis::Contended, RetryAdvice::Above(ballot(floor)));
        let stale = |accepted, round| FailedRound { is_stale: true, accepted, ..round };
        let three = [accepting(NOW + 5), accepting(NOW + 9), accepting(NOW + 7)];
        for verdict in [VoteResult::Lost, VoteResult::Pending] {
            assert_eq!(stale(&three, round(verdict, 0, 3, 0)).diagnose(), above(NOW + 9), "three are enough");
        }
        let raced = (Diagnosis::Contended, RACED);
        assert_eq!(
            stale(&three[..2], round(VoteResult::Lost, 0, 3, 0)).diagnose(),
            above(NOW + 5),
            "two may yet answer"
        );
        assert_eq!(stale(&three[..2], round(VoteResult::Lost, 0, 3, 2)).diagnose(), raced, "two are away");
        assert_eq!(stale(&three[..2], round(VoteResult::Lost, 1, 2, 2)).diagnose(), raced, "one has agreed");
        assert_eq!(
            stale(&three[..2], round(VoteResult::Pending, 0, 3, 0)).diagnose(),
            raced,
            "two have not answered in time"
        );
        let not_stale = FailedRound { accepted: &three, holder: Some(named(3)), ..round(VoteResult::Lost, 0, 3, 0) };
        assert_eq!(not_stale.diagnose(), HELD);
    }

    #[test]
    fn a_majority_of_clocks_that_are_behind_is_followed() {
        let ahead =
            |ahead| FailedRound { ahead, holder: Some(named(3)), ..round(VoteResult::Lost, 0, 3, 0) }.diagnose();
        assert_eq!(ahead(3), (Diagnosis::Contended, RetryAdvice::Above(Ballot::ZERO)));
        assert_eq!(ahead(2), HELD);
    }

    #[test]
    fn what_is_in_the_way() {
        let lost = round(VoteResult::Lost, 1, 3, 0);
        let called = (Diagnosis::Contended, RetryAdvice::WhenCalled(5 * MS));
        let foreign = Some(MostNamed { votes: 3, free_in: None, is_foreign: true });
        let table = [
            (None, Some(5 * MS), called),
            (Some(named(2)), Some(5 * MS), called),
            (Some(named(3)), Some(5 * MS), HELD),
            (Some(named(2)), None, (Diagnosis::Contended, RACED)),
            (Some(named(3)), None, HELD),
            (foreign, None, (Diagnosis::Held, RetryAdvice::WhenFree { free_in: None, calls: false })),
            (None, None, NO_QUORUM),
        ];
        for (holder, kept, expected) in table {
            assert_eq!(FailedRound { kept, holder, ..lost.clone() }.diagnose(), expected, "{holder:?} {kept:?}");
        }
        let nothing_granted = FailedRound { holder: Some(named(2)), ..round(VoteResult::Lost, 0, 3, 0) };
        assert_eq!(nothing_granted.diagnose(), HELD);
    }
}
