//! The folder, the processes and the results of a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The limit that ends a hanging test. No run here takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder for the temporary files of a run. Its name has the characters that the loader takes for the end of a path.
const TMP: &str = "t m:p";

/// A variable in the environment of every process that a test starts.
const MARK: &str = "QUORLOCK_TEST_CHAOS";

/// Held by each run, so that runs of these tests do not overlap.
static MACHINE: Mutex<()> = Mutex::new(());

pub struct Place {
    pub dir: tempfile::TempDir,
    mark: String,
    _machine: MutexGuard<'static, ()>,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join(TMP)).expect("a folder");
        Self { dir, mark: format!("{name}-{}", std::process::id()), _machine: machine }
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The folder for the temporary files of a run.
    pub fn tmp(&self) -> PathBuf {
        self.dir.path().join(TMP)
    }

    pub fn chaos(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorlock-lab"));
        command
            .arg("chaos")
            .args(arguments.split_whitespace())
            .arg("--out")
            .arg(self.out())
            .env("TMPDIR", self.tmp())
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn end(&self, arguments: &str) -> Output {
        self.chaos(arguments).output().expect("the command that was built for this test")
    }

    pub fn results(&self) -> Value {
        parsed(&self.out().join("results.json"))
    }

    pub fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.mark);
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let marked = entries.filter(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        });
        marked.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// Checks that no process and no folder is left.
    pub fn is_clean(&self) {
        within("the end of all processes", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(self.tmp()).expect("the folder").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

pub fn parsed(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("JSON")
}

pub fn within(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends a signal, and waits for the end.
pub fn ended(child: Child, signal: Signal) -> Output {
    kill_process(Pid::from_child(&child), signal).expect("a signal to a child");
    child.wait_with_output().expect("its end")
}
