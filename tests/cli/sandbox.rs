//! A cluster, a folder for reports, and a record of every started process.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use quorlock_testkit::Cluster;
use rustix::process::{Pid, Signal, kill_process};

/// The limit that ends a hanging test. No step takes nearly as long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Arguments with which the node timeout is given, or may have to be shorter.
const SETS_NODE_TIMEOUT: [&str; 2] = ["--node-timeout", "--lease"];

/// A variable in the environment of every process that a sandbox starts.
const MARK: &str = "QUORLOCK_TEST_SANDBOX";
static SANDBOXES: AtomicU64 = AtomicU64::new(0);

pub struct Sandbox {
    pub cluster: Cluster,
    mark: String,
}

/// The exit code and the output of a program.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new(nodes: usize) -> Self {
        Self::around(Cluster::start(nodes))
    }

    pub fn around(cluster: Cluster) -> Self {
        let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
        Self { cluster, mark: format!("{}-{number}", std::process::id()) }
    }

    /// Returns `quorlock` with these arguments, the cluster's nodes in its environment, and `$DIR` for scripts. `quorlock run` waits five
    /// seconds for a node unless the arguments say otherwise: on a busy machine a node that is well may take longer than the usual half.
    pub fn quorlock(&self, args: &[&str]) -> Command {
        let is_patient = args.first() == Some(&"run") && !args.iter().any(|arg| SETS_NODE_TIMEOUT.contains(arg));
        let args =
            if is_patient { [&args[..1], &["--node-timeout", "5s"], &args[1..]].concat() } else { args.to_vec() };
        self.command(env!("CARGO_BIN_EXE_quorlock"), &args)
    }

    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        // A developer's own settings have no part in what is tested.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("QUORLOCK_") && !text.starts_with("QUORLOCK_TEST_") {
                command.env_remove(&name);
            }
        }
        command
            .args(args)
            .env("QUORLOCK_NODES", self.cluster.urls().join(","))
            .env("QUORLOCK", env!("CARGO_BIN_EXE_quorlock"))
            .env("DIR", self.cluster.dir())
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `quorlock` to its end.
    pub fn end(&self, args: &[&str]) -> Ended {
        finish(self.start(args))
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.quorlock(args).spawn().expect("the quorlock command")
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.cluster.dir().join(file)
    }

    pub fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_default()
    }

    pub fn touch(&self, file: &str) {
        fs::write(self.path(file), "").expect("a file in the test's folder");
    }

    /// Waits until a script has written this file, and returns its content.
    pub fn wait_for(&self, file: &str) -> String {
        within(&format!("the file {file}"), || self.text(file).ends_with('\n'));
        self.text(file)
    }

    pub fn lock_keys(&self, name: &str) -> usize {
        self.cluster.count_keys(&Cluster::lock_key(name))
    }

    /// Returns on how many nodes the lock is held.
    pub fn lock_keys_up(&self, nodes: &[usize], name: &str) -> usize {
        let exists = redis::cmd("EXISTS").arg(Cluster::lock_key(name)).to_owned();
        nodes.iter().map(|node| exists.query::<usize>(&mut self.cluster.redis(*node)).expect("an answer")).sum()
    }

    /// Returns every process that was started here and has not ended.
    pub fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.mark);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                found.extend(pid);
            }
        }
        found
    }

    /// Checks that every process that was started here ends within a moment.
    pub fn is_clean(&self) {
        within("the end of all processes", || self.processes().is_empty());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Polls until the condition holds.
pub fn within(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a signal to a child");
}

pub fn finish(mut child: Child) -> Ended {
    within("its end", || child.try_wait().expect("the state of a child").is_some());
    // A remaining process may also have these pipes open.
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let said = said.recv_timeout(PATIENCE).expect("it has ended, but something that it started has not");
    let Output { status, stdout, stderr } = said.expect("its output");
    Ended {
        code: status.code(),
        signal: status.signal(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Returns whether a process is in this state of /proc (`T` is stopped).
pub fn is_in_state(pid: Pid, state: char) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(state))
}
