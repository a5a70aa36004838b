//! The count of votes, and the majority that it needs.

/// Returns the number of nodes that must agree: the smallest majority, also of an even number.
pub(crate) fn quorum(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// Where a count of votes stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteResult {
    /// Neither is certain yet.
    Pending,
    /// A majority said yes. No further reply can change that.
    Won,
    /// A majority can no longer say yes.
    Lost,
}

/// The votes of one round: each node says yes, says no, or gives no reply.
///
/// | of 5 | yes | no | missing | verdict |
/// |---|---|---|---|---|
/// | two to come | 2 | 1 | 0 | pending |
/// | majority | 3 | 0 | 0 | won |
/// | majority gone | 2 | 2 | 1 | lost |
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    nodes: usize,
    yes: usize,
    no: usize,
    missing: usize,
}

impl Tally {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, yes: 0, no: 0, missing: 0 }
    }

    pub(crate) fn yes(&mut self) {
        self.yes += 1;
    }

    pub(crate) fn no(&mut self) {
        self.no += 1;
    }

    pub(crate) fn missing(&mut self) {
        self.missing += 1;
    }

    pub(crate) fn votes(&self) -> usize {
        self.yes
    }

    pub(crate) fn missing_votes(&self) -> usize {
        self.missing
    }

    pub(crate) fn verdict(&self) -> VoteResult {
        let quorum = quorum(self.nodes);
        if self.yes >= quorum {
            VoteResult::Won
        } else if self.no + self.missing > self.nodes - quorum {
            VoteResult::Lost
        } else {
            VoteResult::Pending
        }
    }

    /// Returns the verdict on a release. A yes says that the node still honoured the lease until now, a no that it did not: won
    /// when a majority still honoured it, lost when no majority can have. In between, the other replies decide.
    pub(crate) fn release_verdict(&self) -> VoteResult {
        let quorum = quorum(self.nodes);
        if self.yes >= quorum {
            VoteResult::Won
        } else if self.no > self.nodes - quorum {
            VoteResult::Lost
        } else {
            VoteResult::Pending
        }
    }

    /// Returns whether a majority has answered a release, either way. What is left then is in the way of no other owner.
    pub(crate) fn is_free(&self) -> bool {
        self.yes + self.no >= quorum(self.nodes)
    }

    /// Returns how many nodes have neither answered nor failed.
    pub(crate) fn awaited(&self) -> usize {
        self.nodes - self.yes - self.no - self.missing
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.awaited() == 0
    }

    /// Returns whether a majority said no. Missing replies do not count.
    pub(crate) fn is_refused(&self) -> bool {
        self.no >= quorum(self.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(nodes: usize, yes: usize, no: usize, missing: usize) -> Tally {
        Tally { nodes, yes, no, missing }
    }

    #[test]
    fn quorums() {
        let table = [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4), (9, 5)];
        for (nodes, needed) in table {
            assert_eq!(quorum(nodes), needed, "{nodes} nodes");
        }
    }

    #[test]
    fn truth_table() {
        use VoteResult::{Lost, Pending, Won};
        #[rustfmt::skip]
        let table = [
            // nodes, yes, no, missing, verdict, refused
            (1, 0, 0, 0, Pending, false),
            (1, 1, 0, 0, Won, false),
            (1, 0, 1, 0, Lost, true),
            (1, 0, 0, 1, Lost, false),
            (2, 1, 0, 0, Pending, false),
            (2, 1, 1, 0, Lost, false),
            (2, 1, 0, 1, Lost, false),
            (2, 2, 0, 0, Won, false),
            (3, 1, 1, 0, Pending, false),
            (3, 2, 0, 0, Won, false),
            (3, 1, 1, 1, Lost, false),
            (3, 0, 2, 0, Lost, true),
            (4, 2, 1, 0, Pending, false),
            (4, 2, 2, 0, Lost, false),
            (4, 3, 0, 0, Won, false),
            (5, 2, 2, 0, Pending, false),
            (5, 2, 2, 1, Lost, false),
            (5, 3, 2, 0, Won, false),
            (5, 0, 3, 0, Lost, true),
            (5, 2, 0, 3, Lost, false),
            (5, 2, 1, 2, Lost, false),
            (5, 0, 0, 2, Pending, false),
        ];
        for (nodes, yes, no, missing, verdict, refused) in table {
            let tally = tally(nodes, yes, no, missing);
            assert_eq!(tally.verdict(), verdict, "{tally:?}");
            assert_eq!(tally.is_refused(), refused, "{tally:?}");
        }
    }

    #[test]
    fn truth_table_of_releases() {
        use VoteResult::{Lost, Pending, Won};
        #[rustfmt::skip]
        let table = [
            // nodes, held, not held, missing, verdict, free, complete
            (1, 1, 0, 0, Won, true, true),
            (1, 0, 1, 0, Lost, true, true),
            (1, 0, 0, 1, Pending, false, true),
            (4, 2, 1, 1, Pending, true, true),
            (4, 2, 2, 0, Lost, true, true),
            (5, 3, 0, 0, Won, true, false),
            (5, 3, 2, 0, Won, true, true),
            (5, 2, 2, 0, Pending, true, false),
            (5, 2, 2, 1, Pending, true, true),
            (5, 0, 3, 0, Lost, true, false),
            (5, 2, 0, 3, Pending, false, true),
            (5, 0, 2, 3, Pending, false, true),
        ];
        for (nodes, yes, no, missing, verdict, free, complete) in table {
            let tally = tally(nodes, yes, no, missing);
            assert_eq!(tally.release_verdict(), verdict, "{tally:?}");
            assert_eq!(tally.is_free(), free, "{tally:?}");
            assert_eq!(tally.is_complete(), complete, "{tally:?}");
        }
    }

    #[test]
    fn votes_are_counted_where_they_belong() {
        let mut tally = Tally::new(5);
        tally.yes();
        tally.yes();
        tally.no();
        assert_eq!((tally.votes(), tally.verdict()), (2, VoteResult::Pending));
        tally.missing();
        tally.missing();
        assert_eq!((tally.votes(), tally.missing_votes(), tally.verdict()), (2, 2, VoteResult::Lost));
        assert!(!tally.is_refused());
    }
}
