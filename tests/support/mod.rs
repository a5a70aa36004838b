//! Real redis-server processes for tests: started on free loopback ports in a temporary folder, checked to be the ones
//! that answer, and stopped by their own process number.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

pub mod proxy;
pub mod worker;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use quorlock::{Builder, Quorlock};
use rustix::process::{Pid, Signal, kill_process};

/// Tests that measure time have the machine to themselves; all others share it.
static MACHINE: RwLock<()> = RwLock::new(());

enum Share {
    Shared(RwLockReadGuard<'static, ()>),
    Quiet(RwLockWriteGuard<'static, ()>),
}

/// N independent masters. Indices count from 0.
pub struct Cluster {
    nodes: Vec<Server>,
    dir: tempfile::TempDir,
    _share: Share,
}

impl Cluster {
    pub fn start(nodes: usize) -> Self {
        Self::launch(nodes, &[], Share::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    /// The same with the machine to itself: for tests that measure time. At most one cluster per test.
    pub fn quiet(nodes: usize) -> Self {
        Self::launch(nodes, &[], Share::Quiet(MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    /// With these options on each server's command line.
    pub fn with_options(nodes: usize, options: &[&str]) -> Self {
        Self::launch(nodes, options, Share::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    fn launch(nodes: usize, options: &[&str], share: Share) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let start = |i| Server::start(dir.path().join(format!("node-{i}")), options);
        let nodes: Vec<Server> = (0..nodes).map(start).collect();
        for node in &nodes {
            node.declare_new();
        }
        Self { nodes, dir, _share: share }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port)).collect()
    }

    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    pub fn builder(&self) -> Builder {
        Quorlock::builder().nodes(self.urls())
    }

    /// A client with this lease that has heard from every node.
    pub async fn client(&self, lease: Duration) -> Quorlock {
        let locks = self.builder().lease(lease).connect().await.expect("settings that work");
        locks.flush().await;
        locks
    }

    /// A connection of the test's own, for looking behind the curtain.
    pub fn redis(&self, node: usize) -> redis::Connection {
        self.nodes[node].redis()
    }

    /// `command` on every node that is up and not paused.
    pub fn each<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Vec<T> {
        let live = self.nodes.iter().filter(|node| node.process.is_some() && !node.paused);
        live.map(|node| command.query(&mut node.redis()).expect("an answer")).collect()
    }

    /// On how many live nodes there is a key of this name.
    pub fn count_keys(&self, key: &str) -> usize {
        self.each::<usize>(redis::cmd("EXISTS").arg(key)).into_iter().sum()
    }

    /// The lock key of a name under the default prefix.
    pub fn lock_key(name: &str) -> String {
        format!("{}{name}", quorlock::DEFAULT_PREFIX)
    }

    pub fn pid(&self, node: usize) -> u32 {
        self.nodes[node].process.as_ref().expect("a running node").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again on its port, with or without what it had stored.
    pub fn restart(&mut self, node: usize, empty: bool) {
        self.nodes[node].kill();
        self.nodes[node].launch(empty);
    }

    /// SIGSTOP.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
        self.nodes[node].paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
        self.nodes[node].paused = false;
    }
}

struct Server {
    port: u16,
    dir: PathBuf,
    options: Vec<String>,
    process: Option<Child>,
    paused: bool,
}

impl Server {
    fn start(dir: PathBuf, options: &[&str]) -> Self {
        fs::create_dir_all(&dir).expect("a folder for the node");
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { port: 0, dir, options, process: None, paused: false };
        for _ in 0..20 {
            let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            server.port = probe.local_addr().expect("its address").port();
            drop(probe);
            if server.try_launch() {
                return server;
            }
        }
        panic!("no redis-server could be started; is it installed? (Debian: apt-get install redis-server)");
    }

    fn launch(&mut self, empty: bool) {
        if empty {
            fs::remove_dir_all(&self.dir).expect("the node's folder");
            fs::create_dir_all(&self.dir).expect("a folder for the node");
        }
        assert!(self.try_launch(), "the node did not come back on port {}", self.port);
    }

    /// `false` when the port was taken in between.
    fn try_launch(&mut self) -> bool {
        let program = std::env::var("QUORLOCK_TEST_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut child = Command::new(program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(&self.dir)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server; Debian: apt-get install redis-server");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().expect("the state of a child").is_some() {
                return false;
            }
            let answers = self.try_redis().and_then(|mut connection| {
                let info: String = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
                info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse::<u32>().ok())
            });
            if answers == Some(child.id()) {
                self.process = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        drop((child.kill(), child.wait()));
        false
    }

    fn try_redis(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).ok()?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(5)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        Some(connection)
    }

    fn redis(&self) -> redis::Connection {
        self.try_redis().expect("a connection to a node that is up")
    }

    /// As `cluster/up` does: these processes have no earlier votes to forget.
    fn declare_new(&self) {
        let mut redis = self.redis();
        let info: String = redis::cmd("INFO").arg("server").query(&mut redis).expect("its state");
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("a run id").trim();
        for database in [3, 2, 1, 0] {
            redis::cmd("SELECT").arg(database).query::<()>(&mut redis).expect("a database");
            let mut declare = redis::cmd("SET");
            declare.arg("quorlock:new").arg(run_id).arg("EX").arg(3600).query::<()>(&mut redis).expect("a declaration");
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            kill_process(Pid::from_child(process), signal).expect("a signal to our own child");
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop((process.kill(), process.wait()));
        }
        self.paused = false;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls until `condition` holds; fails with `what` when it does not within `limit`. Returns how long it took.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

/// CLOCK_MONOTONIC in microseconds: one clock for all processes of a machine.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}
