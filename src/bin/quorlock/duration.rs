//! Durations on the command line.

use std::time::Duration;

/// 100 years. The clocks of the system can count some of these on.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Reads a duration as in `500ms`, `10s` or `1m 30s`. An error shows how to write one.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(text).map_err(|_| "write a duration as in 500ms, 10s or '1m 30s'")?;
    if duration <= LONGEST { Ok(duration) } else { Err("a duration is 36500 days at most") }
}
