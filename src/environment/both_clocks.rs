//! The monotonic clock and the wall clock, read together.

use std::time::Duration;

use super::interface::{Environment, Moment};

/// How long a reading of both clocks may take, so that it says how far they are apart.
const LONGEST_READING: Duration = Duration::from_micros(500);

/// Reads the monotonic clock and the wall clock, in µs, as close together as some tries get them. Returns whether they belong together:
/// they do not where the thread had to wait for a processor between the two, each time.
pub(crate) fn both_clocks(environment: &dyn Environment) -> (Moment, u64, bool) {
    const TRIES: usize = 4;
    let (mut now, mut best) = (environment.now(), None::<(Duration, Moment, u64)>);
    for _ in 0..TRIES {
        let micros = u64::try_from(environment.wall().as_micros()).unwrap_or(u64::MAX);
        let before = std::mem::replace(&mut now, environment.now());
        let took = now.since(before);
        if best.is_none_or(|(shortest, ..)| took < shortest) {
            best = Some((took, now, micros));
        }
        if took <= LONGEST_READING {
            break;
        }
    }
    best.map_or((now, 0, false), |(took, now, micros)| (now, micros, took <= LONGEST_READING))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use redis::ConnectionAddr;

    use super::*;
    use crate::environment::Connecting;
    use crate::sync::locked;

    /// Clocks whose readings are so many µs apart, one after the other. Nothing else works.
    #[derive(Debug)]
    struct Slow(Mutex<(u64, Vec<u64>)>);

    impl Environment for Slow {
        fn now(&self) -> Moment {
            Moment::new(Duration::from_micros(locked(&self.0).0))
        }

        fn wall(&self) -> Duration {
            let mut clock = locked(&self.0);
            let (before, took) = (clock.0, clock.1.remove(0));
            clock.0 += took;
            Duration::from_micros(1_000_000 + before)
        }

        fn fill(&self, _: &mut [u8]) {}

        fn connect<'a>(&'a self, _: &'a ConnectionAddr) -> Connecting<'a> {
            Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
        }
    }

    #[test]
    fn of_several_readings_of_both_clocks_the_closest_counts() {
        let read = |apart: &[u64]| {
            let (now, wall, belong) = both_clocks(&Slow(Mutex::new((0, apart.to_vec()))));
            (now.micros(), wall, belong)
        };
        assert_eq!(read(&[500]), (500, 1_000_000, true), "close enough: no more are made");
        assert_eq!(read(&[501, 20]), (521, 1_000_501, true));
        assert_eq!(read(&[900, 700, 800, 700]), (1600, 1_000_900, false), "none is close");
    }
}
