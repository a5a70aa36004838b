//! The nodes, the hosts, and the connections between them.

use std::collections::BTreeMap;
use std::io;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::Instant;

use crate::node::resource_state::ResourceState;
use crate::node::resp::parse_command;
use crate::node::revocations::revoke;
use crate::node::rules::Rules;
use crate::node::script_args::{LockValue, RECORD};
use crate::node::{Node, Store};
use crate::rng::Rng;

/// The wall clock at the start.
pub(super) const EPOCH: Duration = Duration::from_secs(1_790_000_000);

/// The cluster word in the node records.
const CLUSTER: u64 = 0xc105_7e20;
/// How far ballots may lie from a node's clock: the library's default.
const WINDOW: Duration = Duration::from_secs(300);
/// The stream of random numbers of the nodes. Clients have those that follow.
const OF_NODES: u64 = 0;

/// A node, and what has been done to it.
struct Server {
    node: Node,
    is_up: bool,
    is_cut: bool,
    /// How far its clock has been set ahead, in µs.
    ahead: i64,
}

/// One connection, both ends.
struct Conn {
    host: usize,
    node: usize,
    /// What the node has not executed yet: the start of a command, and all that was sent during a cut.
    requests: Vec<u8>,
    /// What the client has not read yet.
    replies: Vec<u8>,
    reader: Option<Waker>,
    /// The node's process has ended.
    is_reset: bool,
}

impl Conn {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Everything outside of the clients.
pub(super) struct World {
    began: Instant,
    seed: u64,
    rng: Rng,
    servers: Vec<Server>,
    /// Of each host, whether it is cut off from each node.
    hosts: Vec<Vec<bool>>,
    clients: u64,
    conns: BTreeMap<usize, Conn>,
    opened: usize,
}

impl World {
    pub(super) fn new(nodes: usize, seed: u64, began: Instant) -> Self {
        let mut rng = Rng::new(seed, OF_NODES);
        let server = |index| {
            let mut node = Node::new(Rules::default(), run_id(&mut rng, index));
            node.durable = true;
            node.declare_new(rng.number(), CLUSTER, nodes, WINDOW, micros(EPOCH));
            Server { node, is_up: true, is_cut: false, ahead: 0 }
        };
        let servers = (0..nodes).map(server).collect();
        Self { began, seed, rng, servers, hosts: Vec::new(), clients: 0, conns: BTreeMap::new(), opened: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn add_host(&mut self) -> usize {
        self.hosts.push(vec![false; self.len()]);
        self.hosts.len() - 1
    }

    /// Returns the random numbers of a new client.
    pub(super) fn add_client(&mut self) -> Rng {
        self.clients += 1;
        Rng::new(self.seed, OF_NODES + self.clients)
    }

    /// Returns a node's clock, in µs.
    fn clock(&self, node: usize) -> u64 {
        micros(EPOCH + self.began.elapsed()).saturating_add_signed(self.servers[node].ahead)
    }

    fn is_cut(&self, host: usize, node: usize) -> bool {
        self.servers[node].is_cut || self.hosts[host][node]
    }

    /// Opens a connection, or refuses it. Returns `None` where no answer comes.
    pub(super) fn open(&mut self, host: usize, node: usize) -> Option<io::Result<usize>> {
        if self.is_cut(host, node) {
            return None;
        }
        if !self.servers[node].is_up {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        self.opened += 1;
        let (requests, replies) = (Vec::new(), Vec::new());
        self.conns.insert(self.opened, Conn { host, node, requests, replies, reader: None, is_reset: false });
        Some(Ok(self.opened))
    }

    pub(super) fn close(&mut self, id: usize) {
        if let Some(conn) = self.conns.remove(&id) {
            self.servers[conn.node].node.disconnected(id);
        }
    }

    pub(super) fn read(&mut self, id: usize, buffer: &mut ReadBuf<'_>, waker: &Waker) -> Poll<io::Result<()>> {
        let is_cut = self.is_silent(id);
        let Some(conn) = self.conns.get_mut(&id) else { return Poll::Ready(Ok(())) };
        if !is_cut && !conn.replies.is_empty() {
            let some = conn.replies.len().min(buffer.remaining());
            buffer.put_slice(&conn.replies[..some]);
            conn.replies.drain(..some);
            return Poll::Ready(Ok(()));
        }
        if !is_cut && conn.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        conn.reader = Some(waker.clone());
        Poll::Pending
    }

    pub(super) fn write(&mut self, id: usize, bytes: &[u8]) -> io::Result<usize> {
        let is_cut = self.is_silent(id);
        let conn = self.conns.get_mut(&id).ok_or(io::ErrorKind::NotConnected)?;
        if !is_cut && conn.is_reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        conn.requests.extend_from_slice(bytes);
        self.serve(id);
        Ok(bytes.len())
    }

    /// Returns whether no bytes pass on this connection.
    fn is_silent(&self, id: usize) -> bool {
        self.conns.get(&id).is_some_and(|conn| self.is_cut(conn.host, conn.node))
    }

    /// Executes what has arrived on a connection.
    fn serve(&mut self, id: usize) {
        let is_cut = self.is_silent(id);
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !is_cut && !conn.is_reset) else { return };
        let (index, requests) = (conn.node, std::mem::take(&mut conn.requests));
        let clock = self.clock(index);
        let node = &mut self.servers[index].node;
        let (mut at, mut replies) = (0, Vec::new());
        while let Some((args, length)) = parse_command(&requests[at..]) {
            at += length;
            node.execute(&args, id, clock).encode(&mut replies);
        }
        let pushes = std::mem::take(&mut node.pushes);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.requests = requests[at..].to_vec();
            conn.replies.extend(replies);
            conn.wake();
        }
        for (listener, push) in pushes {
            if let Some(conn) = self.conns.get_mut(&listener) {
                push.encode(&mut conn.replies);
                conn.wake();
            }
        }
    }

    pub(super) fn stop(&mut self, node: usize) {
        let server = &mut self.servers[node];
        server.is_up = false;
        server.node.flush_scripts();
        server.node.disconnect_all();
        for conn in self.conns.values_mut().filter(|conn| conn.node == node) {
            conn.is_reset = true;
            conn.requests.clear();
            conn.replies.clear();
            conn.wake();
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        if !self.servers[node].is_up {
            let run_id = run_id(&mut self.rng, node);
            let server = &mut self.servers[node];
            (server.is_up, server.node.run_id) = (true, run_id);
        }
    }

    pub(super) fn cut(&mut self, node: usize) {
        self.servers[node].is_cut = true;
    }

    pub(super) fn heal(&mut self, node: usize) {
        self.servers[node].is_cut = false;
        self.resume(node);
    }

    pub(super) fn cut_host(&mut self, host: usize, node: usize) {
        self.hosts[host][node] = true;
    }

    pub(super) fn heal_host(&mut self, host: usize, node: usize) {
        self.hosts[host][node] = false;
        self.resume(node);
    }

    /// Delivers what was sent during a cut.
    fn resume(&mut self, node: usize) {
        let ids: Vec<usize> = self.conns.iter().filter(|(_, conn)| conn.node == node).map(|(id, _)| *id).collect();
        for id in ids {
            self.serve(id);
            self.conns.get_mut(&id).map(Conn::wake);
        }
    }

    pub(super) fn forget(&mut self, node: usize) {
        self.servers[node].node.store = Store::default();
    }

    pub(super) fn step_clock(&mut self, node: usize, millis: i64) {
        self.servers[node].ahead += millis * 1000;
        let clock = self.clock(node);
        self.servers[node].node.store.expire_all(clock);
    }

    /// Takes the lease of this name from its holder on every node. Returns whether there was one.
    pub(super) fn revoke(&mut self, name: &[u8]) -> bool {
        let lock = [quorlock::DEFAULT_PREFIX.as_bytes(), name].concat();
        let ballot_key = [b"quorlock:ballot:", lock.as_slice()].concat();
        let leases: Vec<Option<Lease>> = (0..self.len()).map(|node| self.lease(node, &lock, &ballot_key)).collect();
        let above = leases.iter().flatten().map(|lease| lease.highest + 1).max().unwrap_or(0);
        let wall = micros(EPOCH + self.began.elapsed()) / 1000;
        for (node, lease) in leases.iter().enumerate() {
            let Some(Lease { token, record, .. }) = lease else { continue };
            let (clock, store) = (self.clock(node), &mut self.servers[node].node.store);
            let words = format!("{token} {above:016} {wall:013}");
            revoke(store, &Rules::default(), &[&lock, &ballot_key], &[words.as_bytes(), record], clock);
        }
        leases.iter().any(Option::is_some)
    }

    /// Returns the lease that a node stores under these keys.
    fn lease(&mut self, node: usize, lock: &[u8], ballot_key: &[u8]) -> Option<Lease> {
        let (clock, store) = (self.clock(node), &mut self.servers[node].node.store);
        let record = store.text(RECORD, clock)?.to_vec();
        let state = ResourceState::at(ballot_key, store.text(ballot_key, clock))?;
        let value = store.text(lock, clock).map(<[u8]>::to_vec).or_else(|| Some(state.last.clone()?.1))?;
        let token = String::from_utf8_lossy(LockValue::parse(&value)?.token).into_owned();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ballots are from 0 to 2^53")]
        let highest = state.highest as u64;
        Some(Lease { token, highest, record })
    }
}

/// What a revocation has to name.
struct Lease {
    token: String,
    /// The highest ballot of the resource.
    highest: u64,
    record: Vec<u8>,
}

fn run_id(rng: &mut Rng, node: usize) -> String {
    format!("{:016x}{node:024x}", rng.number())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
