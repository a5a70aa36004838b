//! Simulated time.

use std::time::Duration;

use tokio::time::Instant;

/// The wall clock at the start of every run.
pub const EPOCH_US: u64 = 1_790_000_000_000_000;

#[derive(Clone, Copy, Debug)]
pub struct Time(Instant);

impl Time {
    /// Must be called inside the run's runtime.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Simulated time in µs.
    pub fn now(self) -> u64 {
        micros(self.0.elapsed())
    }

    pub fn at(self, us: u64) -> Instant {
        self.0 + Duration::from_micros(us)
    }
}

pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
