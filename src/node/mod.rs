//! One Redis master: a connection that mends itself, and an ordered, bounded queue in front of it.

mod backlog;
mod connection;
mod health;
mod introduce;
mod line;
mod reply;
mod script;
#[cfg(feature = "tls")]
pub(crate) mod tls;
mod trust;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};

use crate::config::NodeAddress;
use crate::environment::Environment;
use crate::error::NodeError;
use crate::protocol::Validity;
use crate::round::Round;
use crate::sync::locked;
use crate::ticket::Tickets;

pub(crate) use reply::{Refusal, Sighting, Vote, node_time, parse_hold, parse_release, parse_sighting};
pub(crate) use script::{Entry, hold, inspect, leave, release};

/// What a node is asked, and who wants to know.
pub(crate) struct Request {
    pub(crate) command: Packed,
    pub(crate) asker: Asker,
}

/// A command as it goes over the wire, packed once for all nodes.
pub(crate) type Packed = Arc<[u8]>;

pub(crate) fn pack(command: &Cmd) -> Packed {
    command.get_packed_command().into()
}

/// Where an answer goes.
pub(crate) enum Asker {
    /// A round that may create or renew keys: not worth sending to a node that is away.
    Hold(Arc<Round>),
    /// A round that takes keys away: kept until the node has said that it did.
    Release(Arc<Round>),
    /// A look at the node.
    Look(oneshot::Sender<Result<Value, NodeError>>),
    /// Nobody: a script is being loaded.
    Loading,
    /// Nobody.
    Nobody,
}

impl Asker {
    fn answer(self, index: usize, result: Result<Value, NodeError>) {
        match self {
            Self::Hold(round) | Self::Release(round) => round.answered(index, result),
            Self::Look(asker) => drop(asker.send(result)),
            Self::Loading | Self::Nobody => {}
        }
    }
}

enum Message {
    Request(Request),
    /// To be called.
    Then(Box<dyn FnOnce() + Send>),
    /// The client is gone: see what was sent through, then end.
    Close,
}

/// The sending end of a node's queue. Messages reach the node in the order of the calls, or not at all.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    queue: mpsc::UnboundedSender<Message>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Node {
    /// A node, and the future that keeps its connection until the client is gone.
    pub(crate) fn new(
        index: usize,
        address: NodeAddress,
        environment: Arc<dyn Environment>,
        common: Arc<Common>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::unbounded_channel();
        let name: Arc<str> = address.name.as_str().into();
        let connection = connection::Connection::new(index, Arc::clone(&name), address, environment, common, requests);
        (Self { name, queue }, connection.run())
    }

    /// Never waits. Once the runtime is gone the request is dropped, which its asker sees as no answer.
    pub(crate) fn send(&self, request: Request) {
        drop(self.queue.send(Message::Request(request)));
    }

    /// Calls `next` when what was sent before is about to leave, in the task of the connections.
    pub(crate) fn then(&self, next: Box<dyn FnOnce() + Send>) {
        if let Err(SendError(Message::Then(next))) = self.queue.send(Message::Then(next)) {
            next();
        }
    }

    pub(crate) fn close(&self) {
        drop(self.queue.send(Message::Close));
    }
}

/// A run id, and the name of the node that it was found at.
type Claim = (String, Arc<str>);

/// What the nodes of one client must know of each other and of the client.
#[derive(Debug)]
pub(crate) struct Common {
    /// How long a round waits for an answer.
    pub(crate) timeout: Duration,
    pub(crate) validity: Validity,
    longest_lease: AtomicU64,
    shortest_lease: AtomicU64,
    /// Which server process answers at which place in the node list: no process may have two votes.
    run_ids: Mutex<Vec<Option<Claim>>>,
    /// This client's share in the leases of any owner, and where nodes call it.
    pub(crate) session: u64,
    /// The requests that nodes may call.
    pub(crate) tickets: Arc<Tickets>,
}

impl Common {
    pub(crate) fn new(nodes: usize, timeout: Duration, validity: Validity, session: u64) -> Self {
        Self {
            timeout,
            validity,
            longest_lease: AtomicU64::new(0),
            shortest_lease: AtomicU64::new(u64::MAX),
            run_ids: Mutex::new(vec![None; nodes]),
            session,
            tickets: Arc::default(),
        }
    }

    /// A lease of this length is in use.
    pub(crate) fn use_lease(&self, lease: Duration) {
        let lease = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
        self.longest_lease.fetch_max(lease, Ordering::Relaxed);
        self.shortest_lease.fetch_min(lease, Ordering::Relaxed);
    }

    /// The longest lease in use, as far as this client knows.
    fn longest_lease(&self) -> Duration {
        Duration::from_micros(self.longest_lease.load(Ordering::Relaxed))
    }

    /// The shortest lease in use by this client.
    fn shortest_lease(&self) -> Duration {
        Duration::from_micros(self.shortest_lease.load(Ordering::Relaxed))
    }

    /// Records the process at `index`; the name of another place where the same process answers is an error.
    fn claim(&self, index: usize, name: &Arc<str>, run_id: &str) -> Result<(), Arc<str>> {
        let mut ids = locked(&self.run_ids);
        ids[index] = None;
        if let Some((_, other)) = ids.iter().flatten().find(|(id, _)| id == run_id) {
            return Err(Arc::clone(other));
        }
        ids[index] = Some((run_id.to_owned(), Arc::clone(name)));
        Ok(())
    }
}
