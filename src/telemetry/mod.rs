//! What a client reports: each fact comes in here once, as a typed event, and goes to every listener.
//!
//! The storeys above call one method for each fact, and know no listener.

mod apart;
mod event;
mod extension;
mod listeners;
#[cfg_attr(not(feature = "metrics"), path = "no_meters.rs")]
mod meters;
mod observer;
mod stats;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use tracing::Span;

use crate::environment::{Environment, Moment};
use crate::error::{AcquireError, NodeError};
use crate::owner::Owner;
use crate::protocol::Token;
use crate::resource::Resource;

use apart::apart;
pub use event::{Event, LockName, Locks, LossCause};
pub(crate) use extension::Extension;
#[cfg(feature = "metrics")]
pub(crate) use listeners::Class;
pub(crate) use listeners::Listeners;
use meters::Meters;
pub use observer::Observer;
use observer::Outbox;
use stats::Counters;
pub use stats::{AcquireStats, ExtensionStats, LossStats, NodeStats, Stats};

/// The one place to which all parts of a client report.
#[derive(Debug)]
pub(crate) struct Telemetry {
    environment: Arc<dyn Environment>,
    /// The addresses of the nodes, without users and passwords.
    nodes: Vec<Arc<str>>,
    counters: Counters,
    meters: Meters,
    observer: Option<Outbox>,
}

impl Telemetry {
    pub(crate) fn new(environment: Arc<dyn Environment>, nodes: Vec<Arc<str>>, listeners: Listeners) -> Self {
        let counters = Counters::new(nodes.len());
        let meters = Meters::new(&nodes, &listeners);
        Self { environment, nodes, counters, meters, observer: listeners.observer.map(Outbox::new) }
    }

    /// Without listeners, for so many nodes.
    #[cfg(test)]
    pub(crate) fn silent(environment: &Arc<dyn Environment>, nodes: usize) -> Arc<Self> {
        let nodes = (0..nodes).map(|node| format!("node{node}").into()).collect();
        Arc::new(Self::new(Arc::clone(environment), nodes, Listeners::default()))
    }

    /// Returns how many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the address of a node.
    pub(crate) fn node(&self, index: usize) -> &Arc<str> {
        &self.nodes[index]
    }

    pub(crate) fn now(&self) -> Moment {
        self.environment.now()
    }

    /// Reports an event.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.counters.event(event);
        apart(|| self.meters.event(event));
        apart(|| trace::event(event));
        if let Some(observer) = &self.observer {
            observer.post(event);
        }
    }

    /// Keeps events from the observer until the guard is dropped, as the caller has locked what the observer may need.
    pub(crate) fn postpone(&self) -> Postponed<'_> {
        self.observer.iter().for_each(Outbox::postpone);
        Postponed(self.observer.as_ref())
    }

    /// Reports how an extension of a held lease ended. The caller may have the state of the lease locked.
    pub(crate) fn extension(&self, lock: &Resource, owner: &Owner, extension: &Extension<'_>) {
        let lock = LockName(lock.name());
        self.counters.extension(extension);
        apart(|| self.meters.extension(lock, extension));
        apart(|| trace::extension(lock, owner, extension));
    }

    /// Reports that a node gets a password over a network and without encryption.
    pub(crate) fn password_in_the_clear(&self, node: usize) {
        apart(|| trace::password_in_the_clear(&self.nodes[node]));
    }

    /// Reports how a node answered one message of a round.
    pub(crate) fn answered(&self, node: usize, message: &'static str, answer: &'static str) {
        apart(|| trace::answered(&self.nodes[node], message, answer));
    }

    /// Reports the round trip of a node's latest answer.
    pub(crate) fn round_trip(&self, node: usize, took: Duration) {
        self.counters.round_trip(node, took);
        apart(|| self.meters.round_trip(&self.nodes[node], took));
    }

    /// Reports that an answer of a node is overdue.
    pub(crate) fn overdue(&self, node: usize) {
        self.counters.overdue(node);
    }

    /// Reports that a connection to a node was made.
    pub(crate) fn connected(&self, node: usize) {
        self.counters.connected(node);
    }

    /// Counts a lease that a guard holds from now on. Its end must not be counted before.
    pub(crate) fn count_lease(&self) {
        self.counters.lease_begins();
    }

    /// Reports that a guard holds a lease that none has held before.
    pub(crate) fn lease_begins(&self, lock: &Resource) {
        apart(|| self.meters.lease_begins(LockName(lock.name())));
    }

    /// Reports a request that cannot work, and has asked no node.
    pub(crate) fn unusable_request(&self) {
        self.counters.unusable_request();
        apart(|| self.meters.unusable_request());
    }

    /// Reads all counters. `troubles` are what keeps each node from being counted.
    pub(crate) fn stats(&self, troubles: impl Iterator<Item = Option<NodeError>>) -> Stats {
        self.counters.read(self.nodes.iter().map(ToString::to_string).zip(troubles))
    }

    /// Begins to report on a request that waits for at most this long; `None` for ever.
    pub(crate) fn request<'a>(
        &'a self,
        locks: &'a [Resource],
        owner: &'a Owner,
        wait: Option<Duration>,
        now: Moment,
    ) -> RequestReport<'a> {
        self.counters.request_begins();
        apart(|| self.meters.request_begins(Locks(locks)));
        let span = apart(|| trace::acquire(Locks(locks), owner, wait)).unwrap_or_else(Span::none);
        RequestReport { telemetry: self, locks: Locks(locks), owner, span, began: now, rounds: 0, has_ended: false }
    }
}

/// Dropping it delivers the events that came meanwhile.
#[must_use]
pub(crate) struct Postponed<'a>(Option<&'a Outbox>);

impl Drop for Postponed<'_> {
    fn drop(&mut self) {
        if let Some(observer) = self.0 {
            observer.resume();
        }
    }
}

/// A name, as events have it.
pub(crate) fn lock_name(resource: &Resource) -> LockName<'_> {
    LockName(resource.name())
}

/// The report on one request. Dropping it before the request has ended reports a cancellation.
pub(crate) struct RequestReport<'a> {
    telemetry: &'a Telemetry,
    locks: Locks<'a>,
    owner: &'a Owner,
    span: Span,
    began: Moment,
    rounds: u32,
    has_ended: bool,
}

impl RequestReport<'_> {
    /// Returns the span that the request runs in.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Notes that a round was sent.
    pub(crate) fn round(&mut self) {
        self.rounds += 1;
    }

    /// Reports that the request got its guard.
    pub(crate) fn granted(mut self, (token, votes): (Token, usize)) {
        let (locks, owner, rounds, waited) = (self.locks, self.owner, self.rounds, self.waited());
        self.end(&Event::Granted { locks, owner, token, votes, rounds, waited });
    }

    /// Reports that the request ended without a guard.
    pub(crate) fn refused(mut self, error: &AcquireError) {
        let (locks, owner, rounds, waited) = (self.locks, self.owner, self.rounds, self.waited());
        self.end(&Event::Refused { locks, owner, error, rounds, waited });
    }

    fn waited(&self) -> Duration {
        self.telemetry.environment.now().since(self.began)
    }

    fn end(&mut self, event: &Event<'_>) {
        self.has_ended = true;
        apart(|| trace::ended(&self.span, event));
        apart(|| self.span.in_scope(|| self.telemetry.emit(event)));
    }
}

impl Drop for RequestReport<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(&Event::Cancelled { locks: self.locks, owner: self.owner, waited: self.waited() });
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::span::{Attributes, Id, Record};
    use tracing::subscriber::with_default;
    use tracing::{Metadata, Subscriber};

    use super::*;
    use crate::environment::Fake;

    /// Panics whenever it is told something.
    struct Faulty;

    impl Subscriber for Faulty {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            panic!("a fault of the subscriber")
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            panic!("a fault of the subscriber")
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[tokio::test]
    async fn a_subscriber_that_panics_costs_only_its_report() {
        let (environment, _streams) = Fake::new();
        let environment: Arc<dyn Environment> = Arc::new(environment);
        let telemetry = Telemetry::silent(&environment, 3);
        let (locks, owner) = ([Resource::new(b"", b"a").expect("a name")], Owner::new());
        with_default(Faulty, || {
            assert_eq!(apart(|| tracing::error!("told")), None);
            telemetry.answered(0, "hold", "agreed");
            let (lock, token) = (lock_name(&locks[0]), crate::protocol::Ballot::ZERO.next().into());
            telemetry.emit(&Event::Released { lock, owner: &owner, token, held: Duration::ZERO });
            telemetry
                .request(&locks, &owner, None, telemetry.now())
                .refused(&AcquireError::Lost { resource: "a".to_owned(), nodes: crate::error::Reports(Vec::new()) });
        });
        assert_eq!(telemetry.stats((0..3).map(|_| None)).acquires.lost, 1);
    }
}
