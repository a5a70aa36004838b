use proptest::prelude::*;

use super::{MILLISECOND, millis};
use crate::protocol::{Moment, Validity};

proptest! {
    #[test]
    fn a_node_whose_clock_is_fast_by_the_allowed_drift_has_the_key_until_the_deadline(
        drift_factor in 0.0..0.5,
        started in millis(0..1_000_000_000),
        lease in millis(1..100_000_000),
    ) {
        let started = Moment::new(started);
        let deadline = Validity { drift_factor }.deadline(started, lease);
        let passed_here = deadline.since(started);
        // Counted from the first send, which is before any node sets its key; a node expires it by the millisecond.
        let passed_there = passed_here.mul_f64(1.0 + drift_factor) + MILLISECOND;
        prop_assert!(passed_here.is_zero() || passed_there <= lease, "{passed_there:?} of {lease:?}");
        prop_assert!(deadline >= started);
    }
}
