//! The connections between clients and nodes: bytes arrive late, in pieces, out of order, or never.

use std::task::Waker;

use crate::figures::Fault;
use crate::queue::Event;
use crate::world::World;

/// How long the parts of a split frame may stay apart, in µs.
const APART_US: u64 = 30_000;
/// A frame is cut within this number of bytes of its start or its end. The part further inside has the name of this machine and
/// the number of this process, so the seed does not decide its length.
const LONGEST_PIECE: usize = 20;

/// One connection, both ends.
#[derive(Default)]
pub struct Conn {
    pub client: usize,
    pub node: usize,
    /// The client has closed it.
    pub closed: bool,
    /// The client gets an error.
    pub broken: bool,
    /// No further bytes reach the node.
    pub dead: bool,
    /// All bytes that are sent from now on are lost.
    loses_requests: bool,
    loses_replies: bool,
    received: Vec<u8>,
    read: usize,
    reader: Option<Waker>,
    /// An incomplete command, at the node.
    pub partial: Vec<u8>,
    last_request: u64,
    last_reply: u64,
}

#[derive(Clone, Copy, Default)]
pub struct Cut {
    pub until: u64,
    /// Bytes that are sent meanwhile arrive afterwards; otherwise they are lost.
    keeps: bool,
}

/// The link between a client and a node.
#[derive(Clone, Copy, Default)]
pub struct Link {
    pub requests: Cut,
    pub replies: Cut,
    pub newest: usize,
}

impl World {
    fn latency(&mut self) -> u64 {
        let (least, most) = self.plan.latency_us;
        self.rng.between(least..most)
    }

    /// Returns where a frame is cut in two.
    fn piece(&mut self, length: usize) -> usize {
        let some = 1 + self.rng.below(LONGEST_PIECE.min(length - 1));
        if self.rng.chance(0.5) { some } else { length - some }
    }

    /// Returns the result of a connection attempt: a delay, and then a stream, no answer, or a refusal.
    pub fn try_connect(&mut self, client: usize, node: usize) -> (u64, Option<bool>) {
        let now = self.time.now();
        let latency = self.latency() + self.latency();
        let link = self.clients[client].links[node];
        let cut = link.requests.until.max(link.replies.until);
        if self.clients[client].crashed {
            (u64::MAX, None)
        } else if cut > now {
            (cut - now + latency, None)
        } else {
            (latency, Some(self.servers[node].up))
        }
    }

    pub fn open(&mut self, client: usize, node: usize) -> usize {
        let conn = self.conns.len();
        // The process may have died since it accepted.
        let dead = !self.servers[node].up;
        self.conns.push(Conn { client, node, dead, ..Conn::default() });
        if dead {
            self.push(self.time.now(), Event::Break { conn });
        }
        self.clients[client].links[node].newest = conn;
        self.note(format_args!("c{client}>n{node} connection {conn}"));
        self.mix(1, conn, node as u64);
        conn
    }

    pub fn close(&mut self, conn: usize) {
        self.conns[conn].closed = true;
        self.servers[self.conns[conn].node].node.disconnected(conn);
        self.conns[conn].reader = None;
        self.conns[conn].received = Vec::new();
    }

    pub fn is_broken(&self, conn: usize) -> bool {
        self.conns[conn].broken
    }

    /// Copies received bytes into `buffer`. Returns their number, or 0 when there are none yet.
    pub fn read(&mut self, conn: usize, buffer: &mut tokio::io::ReadBuf<'_>) -> usize {
        let conn = &mut self.conns[conn];
        let some = (conn.received.len() - conn.read).min(buffer.remaining());
        buffer.put_slice(&conn.received[conn.read..conn.read + some]);
        conn.read += some;
        if conn.read == conn.received.len() {
            conn.received.clear();
            conn.read = 0;
        }
        some
    }

    pub fn wake_reader(&mut self, conn: usize, waker: &Waker) {
        self.conns[conn].reader = Some(waker.clone());
    }

    /// Sends the bytes of a client. Returns how many were taken.
    pub fn send(&mut self, id: usize, bytes: &[u8]) -> usize {
        let Conn { client, node, loses_requests, last_request, .. } = self.conns[id];
        if self.clients[client].crashed {
            return bytes.len();
        }
        let split = self.faulty && bytes.len() > 1 && self.rng.chance(self.plan.split);
        let taken = if split { self.piece(bytes.len()) } else { bytes.len() };
        if split {
            self.figures.fault(Fault::SplitFrame);
        }
        let cut = self.clients[client].links[node].requests;
        let Some(arrival) = self.arrival(id, loses_requests, cut, last_request, Fault::LateRequest) else {
            self.figures.fault(Fault::LostRequest);
            self.conns[id].loses_requests = true;
            self.note(format_args!("c{client}>n{node} lost on connection {id}"));
            return taken;
        };
        self.conns[id].last_request = arrival;
        self.push(arrival, Event::Request { conn: id, bytes: bytes[..taken].to_vec() });
        taken
    }

    /// Returns when bytes that are sent now arrive, or `None` when they are lost, and the connection with them.
    fn arrival(&mut self, id: usize, losing: bool, cut: Cut, last: u64, late: Fault) -> Option<u64> {
        let now = self.time.now();
        if losing {
            return None;
        }
        let mut arrival = now + self.latency();
        let lost = self.faulty && self.rng.chance(self.plan.lost);
        if lost || (cut.until > now && !cut.keeps) {
            let after = self.rng.between(1_000..2_000_000);
            self.push(now + after, Event::Break { conn: id });
            return None;
        }
        if cut.until > now {
            arrival += cut.until - now;
            self.figures.fault(late);
        } else if self.faulty && self.rng.chance(self.plan.late) {
            arrival += if self.rng.chance(0.2) { self.rng.between(0..2_500_000) } else { self.rng.between(0..60_000) };
            self.figures.fault(late);
        }
        Some(arrival.max(last))
    }

    /// Sends bytes from a node to a client: an answer or a call.
    pub fn answer(&mut self, id: usize, bytes: &[u8]) {
        let Conn { client, node, loses_replies, last_reply, closed, broken, .. } = self.conns[id];
        if closed || broken {
            return self.figures.fault(Fault::LostReply);
        }
        let cut = self.clients[client].links[node].replies;
        let Some(arrival) = self.arrival(id, loses_replies, cut, last_reply, Fault::LateReply) else {
            self.figures.fault(Fault::LostReply);
            self.conns[id].loses_replies = true;
            self.note(format_args!("n{node}>c{client} lost on connection {id}"));
            return;
        };
        let split = self.faulty && bytes.len() > 1 && self.rng.chance(self.plan.split);
        let at = if split { self.piece(bytes.len()) } else { bytes.len() };
        self.push(arrival, Event::Reply { conn: id, bytes: bytes[..at].to_vec() });
        let mut last = arrival;
        if split {
            self.figures.fault(Fault::SplitFrame);
            last += self.rng.between(0..APART_US);
            self.push(last, Event::Reply { conn: id, bytes: bytes[at..].to_vec() });
        }
        self.conns[id].last_reply = last;
    }

    pub fn deliver(&mut self, id: usize, bytes: &[u8]) {
        self.mix(20, id, 0);
        let conn = &mut self.conns[id];
        if conn.closed || conn.broken {
            return self.figures.fault(Fault::LostReply);
        }
        conn.received.extend_from_slice(bytes);
        if let Some(reader) = conn.reader.take() {
            reader.wake();
        }
    }

    /// Signals the end of a connection to the client. Bytes in transit to the node may still arrive.
    pub fn break_connection(&mut self, id: usize) {
        let dead = self.rng.chance(0.5);
        let conn = &mut self.conns[id];
        if conn.closed || conn.broken {
            return;
        }
        conn.broken = true;
        conn.dead |= dead;
        if conn.dead {
            self.servers[conn.node].node.disconnected(id);
        }
        if let Some(reader) = conn.reader.take() {
            reader.wake();
        }
        let (client, node) = (conn.client, conn.node);
        self.figures.fault(Fault::Reset);
        self.note(format_args!("c{client}>n{node} connection {id} breaks"));
    }

    fn newest_connections(&self, node: usize) -> Vec<usize> {
        self.clients
            .iter()
            .map(|client| client.links[node].newest)
            .filter(|id| self.conns.get(*id).is_some_and(|conn| conn.node == node))
            .collect()
    }

    pub fn reset_connections(&mut self, node: usize) {
        for conn in self.newest_connections(node) {
            self.break_connection(conn);
        }
    }

    pub fn cut(&mut self, client: usize, node: usize, requests: bool, replies: bool, keeps: bool, duration: u64) {
        let cut = Cut { until: self.time.now() + duration, keeps };
        let link = &mut self.clients[client].links[node];
        if requests {
            link.requests = cut;
        }
        if replies {
            link.replies = cut;
        }
        self.figures.fault(if requests && replies { Fault::Partition } else { Fault::OneWayPartition });
        self.note(format_args!(
            "c{client}|n{node} cut for {} ms (requests {requests}, replies {replies}, kept {keeps})",
            duration / 1000
        ));
    }
}
