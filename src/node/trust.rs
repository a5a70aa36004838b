//! Whether a node's yes counts. A node that may have forgotten what it voted could vote twice, so it is quarantined until
//! every lease that it may have voted for is over.

use std::time::Duration;

use super::health::Health;
use crate::error::{Distrust, NodeError};
use crate::protocol::{ClockWatch, Moment, Validity};

/// What is known of the server behind one place of the node list, over all its connections and processes.
#[derive(Debug)]
pub(super) struct Trust {
    validity: Validity,
    process: Option<String>,
    /// When this process, or the one before it, last answered.
    heard: Option<Moment>,
    /// The latest moment at which votes may have been lost, and how.
    forgot: Option<(Moment, Distrust)>,
    /// Not begun anew with a new process: a machine that comes back with its clock ahead expires keys that it has kept.
    clock: ClockWatch,
}

impl Trust {
    pub(super) fn new(validity: Validity) -> Self {
        Self { validity, process: None, heard: None, forgot: None, clock: ClockWatch::default() }
    }

    /// A connection was made at `now` to a server that says this of itself.
    pub(super) fn connected(&mut self, now: Moment, health: &Health) {
        let same = health.run_id.is_some() && health.run_id == self.process;
        let since_heard = self.heard.filter(|_| self.process.is_some()).map(|heard| now.since(heard));
        if !same && !health.keeps_votes {
            // The process started at the latest when its uptime says, and not before the last one was heard. A server
            // that says nothing of itself may have started this very moment.
            let age = health.run_id.as_ref().map_or(Duration::ZERO, |_| health.uptime);
            let age = since_heard.map_or(age, |since| age.min(since));
            self.forgot = self.forgot.max(Some((now.minus(age), Distrust::Restarted)));
        }
        self.process.clone_from(&health.run_id);
        self.heard = Some(now);
    }

    /// An answer to what was sent at `sent`, stamped with the node's time.
    pub(super) fn answered(&mut self, sent: Moment, now: Moment, node_micros: Option<u64>, shortest_lease: Duration) {
        self.heard = Some(now);
        let watch = |micros| self.clock.observe(sent, now, micros, self.validity, shortest_lease);
        if node_micros.and_then(watch).is_some() {
            self.forgot = self.forgot.max(Some((now, Distrust::ClockStepped)));
        }
    }

    /// Why a yes does not count now: until the longest lease is over since votes may have been lost.
    pub(super) fn quarantine(&self, now: Moment, longest_lease: Duration) -> Option<NodeError> {
        let (forgot, why) = self.forgot?;
        let left = (forgot + longest_lease + self.validity.drift(longest_lease)).since(now);
        (!left.is_zero()).then_some(NodeError::Quarantined { why, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    fn server(run_id: &str, uptime: u64) -> Health {
        Health { run_id: Some(run_id.to_owned()), uptime: Duration::from_secs(uptime), ..Health::default() }
    }

    fn trust(drift_factor: f64) -> Trust {
        Trust::new(Validity { drift_factor })
    }

    fn left(trust: &Trust, now: u64) -> u64 {
        match trust.quarantine(at(now), LEASE) {
            None => 0,
            // Whole seconds, without the 2 ms that the drift allowance adds.
            Some(NodeError::Quarantined { left, .. }) => left.as_secs(),
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_older_than_every_lease_is_trusted() {
        let mut trust = trust(0.0);
        trust.connected(at(100), &server("a", 10));
        assert_eq!(left(&trust, 100), 0);
    }

    #[test]
    fn a_young_server_is_trusted_when_the_longest_lease_is_over() {
        let mut trust = trust(0.0);
        trust.connected(at(100), &server("a", 3));
        assert_eq!((left(&trust, 100), left(&trust, 106), left(&trust, 107)), (7, 1, 0));
        trust.connected(at(104), &server("a", 7));
        assert_eq!(left(&trust, 104), 3, "another connection to the same process changes nothing");
    }

    #[test]
    fn a_restart_counts_from_when_the_old_process_was_last_heard() {
        let mut trust = trust(0.0);
        trust.connected(at(100), &server("a", 500));
        trust.answered(at(109), at(110), None, LEASE);
        trust.connected(at(112), &server("b", 500));
        assert_eq!(left(&trust, 112), 8, "its wall clock may have been set; it cannot be older than 2 s");
    }

    #[test]
    fn drift_lengthens_the_quarantine() {
        let mut trust = trust(0.1);
        trust.connected(at(100), &server("a", 0));
        assert_eq!((left(&trust, 100), left(&trust, 110), left(&trust, 111)), (11, 1, 0));
    }

    #[test]
    fn a_server_that_keeps_its_votes_is_trusted_at_once() {
        let mut trust = trust(0.0);
        trust.connected(at(100), &Health { keeps_votes: true, ..server("a", 0) });
        assert_eq!(left(&trust, 100), 0);
        trust.connected(at(101), &server("b", 0));
        assert_eq!(left(&trust, 101), 10, "the next process has nothing to show for itself");
    }

    #[test]
    fn a_server_that_says_nothing_is_distrusted_on_every_connection() {
        let mut trust = trust(0.0);
        trust.connected(at(100), &Health::default());
        assert_eq!(left(&trust, 105), 5);
        trust.connected(at(105), &Health::default());
        assert_eq!(left(&trust, 105), 10);
    }

    #[test]
    fn a_clock_that_steps_forward_may_have_cut_leases_short() {
        let mut trust = trust(0.01);
        trust.connected(at(100), &server("a", 500));
        trust.answered(at(100), at(100), Some(7_000_000), LEASE);
        trust.answered(at(101), at(101), Some(8_000_000), LEASE);
        assert_eq!(left(&trust, 101), 0);
        trust.connected(at(102), &Health { keeps_votes: true, ..server("b", 0) });
        trust.answered(at(102), at(102), Some(29_000_000), LEASE);
        assert!(matches!(
            trust.quarantine(at(102), LEASE),
            Some(NodeError::Quarantined { why: Distrust::ClockStepped, .. })
        ));
    }
}
