//! Calls of code that is not this crate's.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of an observer, of a `tracing` subscriber, or of a recorder of metrics. When it panics, only the report is lost, and not
/// the task that extends the leases. `None` then.
pub(super) fn apart<T>(report: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(report)).ok()
}
