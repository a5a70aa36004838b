//! How long a node is left alone before the next connection to it.

use std::time::Duration;

use super::inflight::Inflight;
use crate::environment::Moment;
use crate::error::NodeError;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that was asked nothing was worth making if it lasted this many times the next pause.
const WORTH: u32 = 4;

/// Returns the pause after an attempt that was in vain.
pub(super) fn longer(pause: Duration) -> Duration {
    (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Returns the pause after a connection that has broken. There is none if the connection was of use, or if it was asked nothing
/// and lasted long enough. A node that works only until it is asked, or does not keep to the protocol, is left alone longer and
/// longer.
pub(super) fn after(pause: Duration, inflight: &Inflight, broken: &NodeError, now: Moment) -> Duration {
    let longer = longer(pause);
    let was_good = inflight.is_useful || (inflight.unanswered.is_empty() && now.since(inflight.made) >= WORTH * longer);
    let is_hostile = matches!(broken, NodeError::Nonsense(_) | NodeError::TooLarge { .. });
    if was_good && !is_hostile { Duration::ZERO } else { longer }
}
