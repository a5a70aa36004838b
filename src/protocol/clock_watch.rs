use std::time::Duration;

use super::{Moment, Validity};

/// Watches a node's clock by the time that each of its answers carries.
///
/// An answer sent at `sent`, received at `received` and stamped `T` bounds the difference between the two clocks: it lies
/// between `T - received` and `T - sent`. A node whose clock gets ahead expires keys early, so votes that were counted on
/// may be gone. What the drift allowance of a lease covers is no reason for distrust.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClockWatch {
    base: Option<Bounds>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// When it was asked: the node read its clock then or later, and what it drifted since is to be allowed for.
    since: Moment,
    lowest: i64,
    highest: i64,
}

impl ClockWatch {
    /// By how much the node's clock has certainly got ahead, beyond what `validity` allows for a lease of this length.
    pub(crate) fn observe(
        &mut self,
        sent: Moment,
        received: Moment,
        node_micros: u64,
        validity: Validity,
        lease: Duration,
    ) -> Option<Duration> {
        let difference = |at: Moment| signed(node_micros).saturating_sub(signed(at.micros()));
        let now = Bounds { since: sent, lowest: difference(received), highest: difference(sent) };
        let base = self.base.get_or_insert(now);
        let ahead = now.lowest.saturating_sub(base.highest);
        // A step that takes half of a lease's allowance, or the drift that is allowed for the time since.
        let allowed = (validity.drift(lease) / 2).max(validity.drift(received.since(base.since)));
        let allowed = signed(u64::try_from(allowed.as_micros()).unwrap_or(u64::MAX));
        let excess = u64::try_from(ahead.saturating_sub(allowed)).ok().filter(|excess| *excess > 0);
        if excess.is_some() || received.since(base.since) >= lease {
            *base = now;
        } else {
            base.highest = base.highest.min(now.highest);
        }
        excess.map(Duration::from_micros)
    }
}

fn signed(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Moment {
        Moment::new(Duration::from_millis(millis))
    }

    /// Times in ms. Half of the allowance of 1 % of 10 s and 2 ms is 51 ms.
    fn observe(watch: &mut ClockWatch, sent: u64, received: u64, node: u64) -> Option<u128> {
        let ahead = watch.observe(at(sent), at(received), node * 1000, Validity { drift_factor: 0.01 }, LEASE);
        ahead.map(|ahead| ahead.as_millis())
    }

    #[test]
    fn a_steady_clock_an_allowed_drift_and_a_step_back_are_silent() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 2, 500_001), None);
        assert_eq!(observe(&mut watch, 1000, 1002, 501_001), None);
        assert_eq!(observe(&mut watch, 2000, 2002, 502_051), None, "50 ms are allowed");
        assert_eq!(observe(&mut watch, 3000, 3002, 502_000), None, "a step back only makes keys live longer");
    }

    #[test]
    fn a_step_forward_is_seen_once_and_then_taken_as_it_is() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 2, 500_001), None);
        assert_eq!(observe(&mut watch, 1000, 1002, 502_001), Some(947), "1 s, less 2 ms of doubt and 51 ms allowed");
        assert_eq!(observe(&mut watch, 1100, 1102, 502_101), None);
    }

    #[test]
    fn exactly_what_is_allowed_is_silent() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 0, 1000), None);
        assert_eq!(observe(&mut watch, 1000, 1000, 2051), None);
        assert_eq!(observe(&mut watch, 2000, 2000, 3052), Some(1));
    }

    #[test]
    fn small_steps_add_up_within_a_lease() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 0, 1000), None);
        assert_eq!(observe(&mut watch, 2000, 2000, 3030), None);
        assert_eq!(observe(&mut watch, 4000, 4000, 5060), Some(9));
        assert_eq!(observe(&mut watch, 6000, 6000, 7060), None);
    }

    #[test]
    fn drift_within_the_allowance_is_silent_for_ever_and_after_any_pause() {
        let mut watch = ClockWatch::default();
        // One percent fast, less a hair; asked every 300 ms, then not for an hour.
        let node = |at: u64| 1000 + at + at / 101;
        for at in (0..60_000).step_by(300) {
            assert_eq!(observe(&mut watch, at, at, node(at)), None, "at {at}");
        }
        assert_eq!(observe(&mut watch, 3_660_000, 3_660_000, node(3_660_000)), None);
        assert_eq!(observe(&mut watch, 3_661_000, 3_661_000, node(3_661_000)), None);
    }

    #[test]
    fn after_a_lease_the_count_begins_anew() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 0, 1000), None);
        assert_eq!(observe(&mut watch, 10_000, 10_000, 11_050), None);
        assert_eq!(observe(&mut watch, 11_000, 11_000, 12_100), None);
        assert_eq!(observe(&mut watch, 12_000, 12_000, 13_102), Some(1));
    }

    #[test]
    fn slow_answers_prove_nothing() {
        let mut watch = ClockWatch::default();
        assert_eq!(observe(&mut watch, 0, 2, 1), None);
        assert_eq!(observe(&mut watch, 1000, 9000, 8999), None, "it may have been stamped at the end");
        assert_eq!(observe(&mut watch, 9100, 9102, 9300), Some(103));
    }
}
