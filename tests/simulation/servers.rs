//! The nodes' machines: they execute, pause, crash and come back, with imperfect clocks.

use std::collections::VecDeque;
use std::time::Duration;

use quorlock_testkit::rng::Rng;

use crate::figures::Fault;
use crate::links::Conn;
use crate::oracle::{Place, text};
use crate::plan::Plan;
use crate::queue::Event;
use crate::time::{EPOCH_US, micros};
use crate::trace::describe;
use crate::world::World;
use quorlock_testkit::node::resp::{Reply, parse_command};
use quorlock_testkit::node::{Node, Store};

pub struct Server {
    pub node: Node,
    offset_us: i64,
    ppm: i64,
    paused_until: u64,
    loading_until: u64,
    pub up: bool,
    /// The bytes that arrived during a pause, in order.
    backlog: VecDeque<(usize, Vec<u8>)>,
    /// The furthest ahead that its clock was set.
    furthest_us: i64,
    /// Simulated time when it last may have forgotten votes, and the longest lease among them, in µs.
    forgot_at: Option<(u64, u64)>,
    /// Its earlier states.
    older: VecDeque<Store>,
    /// How far its clock has leapt; it will leap back.
    leap_us: i64,
}

/// The cluster word of every simulated cluster.
const CLUSTER: u64 = 0xc105_7e20;
/// The number of earlier states of a node that are kept.
const MOST_OLDER: usize = 6;

/// The ways in which a node loses its data while its clients stay connected.
#[derive(Clone, Copy, Debug)]
pub enum Forgets {
    /// FLUSHALL, FLUSHDB, SWAPDB.
    Flush,
    /// Another, empty server answers at the address.
    Replaced,
    /// REPLICAOF another node for this time, and back.
    Replica { of: usize, duration: u64 },
}

impl Server {
    pub fn new(plan: &Plan, index: usize, rng: &mut Rng) -> Self {
        let clock = &plan.nodes[index];
        let now = EPOCH_US.saturating_add_signed(clock.offset_us);
        let mut node = Node::new(plan.broken.rules, run_id(rng, index));
        node.durable = clock.durable;
        if !plan.young || plan.declared_new {
            node.declare_new(rng.number(), CLUSTER, plan.nodes.len(), plan.ballot_ttl / 2, now);
        }
        Self {
            node,
            offset_us: clock.offset_us,
            ppm: clock.ppm,
            paused_until: 0,
            loading_until: 0,
            up: true,
            backlog: VecDeque::new(),
            furthest_us: clock.offset_us,
            forgot_at: None,
            older: VecDeque::new(),
            leap_us: 0,
        }
    }
}

/// The data of the next process after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Kept,
    Lost,
    /// An earlier state, as a promoted replica has.
    Older,
}

impl World {
    fn clock(&self, node: usize) -> u64 {
        let (server, now) = (&self.servers[node], self.time.now());
        let drift = now.cast_signed() * server.ppm / 1_000_000;
        (EPOCH_US + now).saturating_add_signed(drift + server.offset_us)
    }

    pub fn arrive(&mut self, id: usize, bytes: Vec<u8>) {
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

    /// Ends the pause, unless it was extended.
    pub fn wake(&mut self, node: usize) {
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
        if self.plan.broken.swaps_answers && replies.len() > 1 && self.faulty {
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
        let (clock, at) = (self.clock(node), self.time.now());
        self.figures.commands += 1;
        self.oracle.findings.watch.executed();
        let server = &mut self.servers[node];
        let reply = if server.loading_until > at {
            Reply::Error("LOADING Redis is loading the dataset in memory".to_owned())
        } else {
            let remembers = server.forgot_at.is_none_or(|(forgot, longest)| at >= forgot + longest);
            let leaps = server.leap_us != 0;
            self.oracle.execute(Place { node, conn, clock, at, remembers, leaps }, &mut server.node, args)
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
        if self.trace.is_some() && matches!(args[0], b"EVALSHA" | b"EVAL") {
            let line = describe(args, &reply);
            self.note(format_args!("c{client}>n{node} {line}"));
        }
        reply
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

    /// Ends a process with its connections and the bytes in transit to it.
    pub fn crash_node(&mut self, node: usize, down_for: u64, memory: Memory) {
        if !self.servers[node].up {
            return;
        }
        self.note(format_args!("n{node} crashes for {} ms ({memory:?})", down_for / 1000));
        self.figures.fault(match memory {
            Memory::Kept => Fault::NodeCrash,
            Memory::Lost => Fault::NodeAmnesia,
            Memory::Older => Fault::NodeOlder,
        });
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
        (server.node.is_replica, server.node.was_replica) = (false, false);
        if memory != Memory::Kept {
            let older = server.older.front().filter(|_| memory == Memory::Older).cloned();
            server.node.was_replica = older.is_some();
            server.node.store = older.unwrap_or_default();
            self.has_forgotten(node);
        }
        self.push(self.time.now() + down_for, Event::Restart { node });
    }

    /// Returns whether a node may forget where clients learn the longest lease from the other nodes: one within two leases.
    pub fn may_forget_one(&self) -> bool {
        self.time.now() > self.last_forgot + 2 * micros(self.longest_asked) + micros(Duration::from_secs(1))
    }

    fn has_forgotten(&mut self, node: usize) {
        self.last_forgot = self.time.now();
        self.servers[node].older.clear();
        let longest = self.oracle.forget(node);
        self.servers[node].forgot_at = Some((self.time.now(), longest));
    }

    pub fn restart(&mut self, node: usize) {
        let run_id = run_id(&mut self.rng, node);
        let (word, clock) = (self.rng.number(), self.clock(node));
        let server = &mut self.servers[node];
        (server.up, server.node.run_id) = (true, run_id);
        if self.plan.broken.forgets_at_once {
            let (nodes, window) = (self.plan.nodes.len(), self.plan.ballot_ttl / 2);
            server.node.declare_new(word, CLUSTER, nodes, window, clock);
        }
        self.note(format_args!("n{node} is up"));
    }

    /// Removes the node's data while its clients are connected.
    pub fn forget(&mut self, node: usize, how: Forgets) {
        if !self.servers[node].up || self.servers[node].node.is_replica {
            return;
        }
        // Two nodes that are replicas of each other have no master, and each would get back its own data.
        if matches!(how, Forgets::Replica { of, .. } if self.servers[of].node.is_replica) {
            return;
        }
        self.note(format_args!("n{node} forgets: {how:?}"));
        let run_id = run_id(&mut self.rng, node);
        let server = &mut self.servers[node].node;
        match how {
            Forgets::Flush => {
                server.store = Store::default();
                self.figures.fault(Fault::NodeFlush);
            }
            Forgets::Replaced => {
                server.store = Store::default();
                server.run_id = run_id;
                server.flush_scripts();
                server.disconnect_all();
                self.figures.fault(Fault::NodeReplace);
            }
            Forgets::Replica { of, duration } => {
                server.is_replica = true;
                self.figures.fault(Fault::NodeReplica);
                self.push(self.time.now() + duration, Event::Promote { node, of });
                return; // Its data goes when it is a master again. Until then it has no vote.
            }
        }
        self.has_forgotten(node);
    }

    /// Makes a replica a master again, with the data of the other node.
    pub fn promote(&mut self, node: usize, of: usize) {
        let data = self.servers[of].node.store.clone();
        let server = &mut self.servers[node].node;
        if !server.is_replica {
            return; // It crashed meanwhile.
        }
        (server.store, server.is_replica, server.was_replica) = (data, false, true);
        self.has_forgotten(node);
        self.note(format_args!("n{node} is a master again, with the data of n{of}"));
    }

    /// Keeps the present data, which a lagging replica of the node would have later.
    pub fn keep_older(&mut self, node: usize) {
        let server = &mut self.servers[node];
        server.older.push_back(server.node.store.clone());
        if server.older.len() > MOST_OLDER {
            server.older.pop_front();
        }
    }

    /// Moves the clock by hours, and back after a while. Keys that expire meanwhile are gone.
    pub fn leap_clock(&mut self, node: usize, by_us: i64, duration: u64) {
        if self.servers[node].leap_us != 0 {
            return;
        }
        self.servers[node].leap_us = by_us;
        self.servers[node].offset_us += by_us;
        let clock = self.clock(node);
        self.servers[node].node.store.expire_all(clock);
        // The ballots of released leases are gone, as if they were old.
        self.oracle.forget(node);
        self.figures.fault(Fault::NodeClockLeap);
        self.note(format_args!("n{node} clock leaps by {} s for {} ms", by_us / 1_000_000, duration / 1000));
        self.push(self.time.now() + duration, Event::LeapBack { node });
    }

    pub fn leap_back(&mut self, node: usize) {
        let server = &mut self.servers[node];
        let by_us = std::mem::take(&mut server.leap_us);
        server.offset_us -= by_us;
        if by_us < 0 {
            // The clock goes forward again: ballots of leases that were released meanwhile are gone.
            let clock = self.clock(node);
            self.servers[node].node.store.expire_all(clock);
            self.oracle.forget(node);
        }
        self.note(format_args!("n{node} clock leaps back"));
    }

    pub fn step_clock(&mut self, node: usize, by_us: i64) {
        self.servers[node].offset_us += by_us;
        let server = &mut self.servers[node];
        server.furthest_us = server.furthest_us.max(server.offset_us - server.leap_us);
        let clock = self.clock(node);
        self.servers[node].node.store.expire_all(clock);
        self.figures.fault(Fault::NodeClockStep);
        self.note(format_args!("n{node} clock stepped by {} ms", by_us / 1000));
    }

    pub fn heal_server(&mut self, node: usize) {
        let now = self.time.now();
        self.leap_back(node);
        let server = &mut self.servers[node];
        server.loading_until = 0;
        server.paused_until = server.paused_until.min(now);
        self.push(now, Event::Wake { node });
    }

    /// Returns the largest step back of any clock: a key may outlive its lease for this time.
    pub fn furthest_set_back(&self) -> Duration {
        let set_back = |server: &Server| (server.furthest_us - server.offset_us).unsigned_abs();
        Duration::from_micros(self.servers.iter().map(set_back).max().unwrap_or(0))
    }

    /// Returns how far the node's clock has been stepped away from the plan.
    pub fn stepped(&self, node: usize) -> i64 {
        self.servers[node].offset_us - self.servers[node].leap_us - self.plan.nodes[node].offset_us
    }

    pub fn count_leaps(&self) -> usize {
        self.servers.iter().filter(|server| server.leap_us != 0).count()
    }

    /// Returns the locks that a node stores, under their names.
    pub fn locks(&self, node: usize) -> Vec<(String, String)> {
        let locks = self.servers[node].node.store.texts(quorlock::DEFAULT_PREFIX.as_bytes(), self.clock(node));
        locks.map(|(key, value)| (text(&key[quorlock::DEFAULT_PREFIX.len()..]), text(value))).collect()
    }
}

fn run_id(rng: &mut Rng, node: usize) -> String {
    format!("{:016x}{node:024x}", rng.number())
}
