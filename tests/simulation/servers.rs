//! The nodes' machines: they execute, pause, crash and come back, and their clocks are what they are.

use std::collections::VecDeque;
use std::time::Duration;

use crate::figures::Fault;
use crate::lines::Conn;
use crate::node::{Node, Store};
use crate::oracle::{Place, text};
use crate::plan::Plan;
use crate::queue::Event;
use crate::resp::{Reply, parse_command};
use crate::rng::Rng;
use crate::time::{EPOCH_US, micros};
use crate::trace::describe;
use crate::world::World;

const DAY_US: u64 = 86_400_000_000;

pub struct Server {
    pub node: Node,
    offset_us: i64,
    ppm: i64,
    paused_until: u64,
    loading_until: u64,
    pub up: bool,
    /// What has arrived during a pause, in order.
    backlog: VecDeque<(usize, Vec<u8>)>,
    /// The furthest ahead that its clock was set.
    furthest_us: i64,
    /// Simulated time when its process began that cannot show that it has its predecessor's votes.
    began_anew: Option<u64>,
}

impl Server {
    pub fn new(plan: &Plan, index: usize, rng: &mut Rng) -> Self {
        let clock = &plan.nodes[index];
        let now = EPOCH_US.saturating_add_signed(clock.offset_us);
        let started = now - if plan.young { 0 } else { DAY_US };
        let mut node = Node::new(plan.broken.rules, run_id(rng, index), started);
        node.durable = clock.durable;
        if plan.declared_new {
            node.declare_new(now);
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
            began_anew: Some(0).filter(|_| plan.young && !plan.declared_new && !clock.durable),
        }
    }
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

    /// The pause is over, unless it was made longer.
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
        let (clock, at) = (self.clock(node), self.time.now());
        self.figures.commands += 1;
        self.oracle.findings.watch.executed();
        let server = &mut self.servers[node];
        let reply = if server.loading_until > at {
            Reply::Error("LOADING Redis is loading the dataset in memory".to_owned())
        } else {
            let remembers = server.began_anew.is_none_or(|began| at >= began + micros(self.plan.longest_lease()));
            self.oracle.execute(Place { node, conn, clock, at, remembers }, &mut server.node, args)
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
            server.node.store = Store::default();
            self.oracle.forget(node);
        }
        self.push(self.time.now() + down_for, Event::Restart { node });
    }

    pub fn restart(&mut self, node: usize) {
        let started = self.clock(node);
        let run_id = run_id(&mut self.rng, node);
        let server = &mut self.servers[node];
        (server.up, server.node.run_id, server.node.started) = (true, run_id, started);
        // Of one whose clock is set while it runs, a client that comes later cannot know the age.
        let can_tell = server.node.durable || !self.plan.forgetful;
        server.began_anew = Some(self.time.now()).filter(|_| !can_tell);
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

    pub fn heal_server(&mut self, node: usize) {
        let now = self.time.now();
        let server = &mut self.servers[node];
        server.loading_until = 0;
        server.paused_until = server.paused_until.min(now);
        self.push(now, Event::Wake { node });
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

    /// The locks that stand on a node, under their names.
    pub fn locks(&self, node: usize) -> Vec<(String, String)> {
        let locks = self.servers[node].node.store.texts(quorlock::DEFAULT_PREFIX.as_bytes(), self.clock(node));
        locks.map(|(key, value)| (text(&key[quorlock::DEFAULT_PREFIX.len()..]), text(value))).collect()
    }
}

fn run_id(rng: &mut Rng, node: usize) -> String {
    format!("{:08x}{:032x}", node, rng.number())
}
