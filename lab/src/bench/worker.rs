//! Processes that the bench starts from its own program: contenders in other processes, and clients with fresh memory.
//!
//! A worker prints `ready`, waits for a line, works, and reports in lines. It ends when its standard input does.

use std::env;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures::stream::{self, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::cases::INSIDE;
use super::lockers::{Callers, Ours, Place};
use super::measure::{cpu_time, number, resident};
use super::turns::{Turn, now};
use super::{Bench, Flags, Peer, connect, fleet};
use crate::exit::Failure;

/// The variable with the node URLs for a worker: they may hold passwords, and a command line is public.
const NODES_VARIABLE: &str = "QUORLOCK_BENCH_NODES";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Contends with others for one lock.
    Turns,
    /// Holds many leases.
    Held,
    /// Holds more leases than it can easily extend.
    Many,
    /// Locks and unlocks as fast as it can.
    Load,
}

pub const HELD: usize = 10_000;
pub const MANY: usize = 45_000;
/// How long the leases are held while processor time is counted: each is extended several times.
const HELD_FOR: Duration = Duration::from_secs(15);
/// The number of concurrent requests.
const ASKED_AT_ONCE: usize = 64;

const LOAD_TASKS: usize = 64;
/// How long a lock is held before its nodes are counted.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// The limit for the next line of a worker.
const PATIENCE: Duration = Duration::from_secs(120);

/// A worker process, as the bench controls it.
pub struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Worker {
    /// Returns when it is connected.
    pub fn start(
        bench: &Bench<'_>,
        kind: Kind,
        locker: &str,
        nodes: usize,
        stretch: Duration,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| fleet::failure("cannot start a process", &error);
        let kind = kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let mut process = Command::new(env::current_exe().map_err(failed)?)
            .args(bench.words)
            .args(["--worker", &kind, "--locker", locker])
            .arg("--for")
            .arg(humantime::format_duration(stretch).to_string())
            .env(NODES_VARIABLE, bench.fleet().urls(nodes).join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (line, lines) = mpsc::channel();
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|it| line.send(it))
            });
        }
        let mut worker = Self { input: process.stdin.take(), process, lines };
        worker.expect("ready")?;
        Ok(worker)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn go(&mut self) -> Result<(), Failure> {
        let sent = self.input.as_mut().map_or(Ok(()), |input| input.write_all(b"go\n"));
        sent.map_err(|error| fleet::failure("a bench process has ended", &error))
    }

    /// The rest of the next line that begins with this word.
    fn expect(&mut self, word: &str) -> Result<String, Failure> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.map_err(|error| fleet::failure(&format!("no '{word}' from a bench process"), &error))?;
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// Returns all turns that it had, and how often it failed.
    pub fn turns(&mut self, who: usize) -> Result<(Vec<Turn>, usize), Failure> {
        let parsed =
            |text: &str| text.parse::<u64>().map_err(|error| fleet::failure("a line is not understood", &error));
        let count = parsed(&self.expect("turns")?)?;
        let mut taken = Vec::new();
        for _ in 0..count {
            let line = self.expect("turn")?;
            let (entered, left) = line.split_once(' ').unwrap_or_default();
            let [entered, left] = [parsed(entered)?, parsed(left)?].map(Duration::from_nanos);
            taken.push(Turn { who, entered, left });
        }
        let failed = parsed(&self.expect("failed")?)?;
        Ok((taken, usize::try_from(failed).unwrap_or(usize::MAX)))
    }

    pub fn figures(&mut self) -> Result<Map<String, Value>, Failure> {
        let line = self.expect("figures")?;
        serde_json::from_str(&line).map_err(|error| fleet::failure("figures are not understood", &error))
    }

    /// Returns how long after `since` it first had a lock on all nodes.
    pub fn whole_again(&mut self, since: Duration, limit: Duration) -> Result<Option<Duration>, Failure> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let at = self.expect("whole")?.parse().map(Duration::from_nanos);
            let at = at.map_err(|error| fleet::failure("a line is not understood", &error))?;
            if at >= since {
                return Ok(Some(at.saturating_sub(since)));
            }
        }
        Ok(None)
    }

    /// Lets it end. Returns its number of cycles.
    pub fn end(mut self) -> Result<u64, Failure> {
        self.input = None;
        let cycles = self.expect("cycles")?;
        let ended = self.process.wait();
        ended.map_err(|error| fleet::failure("a bench process did not end", &error))?;
        Ok(cycles.parse().unwrap_or(0))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.input = None; // The process ends at the end of its input, unless it hangs.
        drop((self.process.kill(), self.process.wait()));
    }
}

/// Runs the job of a worker process.
pub fn work(kind: Kind, runtime: &Arc<Runtime>, peers: &[Peer], flags: &Flags) -> Result<(), Failure> {
    let urls = env::var(NODES_VARIABLE).unwrap_or_default();
    let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
    match kind {
        Kind::Turns => turns(runtime, peers, &urls, &flags.locker, flags.stretch),
        Kind::Held => runtime.block_on(held(&urls, HELD)),
        Kind::Many => runtime.block_on(held(&urls, MANY)),
        Kind::Load => runtime.block_on(load(&urls)),
    }
}

/// Writes a line to the bench. Ends the process when the bench is gone.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        process::exit(1);
    }
}

/// Says that it is connected and waits for a line. Returns `false` when the input ends instead.
fn may_start() -> bool {
    say("ready");
    io::stdin().lock().read_line(&mut String::new()).is_ok_and(|read| read > 0)
}

/// Calls `end` at the end of the input, which may come in the middle of the work: the bench has ended or needs no more.
fn at_end_of_input(end: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink()); // An error ends the input, too.
        end();
    })
}

fn turns(
    runtime: &Arc<Runtime>,
    peers: &[Peer],
    urls: &[String],
    locker: &str,
    stretch: Duration,
) -> Result<(), Failure> {
    let one = connect(locker, Place { runtime: Arc::clone(runtime), callers: Callers::Tasks }, peers, urls)?;
    if !may_start() {
        return Ok(());
    }
    let end = at_end_of_input(|| process::exit(0));
    let Some(turns) = one.turns(1, INSIDE, stretch) else { return Ok(()) };
    say(&format!("turns {}", turns.len()));
    for Turn { entered, left, .. } in turns.taken() {
        say(&format!("turn {} {}", entered.as_nanos(), left.as_nanos()));
    }
    say(&format!("failed {}", turns.failed));
    let _ = end.join(); // It ends the process.
    Ok(())
}

async fn held(urls: &[String], count: usize) -> Result<(), Failure> {
    let Ours { locks } = Ours::connect(urls).await?;
    if !may_start() {
        return Ok(());
    }
    at_end_of_input(|| process::exit(0));
    let resident = || resident(process::id());
    let ask = |i: usize| locks.lock(format!("held:{i}")).acquire();
    // Buffers reach their full size with this number of concurrent requests.
    drop(stream::iter(count..count + ASKED_AT_ONCE).map(ask).buffer_unordered(ASKED_AT_ONCE).collect::<Vec<_>>().await);
    locks.flush().await;
    let before = resident();
    let asked = stream::iter(0..count).map(ask).buffer_unordered(ASKED_AT_ONCE);
    let guards: Vec<_> = asked.filter_map(|guard| std::future::ready(guard.ok())).collect().await;
    let refused = count - guards.len();
    let (since, cpu) = (Instant::now(), cpu_time());
    tokio::time::sleep(HELD_FOR).await;
    let cpu_share = cpu_time().saturating_sub(cpu).as_secs_f64() / since.elapsed().as_secs_f64();
    let bytes = resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    let bytes = bytes.map(|bytes| number(usize::try_from(bytes).unwrap_or(usize::MAX)) / number(count));
    let lost = guards.iter().filter(|guard| guard.is_lost()).count();
    let figures = json!({ "cpu_share": cpu_share, "refused": refused, "lost": lost, "bytes_per_lease": bytes });
    drop(guards);
    locks.flush().await;
    say(&format!("figures {figures}"));
    Ok(())
}

async fn load(urls: &[String]) -> Result<(), Failure> {
    let Ours { locks } = Ours::connect(urls).await?;
    if !may_start() {
        return Ok(());
    }
    let (done, cycles) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ending = Arc::clone(&done);
    at_end_of_input(move || ending.store(true, Ordering::Relaxed));
    let task = |i: usize| {
        let (locks, done, cycles) = (locks.clone(), Arc::clone(&done), Arc::clone(&cycles));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                if let Ok(guard) = locks.lock(format!("load:{i}")).acquire().await {
                    let _ = guard.release().await; // A majority is up; the count of cycles shows failures.
                    cycles.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let tasks: Vec<_> = (0..LOAD_TASKS).map(task).collect();
    let spare = urls.len() - (urls.len() / 2 + 1);
    // A new name each time, so that the remains of one lock on a node do not affect the next.
    for look in 0_u64.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        if let Ok(guard) = locks.lock(format!("look:{look}")).acquire().await {
            tokio::time::sleep(LOOK_AFTER).await;
            if guard.margin() == spare {
                say(&format!("whole {}", now().as_nanos()));
            }
            let _ = guard.release().await;
        }
    }
    futures::future::join_all(tasks).await;
    locks.flush().await;
    say(&format!("cycles {}", cycles.load(Ordering::Relaxed)));
    Ok(())
}
