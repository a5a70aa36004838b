//! Limited waits and random pauses, by the clock and the randomness of an environment.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};
use futures::poll;

use super::interface::Environment;

/// A timer may stand still while the machine sleeps. So the clock is read that often.
const LONGEST_NAP: Duration = Duration::from_secs(2);

/// Waits for `future`, for at most `limit` by the clock of the environment.
pub(crate) async fn within<T>(
    environment: &dyn Environment,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    if let Poll::Ready(output) = poll!(&mut future) {
        return Some(output);
    }
    let end = environment.now() + limit;
    loop {
        let left = end.since(environment.now());
        match select(&mut future, environment.sleep(left.min(LONGEST_NAP))).await {
            Either::Left((output, _)) => return Some(output),
            Either::Right(_) if left <= LONGEST_NAP => return None,
            Either::Right(_) => {}
        }
    }
}

/// A random time in the range; good enough for pauses.
pub(crate) fn random_time(environment: &dyn Environment, range: Range<Duration>) -> Duration {
    let mut bytes = [0; 4];
    environment.fill(&mut bytes);
    let share = f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0);
    range.start + range.end.saturating_sub(range.start).mul_f64(share)
}
