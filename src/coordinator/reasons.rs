//! What is kept of the nodes' answers to the messages of a lease, to explain its loss.

use crate::error::Reports;
use crate::protocol::Ballot;

/// What each node answered when the latest message got no majority, or when the lease was lost.
#[derive(Default)]
pub(crate) struct Reasons {
    ballot: Ballot,
    pub(crate) reports: Option<Reports>,
    is_over: bool,
}

impl Reasons {
    /// Keeps the reports of a message with this ballot, which got no majority.
    pub(crate) fn is_failed(&mut self, ballot: Ballot, reports: Reports) {
        if !self.is_over && ballot >= self.ballot {
            (self.ballot, self.reports) = (ballot, Some(reports));
        }
    }

    /// Forgets the reports of older messages: a majority has agreed to this ballot.
    pub(crate) fn is_confirmed(&mut self, ballot: Ballot) {
        if !self.is_over && ballot >= self.ballot {
            (self.ballot, self.reports) = (ballot, None);
        }
    }

    /// Keeps the reports of a lease that is lost. Nothing changes them any more.
    pub(crate) fn is_over(&mut self, reports: Reports) {
        (self.reports, self.is_over) = (Some(reports), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_failure_is_kept_until_the_lease_goes_on_or_is_over() {
        let ballot = |number| Ballot::from_wire(number).expect("a ballot");
        let reports = || Some(Reports(Vec::new()));
        let mut reasons = Reasons::default();
        reasons.is_failed(ballot(5), Reports(Vec::new()));
        reasons.is_confirmed(ballot(4));
        assert_eq!(reasons.reports, reports(), "a late answer to an older message");
        reasons.is_confirmed(ballot(6));
        reasons.is_failed(ballot(5), Reports(Vec::new()));
        assert_eq!(reasons.reports, None);
        reasons.is_over(Reports(Vec::new()));
        reasons.is_confirmed(ballot(7));
        assert_eq!(reasons.reports, reports());
    }
}
