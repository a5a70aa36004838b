//! The run's own servers, with a link between each of them and each worker, and what faults do to them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::clock::Clock;
use super::super::link::{Flow, Link, State};
use super::super::server::{Declaration, Server};
use super::effect::{self, Proof};
use super::fault::{Fault, Kind};

/// A server logs every write before it answers.
const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];

/// A node is copied at once, and no step of a clock makes it believe that the other one is gone.
const REPLICATION: [&str; 4] = ["--repl-diskless-sync-delay", "0", "--repl-timeout", "3600"];

/// How long a server may take to answer what the run itself asks, when nothing is done to it.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// How long it may take to do what a fault asks for.
const SERVER_LIMIT: Duration = Duration::from_secs(5);

/// CLIENT PAUSE ends by itself (while it lasts, the server does not listen to CLIENT UNPAUSE either), so much later than
/// planned: what is taken to be silent must be.
const CLIENT_PAUSE_MORE_MS: u64 = 100;

#[allow(clippy::struct_field_names, reason = "the nodes are its nodes")]
pub struct Nodes {
    nodes: Vec<Arc<Node>>,
    /// The faults that are in effect on links.
    active: Mutex<Vec<Fault>>,
    /// Those of clocks that no node could be asked about so far.
    unproven: Mutex<Vec<usize>>,
}

struct Node {
    durable: bool,
    /// `None` once the run is over.
    server: Mutex<Option<Server>>,
    port: u16,
    url: String,
    /// The word of its record before it was made a replica.
    word: Mutex<Option<String>>,
    clock: Option<Mutex<Clock>>,
    /// One for each worker.
    links: Vec<Link>,
    commands: Mutex<Commands>,
}

/// What servers say they have done. A server that is killed says no more, so what it did since it was last asked is not
/// counted.
#[derive(Default)]
struct Commands {
    total: u64,
    last: u64,
}

impl Commands {
    fn add(&mut self, counted: u64) {
        // A server that was started anew counts from 0.
        self.total += if counted < self.last { counted } else { counted - self.last };
        self.last = counted;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Starts one server for each entry of `durable`, in `dir`.
    /// The longest lease is in ms. With `clocks`, the library for them is in `dir`.
    pub async fn start(dir: &Path, durable: &[bool], workers: usize, longest: u64, clocks: bool) -> io::Result<Self> {
        let new = Declaration::new(durable.len()).longest(longest);
        let mut nodes = Vec::new();
        for (i, durable) in durable.iter().copied().enumerate() {
            let clock = clocks.then(|| Clock::new(dir.join(format!("clock-{}", i + 1)))).transpose()?;
            let environment = clock.as_ref().map_or_else(Vec::new, Clock::environment);
            let options = if durable { [&DURABLE[..], &REPLICATION[..]].concat() } else { REPLICATION.to_vec() };
            let server = Server::start(dir.join(format!("node-{}", i + 1)), &options, &environment)?;
            server.declare_new(new)?;
            let to = SocketAddr::from(([127, 0, 0, 1], server.port()));
            let mut links = Vec::new();
            for _ in 0..workers {
                links.push(Link::start(to).await?);
            }
            nodes.push(Arc::new(Node {
                durable,
                port: server.port(),
                url: server.url(),
                word: Mutex::default(),
                server: Mutex::new(Some(server)),
                clock: clock.map(Mutex::new),
                links,
                commands: Mutex::default(),
            }));
        }
        Ok(Self { nodes, active: Mutex::default(), unproven: Mutex::default() })
    }

    pub fn urls(&self, worker: usize) -> Vec<String> {
        self.nodes.iter().map(|node| node.links[worker].url()).collect()
    }

    /// Does a node that this happens to come back without its votes?
    pub fn forgets(&self, fault: &Fault) -> bool {
        match fault.kind {
            Kind::Restart => fault.nodes.iter().any(|node| !self.nodes[*node].durable),
            kind => kind.forgets(),
        }
    }

    /// Puts the fault into effect. Returns when it is, with the reason why it does not count as done.
    pub async fn begin(&self, fault: &Fault) -> io::Result<Option<String>> {
        let silent = self.silent();
        lock(&self.active).push(fault.clone());
        self.set_links();
        if fault.kind == Kind::Reset {
            self.break_connections(fault);
        }
        let act = self.act(fault, silent);
        let proofs = self.on_each(fault, move |node, i| node.begin(&act, i)).await?;
        if Proof::are_missing(&proofs) {
            // It may be seen at the end.
            lock(&self.unproven).push(fault.id);
            return Ok(None);
        }
        Ok(Proof::failure(&proofs))
    }

    /// Ends it. Returns when the nodes are there to answer, as far as this fault goes.
    pub async fn end(&self, fault: &Fault) -> io::Result<Option<String>> {
        let act = self.act(fault, self.silent());
        let done = self.on_each(fault, move |node, i| node.end(&act, i)).await;
        lock(&self.active).retain(|active| active.id != fault.id);
        if fault.lossy {
            self.break_connections(fault);
        }
        self.set_links();
        let proofs = done?;
        if lock(&self.unproven).contains(&fault.id) && Proof::are_missing(&proofs) {
            return Ok(Some("no node could be asked".to_owned()));
        }
        Ok(Proof::failure(&proofs))
    }

    fn act(&self, fault: &Fault, silent: Vec<usize>) -> Act {
        let source = fault.source.map_or(0, |source| self.nodes[source].port);
        Act { kind: fault.kind, amount: fault.amount, lasts: fault.lasts, source, silent }
    }

    /// The work on servers blocks.
    async fn on_each(
        &self,
        fault: &Fault,
        act: impl Fn(&Node, usize) -> io::Result<Proof> + Clone + Send + 'static,
    ) -> io::Result<Vec<Proof>> {
        let acting = fault.nodes.iter().copied().map(|i| {
            let (node, act) = (Arc::clone(&self.nodes[i]), act.clone());
            tokio::task::spawn_blocking(move || act(&node, i))
        });
        let mut proofs = Vec::new();
        for done in futures::future::join_all(acting.collect::<Vec<_>>()).await {
            proofs.push(done.map_err(io::Error::other)??);
        }
        Ok(proofs)
    }

    /// The nodes that cannot be expected to answer.
    fn silent(&self) -> Vec<usize> {
        let active = lock(&self.active);
        let silent = active.iter().filter(|fault| fault.kind.silences() && !fault.kind.is_of_workers());
        silent.flat_map(|fault| fault.nodes.clone()).collect()
    }

    /// Every link is as all active faults together make it.
    fn set_links(&self) {
        let active = lock(&self.active);
        for (i, node) in self.nodes.iter().enumerate() {
            for (worker, link) in node.links.iter().enumerate() {
                let concerns = |fault: &&Fault| fault.nodes.contains(&i) && fault.concerns(worker);
                let wanted = active.iter().filter(concerns).fold(State::default(), with);
                link.change(|state| *state = State { resets: state.resets, ..wanted });
            }
        }
    }

    /// All that this fault concerns, and what they hold.
    fn break_connections(&self, fault: &Fault) {
        for node in &fault.nodes {
            for (worker, link) in self.nodes[*node].links.iter().enumerate() {
                if fault.concerns(worker) {
                    link.change(|state| state.resets += 1);
                }
            }
        }
    }

    /// Asks the servers that nothing is done to how many commands they have executed.
    pub async fn count_commands(&self) {
        let silent = self.silent();
        let well = self.nodes.iter().enumerate().filter(|(i, _)| !silent.contains(i));
        let asked = well.map(|(_, node)| {
            let node = Arc::clone(node);
            tokio::task::spawn_blocking(move || {
                if let Ok(counted) = node.counted() {
                    lock(&node.commands).add(counted);
                }
            })
        });
        futures::future::join_all(asked.collect::<Vec<_>>()).await;
    }

    pub fn commands(&self) -> u64 {
        self.nodes.iter().map(|node| lock(&node.commands).total).sum()
    }

    /// Ends every server, for good: what is still to be done to one does nothing.
    pub fn stop(&self) {
        for node in &self.nodes {
            drop(lock(&node.server).take());
        }
    }

    /// The lock keys that each node has now.
    pub async fn scan(&self) -> Vec<io::Result<Vec<String>>> {
        let scanning = self.nodes.iter().map(|node| {
            let node = Arc::clone(node);
            tokio::task::spawn_blocking(move || {
                let pattern = format!("{}*", quorlock::DEFAULT_PREFIX);
                let mut connection = node.connection(SERVER_LIMIT)?;
                redis::cmd("KEYS").arg(pattern).query(&mut connection).map_err(io::Error::other)
            })
        });
        let scanned = futures::future::join_all(scanning.collect::<Vec<_>>()).await;
        scanned.into_iter().map(|done| done.map_err(io::Error::other)?).collect()
    }
}

/// A link's state with one more fault.
fn with(state: State, fault: &Fault) -> State {
    let held = |flow| if flow == Flow::Pass { Flow::Hold } else { flow };
    let millis = Duration::from_millis(fault.amount.unsigned_abs());
    match fault.kind {
        Kind::Cut | Kind::Isolate => State { requests: held(state.requests), answers: held(state.answers), ..state },
        Kind::CutRequests => State { requests: held(state.requests), ..state },
        Kind::CutReplies => State { answers: held(state.answers), ..state },
        Kind::Mute => State { answers: Flow::Lose, ..state },
        Kind::Delay | Kind::Slow => {
            State { delay: state.delay + millis / 2, jitter: state.jitter + millis / 2, ..state }
        }
        _ => state,
    }
}

/// What is to be done to a node.
#[derive(Clone)]
struct Act {
    kind: Kind,
    amount: i64,
    lasts: u64,
    /// The port of the node that is copied.
    source: u16,
    silent: Vec<usize>,
}

impl Node {
    fn begin(&self, act: &Act, i: usize) -> io::Result<Proof> {
        match act.kind {
            Kind::Pause => self.on_server(Server::pause),
            Kind::Restart | Kind::Forget => self.kill(),
            Kind::Promote => {
                self.remember_word()?;
                self.kill()
            }
            Kind::Replace => {
                let before = self.ask(effect::run_id)?;
                self.on_server(|server| server.restart(true))?;
                let is_other = self.ask(effect::run_id)? != before;
                Ok(if is_other { Proof::Seen } else { Proof::Failed("it is the same server".to_owned()) })
            }
            Kind::Replica => {
                self.remember_word()?;
                self.ask(|redis| effect::follow(redis, act.source))
            }
            Kind::Flush => self.ask(effect::flush),
            Kind::Swap => self.ask(effect::swap),
            Kind::ClientPause => {
                let lasts = act.lasts + CLIENT_PAUSE_MORE_MS;
                self.ask(|redis| redis::cmd("CLIENT").arg("PAUSE").arg(lasts).arg("ALL").query::<()>(redis))?;
                Ok(Proof::Seen)
            }
            Kind::Step | Kind::Leap => self.set_clock(act, i, |clock| clock.step(act.amount * 1000)),
            Kind::ClockRate => self.set_clock(act, i, |clock| clock.run_at(act.amount)),
            _ => Ok(Proof::Seen),
        }
    }

    fn end(&self, act: &Act, i: usize) -> io::Result<Proof> {
        match act.kind {
            Kind::Pause => self.on_server(Server::resume),
            Kind::Restart => self.on_server(|server| server.restart(false)),
            Kind::Forget => self.on_server(|server| server.restart(true)),
            Kind::Promote => {
                self.on_server(|server| server.restart_as_replica(act.source))?;
                let copied = self.ask(effect::copied)?;
                self.promote(copied)
            }
            Kind::Replica => self.promote(Proof::Seen),
            Kind::Step => {
                let stepped = self.set_clock(act, i, |_| Ok(()))?;
                let undone = self.set_clock(act, i, |clock| clock.step(-act.amount * 1000))?;
                Ok(if undone == Proof::Seen { stepped } else { undone })
            }
            Kind::Leap => self.set_clock(act, i, |_| Ok(())),
            Kind::ClockRate => self.set_clock(act, i, |clock| clock.run_at(0)),
            _ => Ok(Proof::Seen),
        }
    }

    fn kill(&self) -> io::Result<Proof> {
        self.on_server(|server| {
            server.kill();
            Ok(())
        })
    }

    fn on_server(&self, act: impl FnOnce(&mut Server) -> io::Result<()>) -> io::Result<Proof> {
        lock(&self.server).as_mut().map_or(Ok(()), act)?;
        Ok(Proof::Seen)
    }

    fn remember_word(&self) -> io::Result<()> {
        *lock(&self.word) = self.ask(effect::word)?;
        Ok(())
    }

    /// Whether or not it has copied the other node: it is a master afterwards.
    fn promote(&self, copied: Proof) -> io::Result<Proof> {
        let before = lock(&self.word).take();
        let promoted = self.ask(|redis| effect::promote(redis, before.as_deref()))?;
        Ok(if copied == Proof::Seen { promoted } else { copied })
    }

    /// The node's own TIME must show it.
    fn set_clock(&self, act: &Act, i: usize, set: impl FnOnce(&mut Clock) -> io::Result<()>) -> io::Result<Proof> {
        // Without the library there is no clock to set, and no such fault in the plan.
        let Some(clock) = &self.clock else { return Ok(Proof::Unasked) };
        let mut clock = lock(clock);
        set(&mut clock)?;
        if act.silent.contains(&i) {
            return Ok(Proof::Unasked);
        }
        // A node that does not answer may just have been killed or paused.
        let unlike =
            self.connection(ANSWER_LIMIT).and_then(|mut redis| clock.unlike(&mut redis).map_err(io::Error::other));
        Ok(match unlike {
            Ok(None) => Proof::Seen,
            Ok(Some(why)) => Proof::Failed(format!("TIME of node {}: {why}", i + 1)),
            Err(_) => Proof::Unasked,
        })
    }

    /// Asks the server itself, not through a link.
    fn ask<T>(&self, ask: impl FnOnce(&mut redis::Connection) -> redis::RedisResult<T>) -> io::Result<T> {
        ask(&mut self.connection(SERVER_LIMIT)?).map_err(io::Error::other)
    }

    fn connection(&self, limit: Duration) -> io::Result<redis::Connection> {
        let connect = || {
            let connection = redis::Client::open(self.url.as_str())?.get_connection_with_timeout(limit)?;
            connection.set_read_timeout(Some(limit))?;
            Ok(connection)
        };
        connect().map_err(|error: redis::RedisError| io::Error::other(error))
    }

    fn counted(&self) -> io::Result<u64> {
        let mut connection = self.connection(ANSWER_LIMIT)?;
        let info: String = redis::cmd("INFO").arg("stats").query(&mut connection).map_err(io::Error::other)?;
        let counted = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.trim().parse().ok());
        counted.ok_or_else(|| io::Error::other("INFO says nothing of commands"))
    }
}
