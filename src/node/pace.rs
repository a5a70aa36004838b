//! How fast a node usually answers, and when its silence is worth a doubt.

use std::time::Duration;

use crate::environment::Moment;

/// A connection without a reply for this long may have been forgotten by a firewall in between.
const QUIET: Duration = Duration::from_secs(1);

/// The least time for which a reply may be due before the connection is doubted: on one that was quiet, and on one that was in use.
const LEAST_QUIET: Duration = Duration::from_millis(20);
const LEAST_IN_USE: Duration = Duration::from_millis(250);

/// The same, in usual round trips of the node. The longer time counts.
const ROUND_TRIPS: u32 = 4;

/// The longest round trip that is taken to be usual: else a process that was stopped would doubt no connection for long.
const LONGEST_USUAL: Duration = Duration::from_secs(1);

/// What timers and other tasks may cost.
const SLACK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When the node last answered.
    answered: Moment,
    /// How long its answers take.
    usual: Duration,
    /// It was doubted since the last answer.
    doubted: bool,
}

impl Pace {
    /// The pace of a new connection, whose attempt took so long: at least two round trips. A connection that replaces a doubted one
    /// is not doubted before the node has answered on it. Otherwise a node that answers nothing but handshakes would be connected
    /// to again and again.
    pub(super) fn new(made: Moment, took: Duration, replaces: bool) -> Self {
        Self { answered: made, usual: LONGEST_USUAL.min(took / 2), doubted: replaces }
    }

    /// Records that an answer came now to what was sent then.
    pub(super) fn answered(&mut self, sent: Moment, now: Moment) {
        let took = LONGEST_USUAL.min(now.since(sent));
        // Up at once, and down slowly.
        self.usual = took.max(self.usual.saturating_sub(self.usual.saturating_sub(took) / 8));
        (self.answered, self.doubted) = (now, false);
    }

    /// Returns how long after the oldest unanswered request was sent to look again.
    pub(super) fn next_look(&self, oldest: Moment, timeout: Duration) -> Duration {
        let usual = timeout / 2;
        if self.doubted { usual } else { self.doubt_after(oldest).min(usual) }
    }

    fn doubt_after(&self, oldest: Moment) -> Duration {
        let least = if oldest.since(self.answered) >= QUIET { LEAST_QUIET } else { LEAST_IN_USE };
        least.max(ROUND_TRIPS * self.usual)
    }

    /// Returns whether another connection is to be tried, as the oldest reply is late. True once until the next reply.
    pub(super) fn is_doubtful(&mut self, oldest: Moment, now: Moment) -> bool {
        let is_doubtful = !self.doubted && now.since(oldest) >= self.doubt_after(oldest);
        self.doubted |= is_doubtful;
        is_doubtful
    }

    /// Returns how long it takes at most until the node gets what is sent to it now, if only this connection, which was quiet,
    /// is broken.
    pub(super) fn last_wait(&self) -> Duration {
        LEAST_QUIET + SLACK + 2 * ROUND_TRIPS * self.usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u64) -> Moment {
        Moment::new(Duration::from_millis(millis))
    }

    #[test]
    fn a_quiet_connection_is_doubted_after_a_few_round_trips_and_once() {
        let mut pace = Pace::new(at(0), 2 * MS, false);
        assert_eq!(pace.next_look(at(2000), 500 * MS), LEAST_QUIET);
        assert!(!pace.is_doubtful(at(2000), at(2019)));
        assert!(pace.is_doubtful(at(2000), at(2020)));
        assert!(!pace.is_doubtful(at(2000), at(2100)), "once");
        assert_eq!(pace.next_look(at(2000), 500 * MS), 250 * MS);
        pace.answered(at(2000), at(2101));
        assert!(!pace.is_doubtful(at(4000), at(4403)), "it is slow: 101 ms are usual");
        assert!(pace.is_doubtful(at(4000), at(4404)));
    }

    #[test]
    fn a_connection_in_use_is_doubted_later() {
        let mut pace = Pace::new(at(0), 2 * MS, false);
        assert!(!pace.is_doubtful(at(999), at(1248)));
        assert!(pace.is_doubtful(at(999), at(1249)));
    }

    #[test]
    fn the_end_of_a_program_waits_for_a_doubt_and_a_new_connection() {
        let mut pace = Pace::new(at(0), 2 * MS, false);
        assert_eq!(pace.last_wait(), 33 * MS, "20 ms, 5 ms for timers, and eight round trips of 1 ms");
        pace.answered(at(0), at(10));
        assert_eq!(pace.last_wait(), 105 * MS);
    }

    #[test]
    fn a_replacement_is_doubted_only_after_an_answer() {
        let mut pace = Pace::new(at(0), 2 * MS, true);
        assert!(!pace.is_doubtful(at(2000), at(9000)));
        pace.answered(at(2000), at(9000));
        assert!(pace.is_doubtful(at(20_000), at(24_000)), "four of the longest usual round trips");
    }

    #[test]
    fn what_is_usual_rises_at_once_and_falls_slowly() {
        let mut pace = Pace::new(at(0), Duration::ZERO, false);
        pace.answered(at(0), at(80));
        assert_eq!(pace.usual, 80 * MS);
        pace.answered(at(80), at(80));
        assert_eq!(pace.usual, 70 * MS);
        (0..100).for_each(|_| pace.answered(at(80), at(81)));
        assert!(pace.usual < 2 * MS, "{:?}", pace.usual);
    }
}
