//! The count of the replies to one round, and what each of them changes.

use super::tally::{Tally, VoteResult};

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Acquire, re-enter, extend, repair.
    Hold,
    /// Take shares away.
    Release,
    /// Take a ticket out of the nodes' wait queues.
    Leave,
}

/// The reply of one node, as far as it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    /// The node did as asked or, in a release, still honoured every lease.
    Yes,
    /// In a release of several leases: which of them the node still honoured.
    Partly(&'a [bool]),
    No {
        /// The lease, by its place in the round, that is over on this node.
        ends: Option<usize>,
        /// The node has no key of that lease.
        is_gone: bool,
    },
    /// In a release: nothing was ever sent there.
    Untouched,
    /// Nothing is known of what the node did.
    Missing,
}

/// The count of one round.
///
/// | purpose | verdict |
/// |---|---|
/// | hold | [`Tally::verdict`] |
/// | release of one lease, or leave | [`Tally::release_verdict`] |
/// | release of several leases | each has its own count: lost when one is, won when all are |
#[derive(Clone, Debug)]
pub(crate) struct RoundState {
    purpose: Purpose,
    nodes: usize,
    leases: usize,
    tally: Tally,
    /// One tally for each lease. In a hold, from the first refusal on, it counts the nodes that say that the lease is over. (A node
    /// names the first lease that it refuses.) In a release of several leases, it counts what the nodes say of each.
    each: Vec<Tally>,
    /// One bit for each node that has been counted.
    counted: u64,
    /// One bit for each node that has no key of the lease.
    gone: u64,
    is_refused: bool,
}

/// What one reply changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// The caller that waits for the round has its result.
    pub(crate) is_settled: bool,
    pub(crate) effect: Effect,
}

/// What one reply to a hold means for its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// A majority honours the round.
    Honoured {
        /// This reply made the majority.
        is_new: bool,
        votes: usize,
        /// How many nodes have neither answered nor failed.
        awaited: usize,
        /// This node, or one before it, has refused what the majority honours.
        is_contested: bool,
        /// One bit for each node that can be repaired now: it has no key of the lease.
        repairable: u64,
    },
    /// A majority says that the lease at this place is over.
    Over(usize),
    /// No majority honours the round, and no further reply comes.
    Failed,
}

impl RoundState {
    pub(crate) fn new(purpose: Purpose, nodes: usize, leases: usize) -> Self {
        let is_split = purpose == Purpose::Release && leases > 1;
        let each = if is_split { vec![Tally::new(nodes); leases] } else { Vec::new() };
        let tally = Tally::new(nodes);
        Self { purpose, nodes, leases, tally, each, counted: 0, gone: 0, is_refused: false }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Counts the reply of a node. `None` when the node was counted before.
    pub(crate) fn count(&mut self, node: usize, reply: Reply<'_>) -> Option<Counted> {
        if self.counted & (1 << node) != 0 {
            return None;
        }
        self.counted |= 1 << node;
        let before = self.tally.verdict();
        let mut over = None;
        match reply {
            Reply::Yes => self.tally.yes(),
            Reply::No { ends, .. } => {
                self.tally.no();
                over = ends.filter(|lease| self.says_over(*lease));
            }
            Reply::Partly(_) | Reply::Untouched => self.tally.no(),
            Reply::Missing => self.tally.missing(),
        }
        if self.purpose == Purpose::Release {
            self.count_each(reply);
        }
        let is_gone = matches!(reply, Reply::No { is_gone: true, .. });
        let is_no = matches!(reply, Reply::No { .. });
        self.gone |= u64::from(is_gone) << node;
        self.is_refused |= is_no;
        let effect = match (self.purpose, self.tally.verdict()) {
            (Purpose::Release | Purpose::Leave, _) => Effect::Nothing,
            (Purpose::Hold, VoteResult::Won) => {
                let is_new = before == VoteResult::Pending;
                Effect::Honoured {
                    is_new,
                    votes: self.tally.votes(),
                    awaited: self.tally.awaited(),
                    is_contested: is_no || (is_new && self.is_refused),
                    repairable: if is_new { self.gone } else { self.gone & (1 << node) },
                }
            }
            (Purpose::Hold, VoteResult::Pending | VoteResult::Lost) => match over {
                Some(lease) => Effect::Over(lease),
                None if self.tally.is_complete() => Effect::Failed,
                None => Effect::Nothing,
            },
        };
        Some(Counted { is_settled: self.tally.is_complete() || self.verdict() != VoteResult::Pending, effect })
    }

    /// Counts a node that says that this lease is over. Returns whether a majority says so.
    fn says_over(&mut self, lease: usize) -> bool {
        if self.each.is_empty() {
            self.each = vec![Tally::new(self.nodes); self.leases];
        }
        self.each.get_mut(lease).is_some_and(|tally| {
            tally.no();
            tally.is_refused()
        })
    }

    /// Counts a reply for each lease of a release.
    fn count_each(&mut self, reply: Reply<'_>) {
        for (lease, tally) in self.each.iter_mut().enumerate() {
            match reply {
                Reply::Partly(honoured) if honoured.get(lease) == Some(&true) => tally.yes(),
                Reply::Yes => tally.yes(),
                Reply::Partly(_) | Reply::Untouched => tally.no(),
                Reply::No { .. } => {}
                Reply::Missing => tally.missing(),
            }
        }
    }

    pub(crate) fn verdict(&self) -> VoteResult {
        match self.purpose {
            Purpose::Hold => self.tally.verdict(),
            Purpose::Release if !self.each.is_empty() && self.leases > 1 => {
                let verdicts = || self.each.iter().map(released);
                if verdicts().any(|verdict| verdict == VoteResult::Lost) {
                    VoteResult::Lost
                } else if verdicts().all(|verdict| verdict == VoteResult::Won) {
                    VoteResult::Won
                } else {
                    VoteResult::Pending
                }
            }
            Purpose::Release | Purpose::Leave => released(&self.tally),
        }
    }

    /// Returns the result for the caller that waits for the round; `None` as long as there is something to wait for. `Pending` is
    /// the result of a release that too few nodes have answered, when no further reply comes.
    ///
    /// `is_confirmed` says that the leases of a hold that was won have been confirmed. The caller gets the result only then.
    pub(crate) fn outcome(&self, is_confirmed: bool) -> Option<VoteResult> {
        match (self.verdict(), self.purpose) {
            (VoteResult::Won, Purpose::Hold) if !is_confirmed => None,
            (VoteResult::Pending, _) if !self.tally.is_complete() => None,
            (verdict, _) => Some(verdict),
        }
    }

    /// Returns the result when the time to wait is over. A release has done its part when a majority has answered.
    pub(crate) fn outcome_at_timeout(&self) -> VoteResult {
        if self.purpose == Purpose::Release && self.tally.is_free() { VoteResult::Won } else { VoteResult::Pending }
    }

    /// Returns the first lease of a release that had been lost before.
    pub(crate) fn first_lost(&self) -> Option<usize> {
        self.each.iter().position(|tally| released(tally) == VoteResult::Lost)
    }
}

/// Returns the verdict on a release. When no further reply comes, it is enough that a majority is known to be free.
fn released(tally: &Tally) -> VoteResult {
    match tally.release_verdict() {
        VoteResult::Pending if tally.is_complete() && tally.is_free() => VoteResult::Won,
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Reply<'_> = Reply::No { ends: None, is_gone: false };
    const OVER: Reply<'_> = Reply::No { ends: Some(0), is_gone: false };
    const GONE: Reply<'_> = Reply::No { ends: Some(0), is_gone: true };

    /// Counts replies of the nodes from 0 on. Gives the last effect, and whether it settles the round.
    fn last(state: &mut RoundState, replies: &[Reply<'_>]) -> (Effect, bool) {
        let mut last = (Effect::Nothing, false);
        for (node, reply) in replies.iter().enumerate() {
            let counted = state.count(node, *reply).expect("counted once");
            last = (counted.effect, counted.is_settled);
        }
        last
    }

    fn hold(replies: &[Reply<'_>]) -> (Effect, bool) {
        last(&mut RoundState::new(Purpose::Hold, 5, 1), replies)
    }

    fn honoured(is_new: bool, votes: usize, awaited: usize, is_contested: bool, repairable: u64) -> (Effect, bool) {
        (Effect::Honoured { is_new, votes, awaited, is_contested, repairable }, true)
    }

    #[test]
    fn a_node_is_counted_once() {
        let mut state = RoundState::new(Purpose::Hold, 3, 1);
        assert!(state.count(1, Reply::Yes).is_some());
        assert_eq!(state.count(1, Reply::Yes), None);
        assert_eq!(state.count(1, NO), None);
        assert_eq!((state.tally().votes(), state.verdict()), (1, VoteResult::Pending));
    }

    #[test]
    fn what_each_reply_to_a_hold_changes() {
        use Reply::{Missing, Yes};
        let table: [(&[Reply<'_>], (Effect, bool)); 14] = [
            (&[Yes, Yes], (Effect::Nothing, false)),
            (&[Yes, Yes, Yes], honoured(true, 3, 2, false, 0)),
            (&[Yes, Yes, Yes, Yes], honoured(false, 4, 1, false, 0)),
            (&[Yes, Yes, Yes, Missing, Yes], honoured(false, 4, 0, false, 0)),
            (&[Yes, NO, Yes, Yes], honoured(true, 3, 1, true, 0)),
            (&[Yes, NO, Yes, Yes, Yes], honoured(false, 4, 0, false, 0)),
            (&[Yes, Yes, Yes, NO], honoured(false, 3, 1, true, 0)),
            (&[GONE, Yes, Yes, Yes], honoured(true, 3, 1, true, 0b1)),
            (&[Yes, Yes, Yes, GONE], honoured(false, 3, 1, true, 0b1000)),
            (&[GONE, Yes, Yes, Yes, GONE], honoured(false, 3, 0, true, 0b10000)),
            (&[OVER, OVER], (Effect::Nothing, false)),
            (&[OVER, OVER, GONE], (Effect::Over(0), true)),
            (&[NO, NO, NO, NO], (Effect::Nothing, true)),
            (&[NO, NO, Missing, Yes, Yes], (Effect::Failed, true)),
        ];
        for (replies, expected) in table {
            assert_eq!(hold(replies), expected, "{replies:?}");
        }
    }

    #[test]
    fn each_lease_of_a_hold_is_over_by_its_own_majority() {
        let over = |lease| Reply::No { ends: Some(lease), is_gone: false };
        let mut state = RoundState::new(Purpose::Hold, 5, 2);
        assert_eq!(last(&mut state, &[over(0), over(1), over(1), over(0)]), (Effect::Nothing, true));
        assert_eq!(state.count(4, over(1)).map(|counted| counted.effect), Some(Effect::Over(1)));
        let mut odd = RoundState::new(Purpose::Hold, 3, 1);
        assert_eq!(last(&mut odd, &[over(7), over(7)]), (Effect::Nothing, true), "no such lease");
    }

    #[test]
    fn a_caller_gets_a_hold_that_the_leases_know_of() {
        use Reply::{Missing, Yes};
        let outcome = |replies: &[Reply<'_>], is_confirmed| {
            let mut state = RoundState::new(Purpose::Hold, 3, 1);
            last(&mut state, replies);
            (state.outcome(is_confirmed), state.outcome_at_timeout())
        };
        assert_eq!(outcome(&[Yes], false), (None, VoteResult::Pending));
        assert_eq!(outcome(&[Yes, Yes], false), (None, VoteResult::Pending));
        assert_eq!(outcome(&[Yes, Yes], true), (Some(VoteResult::Won), VoteResult::Pending));
        assert_eq!(outcome(&[NO, Missing], false), (Some(VoteResult::Lost), VoteResult::Pending));
    }

    #[test]
    fn releases_have_no_effect_on_leases_and_their_own_verdict() {
        use Reply::{Missing, Untouched, Yes};
        let release = |purpose, replies: &[Reply<'_>]| {
            let mut state = RoundState::new(purpose, 3, 1);
            let (effect, is_settled) = last(&mut state, replies);
            assert_eq!(effect, Effect::Nothing, "{replies:?}");
            assert_eq!(is_settled, state.outcome(false).is_some(), "{replies:?}");
            (state.outcome(false), state.outcome_at_timeout())
        };
        let table: [(&[Reply<'_>], Option<VoteResult>, VoteResult); 7] = [
            (&[Yes], None, VoteResult::Pending),
            (&[Yes, Yes], Some(VoteResult::Won), VoteResult::Won),
            (&[GONE, GONE], Some(VoteResult::Lost), VoteResult::Won),
            (&[Untouched, Yes], None, VoteResult::Won),
            (&[Untouched, Yes, Missing], Some(VoteResult::Won), VoteResult::Won),
            (&[Untouched, Missing], None, VoteResult::Pending),
            (&[Untouched, Missing, Missing], Some(VoteResult::Pending), VoteResult::Pending),
        ];
        for (replies, outcome, at_timeout) in table {
            assert_eq!(release(Purpose::Release, replies), (outcome, at_timeout), "{replies:?}");
            assert_eq!(release(Purpose::Leave, replies), (outcome, VoteResult::Pending), "{replies:?}");
        }
    }

    #[test]
    fn each_lease_of_a_release_has_its_own_majority() {
        use Reply::{Missing, Partly, Untouched, Yes};
        let release = |replies: &[Reply<'_>]| {
            let mut state = RoundState::new(Purpose::Release, 3, 2);
            last(&mut state, replies);
            (state.outcome(false), state.first_lost())
        };
        let (first, second) = (Partly(&[true, false]), Partly(&[false, true]));
        let table: [(&[Reply<'_>], Option<VoteResult>, Option<usize>); 8] = [
            (&[Yes, Yes], Some(VoteResult::Won), None),
            (&[Yes, first], None, None),
            (&[Yes, first, second], Some(VoteResult::Won), None),
            (&[first, first], Some(VoteResult::Lost), Some(1)),
            (&[second, second], Some(VoteResult::Lost), Some(0)),
            (&[Untouched, Untouched], Some(VoteResult::Lost), Some(0)),
            (&[Yes, first, Missing], Some(VoteResult::Won), None),
            (&[Yes, Missing, Missing], Some(VoteResult::Pending), None),
        ];
        for (replies, outcome, first_lost) in table {
            assert_eq!(release(replies), (outcome, first_lost), "{replies:?}");
        }
        let mut one = RoundState::new(Purpose::Release, 3, 1);
        last(&mut one, &[GONE, GONE]);
        assert_eq!(one.first_lost(), Some(0));
    }
}
