//! Worker processes: the test binary runs itself again, with the job in its environment.
//!
//! A test binary that uses them has a test `worker_process` that calls [`job`] and runs the job. Without a job that test
//! passes at once.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const JOB: &str = "QUORLOCK_TEST_JOB";
/// The prefix of the worker's lines; the test runner prints its own lines.
const MARK: &str = "worker> ";

/// Returns the words of this process's job, if it is a worker.
pub fn job() -> Option<Vec<String>> {
    let job = std::env::var(JOB).ok()?;
    Some(job.split('\u{1f}').map(str::to_owned).collect())
}

/// Reports a line to the test.
pub fn report(line: impl std::fmt::Display) {
    println!("\n{MARK}{line}");
}

/// A worker process, killed when dropped.
pub struct Worker {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts a worker with this job.
    pub fn spawn(job: &[&str]) -> Self {
        Self::spawn_in(&["env"], job)
    }

    /// The same under a command that runs its arguments.
    pub fn spawn_in(wrapper: &[&str], job: &[&str]) -> Self {
        let mut process = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", "worker_process", "--nocapture", "--test-threads=1"])
            .env(JOB, job.join("\u{1f}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a worker process");
        let stdout = process.stdout.take().expect("it is piped");
        Self { process, lines: BufReader::new(stdout).lines() }
    }

    /// Returns the next report, or `None` when the worker has ended.
    #[expect(clippy::should_implement_trait, reason = "a worker is no sequence of reports")]
    pub fn next(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix(MARK).map(str::to_owned))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("a signal to our own child");
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        drop((self.process.kill(), self.process.wait()));
    }

    /// Returns all remaining reports. Panics when the worker fails.
    pub fn finish(mut self) -> Vec<String> {
        let mut reports = Vec::new();
        while let Some(line) = self.next() {
            reports.push(line);
        }
        let status = self.process.wait().expect("its status");
        assert!(status.success(), "a worker failed: {status}; it reported {reports:?}");
        reports
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
