//! Until when a client may rely on a lease, and when it acts within that time.

use std::time::Duration;

use super::moment::Moment;

/// What is taken off every lease, of any length: Redis expires keys by the millisecond.
const DRIFT_FLOOR: Duration = Duration::from_millis(2);

/// Until when a client may believe in a lease, after the Redlock description in the Redis documentation: from before the
/// first send, for the lease less the clock drift that is allowed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Validity {
    /// Share of the lease by which two clocks may drift apart while it lasts.
    pub(crate) drift_factor: f64,
}

impl Validity {
    pub(crate) fn drift(self, lease: Duration) -> Duration {
        lease.mul_f64(self.drift_factor) + DRIFT_FLOOR
    }

    pub(crate) fn deadline(self, started: Moment, lease: Duration) -> Moment {
        started + lease.saturating_sub(self.drift(lease))
    }
}

/// When, within a lease, something is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) validity: Validity,
    /// The lease is extended in the background.
    pub(crate) extends: bool,
    /// How much validity is left when the holder is warned; a third of the lease when not set.
    pub(crate) warn_before: Option<Duration>,
}

impl Schedule {
    /// Returns the time from the start of a confirmed round to the next extension: a third of the lease, which leaves time for
    /// more tries.
    pub(crate) fn extend_after(lease: Duration) -> Duration {
        lease / 3
    }

    /// Returns the time between tries once an extension was missed.
    pub(crate) fn retry_after(lease: Duration) -> Duration {
        (lease / 15).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    pub(crate) fn warns_before(&self, lease: Duration) -> Duration {
        self.warn_before.unwrap_or(lease / 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn drift_is_a_share_of_the_lease_and_two_milliseconds() {
        let validity = Validity { drift_factor: 0.01 };
        assert_eq!(validity.drift(10 * SECOND), Duration::from_millis(102));
        assert_eq!(validity.drift(Duration::ZERO), Duration::from_millis(2));
    }

    #[test]
    fn the_deadline_counts_from_the_start_of_the_round() {
        let validity = Validity { drift_factor: 0.01 };
        let started = Moment::new(5 * SECOND);
        assert_eq!(validity.deadline(started, 10 * SECOND).since(started), Duration::from_millis(9898));
        assert_eq!(validity.deadline(started, Duration::from_millis(1)), started, "never before the start");
    }

    #[test]
    fn extensions_come_at_a_third_and_retries_much_sooner() {
        assert_eq!(Schedule::extend_after(9 * SECOND), 3 * SECOND);
        assert_eq!(Schedule::retry_after(3 * SECOND), Duration::from_millis(200));
        assert_eq!(Schedule::retry_after(3600 * SECOND), SECOND);
        assert_eq!(Schedule::retry_after(Duration::from_millis(15)), Duration::from_millis(5));
    }

    #[test]
    fn the_warning_comes_with_a_third_left_unless_set() {
        let mut schedule = Schedule { validity: Validity { drift_factor: 0.01 }, extends: true, warn_before: None };
        assert_eq!(schedule.warns_before(9 * SECOND), 3 * SECOND);
        schedule.warn_before = Some(SECOND);
        assert_eq!(schedule.warns_before(9 * SECOND), SECOND);
    }
}
