//! The network and the nodes: one queue of events, in an order that the seed decides.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::figures::{Fault, Figures};
use crate::machine::Clock;
use crate::node::{Node, Script, split};
use crate::oracle::{Oracle, text};
use crate::plan::Plan;
use crate::resp::{Reply, parse_command};
use crate::rng::Rng;

/// The wall clock at the start of every run.
pub const EPOCH_US: u64 = 1_790_000_000_000_000;

const DAY_US: u64 = 86_400_000_000;

/// How long the parts of a split frame, or of a broken connection, may stay apart.
const APART_US: u64 = 30_000;

#[derive(Clone, Copy, Debug)]
pub struct Time(Instant);

impl Time {
    /// Must be called inside the run's runtime.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Simulated time in µs.
    pub fn now(self) -> u64 {
        micros(self.0.elapsed())
    }

    pub fn at(self, us: u64) -> Instant {
        self.0 + Duration::from_micros(us)
    }
}

pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

enum Event {
    Request { conn: usize, bytes: Vec<u8> },
    Reply { conn: usize, bytes: Vec<u8> },
    Break { conn: usize },
    Resume { client: usize },
    Restart { node: usize },
    Wake { node: usize },
}

struct Entry {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// One connection, both ends.
struct Conn {
    client: usize,
    node: usize,
    /// The client has closed it.
    closed: bool,
    /// The client sees an error.
    broken: bool,
    /// Nothing of it reaches the node any more.
    dead: bool,
    /// Everything sent from now on is lost.
    loses_requests: bool,
    loses_replies: bool,
    received: Vec<u8>,
    read: usize,
    reader: Option<Waker>,
    /// An incomplete command, at the node.
    partial: Vec<u8>,
    last_request: u64,
    last_reply: u64,
}

struct Server {
    node: Node,
    offset_us: i64,
    ppm: i64,
    paused_until: u64,
    loading_until: u64,
    up: bool,
    /// What has arrived during a pause, in order.
    backlog: VecDeque<(usize, Vec<u8>)>,
    /// The furthest ahead that its clock was set.
    furthest_us: i64,
}

#[derive(Clone, Copy, Default)]
struct Cut {
    until: u64,
    /// What was sent meanwhile arrives afterwards; otherwise it is lost.
    keeps: bool,
}

/// What lies between a client and a node.
#[derive(Clone, Copy, Default)]
struct Link {
    requests: Cut,
    replies: Cut,
    newest: usize,
}

struct Client {
    clock: Arc<Clock>,
    paused_until: u64,
    crashed: bool,
    /// Tasks and streams that go on when the pause ends.
    waiting: Vec<Waker>,
    links: Vec<Link>,
}

pub struct World {
    pub plan: Arc<Plan>,
    pub time: Time,
    pub figures: Figures,
    pub oracle: Oracle,
    /// Random faults of single messages.
    pub troubled: bool,
    pub trace: Option<String>,
    /// Everything that happened, condensed.
    pub digest: u64,
    rng: Rng,
    queue: BinaryHeap<Entry>,
    seq: u64,
    servers: Vec<Server>,
    clients: Vec<Client>,
    conns: Vec<Conn>,
    /// The next event is earlier than the network task thinks.
    pub earlier: Arc<Notify>,
    alarm: u64,
}

pub type Shared = Arc<Mutex<World>>;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Delivers events when their time has come.
pub async fn network(world: Shared) {
    let (time, earlier) = {
        let world = lock(&world);
        (world.time, Arc::clone(&world.earlier))
    };
    loop {
        let next = lock(&world).run_due();
        match next {
            Some(at) => {
                let at = time.at(at);
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {}
                    () = earlier.notified() => {}
                }
            }
            None => earlier.notified().await,
        }
    }
}

impl World {
    pub fn new(plan: Arc<Plan>, time: Time, traced: bool) -> Self {
        let mut rng = Rng::new(plan.seed, 2);
        let mut figures = Figures::default();
        let servers = plan.nodes.iter().enumerate().map(|(i, clock)| {
            if clock.ppm != 0 {
                figures.fault(Fault::NodeClockRate);
            }
            let now = EPOCH_US.saturating_add_signed(clock.offset_us);
            let started = now - if plan.young { 0 } else { DAY_US };
            let mut node = Node::new(plan.broken.rules, run_id(&mut rng, i), started);
            node.durable = clock.durable;
            if plan.declared_new {
                node.declare_new(now);
            }
            Server {
                node,
                offset_us: clock.offset_us,
                ppm: clock.ppm,
                paused_until: 0,
                loading_until: 0,
                up: true,
                backlog: VecDeque::new(),
                furthest_us: clock.offset_us,
            }
        });
        Self {
            servers: servers.collect(),
            figures,
            oracle: Oracle::default(),
            troubled: false,
            trace: traced.then(String::new),
            digest: 0,
            rng,
            queue: BinaryHeap::new(),
            seq: 0,
            clients: Vec::new(),
            conns: Vec::new(),
            earlier: Arc::new(Notify::new()),
            alarm: u64::MAX,
            plan,
            time,
        }
    }

    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        let now = self.time.now();
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{:>9}.{:03} {line}", now / 1000, now % 1000).expect("a string");
        }
    }

    fn mix(&mut self, kind: u64, a: usize, b: u64) {
        for part in [self.time.now(), kind, a as u64, b] {
            self.digest = (self.digest ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.queue.push(Entry { at, seq: self.seq, event });
        if at < self.alarm {
            self.alarm = at;
            self.earlier.notify_one();
        }
    }

    /// Does what is due; says when the next event is.
    fn run_due(&mut self) -> Option<u64> {
        let now = self.time.now();
        self.alarm = 0; // Whatever is pushed meanwhile is seen below.
        while self.queue.peek().is_some_and(|entry| entry.at <= now) {
            let Some(Entry { event, .. }) = self.queue.pop() else { break };
            match event {
                Event::Request { conn, bytes } => self.arrive(conn, bytes),
                Event::Reply { conn, bytes } => self.deliver(conn, &bytes),
                Event::Break { conn } => self.break_connection(conn),
                Event::Resume { client } => self.resume(client),
                Event::Restart { node } => self.restart(node),
                Event::Wake { node } => self.wake(node),
            }
        }
        let next = self.queue.peek().map(|entry| entry.at);
        self.alarm = next.unwrap_or(u64::MAX);
        next
    }

    fn latency(&mut self) -> u64 {
        let (least, most) = self.plan.latency_us;
        self.rng.between(least..most)
    }

    // Clients.

    pub fn add_client(&mut self, clock: Arc<Clock>) -> usize {
        if clock.is_off() {
            self.figures.fault(Fault::ClientClockRate);
        }
        let links = vec![Link::default(); self.servers.len()];
        self.clients.push(Client { clock, paused_until: 0, crashed: false, waiting: Vec::new(), links });
        self.clients.len() - 1
    }

    /// Not before this has the client a turn again.
    pub fn paused_until(&self, client: usize) -> Option<u64> {
        Some(self.clients[client].paused_until).filter(|until| *until > self.time.now())
    }

    /// When the client's latest pause ended.
    pub fn last_pause(&self, client: usize) -> u64 {
        self.clients[client].paused_until
    }

    pub fn wake_after_pause(&mut self, client: usize, waker: &Waker) {
        let waiting = &mut self.clients[client].waiting;
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    pub fn pause_client(&mut self, client: usize, duration: u64) {
        let until = self.time.now() + duration;
        self.note(format_args!("c{client} paused for {} ms", duration / 1000));
        self.figures.fault(Fault::ClientPause);
        self.clients[client].paused_until = until;
        self.clients[client].clock.pause();
        self.push(until, Event::Resume { client });
    }

    fn resume(&mut self, client: usize) {
        if self.paused_until(client).is_some() {
            return;
        }
        self.note(format_args!("c{client} goes on"));
        self.clients[client].clock.resume();
        for waker in std::mem::take(&mut self.clients[client].waiting) {
            waker.wake();
        }
    }

    /// The process is gone; what it had sent may still arrive.
    pub fn crash_client(&mut self, client: usize) {
        self.note(format_args!("c{client} crashes"));
        self.figures.fault(Fault::ClientCrash);
        self.clients[client].crashed = true;
    }

    // Connections, from the client's side.

    /// What a connection attempt meets: a time to wait, and then a stream, nothing, or a refusal.
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
        self.conns.push(Conn {
            client,
            node,
            closed: false,
            broken: false,
            dead: false,
            loses_requests: false,
            loses_replies: false,
            received: Vec::new(),
            read: 0,
            reader: None,
            partial: Vec::new(),
            last_request: 0,
            last_reply: 0,
        });
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

    /// Received bytes into `room`; the number is 0 when there are none yet.
    pub fn read(&mut self, conn: usize, room: &mut tokio::io::ReadBuf<'_>) -> usize {
        let conn = &mut self.conns[conn];
        let some = (conn.received.len() - conn.read).min(room.remaining());
        room.put_slice(&conn.received[conn.read..conn.read + some]);
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

    /// Takes what a client sends on its way. Says how many bytes were taken.
    pub fn send(&mut self, id: usize, bytes: &[u8]) -> usize {
        let Conn { client, node, loses_requests, last_request, .. } = self.conns[id];
        if self.clients[client].crashed {
            return bytes.len();
        }
        let split = self.troubled && bytes.len() > 1 && self.rng.chance(self.plan.split);
        let taken = if split { 1 + self.rng.below(bytes.len() - 1) } else { bytes.len() };
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

    /// When something sent now arrives, or `None` when it is lost, and the connection with it.
    fn arrival(&mut self, id: usize, losing: bool, cut: Cut, last: u64, late: Fault) -> Option<u64> {
        let now = self.time.now();
        if losing {
            return None;
        }
        let mut arrival = now + self.latency();
        let lost = self.troubled && self.rng.chance(self.plan.lost);
        if lost || (cut.until > now && !cut.keeps) {
            let after = self.rng.between(1_000..2_000_000);
            self.push(now + after, Event::Break { conn: id });
            return None;
        }
        if cut.until > now {
            arrival += cut.until - now;
            self.figures.fault(late);
        } else if self.troubled && self.rng.chance(self.plan.late) {
            arrival += if self.rng.chance(0.2) { self.rng.between(0..2_500_000) } else { self.rng.between(0..60_000) };
            self.figures.fault(late);
        }
        Some(arrival.max(last))
    }

    // Nodes.

    fn clock(&self, node: usize) -> u64 {
        let (server, now) = (&self.servers[node], self.time.now());
        let drift = now.cast_signed() * server.ppm / 1_000_000;
        (EPOCH_US + now).saturating_add_signed(drift + server.offset_us)
    }

    fn arrive(&mut self, id: usize, bytes: Vec<u8>) {
        let server = &mut self.servers[self.conns[id].node];
        let paused_until = server.paused_until;
        if server.backlog.is_empty() && paused_until <= self.time.now() {
            return self.serve(id, &bytes);
        }
        server.backlog.push_back((id, bytes));
        if server.backlog.len() == 1 {
            self.push(paused_until, Event::Wake { node: self.conns[id].node });
        }
    }

    /// The pause is over, unless it was made longer.
    fn wake(&mut self, node: usize) {
        let paused_until = self.servers[node].paused_until;
        if paused_until > self.time.now() {
            return self.push(paused_until, Event::Wake { node });
        }
        while let Some((conn, bytes)) = self.servers[node].backlog.pop_front() {
            self.serve(conn, &bytes);
        }
    }

    fn serve(&mut self, id: usize, bytes: &[u8]) {
        let Conn { client, node, dead, closed, broken, .. } = self.conns[id];
        if dead || !self.servers[node].up {
            return;
        }
        if (closed || broken) && self.clients[client].links[node].newest > id {
            self.figures.fault(Fault::Reorder);
        }
        let mut buffer = std::mem::take(&mut self.conns[id].partial);
        buffer.extend_from_slice(bytes);
        let (mut at, mut replies) = (0, Vec::new());
        while let Some((args, length)) = parse_command(&buffer[at..]) {
            at += length;
            replies.push(self.execute(client, node, id, &args));
        }
        buffer.drain(..at);
        self.conns[id].partial = buffer;
        if self.plan.broken.swaps_answers && replies.len() > 1 && self.troubled {
            let last = replies.len() - 1;
            replies.swap(last - 1, last);
        }
        let mut out = Vec::new();
        replies.iter().for_each(|reply| reply.encode(&mut out));
        if !out.is_empty() {
            self.answer(id, &out);
        }
        for (listener, push) in std::mem::take(&mut self.servers[node].node.pushes) {
            let mut out = Vec::new();
            push.encode(&mut out);
            self.answer(listener, &out);
        }
    }

    fn execute(&mut self, client: usize, node: usize, conn: usize, args: &[&[u8]]) -> Reply {
        let (clock, now) = (self.clock(node), self.time.now());
        self.figures.commands += 1;
        let server = &mut self.servers[node];
        let reply = if server.loading_until > now {
            Reply::Error("LOADING Redis is loading the dataset in memory".to_owned())
        } else {
            self.oracle.execute(node, &mut server.node, args, conn, clock, now)
        };
        let code = match &reply {
            Reply::Array(items) => match items.first() {
                Some(Reply::Int(code)) => code.cast_unsigned(),
                _ => 100,
            },
            Reply::Error(_) => 101,
            _ => 102,
        };
        self.mix(2 + node as u64, client, code);
        if self.trace.is_some() && args[0] == b"EVALSHA" {
            let line = describe(args, &reply);
            self.note(format_args!("c{client}>n{node} {line}"));
        }
        reply
    }

    fn answer(&mut self, id: usize, bytes: &[u8]) {
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
        let split = self.troubled && bytes.len() > 1 && self.rng.chance(self.plan.split);
        let at = if split { 1 + self.rng.below(bytes.len() - 1) } else { bytes.len() };
        self.push(arrival, Event::Reply { conn: id, bytes: bytes[..at].to_vec() });
        let mut last = arrival;
        if split {
            self.figures.fault(Fault::SplitFrame);
            last += self.rng.between(0..APART_US);
            self.push(last, Event::Reply { conn: id, bytes: bytes[at..].to_vec() });
        }
        self.conns[id].last_reply = last;
    }

    fn deliver(&mut self, id: usize, bytes: &[u8]) {
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

    /// The client learns that the connection is gone. What is on its way to the node may arrive all the same.
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

    pub fn pause_node(&mut self, node: usize, duration: u64) {
        self.servers[node].paused_until = self.time.now() + duration;
        self.figures.fault(Fault::NodePause);
        self.note(format_args!("n{node} paused for {} ms", duration / 1000));
    }

    pub fn load_node(&mut self, node: usize, duration: u64) {
        self.servers[node].loading_until = self.time.now() + duration;
        self.figures.fault(Fault::NodeLoading);
        self.note(format_args!("n{node} answers with errors for {} ms", duration / 1000));
    }

    pub fn flush_scripts(&mut self, node: usize) {
        self.servers[node].node.flush_scripts();
        self.figures.fault(Fault::ScriptFlush);
        self.note(format_args!("n{node} scripts flushed"));
    }

    /// A process that dies takes its connections and what was on its way to it along.
    pub fn crash_node(&mut self, node: usize, down_for: u64, forgets: bool) {
        if !self.servers[node].up {
            return;
        }
        self.note(format_args!("n{node} crashes for {} ms (forgets {forgets})", down_for / 1000));
        self.figures.fault(if forgets { Fault::NodeAmnesia } else { Fault::NodeCrash });
        for conn in 0..self.conns.len() {
            if self.conns[conn].node == node && !self.conns[conn].dead {
                self.break_connection(conn);
                self.conns[conn].dead = true;
            }
        }
        let server = &mut self.servers[node];
        server.up = false;
        server.paused_until = 0;
        server.node.flush_scripts();
        server.node.disconnect_all();
        if forgets {
            server.node.store = crate::node::Store::default();
            self.oracle.forget(node);
        }
        self.push(self.time.now() + down_for, Event::Restart { node });
    }

    fn restart(&mut self, node: usize) {
        let started = self.clock(node);
        let run_id = run_id(&mut self.rng, node);
        let server = &mut self.servers[node];
        (server.up, server.node.run_id, server.node.started) = (true, run_id, started);
        if self.plan.broken.forgets_at_once {
            server.node.declare_new(started);
        }
        self.note(format_args!("n{node} is up"));
    }

    pub fn step_clock(&mut self, node: usize, by_us: i64) {
        self.servers[node].offset_us += by_us;
        self.servers[node].furthest_us = self.servers[node].furthest_us.max(self.servers[node].offset_us);
        self.figures.fault(Fault::NodeClockStep);
        self.note(format_args!("n{node} clock stepped by {} ms", by_us / 1000));
    }

    /// How far any clock was set back: for so long may a key outlive its lease.
    pub fn furthest_set_back(&self) -> Duration {
        let set_back = |server: &Server| (server.furthest_us - server.offset_us).unsigned_abs();
        Duration::from_micros(self.servers.iter().map(set_back).max().unwrap_or(0))
    }

    /// How far the node's clock has been stepped away from the plan.
    pub fn stepped(&self, node: usize) -> i64 {
        self.servers[node].offset_us - self.plan.nodes[node].offset_us
    }

    /// Everything works again: no cut, no pause, no crash.
    pub fn heal(&mut self) {
        self.troubled = false;
        let now = self.time.now();
        for client in 0..self.clients.len() {
            self.clients[client].paused_until = self.clients[client].paused_until.min(now);
            self.resume(client);
        }
        for client in &mut self.clients {
            for link in &mut client.links {
                link.requests.until = link.requests.until.min(now);
                link.replies.until = link.replies.until.min(now);
            }
        }
        for server in &mut self.servers {
            server.loading_until = 0;
            server.paused_until = server.paused_until.min(now);
        }
        for node in 0..self.servers.len() {
            self.push(now, Event::Wake { node });
        }
        self.note(format_args!("everything heals"));
    }

    /// The locks that stand on a node, under their names.
    pub fn locks(&self, node: usize) -> Vec<(String, String)> {
        let locks = self.servers[node].node.store.texts(quorlock::DEFAULT_PREFIX.as_bytes(), self.clock(node));
        locks.map(|(key, value)| (text(&key[quorlock::DEFAULT_PREFIX.len()..]), text(value))).collect()
    }
}

fn run_id(rng: &mut Rng, node: usize) -> String {
    format!("{:08x}{:032x}", node, rng.number())
}

/// A command and its answer on one line. The label is left out: it holds the number of this very process.
fn describe(args: &[&[u8]], reply: &Reply) -> String {
    let (Some(script), Some((keys, argv))) = (Script::by_hash(args[1]), split(args)) else { return String::new() };
    let per_key = match script {
        Script::Hold => 8,
        Script::Release => 5,
        Script::Inspect => 0,
    };
    let shown = |fields: &[&[u8]]| fields.iter().map(|field| text(field)).collect::<Vec<_>>().join(" ");
    let (common, rest) = argv.split_at(per_key.min(argv.len()));
    let common = match script {
        Script::Hold => format!("next {} lease {} {}", text(common[0]), text(common[1]), shown(&common[4..6])),
        Script::Release => format!("next {} {}", text(common[0]), shown(&common[3..5])),
        Script::Inspect => String::new(),
    };
    let width = rest.len() / (keys.len() / 3).max(1);
    let mut line = format!("{script:?} {common}");
    for (i, key) in keys.chunks_exact(3).enumerate() {
        write!(line, " [{} {}]", text(key[0]), shown(&rest[i * width..(i + 1) * width])).expect("a string");
    }
    let answer = match reply {
        Reply::Error(error) => error.clone(),
        Reply::Array(items) => {
            let item = |item: &Reply| match item {
                Reply::Int(number) => number.to_string(),
                Reply::Bulk(bytes) => crate::rules::LockValue::parse(bytes).map_or("…".to_owned(), |value| {
                    format!("{} {} {}", text(value.token), text(value.owner), text(value.sessions))
                }),
                other => format!("{other:?}"),
            };
            items.iter().map(item).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    };
    write!(line, " -> {answer}").expect("a string");
    line
}
