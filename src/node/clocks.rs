//! The time that all clients of the same nodes share. It does not depend on their own clocks.

use std::sync::Mutex;

use crate::environment::Moment;
use crate::sync::locked;

/// An answer may be so late, in µs, that a clock seems to be this much further behind than it is.
const LATE: i64 = 10_000;

/// How far each node's clock is ahead of this machine's monotonic clock, in µs, as far as the node has said.
#[derive(Debug)]
pub(crate) struct NodeClocks(Mutex<Vec<Option<i64>>>);

impl NodeClocks {
    pub(super) fn new(nodes: usize) -> Self {
        Self(Mutex::new(vec![None; nodes]))
    }

    /// Notes how far the node's clock was ahead by one of its answers. The answer that took least time counts, until a later one
    /// shows that the clock was set, or runs at another rate.
    pub(super) fn saw(&self, node: usize, ahead: i64) {
        let mut clocks = locked(&self.0);
        let is_news = clocks[node].is_none_or(|known| ahead > known || ahead < known - LATE);
        if is_news {
            clocks[node] = Some(ahead);
        }
    }

    /// Returns what the median of the known clocks shows, in µs.
    pub(crate) fn median(&self, now: Moment) -> Option<u64> {
        let mut known: Vec<i64> = locked(&self.0).iter().flatten().copied().collect();
        known.sort_unstable();
        let median = known.get(known.len().saturating_sub(1) / 2)?;
        Some(now.micros().saturating_add_signed(*median))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_median_of_what_is_known() {
        let (clocks, now) = (NodeClocks::new(3), Moment::new(Duration::from_millis(1)));
        assert_eq!(clocks.median(now), None);
        clocks.saw(1, 50);
        assert_eq!(clocks.median(now), Some(1050));
        clocks.saw(0, -900_000);
        clocks.saw(2, 900_000);
        assert_eq!(clocks.median(now), Some(1050), "one clock that is ahead and one that is behind");
    }

    #[test]
    fn late_answers_change_nothing_and_a_clock_that_was_set_is_followed() {
        let (clocks, now) = (NodeClocks::new(1), Moment::new(Duration::ZERO));
        for (ahead, known) in [(5_000, 5_000), (6_000, 6_000), (1_000, 6_000), (-4_000, 6_000), (-5_000, -5_000)] {
            clocks.saw(0, ahead);
            assert_eq!(clocks.median(now), 0_u64.checked_add_signed(known).or(Some(0)), "{ahead}");
        }
    }
}
