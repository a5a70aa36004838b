//! The state outside the clients: the queue of events, and the pauses, crashes and cuts. `links.rs` has the connections, and
//! `servers.rs` the nodes.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use quorlock_testkit::rng::Rng;
use tokio::sync::Notify;

use crate::figures::{Fault, Figures};
use crate::invariant::Watch;
use crate::links::{Conn, Link};
use crate::machine::Clock;
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::queue::{Event, Queue};
use crate::servers::Server;
use crate::time::Time;

pub struct Client {
    clock: Arc<Clock>,
    paused_until: u64,
    pub crashed: bool,
    /// Tasks and streams that continue when the pause ends.
    waiting: Vec<Waker>,
    /// To each node.
    pub links: Vec<Link>,
}

pub struct World {
    pub plan: Arc<Plan>,
    pub time: Time,
    pub figures: Figures,
    pub oracle: Oracle,
    /// Random faults of single messages.
    pub faulty: bool,
    pub trace: Option<String>,
    /// When a node last lost its memory.
    pub last_forgot: u64,
    /// The longest lease that was asked for so far, in a run where they grow.
    pub longest_asked: Duration,
    /// A digest of all events.
    pub digest: u64,
    pub rng: Rng,
    queue: Queue,
    pub servers: Vec<Server>,
    pub clients: Vec<Client>,
    pub conns: Vec<Conn>,
    /// Wakes the network task when the next event is earlier than its timer.
    pub earlier: Arc<Notify>,
    alarm: u64,
}

pub type Shared = Arc<Mutex<World>>;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Delivers events at their times.
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
    pub fn new(plan: Arc<Plan>, time: Time, watch: Arc<Watch>, traced: bool) -> Self {
        let mut rng = Rng::new(plan.seed, 2);
        let mut figures = Figures::default();
        let servers = (0..plan.nodes.len()).map(|node| {
            if plan.nodes[node].ppm != 0 {
                figures.fault(Fault::NodeClockRate);
            }
            Server::new(&plan, node, &mut rng)
        });
        Self {
            servers: servers.collect(),
            figures,
            oracle: Oracle::new(watch),
            faulty: false,
            trace: traced.then(String::new),
            last_forgot: 0,
            longest_asked: plan.longest_lease(),
            digest: 0,
            rng,
            queue: Queue::default(),
            clients: Vec::new(),
            conns: Vec::new(),
            earlier: Arc::new(Notify::new()),
            alarm: u64::MAX,
            plan,
            time,
        }
    }

    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        let Some(trace) = &mut self.trace else { return };
        let now = self.time.now();
        writeln!(trace, "{:>9}.{:03} {line}", now / 1000, now % 1000).expect("a string");
    }

    pub fn mix(&mut self, kind: u64, a: usize, b: u64) {
        for part in [self.time.now(), kind, a as u64, b] {
            self.digest = (self.digest ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    pub fn push(&mut self, at: u64, event: Event) {
        self.queue.push(at, event);
        if at < self.alarm {
            self.alarm = at;
            self.earlier.notify_one();
        }
    }

    /// Runs the due events. Returns the time of the next one.
    fn run_due(&mut self) -> Option<u64> {
        let now = self.time.now();
        self.alarm = 0; // The lines below see events that are pushed meanwhile.
        while let Some(event) = self.queue.pop(now) {
            match event {
                Event::Request { conn, bytes } => self.arrive(conn, bytes),
                Event::Reply { conn, bytes } => self.deliver(conn, &bytes),
                Event::Break { conn } => self.break_connection(conn),
                Event::Resume { client } => self.resume(client),
                Event::Restart { node } => self.restart(node),
                Event::Wake { node } => self.wake(node),
                Event::Promote { node, of } => self.promote(node, of),
                Event::LeapBack { node } => self.leap_back(node),
            }
        }
        let next = self.queue.next();
        self.alarm = next.unwrap_or(u64::MAX);
        next
    }

    pub fn add_client(&mut self, clock: Arc<Clock>) -> usize {
        if clock.is_off() {
            self.figures.fault(Fault::ClientClockRate);
        }
        let links = vec![Link::default(); self.servers.len()];
        self.clients.push(Client { clock, paused_until: 0, crashed: false, waiting: Vec::new(), links });
        self.clients.len() - 1
    }

    /// Returns when the client runs again.
    pub fn paused_until(&self, client: usize) -> Option<u64> {
        Some(self.clients[client].paused_until).filter(|until| *until > 0 && *until > self.time.now())
    }

    /// Returns when the client's latest pause ended.
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

    /// Ends the process of a client. Sent bytes may still arrive.
    pub fn crash_client(&mut self, client: usize) {
        self.note(format_args!("c{client} crashes"));
        self.figures.fault(Fault::ClientCrash);
        self.clients[client].crashed = true;
    }

    /// Ends all cuts, pauses and crashes.
    pub fn heal(&mut self) {
        self.faulty = false;
        let now = self.time.now();
        for client in 0..self.clients.len() {
            self.clients[client].paused_until = self.clients[client].paused_until.min(now);
            self.resume(client);
        }
        for link in self.clients.iter_mut().flat_map(|client| &mut client.links) {
            link.requests.until = link.requests.until.min(now);
            link.replies.until = link.replies.until.min(now);
        }
        for node in 0..self.servers.len() {
            self.heal_server(node);
        }
        self.note(format_args!("everything heals"));
    }
}
