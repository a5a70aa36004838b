//! What a client knows of a node without asking it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::environment::Moment;
use crate::error::NodeError;
use crate::sync::locked;
use crate::telemetry::{Event, Telemetry};

/// What is known of one node. Its connection writes it when that changes; errors, `inspect` and waiting requests read it.
#[derive(Debug)]
pub(super) struct Condition {
    index: usize,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
}

/// How a node stands, as far as its changes are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The first connection is being made.
    New,
    Up,
    Down,
    Quarantined,
    /// The word for the reason.
    Refuses(&'static str),
}

impl Standing {
    /// Returns how a node stands for this reason. `None` where the reason changes nothing.
    fn without_connection(why: &NodeError) -> Option<Self> {
        match why {
            NodeError::Connecting => None,
            NodeError::Connect(_)
            | NodeError::Disconnected(_)
            | NodeError::NoAnswer(_)
            | NodeError::Silent(_)
            | NodeError::Forgot
            | NodeError::Client(_) => Some(Self::Down),
            why => Some(Self::Refuses(why.state())),
        }
    }
}

#[derive(Clone, Debug)]
struct State {
    /// As it was reported last.
    standing: Standing,
    /// Why there is no connection.
    down: Option<NodeError>,
    /// When the node's quarantine ends, as it said.
    quarantined_until: Option<Moment>,
    /// When the request was sent whose answer is overdue.
    silent_since: Option<Moment>,
}

impl Condition {
    pub(super) fn new(index: usize, telemetry: Arc<Telemetry>) -> Self {
        let down = Some(NodeError::Connecting);
        let state = State { standing: Standing::New, down, quarantined_until: None, silent_since: None };
        Self { index, telemetry, state: Mutex::new(state) }
    }

    /// Returns what keeps the node from being counted now; `None` when it is up.
    pub(super) fn trouble(&self, now: Moment) -> Option<NodeError> {
        let state = locked(&self.state);
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
        self.change(|state| (state.down, state.silent_since) = (Some(why), None));
    }

    /// Notes that a connection was made, and how long the quarantine lasts by the node's record.
    pub(super) fn is_up(&self, now: Moment, quarantine: Duration) {
        let quarantined_until = (!quarantine.is_zero()).then(|| now + quarantine);
        self.change(|state| {
            *state = State { standing: state.standing, down: None, quarantined_until, silent_since: None };
        });
    }

    /// Notes how long the quarantine lasts by the node's answer; zero when it grants.
    pub(super) fn is_quarantined(&self, now: Moment, left: Duration) {
        self.change(|state| state.quarantined_until = (!left.is_zero()).then(|| now + left));
    }

    /// Notes since when an answer is overdue; `None` when the node answers again.
    pub(super) fn is_silent(&self, since: Option<Moment>) {
        self.change(|state| {
            if state.silent_since.is_none() && since.is_some() {
                self.telemetry.overdue(self.index);
            }
            state.silent_since = since;
        });
    }

    /// Changes what is known, and reports it when the node stands otherwise than before.
    fn change(&self, with: impl FnOnce(&mut State)) {
        let mut state = locked(&self.state);
        with(&mut state);
        let standing = state.standing();
        let before = state.standing;
        if standing == before {
            return;
        }
        state.standing = standing;
        let changed = state.clone();
        drop(state);
        let node = self.telemetry.node(self.index);
        let now = self.telemetry.now();
        let silent = NodeError::Silent(changed.silent_since.map_or(Duration::ZERO, |since| now.since(since)));
        let error = changed.down.as_ref().unwrap_or(&silent);
        self.telemetry.emit(&match standing {
            Standing::New | Standing::Up => Event::NodeUp { node, is_back: before != Standing::New },
            Standing::Down => Event::NodeDown { node, error },
            Standing::Refuses(_) => Event::NodeRefuses { node, error },
            Standing::Quarantined => {
                let left = changed.quarantined_until.map_or(Duration::ZERO, |until| until.since(now));
                Event::NodeQuarantined { node, left }
            }
        });
    }
}

impl State {
    /// Returns how the node stands by what is known now. The end of a quarantine shows when the node grants something.
    fn standing(&self) -> Standing {
        match &self.down {
            Some(why) => Standing::without_connection(why).unwrap_or(self.standing),
            None if self.silent_since.is_some() => Standing::Down,
            None if self.quarantined_until.is_some() => Standing::Quarantined,
            None => Standing::Up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::{Environment, Fake};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_known_of_a_node_follows_what_it_said_last() {
        let (environment, _) = Fake::new();
        let environment: Arc<dyn Environment> = Arc::new(environment);
        let condition = Condition::new(0, Telemetry::silent(&environment, 1));
        let now = Moment::new(100 * SECOND);
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
        assert_eq!(trouble(9), Some(NodeError::Quarantined { left: 11 * SECOND }));
        condition.is_quarantined(now, Duration::ZERO);
        assert_eq!(trouble(9), None);
        condition.is_down(NodeError::Replica);
        assert_eq!(trouble(9), Some(NodeError::Replica));
    }
}
