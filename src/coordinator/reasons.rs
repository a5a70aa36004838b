//! What is kept of the nodes' answers to the messages of a lease, to explain its loss.

use crate::environment::Moment;
use crate::error::Reports;

/// What each node answered when the latest message got no majority, or when the lease was lost.
#[derive(Default)]
pub(crate) struct Reasons {
    /// When the message was sent about which this is known.
    sent: Option<Moment>,
    pub(crate) reports: Option<Reports>,
    is_over: bool,
}

impl Reasons {
    /// Keeps the reports of a message that was sent then, and got no majority.
    pub(crate) fn is_failed(&mut self, sent: Moment, reports: Reports) {
        self.learns(sent, Some(reports));
    }

    /// Forgets the reports of older messages: a majority has agreed to the one that was sent then.
    pub(crate) fn is_confirmed(&mut self, sent: Moment) {
        self.learns(sent, None);
    }

    fn learns(&mut self, sent: Moment, reports: Option<Reports>) {
        // Not by ballots: a failed request beside the lease may have carried one that is far ahead.
        if !self.is_over && Some(sent) >= self.sent {
            (self.sent, self.reports) = (Some(sent), reports);
        }
    }

    /// Keeps the reports of a lease that is lost. Nothing changes them any more.
    pub(crate) fn is_over(&mut self, reports: Reports) {
        (self.reports, self.is_over) = (Some(reports), true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_failure_is_kept_until_the_lease_goes_on_or_is_over() {
        let at = |millis| Moment::new(Duration::from_millis(millis));
        let reports = || Some(Reports(Vec::new()));
        let mut reasons = Reasons::default();
        reasons.is_failed(at(5), Reports(Vec::new()));
        reasons.is_confirmed(at(4));
        assert_eq!(reasons.reports, reports(), "a late answer to an older message");
        reasons.is_confirmed(at(6));
        reasons.is_failed(at(5), Reports(Vec::new()));
        assert_eq!(reasons.reports, None);
        reasons.is_over(Reports(Vec::new()));
        reasons.is_confirmed(at(7));
        assert_eq!(reasons.reports, reports());
    }
}
