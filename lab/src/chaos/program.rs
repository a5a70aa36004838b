//! The program that is tested: starts it, reads its output and ends it with all that it has started.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use quorlock::text::Printable;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::history::{Ending, Event, Stream, What, now};
use super::workers::WorkerReport;

/// How often processes that are to end are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A longer line is divided, in bytes.
const LONGEST_LINE: u64 = 4096;
/// So many lines of each stream are kept.
const MOST_LINES: usize = 20_000;
/// In the environment of the program and of all that it starts: a `quorlock run` in it puts its own command into a process
/// group of its own.
const MARK: &str = "QUORLOCK_CHAOS_RUN";

pub struct Program {
    child: Child,
    group: Pid,
    mark: String,
    status: Option<ExitStatus>,
}

impl Program {
    /// Starts it on these nodes, in a process group of its own.
    pub fn start(
        command: &[OsString],
        nodes: &[String],
        reports: &mpsc::UnboundedSender<WorkerReport>,
    ) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mark = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        let mut child = Command::new(program)
            .args(arguments)
            .env("QUORLOCK_NODES", nodes.join(","))
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let number = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let group = number.ok_or_else(|| io::Error::other("a process without a number"))?;
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read(stdout, Stream::Stdout, reports.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read(stderr, Stream::Stderr, reports.clone()));
        }
        Ok(Self { child, group, mark: format!("{MARK}={mark}"), status: None })
    }

    /// Waits for the end of the process that was started.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait(&mut self) -> io::Result<()> {
        self.status = Some(self.child.wait().await?);
        Ok(())
    }

    /// Ends every process of it: by SIGTERM, and after the grace by SIGKILL.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, processes may be left. Another call ends them.
    pub async fn end(&mut self, grace: Duration) -> io::Result<Ending> {
        let asked = self.status.is_none();
        if asked {
            let _ = kill_process_group(self.group, Signal::TERM); // It fails when all are gone.
        } else {
            // The number of the group may be another's by now.
            self.signal(Signal::TERM);
        }
        let limit = Instant::now() + grace;
        let mut killed = false;
        while !self.is_over()? {
            if Instant::now() >= limit {
                killed = true;
                if self.status.is_none() {
                    let _ = kill_process_group(self.group, Signal::KILL); // It fails when all are gone.
                }
                self.signal(Signal::KILL);
            }
            sleep(LOOK_EVERY).await;
        }
        let status = self.status.unwrap_or_default();
        Ok(Ending { code: status.code(), signal: status.signal(), asked, killed })
    }

    fn is_over(&mut self) -> io::Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status.is_some() && self.processes().is_empty())
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // By a descriptor, so that no other process that has got the number is hit.
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
                && self.is_marked(pid)
            {
                let _ = pidfd_send_signal(process, signal); // It fails when it has ended.
            }
        }
    }

    fn processes(&self) -> Vec<Pid> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        numbers.filter(|pid| self.is_marked(*pid)).collect()
    }

    fn is_marked(&self, pid: Pid) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes())
    }
}

/// Reports every line.
async fn read(output: impl AsyncRead + Unpin, stream: Stream, reports: mpsc::UnboundedSender<WorkerReport>) {
    let mut output = BufReader::new(output);
    for number in 0.. {
        let mut line = Vec::new();
        match (&mut output).take(LONGEST_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = match number {
            0..MOST_LINES => Printable(text.trim_end_matches(['\n', '\r'])).to_string(),
            MOST_LINES => "(further lines are left out)".to_owned(),
            _ => continue, // It is read all the same, or the program would have to wait.
        };
        if reports.send(WorkerReport::Event(Event { at: now(), what: What::Line { stream, text } })).is_err() {
            return;
        }
    }
}
