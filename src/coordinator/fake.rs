//! A client for tests, whose nodes are reached through streams of the test.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::core::Core;
use super::lease::Lease;
use crate::environment::{Environment, Fake};
use crate::node::{Facts, NodeAddress};
use crate::owner::Owner;
use crate::protocol::{self, Ballot, Outage, Schedule, Validity, quorum};
use crate::resource::Resource;
use crate::settings::Settings;
use crate::telemetry::Listeners;

pub(super) const LEASE: Duration = Duration::from_secs(10);

/// A client of so many nodes, and the servers' ends of the streams that it opens.
pub(super) fn core(nodes: usize) -> (Arc<Core>, UnboundedReceiver<DuplexStream>) {
    core_with(nodes, LEASE)
}

/// The same, of a client whose longest lease is this one.
pub(super) fn core_with(nodes: usize, longest_lease: Duration) -> (Arc<Core>, UnboundedReceiver<DuplexStream>) {
    let (environment, streams) = Fake::new();
    (core_in(Arc::new(environment), nodes, longest_lease), streams)
}

/// The same, in this environment.
pub(super) fn core_in(environment: Arc<dyn Environment>, nodes: usize, longest_lease: Duration) -> Arc<Core> {
    let settings = Settings {
        quorum: quorum(nodes),
        lease: LEASE,
        longest_lease,
        wait: None,
        outage: Outage::default(),
        prefix: Vec::new(),
        fixed_node_timeout: None,
        ballot_ttl: Duration::from_secs(600),
        schedule: Schedule { validity: Validity { drift_factor: 0.01 }, extends: true, warn_before: None },
    };
    let address = |node| NodeAddress::parse(&format!("redis://node{node}")).expect("an address");
    Core::start(settings, (0..nodes).map(address).collect(), environment, "", Listeners::default())
}

pub(super) fn resource(name: &str) -> Resource {
    Resource::new(b"", name.as_bytes()).expect("a name")
}

/// A lease that is being acquired.
pub(super) fn lease(core: &Arc<Core>, resource: &Resource, owner: &Owner) -> Arc<Lease> {
    let ballot = core.propose_above(owner, Ballot::ZERO);
    let lease = protocol::LeaseState::pending(ballot.into(), ballot, LEASE, core.settings.schedule, core.now());
    Lease::new(core, resource.clone(), owner.clone(), lease, None, None)
}

/// A majority honours it from now on.
pub(super) fn confirm(lease: &Arc<Lease>) {
    let ballot = lease.state().sent;
    lease.confirmed(&Facts { started: lease.core.now(), ballot, length: LEASE, acquires: true });
}
