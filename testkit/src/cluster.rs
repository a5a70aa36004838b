//! Clusters: several servers that start, declare themselves and stop together.

use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorlock::{Builder, Quorlock};

use crate::clock::{Clock, Shim};
use crate::server::{Declaration, Server};

/// The longest node timeout of a client in a test.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tests that measure time have the machine to themselves; all others share it.
static MACHINE: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "guards are kept for their drop")]
enum Share {
    Shared(RwLockReadGuard<'static, ()>),
    Quiet(RwLockWriteGuard<'static, ()>),
}

/// How to start a [`Cluster`] of real servers.
#[derive(Clone, Debug)]
#[must_use = "no task runs before the start"]
pub struct Setup {
    nodes: usize,
    options: Vec<String>,
    declares: bool,
    listed: usize,
    spare: usize,
    longest: Option<u64>,
    window: Option<u64>,
    is_quiet: bool,
}

impl Setup {
    /// Starts this number of nodes, declared as the nodes of one list.
    pub fn new(nodes: usize) -> Self {
        let (options, is_quiet) = (Vec::new(), false);
        Self { nodes, options, declares: true, listed: nodes, spare: 0, longest: None, window: None, is_quiet }
    }

    /// Passes these options to each server on its command line.
    pub fn options(self, options: &[&str]) -> Self {
        Self { options: options.iter().map(|option| (*option).to_owned()).collect(), ..self }
    }

    /// Declares a different number of nodes than are started: the list has nodes that are elsewhere, or do not exist.
    #[doc(hidden)]
    pub fn listed(self, listed: usize) -> Self {
        Self { listed, ..self }
    }

    /// Adds this number of empty servers that are in no list. Their indices follow those of the nodes.
    #[doc(hidden)]
    pub fn spare(self, spare: usize) -> Self {
        Self { spare, ..self }
    }

    /// Declares nothing: clients connect to empty servers.
    #[doc(hidden)]
    pub fn undeclared(self) -> Self {
        Self { declares: false, ..self }
    }

    /// Sets the longest lease in the node records. A quarantine lasts at least as long.
    pub fn longest(self, longest: Duration) -> Self {
        Self { longest: Some(millis(longest)), ..self }
    }

    /// Sets how far ballots may differ from the nodes' clocks. Nodes keep ballots twice as long.
    #[doc(hidden)]
    pub fn window(self, window: Duration) -> Self {
        Self { window: Some(millis(window)), ..self }
    }

    /// Waits until no other cluster of this process runs, and lets none start: for tests that measure time. At most one
    /// cluster per test.
    #[doc(hidden)]
    pub fn quiet(self) -> Self {
        Self { is_quiet: true, ..self }
    }

    /// Starts the servers.
    pub fn start(self) -> Cluster {
        self.launch(tempfile::tempdir().expect("a temporary folder"), Vec::new(), &[])
    }

    /// Starts the servers with clocks that can be set. Returns `None`, and prints the reason, where there is no C compiler to
    /// build the clock library, or where the server program loads no library.
    pub fn with_clocks(self) -> Option<Cluster> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        if let Err(error) = Shim::build(dir.path()) {
            println!("skipped: node clocks cannot be set on this machine, for want of a C compiler `cc`: {error}");
            return None;
        }
        let clock = |node| Clock::new(dir.path().join(format!("clock-{node}"))).expect("a file");
        let clocks: Vec<Clock> = (0..self.nodes).map(clock).collect();
        let environments: Vec<_> = clocks.iter().map(Clock::environment).collect();
        let cluster = self.launch(dir, clocks, &environments);
        if !cluster.nodes.iter().all(Server::loads_libraries) {
            println!("skipped: this server is linked statically, so its clock cannot be set");
            return None;
        }
        Some(cluster)
    }

    fn launch(self, dir: tempfile::TempDir, clocks: Vec<Clock>, environments: &[Vec<(String, String)>]) -> Cluster {
        let share = if self.is_quiet {
            Share::Quiet(MACHINE.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            Share::Shared(MACHINE.read().unwrap_or_else(PoisonError::into_inner))
        };
        let new = Declaration::new(self.listed);
        let new = self.longest.map_or(new, |longest| new.longest(longest));
        let new = self.window.map_or(new, |window| new.window(window));
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let start = |i: usize| {
            let environment = environments.get(i).map_or(&[][..], Vec::as_slice);
            let node = Server::start(dir.path().join(format!("node-{i}")), &options, environment).expect("a server");
            if self.declares && i < self.nodes {
                node.declare_new(new).expect("a declaration");
            }
            node
        };
        let nodes: Vec<Server> = (0..self.nodes + self.spare).map(start).collect();
        Cluster { nodes, clocks, dir, _share: share }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a short time")
}

/// Independent Redis masters as processes of their own, stopped when dropped. Indices count from 0.
///
/// Each method panics if a server cannot be started or reached, or if there is no node of this index.
pub struct Cluster {
    nodes: Vec<Server>,
    clocks: Vec<Clock>,
    dir: tempfile::TempDir,
    _share: Share,
}

impl Cluster {
    /// Starts this number of nodes, declared as the nodes of one list.
    pub fn start(nodes: usize) -> Self {
        Setup::new(nodes).start()
    }

    /// The same with the machine to itself; see [`Setup::quiet`].
    #[doc(hidden)]
    pub fn quiet(nodes: usize) -> Self {
        Setup::new(nodes).quiet().start()
    }

    /// The same with these options on each server's command line.
    #[doc(hidden)]
    pub fn with_options(nodes: usize, options: &[&str]) -> Self {
        Setup::new(nodes).options(options).start()
    }

    /// The same without declaring them.
    #[doc(hidden)]
    pub fn undeclared(nodes: usize, options: &[&str]) -> Self {
        Setup::new(nodes).options(options).undeclared().start()
    }

    /// Returns the number of servers, spare ones included.
    #[expect(clippy::len_without_is_empty, reason = "there is no cluster of no nodes")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the temporary folder of the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the URLs of all servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    /// Returns the ports of all servers.
    #[doc(hidden)]
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(Server::port).collect()
    }

    /// Returns a builder of clients of these nodes.
    pub fn builder(&self) -> Builder {
        Quorlock::builder().nodes(self.urls())
    }

    /// Returns a client with this lease, after every node has answered it. Its node timeout is a quarter of the lease, and two seconds
    /// at most: on a busy machine a server that is well may take longer than the half second of a usual client.
    ///
    /// # Cancel safety
    ///
    /// A client that has begun to connect ends its connections.
    pub async fn client(&self, lease: Duration) -> Quorlock {
        let builder = self.builder().lease(lease).node_timeout((lease / 4).min(PATIENCE));
        let locks = builder.connect().await.expect("settings that work");
        locks.flush().await;
        locks
    }

    /// Waits until every node answers this client with a vote. Nodes that have no list yet need a moment for that.
    #[doc(hidden)]
    pub async fn until_all_answer(locks: &Quorlock) {
        let all_answer = async || {
            let seen = locks.inspect("").await.expect("a name");
            seen.nodes.iter().all(|node| node.state.is_ok())
        };
        within(Duration::from_secs(20), "every node has answered", all_answer).await;
    }

    /// Returns a connection to this node that the client does not use.
    #[doc(hidden)]
    pub fn redis(&self, node: usize) -> redis::Connection {
        self.nodes[node].try_redis().expect("a connection to a node that is up")
    }

    /// Sends a command to every node that is up and not paused, and returns the answers.
    #[doc(hidden)]
    pub fn each<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Vec<T> {
        let live = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up());
        live.map(|node| command.query(&mut self.redis(node)).expect("an answer")).collect()
    }

    /// Returns the requests that wait for a name on each node that is up: the reservation behind the ballot, and the tickets in
    /// the queue. Empty without a waiting request.
    #[doc(hidden)]
    pub fn wait_queues(&self, name: &str) -> Vec<String> {
        let lock = Self::lock_key(name);
        let marks: Vec<Option<String>> = self.each(redis::cmd("GET").arg(format!("quorlock:ballot:{lock}")));
        let queues: Vec<Vec<String>> =
            self.each(redis::cmd("ZRANGE").arg(format!("quorlock:queue:{lock}")).arg(0).arg(-1));
        let called = |mark: Option<String>| Some(mark?.split_once(" | ")?.1.to_owned());
        let words = |(mark, queue): (Option<String>, Vec<String>)| called(mark).into_iter().chain(queue);
        marks.into_iter().zip(queues).map(|pair| words(pair).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Returns on how many nodes a request waits for a name.
    #[doc(hidden)]
    pub fn count_waiting(&self, name: &str) -> usize {
        self.wait_queues(name).iter().filter(|queue| !queue.is_empty()).count()
    }

    /// Returns how many scripts each node that is up has run so far.
    #[doc(hidden)]
    pub fn scripts_run(&self) -> Vec<u64> {
        let calls = |stats: String| {
            let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default().to_owned();
            let calls = line.split(['=', ',']).nth(1).unwrap_or("0").to_owned();
            calls.parse().expect("a number of calls")
        };
        self.each::<String>(redis::cmd("INFO").arg("commandstats")).into_iter().map(calls).collect()
    }

    /// Returns how many nodes that are up have a key of this name.
    #[doc(hidden)]
    pub fn count_keys(&self, key: &str) -> usize {
        self.each::<usize>(redis::cmd("EXISTS").arg(key)).into_iter().sum()
    }

    /// Returns the lock key of a name under the default prefix.
    #[doc(hidden)]
    pub fn lock_key(name: &str) -> String {
        format!("{}{name}", quorlock::DEFAULT_PREFIX)
    }

    /// Returns the process number of a running node.
    #[doc(hidden)]
    pub fn pid(&self, node: usize) -> u32 {
        self.nodes[node].pid().expect("a running node")
    }

    /// Kills a node (SIGKILL).
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again on its port, with or without its stored data.
    pub fn restart(&mut self, node: usize, empty: bool) {
        self.nodes[node].restart(empty).expect("the node, back on its port");
    }

    /// Starts an empty server in a node's place, which is a replica of another node.
    #[doc(hidden)]
    pub fn restart_as_replica(&mut self, node: usize, of: usize) {
        let port = self.nodes[of].port();
        self.nodes[node].restart_as_replica(port).expect("a replica on the node's port");
    }

    /// Declares an empty server as part of another cluster, whose list has this number of nodes.
    #[doc(hidden)]
    pub fn declare_elsewhere(&self, node: usize, listed: usize) {
        self.nodes[node].declare_new(Declaration::new(listed)).expect("a declaration");
    }

    /// Stops a node until [`resume`](Self::resume) (SIGSTOP): its connections stay open, and it does not answer.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].pause().expect("a signal to our own child");
    }

    /// Sets a node's clock ahead, or back, and waits until the node goes by it. For a cluster with clocks.
    pub fn step(&mut self, node: usize, seconds: i64) {
        self.clocks[node].step(seconds * 1_000_000).expect("a file");
        let start = Instant::now();
        let ahead = self.clocks[node].offset().div_euclid(1_000_000);
        while (self.seconds_ahead(node) - ahead).abs() > 1 {
            assert!(start.elapsed() < Duration::from_secs(10), "node {node} does not go by its clock");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn seconds_ahead(&self, node: usize) -> i64 {
        let (seconds, _): (i64, i64) = redis::cmd("TIME").query(&mut self.redis(node)).expect("a time");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        seconds - i64::try_from(now.as_secs()).expect("a time")
    }

    /// Lets a paused node continue (SIGCONT). It then answers the requests that arrived meanwhile.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].resume().expect("a signal to our own child");
    }
}

/// The URL of a node that cannot be reached.
pub const CUT_OFF: &str = "redis://127.0.0.1:1";

/// Waits until an async condition holds; panics with `what` when it does not within `limit`.
pub async fn within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await; // The interval of checks.
        }
    };
    tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
}

/// Waits until `condition` holds; panics with `what` when it does not within `limit`. Returns how long it took.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

/// Returns `CLOCK_MONOTONIC` in microseconds, which is the same in all processes of a machine.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}
