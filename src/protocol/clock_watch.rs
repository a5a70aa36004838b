use std::time::Duration;

use super::Moment;

/// Watches a node's clock by the time that each of its answers carries.
///
/// An answer sent at `sent`, received at `received` and stamped `T` bounds the difference between the two clocks: it lies
/// between `T - received` and `T - sent`. A node whose clock steps forward expires keys early, so votes that were counted
/// on may be gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockWatch {
    drift_factor: f64,
    last: Option<Bounds>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    at: Moment,
    lowest: i64,
    highest: i64,
}

/// What two clocks may differ by for no reason: their resolution, and the floor of the drift allowance.
const SLACK_MICROS: i64 = 2_000;

impl ClockWatch {
    pub(crate) fn new(drift_factor: f64) -> Self {
        Self { drift_factor, last: None }
    }

    /// By how much the node's clock has certainly stepped forward, beyond the allowed drift, since the answer before.
    pub(crate) fn observe(&mut self, sent: Moment, received: Moment, node_micros: u64) -> Option<Duration> {
        let signed = |micros: u64| i64::try_from(micros).unwrap_or(i64::MAX);
        let difference = |at: Moment| signed(node_micros).saturating_sub(signed(at.micros()));
        let now = Bounds { at: received, lowest: difference(received), highest: difference(sent) };
        let last = self.last.replace(now)?;
        let drift = received.since(last.at).mul_f64(self.drift_factor);
        let allowed = SLACK_MICROS + signed(u64::try_from(drift.as_micros()).unwrap_or(u64::MAX));
        let step = now.lowest.saturating_sub(last.highest).saturating_sub(allowed);
        u64::try_from(step).ok().filter(|step| *step > 0).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::new(Duration::from_millis(millis))
    }

    /// The node's clock is `ahead` milliseconds ahead, and stamps its answer in the middle.
    fn answer(watch: &mut ClockWatch, sent: u64, received: u64, ahead: u64) -> Option<Duration> {
        watch.observe(at(sent), at(received), ((sent + received) / 2 + ahead) * 1000)
    }

    #[test]
    fn a_steady_clock_and_an_allowed_drift_are_silent() {
        let mut watch = ClockWatch::new(0.01);
        assert_eq!(answer(&mut watch, 0, 2, 500_000), None);
        assert_eq!(answer(&mut watch, 1000, 1002, 500_000), None);
        assert_eq!(answer(&mut watch, 2000, 2002, 500_010), None, "10 ms in a second are 1 %");
        assert_eq!(answer(&mut watch, 2100, 2102, 500_000), None, "backwards only makes keys live longer");
    }

    #[test]
    fn a_step_forward_is_seen_and_then_taken_as_it_is() {
        let mut watch = ClockWatch::new(0.01);
        assert_eq!(answer(&mut watch, 0, 2, 500_000), None);
        assert_eq!(answer(&mut watch, 1000, 1002, 501_000), Some(Duration::from_millis(986)));
        assert_eq!(answer(&mut watch, 1100, 1102, 501_000), None);
    }

    #[test]
    fn slow_answers_prove_nothing() {
        let mut watch = ClockWatch::new(0.0);
        assert_eq!(answer(&mut watch, 0, 2, 0), None);
        assert_eq!(watch.observe(at(1000), at(9000), 8_999_000), None, "it may have been stamped at the end");
        assert_eq!(watch.observe(at(9100), at(9102), 9_110_000), None, "the last one proved little");
        assert_eq!(watch.observe(at(9200), at(9202), 9_300_000), Some(Duration::from_micros(86_000)));
    }
}
