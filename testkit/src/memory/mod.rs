//! Clusters in memory: the shipped client, and nodes that do what a Redis server does, without a server and without a wait.

mod environment;
mod world;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorlock::{Builder, Quorlock};

use environment::{HostEnvironment, Shared};

/// Independent Redis masters in memory. Indices of nodes count from 0. Clones are handles of the same cluster.
///
/// Its time is tokio's. Where a test pauses that (`#[tokio::test(start_paused = true)]`, with tokio's feature `test-util`), a lease
/// of 10 s runs out in no real time. Nodes answer at once, and keep their data when they are stopped, as with `appendonly yes`
/// and `appendfsync always`.
///
/// A fault lasts until it is taken back. Each method that takes a node panics if there is no node of this index.
#[derive(Clone)]
pub struct MemoryCluster(Arc<Shared>);

impl MemoryCluster {
    /// Creates this number of nodes, declared as the nodes of one list.
    ///
    /// # Panics
    ///
    /// Panics without a node.
    pub fn new(nodes: usize) -> Self {
        Self::with_seed(nodes, 0)
    }

    /// Creates a cluster with another seed. The seed decides the random numbers of the clients: owners, and the moments of
    /// extensions and retries. With one seed a test on paused time and one thread takes the same course each time.
    ///
    /// # Panics
    ///
    /// Panics without a node.
    pub fn with_seed(nodes: usize, seed: u64) -> Self {
        assert!(nodes > 0, "a cluster has nodes");
        Self(Arc::new(Shared::new(nodes, seed)))
    }

    /// Returns the URLs of the nodes. Only clients of this cluster's builders reach them.
    pub fn urls(&self) -> Vec<String> {
        (0..self.0.world().len()).map(environment::url).collect()
    }

    /// Returns a new host, for clients that share the fate of one machine.
    pub fn host(&self) -> Host {
        let index = self.0.world().add_host();
        Host { shared: Arc::clone(&self.0), index }
    }

    /// Returns a builder of a client on a host of its own.
    pub fn builder(&self) -> Builder {
        self.host().builder()
    }

    /// Returns a client with this lease on a host of its own, after every node that is up and reachable has answered it.
    ///
    /// # Panics
    ///
    /// Panics if the library refuses the lease.
    ///
    /// # Cancel safety
    ///
    /// A client that has begun to connect ends its connections.
    pub async fn client(&self, lease: Duration) -> Quorlock {
        self.host().client(lease).await
    }

    /// Takes the lock of this name (under the default prefix) from its holder, as `quorlock release --force` does. The nodes refuse
    /// the holder's next message, which is an extension within a third of the lease. The lock is free for others when the lease
    /// would have ended.
    ///
    /// # Panics
    ///
    /// Panics if no node has a lease of this name.
    pub fn lose(&self, name: impl AsRef<[u8]>) {
        let name = name.as_ref();
        let is_found = self.0.world().revoke(name);
        assert!(is_found, "the lock {:?} is not held", String::from_utf8_lossy(name));
    }

    /// Ends a node's process: its connections break, and new ones are refused. The data is kept.
    pub fn stop(&self, node: usize) {
        self.0.world().stop(node);
    }

    /// Starts a stopped node again, with its data.
    pub fn start(&self, node: usize) {
        self.0.world().start(node);
    }

    /// Cuts a node off from all hosts. Connections stay open and silent. What is sent meanwhile arrives after
    /// [`heal`](Self::heal), on those that are open then.
    pub fn cut(&self, node: usize) {
        self.0.world().cut(node);
    }

    /// Ends [`cut`](Self::cut). What one host has cut on its own stays cut.
    pub fn heal(&self, node: usize) {
        self.0.world().heal(node);
        self.0.has_healed();
    }

    /// Removes a node's data (FLUSHALL). The node has no vote then until every lease that it may have forgotten is over.
    pub fn forget(&self, node: usize) {
        self.0.world().forget(node);
    }

    /// Sets a node's clock ahead by this number of milliseconds, or back if it is negative.
    pub fn step_clock(&self, node: usize, millis: i64) {
        self.0.world().step_clock(node, millis);
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").field("nodes", &self.0.world().len()).finish_non_exhaustive()
    }
}

/// A machine on which instances of a service run, with a link to each node of a [`MemoryCluster`].
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
    index: usize,
}

impl Host {
    /// Returns a builder of a client on this host.
    pub fn builder(&self) -> Builder {
        let environment = HostEnvironment::new(Arc::clone(&self.shared), self.index);
        let nodes = self.shared.world().len();
        Quorlock::builder().nodes((0..nodes).map(environment::url)).environment(Arc::new(environment))
    }

    /// Returns a client with this lease, after every node that is up and reachable has answered it.
    ///
    /// # Panics
    ///
    /// Panics if the library refuses the lease.
    ///
    /// # Cancel safety
    ///
    /// A client that has begun to connect ends its connections.
    pub async fn client(&self, lease: Duration) -> Quorlock {
        let locks = self.builder().lease(lease).connect().await.expect("a lease that the library accepts");
        locks.flush().await;
        locks
    }

    /// Cuts this host off from a node; see [`MemoryCluster::cut`].
    pub fn cut(&self, node: usize) {
        self.shared.world().cut_host(self.index, node);
    }

    /// Ends [`cut`](Self::cut).
    pub fn heal(&self, node: usize) {
        self.shared.world().heal_host(self.index, node);
        self.shared.has_healed();
    }

    /// Cuts this host off from all nodes.
    pub fn cut_all(&self) {
        let nodes = self.shared.world().len();
        (0..nodes).for_each(|node| self.cut(node));
    }

    /// Ends all cuts of this host.
    pub fn heal_all(&self) {
        let nodes = self.shared.world().len();
        (0..nodes).for_each(|node| self.heal(node));
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("index", &self.index).finish_non_exhaustive()
    }
}
