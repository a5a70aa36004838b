//! Spans and events of `tracing`. Without a subscriber nothing here formats, allocates or reads a clock.

use std::fmt;
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Span, debug, debug_span, error, info, trace, warn};

use super::event::{Event, LockName, Locks};
use super::extension::Extension;
use crate::error::{AcquireError, Answer, ErrorKind, NodeError, Reports};
use crate::owner::Owner;
use crate::text::{Printable, Rounded};

/// The target of all spans and events.
macro_rules! target {
    () => {
        "quorlock"
    };
}

/// Makes the span of one request.
pub(super) fn acquire(locks: Locks<'_>, owner: &Owner, wait: Option<Duration>) -> Span {
    debug_span!(
        target: target!(),
        "quorlock.acquire",
        lock = %locks,
        owner = owner.fingerprint(),
        wait = %Wait(wait),
        outcome = Empty,
        token = Empty,
        votes = Empty,
        rounds = Empty,
    )
}

/// Records the end of a request in its span.
pub(super) fn ended(span: &Span, event: &Event<'_>) {
    if span.is_disabled() {
        return;
    }
    match event {
        Event::Granted { token, votes, rounds, .. } => {
            span.record("outcome", "granted").record("token", token.get());
            span.record("votes", votes).record("rounds", rounds);
        }
        Event::Refused { error, rounds, .. } => {
            span.record("outcome", outcome(error)).record("rounds", rounds);
        }
        _ => drop(span.record("outcome", "cancelled")),
    }
}

/// Returns the word for how a request ended: one for each kind of error.
pub(super) fn outcome(error: &AcquireError) -> &'static str {
    match error.kind() {
        ErrorKind::Held => "held",
        ErrorKind::NoQuorum | ErrorKind::Unconfirmed => "no_quorum",
        ErrorKind::Misconfigured => "misconfigured",
        ErrorKind::Lost => "lost",
        ErrorKind::Usage => "usage",
    }
}

pub(super) fn event(event: &Event<'_>) {
    match event {
        Event::Granted { .. } | Event::Refused { .. } | Event::Cancelled { .. } => request(event),
        Event::Endangered { .. } | Event::Lost { .. } | Event::Released { .. } => lease(event),
        Event::NodeUp { node, is_back: true } => info!(target: target!(), node, "node back"),
        Event::NodeUp { node, is_back: false } => debug!(target: target!(), node, "node up"),
        Event::NodeDown { node, error } => {
            warn!(target: target!(), node, state = error.state(), error = %Reason(error), "node down");
        }
        Event::NodeQuarantined { node, left } => {
            warn!(target: target!(), node, left_ms = millis(*left), "node quarantined");
        }
        Event::NodeRefuses { node, error } => {
            warn!(target: target!(), node, state = error.state(), error = %Reason(error), "node refuses");
        }
    }
}

fn request(event: &Event<'_>) {
    match event {
        Event::Granted { locks, owner, token, votes, rounds, waited } => debug!(
            target: target!(),
            lock = %locks,
            owner = owner.fingerprint(),
            token = token.get(),
            votes,
            rounds,
            waited_us = micros(*waited),
            "granted"
        ),
        Event::Refused { locks, owner, error, rounds, waited } => debug!(
            target: target!(),
            lock = %locks,
            owner = owner.fingerprint(),
            outcome = outcome(error),
            rounds,
            waited_us = micros(*waited),
            nodes = %Nodes(error.nodes().iter().map(|report| (report.node.as_str(), &report.answer)).collect()),
            "refused"
        ),
        Event::Cancelled { locks, owner, waited } => debug!(
            target: target!(),
            lock = %locks,
            owner = owner.fingerprint(),
            waited_us = micros(*waited),
            "cancelled"
        ),
        _ => {}
    }
}

fn lease(event: &Event<'_>) {
    match event {
        Event::Endangered { lock, owner, token, left, nodes } => warn!(
            target: target!(),
            %lock,
            owner = owner.fingerprint(),
            token = token.get(),
            left_ms = millis(*left),
            nodes = %Nodes::of(nodes),
            "lock endangered"
        ),
        Event::Lost { lock, owner, token, cause, held, nodes } => warn!(
            target: target!(),
            %lock,
            owner = owner.fingerprint(),
            token = token.get(),
            cause = cause.word(),
            held_ms = millis(*held),
            nodes = %Nodes::of(nodes),
            "lock lost"
        ),
        Event::Released { lock, owner, token, held } => debug!(
            target: target!(),
            %lock,
            owner = owner.fingerprint(),
            token = token.get(),
            held_ms = millis(*held),
            "released"
        ),
        _ => {}
    }
}

pub(super) fn extension(lock: LockName<'_>, owner: &Owner, extension: &Extension<'_>) {
    match extension {
        Extension::Confirmed { margin } => {
            debug!(target: target!(), %lock, owner = owner.fingerprint(), margin, "extended");
        }
        Extension::Refused(nodes) | Extension::NoQuorum(nodes) => debug!(
            target: target!(),
            %lock,
            owner = owner.fingerprint(),
            outcome = extension.word(),
            nodes = %Nodes::of(nodes),
            "not extended"
        ),
    }
}

/// Reports how a node answered one message of a round.
pub(super) fn answered(node: &str, message: &'static str, answer: &'static str) {
    trace!(target: target!(), node, kind = message, answer, "node answered");
}

/// Reports that others on the way to a node can read its password.
pub(super) fn password_in_the_clear(node: &str) {
    warn!(target: target!(), node, "password in the clear");
}

/// Reports the first panic of an observer.
pub(super) fn observer_panicked() {
    error!(target: target!(), "observer panicked");
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How long a request waits at most.
struct Wait(Option<Duration>);

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(Duration::ZERO) => f.write_str("none"),
            Some(limit) => Rounded(limit).fmt(f),
        }
    }
}

/// Why a node cannot be counted on, without what it sent: an answer that makes no sense may hold anything.
struct Reason<'a>(&'a NodeError);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NodeError::Nonsense(_) => f.write_str("an answer that makes no sense"),
            error => error.fmt(f),
        }
    }
}

/// What each node answered.
struct Nodes<'a>(Vec<(&'a str, &'a Answer)>);

impl<'a> Nodes<'a> {
    fn of(reports: &'a Reports) -> Self {
        Self(reports.0.iter().map(|report| (report.node.as_str(), &report.answer)).collect())
    }
}

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (node, answer)) in self.0.iter().enumerate() {
            write!(f, "{}{}: ", if i == 0 { "" } else { "; " }, Printable(node))?;
            match answer {
                Answer::Failed(error) => Reason(error).fmt(f)?,
                answer => answer.fmt(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_a_node_sent_are_not_shown() {
        let nonsense = NodeError::Nonsense("an answer to nothing: 5f3a".to_owned());
        assert_eq!(Reason(&nonsense).to_string(), "an answer that makes no sense");
        let answer = Answer::Failed(nonsense);
        let nodes = Nodes(vec![("a:1", &Answer::Agreed), ("b:1", &answer)]);
        assert_eq!(nodes.to_string(), "a:1: agreed; b:1: an answer that makes no sense");
    }

    #[test]
    fn the_limit_of_a_wait_is_shown() {
        let shown = |limit| Wait(limit).to_string();
        assert_eq!(
            [None, Some(0), Some(3)].map(|limit| shown(limit.map(Duration::from_secs))),
            ["unlimited", "none", "3s"]
        );
    }
}
