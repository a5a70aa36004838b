//! Real redis-server processes for tests: started on free loopback ports in a temporary folder, checked to be the ones
//! that answer, and stopped by their own process number.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

pub mod proxy;
#[path = "../../src/bin/quorlock/lab/server.rs"]
mod server;
pub mod worker;

use std::path::Path;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use quorlock::{Builder, Quorlock};
use server::{Declaration, Server};

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

    /// Servers that do not know yet that they belong together.
    pub fn undeclared(nodes: usize, options: &[&str]) -> Self {
        Self::servers(nodes, options, Share::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    fn servers(nodes: usize, options: &[&str], share: Share) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let start = |i| Server::start(dir.path().join(format!("node-{i}")), options, &[]).expect("a server");
        let nodes = (0..nodes).map(start).collect();
        Self { nodes, dir, _share: share }
    }

    fn launch(nodes: usize, options: &[&str], share: Share) -> Self {
        let cluster = Self::servers(nodes, options, share);
        let new = Declaration::new(nodes);
        for node in &cluster.nodes {
            node.declare_new(new).expect("a declaration");
        }
        cluster
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(Server::port).collect()
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
        self.nodes[node].try_redis().expect("a connection to a node that is up")
    }

    /// `command` on every node that is up and not paused.
    pub fn each<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Vec<T> {
        let live = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up());
        live.map(|node| command.query(&mut self.redis(node)).expect("an answer")).collect()
    }

    /// Which requests wait for a name: what each node keeps of that behind the ballot, and nothing where none waits.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let mark = format!("quorlock:ballot:{}", Self::lock_key(name));
        let marks: Vec<Option<String>> = self.each(redis::cmd("GET").arg(mark));
        let line = |mark: &String| mark.split_once(" | ").map(|(_, line)| line.to_owned());
        marks.iter().map(|mark| mark.as_ref().and_then(line).unwrap_or_default()).collect()
    }

    /// On how many nodes somebody waits for a name.
    pub fn count_lines(&self, name: &str) -> usize {
        self.lines(name).iter().filter(|line| !line.is_empty()).count()
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
        self.nodes[node].pid().expect("a running node")
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again on its port, with or without what it had stored.
    pub fn restart(&mut self, node: usize, empty: bool) {
        self.nodes[node].restart(empty).expect("the node, back on its port");
    }

    /// SIGSTOP.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].pause().expect("a signal to our own child");
    }

    /// SIGCONT.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].resume().expect("a signal to our own child");
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
