//! Durations on the command line.

use std::time::Duration;

/// Reads a duration as in `500ms`, `10s` or `1m 30s`. An error shows how to write one.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "write a duration as in 500ms, 10s or '1m 30s'")
}
