//! What a client reports: each fact comes in here once, as a typed event, and goes to every listener.
//!
//! The storeys above call one method for each fact, and know no listener.

mod event;
mod extension;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use tracing::Span;

use crate::environment::{Environment, Moment};
use crate::error::AcquireError;
use crate::owner::Owner;
use crate::protocol::Token;
use crate::resource::Resource;

pub use event::{Event, LockName, Locks, LossCause};
pub(crate) use extension::Extension;

/// The one place to which all parts of a client report.
#[derive(Debug)]
pub(crate) struct Telemetry {
    environment: Arc<dyn Environment>,
    /// The addresses of the nodes, without users and passwords.
    nodes: Vec<Arc<str>>,
}

impl Telemetry {
    pub(crate) fn new(environment: Arc<dyn Environment>, nodes: Vec<Arc<str>>) -> Self {
        Self { environment, nodes }
    }

    /// Without listeners, for so many nodes.
    #[cfg(test)]
    pub(crate) fn silent(environment: &Arc<dyn Environment>, nodes: usize) -> Arc<Self> {
        let nodes = (0..nodes).map(|node| format!("node{node}").into()).collect();
        Arc::new(Self::new(Arc::clone(environment), nodes))
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
        let _ = self;
        trace::event(event);
    }

    /// Reports how an extension of a held lease ended. The caller may have the state of the lease locked.
    pub(crate) fn extension(&self, lock: &Resource, owner: &Owner, extension: &Extension<'_>) {
        let _ = self;
        trace::extension(LockName(lock.name()), owner, extension);
    }

    /// Reports how a node answered one message of a round.
    pub(crate) fn answered(&self, node: &str, message: &'static str, answer: &'static str) {
        let _ = self;
        trace::answered(node, message, answer);
    }

    /// Begins to report on a request that waits for at most this long; `None` for ever.
    pub(crate) fn request<'a>(
        &'a self,
        locks: &'a [Resource],
        owner: &'a Owner,
        wait: Option<Duration>,
        now: Moment,
    ) -> RequestReport<'a> {
        let span = trace::acquire(Locks(locks), owner, wait);
        RequestReport { telemetry: self, locks: Locks(locks), owner, span, began: now, rounds: 0, has_ended: false }
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
        trace::ended(&self.span, event);
        self.span.in_scope(|| self.telemetry.emit(event));
    }
}

impl Drop for RequestReport<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(&Event::Cancelled { locks: self.locks, owner: self.owner, waited: self.waited() });
        }
    }
}
