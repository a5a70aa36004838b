//! The run's own servers, with a link between each of them and each worker, and their faults.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use quorlock_testkit::clock::Clock;
use quorlock_testkit::link::{Flow, Link, State};
use quorlock_testkit::server::{Declaration, Server, new_password};
use tokio::net::TcpStream;

use super::effect::Proof;
use super::fault::{Fault, Kind};
use super::node::{Act, Node, SERVER_LIMIT, lock};
use super::probe;
use super::sight::{self, View};

/// A server logs every write before it answers.
const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];

/// Options for an immediate copy of a node, during which no clock step makes a node count the other one as gone.
const REPLICATION: [&str; 4] = ["--repl-diskless-sync-delay", "0", "--repl-timeout", "3600"];

pub struct Nodes {
    all: Vec<Arc<Node>>,
    password: String,
    /// The faults that are in effect on links.
    active: Mutex<Vec<Fault>>,
    /// The faults of clocks whose effect no node could show so far.
    unproven: Mutex<Vec<usize>>,
    /// The nodes that have lost their memory, and with it what they were declared to be.
    undeclared: Mutex<BTreeSet<usize>>,
}

impl Nodes {
    /// Starts one server for each entry of `durable`, in `dir`, where with `clocks` the library for them is. The longest
    /// lease is in ms.
    pub async fn start(dir: &Path, durable: &[bool], workers: usize, longest: u64, clocks: bool) -> io::Result<Self> {
        let new = Declaration::new(durable.len()).longest(longest);
        let (mut nodes, password) = (Vec::new(), new_password());
        for (i, durable) in durable.iter().copied().enumerate() {
            let clock = clocks.then(|| Clock::new(dir.join(format!("clock-{}", i + 1)))).transpose()?;
            let environment = clock.as_ref().map_or_else(Vec::new, Clock::environment);
            let options = if durable { [&DURABLE[..], &REPLICATION[..]].concat() } else { REPLICATION.to_vec() };
            let dir = dir.join(format!("node-{}", i + 1));
            let server = Server::start_with_password(dir, &options, &environment, &password)?;
            server.declare_new(new)?;
            let to = SocketAddr::from(([127, 0, 0, 1], server.port()));
            let mut links = Vec::new();
            // A program that is tested has one way to each node.
            for _ in 0..workers.max(1) {
                links.push(Link::start(to).await?);
            }
            let urls = links.iter().map(|link| server.url_at(link.port())).collect();
            nodes.push(Arc::new(Node {
                durable,
                port: server.port(),
                url: server.url(),
                urls,
                word: Mutex::default(),
                server: Mutex::new(Some(server)),
                clock: clock.map(Mutex::new),
                links,
                commands: Mutex::default(),
            }));
        }
        Ok(Self {
            all: nodes,
            password,
            active: Mutex::default(),
            unproven: Mutex::default(),
            undeclared: Mutex::default(),
        })
    }

    pub fn urls(&self, worker: usize) -> Vec<String> {
        self.all.iter().map(|node| node.urls[worker].clone()).collect()
    }

    /// Returns what lists the processes of the servers that run. It never waits for a fault that is being put into effect, and
    /// keeps no server running.
    pub fn pids(&self) -> impl Fn() -> Vec<u32> + Send + 'static {
        let nodes: Vec<Weak<Node>> = self.all.iter().map(Arc::downgrade).collect();
        move || nodes.iter().filter_map(|node| node.upgrade()?.server.try_lock().ok()?.as_ref()?.pid()).collect()
    }

    /// Returns whether a node is in quarantine after this fault. A node that was declared to keep its writes is no longer, once it has
    /// lost its memory.
    pub fn begins_quarantine(&self, fault: &Fault) -> bool {
        let undeclared = lock(&self.undeclared);
        self.forgets(fault) || (fault.kind == Kind::Restart && fault.nodes.iter().any(|node| undeclared.contains(node)))
    }

    /// Returns whether a node comes back from this fault without its votes.
    pub fn forgets(&self, fault: &Fault) -> bool {
        match fault.kind {
            Kind::Restart => fault.nodes.iter().any(|node| !self.all[*node].durable),
            kind => kind.forgets(),
        }
    }

    /// Puts the fault into effect. Returns the reason why it does not count as done, if there is one.
    pub async fn begin(&self, fault: &Fault) -> io::Result<Option<String>> {
        if fault.kind.forgets() {
            lock(&self.undeclared).extend(&fault.nodes);
        }
        let silent = self.silent();
        let probed = if fault.kind == Kind::Reset { self.connections(fault).await } else { Vec::new() };
        lock(&self.active).push(fault.clone());
        self.set_links();
        if fault.kind == Kind::Reset {
            self.break_connections(fault);
        }
        let act = self.act(fault, silent);
        let mut proofs = self.on_each(fault, move |node, i| node.begin(&act, i)).await?;
        proofs.extend(join_all(probed.into_iter().map(probe::end)).await);
        proofs.extend(join_all(fault.nodes.iter().filter_map(|i| self.effect_seen(fault, *i))).await);
        if Proof::are_missing(&proofs) {
            // The end of the fault may show it.
            lock(&self.unproven).push(fault.id);
            return Ok(None);
        }
        Ok(Proof::failure(&proofs))
    }

    /// Ends the fault. Returns when the nodes can answer again, as far as this fault is concerned.
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

    /// Returns a connection through a link to each node of this fault.
    async fn connections(&self, fault: &Fault) -> Vec<Option<TcpStream>> {
        let ports = fault.nodes.iter().map(|i| self.all[*i].links.iter().map(Link::port));
        join_all(ports.map(|ports| probe::connection(ports, &self.password))).await
    }

    /// Asks a node, directly or through a link of this fault, if the fault changes how it answers.
    fn effect_seen(&self, fault: &Fault, i: usize) -> Option<BoxFuture<'_, Proof>> {
        let node = &self.all[i];
        let link = node.links.get(fault.worker.unwrap_or(0))?.port();
        match fault.kind {
            Kind::Pause | Kind::ClientPause | Kind::Restart | Kind::Forget | Kind::Promote => {
                Some(probe::silence(node.port, &self.password).boxed())
            }
            Kind::Cut | Kind::CutRequests | Kind::CutReplies | Kind::Mute | Kind::Isolate => {
                Some(probe::silence(link, &self.password).boxed())
            }
            Kind::Delay | Kind::Slow => {
                let delay = Duration::from_millis(fault.amount.unsigned_abs());
                Some(probe::delay(link, &self.password, delay).boxed())
            }
            _ => None,
        }
    }

    fn act(&self, fault: &Fault, silent: Vec<usize>) -> Act {
        let source = fault.source.map_or(0, |source| self.all[source].port);
        Act { kind: fault.kind, amount: fault.amount, lasts: fault.lasts, source, silent }
    }

    /// The work on servers blocks.
    async fn on_each(
        &self,
        fault: &Fault,
        act: impl Fn(&Node, usize) -> io::Result<Proof> + Clone + Send + 'static,
    ) -> io::Result<Vec<Proof>> {
        let acting = fault.nodes.iter().copied().map(|i| {
            let (node, act) = (Arc::clone(&self.all[i]), act.clone());
            tokio::task::spawn_blocking(move || act(&node, i))
        });
        let mut proofs = Vec::new();
        for done in join_all(acting.collect::<Vec<_>>()).await {
            proofs.push(done.map_err(io::Error::other)??);
        }
        Ok(proofs)
    }

    /// Returns the nodes that are not expected to answer.
    fn silent(&self) -> Vec<usize> {
        let active = lock(&self.active);
        let silent = active.iter().filter(|fault| fault.kind.silences() && !fault.kind.is_of_workers());
        silent.flat_map(|fault| fault.nodes.clone()).collect()
    }

    /// Sets every link to the state that all active faults together imply.
    fn set_links(&self) {
        let active = lock(&self.active);
        for (i, node) in self.all.iter().enumerate() {
            for (worker, link) in node.links.iter().enumerate() {
                let concerns = |fault: &&Fault| fault.nodes.contains(&i) && fault.concerns(worker);
                let wanted = active.iter().filter(concerns).fold(State::default(), with);
                link.change(|state| *state = State { resets: state.resets, ..wanted });
            }
        }
    }

    /// Resets all links of this fault, and discards the bytes that they hold.
    fn break_connections(&self, fault: &Fault) {
        for node in &fault.nodes {
            for (worker, link) in self.all[*node].links.iter().enumerate() {
                if fault.concerns(worker) {
                    link.change(|state| state.resets += 1);
                }
            }
        }
    }

    /// Queries the command counts of the servers without a fault. Returns those that answered, with their counts since the start
    /// of the run.
    pub async fn count_commands(&self) -> Vec<(usize, u64)> {
        let silent = self.silent();
        let well = self.all.iter().enumerate().filter(|(i, _)| !silent.contains(i));
        let asked = well.map(|(i, node)| {
            let node = Arc::clone(node);
            tokio::task::spawn_blocking(move || {
                let counted = node.counted().ok()?;
                let mut commands = lock(&node.commands);
                commands.add(counted);
                Some((i, commands.total))
            })
        });
        let counted = join_all(asked.collect::<Vec<_>>()).await;
        counted.into_iter().filter_map(|counted| counted.ok().flatten()).collect()
    }

    pub fn commands(&self) -> u64 {
        self.all.iter().map(|node| lock(&node.commands).total).sum()
    }

    /// Ends every server for good. Later faults have no effect.
    pub fn stop(&self) {
        for node in &self.all {
            drop(lock(&node.server).take());
        }
    }

    /// Returns what each node has now under this prefix; `None` for one that does not answer.
    pub async fn look(&self, prefix: &str) -> Vec<Option<View>> {
        let looking = self.all.iter().map(|node| {
            let (node, prefix) = (Arc::clone(node), prefix.to_owned());
            tokio::task::spawn_blocking(move || sight::read(&mut node.connection(sight::LIMIT).ok()?, &prefix).ok())
        });
        let looked = join_all(looking.collect::<Vec<_>>()).await;
        looked.into_iter().map(|view| view.ok().flatten()).collect()
    }

    /// Returns the lock keys that each node has now.
    pub async fn scan(&self, prefix: &str) -> Vec<io::Result<Vec<String>>> {
        let scanning = self.all.iter().map(|node| {
            let (node, pattern) = (Arc::clone(node), sight::pattern(prefix));
            tokio::task::spawn_blocking(move || {
                let mut connection = node.connection(SERVER_LIMIT)?;
                redis::cmd("KEYS").arg(pattern).query(&mut connection).map_err(io::Error::other)
            })
        });
        let scanned = join_all(scanning.collect::<Vec<_>>()).await;
        scanned.into_iter().map(|done| done.map_err(io::Error::other)?).collect()
    }
}

/// Adds a fault to the state of a link.
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
