//! What a client knows of a node without asking it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::environment::Moment;
use crate::error::NodeError;
use crate::sync::locked;
use crate::telemetry::{Event, Telemetry};

/// A node that has refused holds counts as refusing until it answers one properly so long after the last refusal. A node that
/// refuses some holds and answers others brings about two events in this time at most.
const QUIET: Duration = Duration::from_secs(5);

/// A refusal that is older than this is not known to hold still. A program that is sent no work while its client is not ready
/// would never ask the node again, and so never be ready.
const REFUSAL_COUNTS_FOR: Duration = Duration::from_secs(30);

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
    /// The node answers holds on this connection with errors.
    refusal: Option<Refusal>,
}

#[derive(Clone, Debug)]
struct Refusal {
    /// The latest error.
    why: NodeError,
    /// When it came.
    latest: Moment,
    /// No hold has been answered properly since.
    is_current: bool,
    /// The word for the error that was reported, and when it was.
    reported: (&'static str, Moment),
}

impl Condition {
    pub(super) fn new(index: usize, telemetry: Arc<Telemetry>) -> Self {
        let down = Some(NodeError::Connecting);
        let state = State { standing: Standing::New, down, quarantined_until: None, silent_since: None, refusal: None };
        Self { index, telemetry, state: Mutex::new(state) }
    }

    /// Returns what keeps the node from being counted now; `None` when it is up.
    pub(super) fn trouble(&self, now: Moment) -> Option<NodeError> {
        let state = locked(&self.state);
        let refusal = || Some(state.refusal.as_ref().filter(|refusal| refusal.counts(now))?.why.clone());
        let left = || Some(state.quarantined_until?.since(now)).filter(|left| !left.is_zero());
        let quarantine = || Some(NodeError::Quarantined { left: left()? });
        state.absence(now).or_else(refusal).or_else(quarantine)
    }

    /// Returns why the node does not answer now: there is no connection, or it is silent.
    pub(super) fn absence(&self, now: Moment) -> Option<NodeError> {
        locked(&self.state).absence(now)
    }

    /// Notes that there is no connection, and why.
    pub(super) fn is_down(&self, why: NodeError) {
        self.change(|state| (state.down, state.silent_since) = (Some(why), None));
    }

    /// Notes that a connection was made, and how long the quarantine lasts by the node's record.
    pub(super) fn is_up(&self, now: Moment, quarantine: Duration) {
        let quarantined_until = (!quarantine.is_zero()).then(|| now + quarantine);
        self.change(|state| {
            *state =
                State { standing: state.standing, down: None, quarantined_until, silent_since: None, refusal: None };
        });
    }

    /// Notes that the node answered a hold with an error.
    pub(super) fn refuses(&self, now: Moment, why: NodeError) {
        self.change(|state| {
            let word = why.state();
            let reported = match &state.refusal {
                Some(Refusal { reported, .. }) if now.since(reported.1) < QUIET => *reported,
                _ => (word, now),
            };
            state.refusal = Some(Refusal { why, latest: now, is_current: true, reported });
        });
    }

    /// Notes that the node answered a hold properly. Returns whether it still counts as refusing.
    pub(super) fn answers(&self, now: Moment) -> bool {
        self.change(|state| match &mut state.refusal {
            Some(refusal) if now.since(refusal.latest) < QUIET => refusal.is_current = false,
            refusal => *refusal = None,
        });
        locked(&self.state).refusal.is_some()
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
        let refusal = changed.refusal.as_ref().filter(|_| matches!(standing, Standing::Refuses(_)));
        let error = changed.down.as_ref().or(refusal.map(|refusal| &refusal.why)).unwrap_or(&silent);
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

impl Refusal {
    /// Returns whether the node is known to refuse now.
    fn counts(&self, now: Moment) -> bool {
        self.is_current && now.since(self.latest) < REFUSAL_COUNTS_FOR
    }
}

impl State {
    fn absence(&self, now: Moment) -> Option<NodeError> {
        let silent = || Some(NodeError::Silent(now.since(self.silent_since?)));
        self.down.clone().or_else(silent)
    }

    /// Returns how the node stands by what is known now. The end of a quarantine shows when the node grants something.
    fn standing(&self) -> Standing {
        match (&self.down, &self.refusal) {
            (Some(why), _) => Standing::without_connection(why).unwrap_or(self.standing),
            _ if self.silent_since.is_some() => Standing::Down,
            (None, Some(refusal)) => Standing::Refuses(refusal.reported.0),
            _ if self.quarantined_until.is_some() => Standing::Quarantined,
            _ => Standing::Up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::{Environment, Fake};
    use crate::telemetry::{Listeners, Observer};

    const SECOND: Duration = Duration::from_secs(1);

    /// Notes each event.
    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Observer for Seen {
        fn event(&self, event: &Event<'_>) {
            locked(&self.0).push(match event {
                Event::NodeUp { is_back, .. } => format!("up, back: {is_back}"),
                Event::NodeRefuses { error, .. } => error.state().to_owned(),
                Event::NodeDown { error, .. } => format!("down: {}", error.state()),
                Event::NodeQuarantined { .. } => "quarantined".to_owned(),
                other => panic!("{other:?}"),
            });
        }
    }

    /// What is known of a node that has connected, and the events since.
    fn connected() -> (Condition, impl Fn() -> Vec<String>) {
        let (environment, _) = Fake::new();
        let seen = Arc::new(Seen::default());
        let observer: Option<Arc<dyn Observer>> = Some(Arc::<Seen>::clone(&seen));
        let listeners = Listeners { observer, ..Listeners::default() };
        let telemetry = Telemetry::new(Arc::new(environment), vec!["node".into()], listeners);
        let condition = Condition::new(0, Arc::new(telemetry));
        condition.is_up(at(0), Duration::ZERO);
        let events = move || std::mem::take(&mut *locked(&seen.0));
        assert_eq!(events(), ["up, back: false"]);
        (condition, events)
    }

    /// So many ms after the connection was made.
    fn at(ms: u64) -> Moment {
        Moment::new(100 * SECOND + Duration::from_millis(ms))
    }

    fn error(code: &str) -> NodeError {
        NodeError::Redis { code: code.to_owned(), detail: String::new() }
    }

    #[test]
    fn a_node_that_refuses_holds_is_in_trouble_until_it_answers_one() {
        let (condition, events) = connected();
        condition.refuses(at(0), error("NOPERM"));
        assert_eq!((condition.trouble(at(1)), condition.absence(at(1))), (Some(error("NOPERM")), None));
        assert_eq!(events(), ["forbids it"]);
        assert!(condition.answers(at(2)), "too soon to be reported");
        assert_eq!((condition.trouble(at(2)), events()), (None, vec![]));
        assert!(!condition.answers(at(5000)));
        assert_eq!(events(), ["up, back: true"]);
        condition.refuses(at(6000), error("NOPERM"));
        condition.is_down(NodeError::Disconnected(String::new()));
        condition.is_up(at(7000), Duration::ZERO);
        assert_eq!(condition.trouble(at(7000)), None, "the next connection may have other rights");
        assert_eq!(events(), ["forbids it", "down: unreachable", "up, back: true"]);
    }

    #[test]
    fn a_node_that_refuses_some_holds_brings_about_few_events() {
        let (condition, events) = connected();
        for ms in (0..20_000).step_by(10) {
            condition.refuses(at(ms), error(["NOPERM", "OOM"][usize::from(ms % 20 == 0)]));
            condition.answers(at(ms + 5));
        }
        assert_eq!(events(), ["out of memory"]);
        for ms in [25_000, 30_000, 35_000, 40_000] {
            condition.answers(at(ms));
            condition.refuses(at(ms), error("NOPERM"));
        }
        assert_eq!(events(), ["up, back: true", "forbids it"].repeat(4));
    }

    #[test]
    fn another_reason_is_reported_after_a_while() {
        let (condition, events) = connected();
        for (ms, code) in [(0, "OOM"), (4999, "NOPERM"), (5000, "NOPERM"), (5001, "OOM")] {
            condition.refuses(at(ms), error(code));
        }
        assert_eq!(events(), ["out of memory", "forbids it"]);
        assert_eq!(condition.trouble(at(5001)), Some(error("OOM")), "what is known is the latest");
    }

    #[test]
    fn a_refusal_of_long_ago_is_no_trouble_and_stays_reported() {
        let (condition, events) = connected();
        condition.refuses(at(0), error("OOM"));
        assert_eq!(condition.trouble(at(29_999)), Some(error("OOM")));
        assert_eq!(condition.trouble(at(30_000)), None);
        condition.refuses(at(60_000), error("OOM"));
        assert_eq!((condition.trouble(at(60_000)), events()), (Some(error("OOM")), vec!["out of memory".to_owned()]));
    }

    #[test]
    fn silence_and_quarantine_beside_a_refusal() {
        let (condition, events) = connected();
        condition.is_quarantined(at(0), SECOND);
        condition.refuses(at(0), error("OOM"));
        assert_eq!(condition.trouble(at(1)), Some(error("OOM")));
        condition.is_silent(Some(at(2)));
        assert_eq!(condition.trouble(at(1002)), Some(NodeError::Silent(SECOND)));
        condition.is_silent(None);
        assert_eq!(events(), ["quarantined", "out of memory", "down: silent", "out of memory"]);
    }

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
