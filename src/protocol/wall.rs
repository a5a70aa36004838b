//! A wall clock that does not step.

use std::time::Duration;

use super::moment::Moment;

/// Differences between two readings of a machine's clocks that mean nothing: the clocks are read one after the other. Of two clients,
/// both may be wrong by so much, which the least allowance for drift covers.
const READING_ERROR: i64 = 1_000; // µs

/// A wall clock as it runs on from when it was first read, in µs: the monotonic clock and an offset.
///
/// A step of the machine's wall clock does not reach what it shows. A step that lasts does, after `steady_for`: a machine
/// whose clock was set only after the client had started would otherwise stay behind for as long as the client lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall {
    /// Wall clock less monotonic clock, in µs.
    offset: i64,
    /// Another offset that was read, and when: first, and last. Meanwhile it was about the same.
    other: Option<[(i64, Moment); 2]>,
}

impl Wall {
    pub(crate) fn new(now: Moment, wall_micros: u64) -> Self {
        Self { offset: difference(now, wall_micros), other: None }
    }

    /// Returns what the clock shows at `now`, when the machine's wall clock shows `wall_micros`.
    pub(crate) fn read(&mut self, now: Moment, wall_micros: u64, steady_for: Duration) -> u64 {
        let seen = difference(now, wall_micros);
        if (seen - self.offset).abs() <= READING_ERROR {
            self.other = None;
        } else {
            match self.other {
                Some(other) if other.iter().all(|(offset, at)| is_steady(seen - offset, now.since(*at))) => {
                    let [first, _] = other;
                    self.other = Some([first, (seen, now)]);
                    if now.since(first.1) >= steady_for {
                        (self.offset, self.other) = (seen, None);
                    }
                }
                _ => self.other = Some([(seen, now); 2]),
            }
        }
        self.at(now)
    }

    /// Returns what the clock shows at `now`, without a look at the machine's.
    pub(crate) fn at(&self, now: Moment) -> u64 {
        now.micros().saturating_add_signed(self.offset)
    }
}

/// Returns whether an offset that changed by so much after so long is the same. Two clocks of one machine may differ in rate by
/// a hundredth.
fn is_steady(change: i64, after: Duration) -> bool {
    change.abs() <= READING_ERROR + signed(u64::try_from(after.as_micros() / 100).unwrap_or(u64::MAX))
}

/// Returns a wall clock less the monotonic one, in µs.
pub(crate) fn difference(now: Moment, wall_micros: u64) -> i64 {
    signed(wall_micros).saturating_sub(signed(now.micros()))
}

fn signed(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY_FOR: Duration = Duration::from_secs(10);
    const START: u64 = 1_790_000_000;

    /// Both in seconds; the machine's wall clock is `ahead` of START and the time that has passed.
    fn read(wall: &mut Wall, at: u64, ahead: i64) -> u64 {
        let now = Moment::new(Duration::from_secs(at));
        wall.read(now, (START + at).saturating_add_signed(ahead) * 1_000_000, STEADY_FOR) / 1_000_000 - START - at
    }

    fn started() -> Wall {
        Wall::new(Moment::new(Duration::ZERO), START * 1_000_000)
    }

    #[test]
    fn a_step_alone_is_not_followed() {
        let mut wall = started();
        assert_eq!(read(&mut wall, 5, 3600), 0);
        assert_eq!(read(&mut wall, 14, 3600), 0);
        assert_eq!(read(&mut wall, 20, 0), 0, "set back in time");
        assert_eq!(read(&mut wall, 21, 3600), 0, "it begins anew");
        assert_eq!(read(&mut wall, 30, 3600), 0);
    }

    #[test]
    fn a_step_that_lasts_is_followed() {
        let mut wall = started();
        assert_eq!(read(&mut wall, 5, 3600), 0);
        assert_eq!(read(&mut wall, 15, 3600), 3600);
        assert_eq!(read(&mut wall, 16, 3600), 3600);
    }

    #[test]
    fn a_second_step_is_not_taken_for_the_rate_of_the_first() {
        let mut wall = started();
        // In ms. Between the first reading and the third, 50 ms might be a difference in rate; between the second and the third not.
        for (at, ahead, followed) in [
            (5_000, 3_600, false),
            (14_000, 3_600, false),
            (14_500, 3_650, false),
            (15_000, 3_650, false),
            (24_500, 3_650, true),
        ] {
            let now = Moment::new(Duration::from_millis(at));
            wall.read(now, (START * 1000 + at + ahead) * 1000, STEADY_FOR);
            assert_eq!(wall.offset != started().offset, followed, "at {at}");
        }
    }

    #[test]
    fn clocks_may_differ_by_a_hundredth_and_the_error_of_a_reading() {
        let after = Duration::from_secs(1);
        for sign in [1, -1] {
            assert!(is_steady(sign * (READING_ERROR + 10_000), after));
            assert!(!is_steady(sign * (READING_ERROR + 10_001), after));
        }
    }

    #[test]
    fn another_step_begins_anew() {
        let mut wall = started();
        assert_eq!(read(&mut wall, 5, 3600), 0);
        assert_eq!(read(&mut wall, 14, 7200), 0);
        assert_eq!(read(&mut wall, 16, 7200), 0);
        assert_eq!(read(&mut wall, 24, 7200), 7200);
    }

    #[test]
    fn a_reading_error_is_not_a_step() {
        let mut wall = started();
        let now = Moment::new(Duration::from_secs(5));
        let shown = wall.read(now, (START + 5) * 1_000_000 + 900, STEADY_FOR);
        assert_eq!(shown, (START + 5) * 1_000_000);
        assert_eq!(wall.other, None);
    }

    #[test]
    fn a_rate_is_not_taken_for_a_new_step_each_time() {
        let mut wall = started();
        for (at, ahead_millis) in [(5, 3_600_000), (10, 3_600_040), (15, 3_600_080)] {
            let now = Moment::new(Duration::from_secs(at));
            wall.read(now, ((START + at) * 1000 + ahead_millis) * 1000, STEADY_FOR);
        }
        assert_eq!(wall.offset, (START * 1000 + 3_600_080).cast_signed() * 1000);
    }
}
