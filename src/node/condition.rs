//! What a client knows of a node without asking it.

use std::sync::Mutex;
use std::time::Duration;

use crate::environment::Moment;
use crate::error::NodeError;
use crate::sync::locked;

/// What is known of one node. Its connection writes it when that changes; errors, `inspect` and waiting requests read it.
#[derive(Debug)]
pub(super) struct Condition(Mutex<State>);

#[derive(Clone, Debug)]
struct State {
    /// Why there is no connection.
    down: Option<NodeError>,
    /// When the node's quarantine ends, as it said.
    quarantined_until: Option<Moment>,
    /// When the request was sent whose answer is overdue.
    silent_since: Option<Moment>,
}

impl Condition {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { down: Some(NodeError::Connecting), quarantined_until: None, silent_since: None }))
    }

    /// Returns what keeps the node from being counted now; `None` when it is up.
    pub(super) fn trouble(&self, now: Moment) -> Option<NodeError> {
        let state = locked(&self.0);
        let left = |until: Moment| until.since(now);
        let quarantine = state.quarantined_until.map(left).filter(|left| !left.is_zero());
        if let Some(error) = &state.down {
            return Some(error.clone());
        }
        let silent = state.silent_since.map(|since| NodeError::Silent(now.since(since)));
        silent.or_else(|| quarantine.map(|left| NodeError::Quarantined { left }))
    }

    /// Notes that there is no connection, and why.
    pub(super) fn is_down(&self, why: NodeError) {
        let mut state = locked(&self.0);
        (state.down, state.silent_since) = (Some(why), None);
    }

    /// Notes that a connection was made, and how long the quarantine lasts by the node's record.
    pub(super) fn is_up(&self, now: Moment, quarantine: Duration) {
        let quarantined_until = (!quarantine.is_zero()).then(|| now + quarantine);
        *locked(&self.0) = State { down: None, quarantined_until, silent_since: None };
    }

    /// Notes how long the quarantine lasts by the node's answer; zero when it grants.
    pub(super) fn is_quarantined(&self, now: Moment, left: Duration) {
        locked(&self.0).quarantined_until = (!left.is_zero()).then(|| now + left);
    }

    /// Notes since when an answer is overdue; `None` when the node answers again.
    pub(super) fn is_silent(&self, since: Option<Moment>) {
        locked(&self.0).silent_since = since;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_known_of_a_node_follows_what_it_said_last() {
        let (condition, now) = (Condition::new(), Moment::new(100 * SECOND));
        let trouble = |seconds: u32| condition.trouble(now + seconds * SECOND);
        assert_eq!(trouble(0), Some(NodeError::Connecting));
        condition.is_up(now, 7 * SECOND);
        assert_eq!(trouble(2), Some(NodeError::Quarantined { left: 5 * SECOND }));
        assert_eq!(trouble(7), None);
        condition.is_silent(Some(now + 7 * SECOND));
        assert_eq!(trouble(9), Some(NodeError::Silent(2 * SECOND)));
        condition.is_silent(None);
        assert_eq!(trouble(9), None);
        condition.is_quarantined(now, 20 * SECOND);
        condition.is_quarantined(now, Duration::ZERO);
        assert_eq!(trouble(9), None);
        condition.is_down(NodeError::Replica);
        assert_eq!(trouble(9), Some(NodeError::Replica));
    }
}
