//! The worker processes: starts, reads, stops, kills and replaces them.

use std::io;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Mutex, Notify, mpsc};

use super::history::{Event, What, now};
use super::ledger::Place;
use super::worker::{Job, LEDGER_VARIABLE};

/// How long a worker may take to end after the command to end.
const ENDING: Duration = Duration::from_secs(5);
/// How long it may take to stop after SIGSTOP.
const STOPPING: Duration = Duration::from_millis(200);

/// An event of a worker, or the unexpected end of a worker process.
pub enum WorkerReport {
    Event(Event),
    Ended { worker: usize, life: u64 },
}

pub struct Workers {
    by_index: Vec<Worker>,
    ledger: Place,
    reports: mpsc::UnboundedSender<WorkerReport>,
    lives: AtomicU64,
}

struct Worker {
    job: Job,
    process: Mutex<Option<Process>>,
    /// Wakes the task that waits for this worker to be between reading and writing balances.
    section: std::sync::Arc<Notify>,
}

struct Process {
    life: u64,
    child: Child,
    stdin: ChildStdin,
}

impl Workers {
    /// `jobs` have no life yet.
    pub fn new(jobs: Vec<Job>, ledger: Place, reports: mpsc::UnboundedSender<WorkerReport>) -> Self {
        let worker = |job| Worker { job, process: Mutex::default(), section: std::sync::Arc::default() };
        Self { by_index: jobs.into_iter().map(worker).collect(), ledger, reports, lives: AtomicU64::new(1) }
    }

    pub fn count(&self) -> usize {
        self.by_index.len()
    }

    /// Starts a process in this worker's place, which is empty.
    pub async fn start(&self, worker: usize) -> io::Result<()> {
        let place = &self.by_index[worker];
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let mut child = Command::new(std::env::current_exe()?)
            .arg("chaos-worker")
            .env(LEDGER_VARIABLE, self.ledger.to_text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let piped = || io::Error::other("a worker without pipes");
        let (mut stdin, stdout) = (child.stdin.take().ok_or_else(piped)?, child.stdout.take().ok_or_else(piped)?);
        let mut job = serde_json::to_string(&Job { life, ..place.job.clone() })?;
        job.push('\n');
        stdin.write_all(job.as_bytes()).await?;
        let (reports, section) = (self.reports.clone(), std::sync::Arc::clone(&place.section));
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The last line of a process that was killed may be half a line.
                let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
                if matches!(event.what, What::Section { .. }) {
                    section.notify_waiters();
                }
                drop(reports.send(WorkerReport::Event(event)));
            }
            drop(reports.send(WorkerReport::Ended { worker, life }));
        });
        *place.process.lock().await = Some(Process { life, child, stdin });
        Ok(())
    }

    /// Sends SIGSTOP when the worker is inside a critical section of the ledger, at the latest after `patience`.
    /// Returns when that was, and why it does not count as done if the process runs on.
    pub async fn pause(&self, worker: usize, patience: Duration) -> io::Result<(u64, Option<String>)> {
        let place = &self.by_index[worker];
        // The worker is stopped in either case.
        let _ = tokio::time::timeout(patience, place.section.notified()).await;
        let from = now();
        self.signal(worker, Signal::STOP).await?;
        let pid = place.process.lock().await.as_ref().and_then(|process| process.child.id());
        let Some(pid) = pid else { return Ok((from, Some("the worker has no process".to_owned()))) };
        let stopped = tokio::time::timeout(STOPPING, async {
            while !is_stopped(pid) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Ok((from, stopped.await.err().map(|_| "the process was not stopped".to_owned())))
    }

    pub async fn resume(&self, worker: usize) -> io::Result<()> {
        self.signal(worker, Signal::CONT).await
    }

    async fn signal(&self, worker: usize, signal: Signal) -> io::Result<()> {
        match &*self.by_index[worker].process.lock().await {
            Some(process) => send(&process.child, signal),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL, and waits for the end of the process.
    pub async fn kill(&self, worker: usize) -> io::Result<()> {
        let Some(mut process) = self.by_index[worker].process.lock().await.take() else { return Ok(()) };
        let from = now();
        process.child.kill().await?;
        let down = What::Down { worker, life: process.life, from };
        drop(self.reports.send(WorkerReport::Event(Event { at: now(), what: down })));
        Ok(())
    }

    /// Returns whether the run itself ended this life.
    pub async fn was_ended(&self, worker: usize, life: u64) -> bool {
        self.by_index[worker].process.lock().await.as_ref().is_none_or(|process| process.life != life)
    }

    /// Sends this line to every worker.
    pub async fn say(&self, word: &str) {
        for place in &self.by_index {
            if let Some(process) = &mut *place.process.lock().await {
                // A worker that cannot read has ended, which its reader reports.
                drop(process.stdin.write_all(format!("{word}\n").as_bytes()).await);
            }
        }
    }

    /// Ends every process in order, and kills those that do not end.
    pub async fn dismiss(&self) {
        for worker in &self.by_index {
            let Some(process) = worker.process.lock().await.take() else { continue };
            let Process { mut child, stdin, .. } = process;
            drop(stdin);
            drop(send(&child, Signal::CONT));
            if tokio::time::timeout(ENDING, child.wait()).await.is_err() {
                drop(child.kill().await);
            }
        }
    }
}

/// Returns whether this process is stopped. A process that is gone runs no more either.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, state)| !state.starts_with(['R', 'S', 'D']))
}

fn send(child: &Child, signal: Signal) -> io::Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    match pid {
        Some(pid) => Ok(kill_process(pid, signal)?),
        None => Ok(()),
    }
}
