//! What holds for every order of events, where a table can only show some of them.

mod ballot;
mod lease;
mod tally;
mod validity;

use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;

use super::Moment;

/// More nodes than clusters have.
const SEVERAL: usize = 9;
const MILLISECOND: Duration = Duration::from_millis(1);

fn at(millis: u64) -> Moment {
    Moment::new(Duration::from_millis(millis))
}

fn millis(range: Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}
