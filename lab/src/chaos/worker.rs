//! A worker: a process that uses the lock through the library, and writes its actions and observations to stdout.
//!
//! It reads its job from the first line of stdin. The line `calm` ends the work; the end of stdin ends the process.

mod calm;
mod event_log;
mod readings;
mod workload;

use std::time::Duration;

use clap::Args;
use quorlock::Quorlock;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::sync::watch;

use self::event_log::EventLog;
use self::workload::Workload;
use super::history::What;
use super::ledger::{Place, StoreThread};
use super::stalls;
use crate::exit::{Exit, Failure};

/// The variable with the place of the ledger: a URL may hold a password, so it is on no command line.
pub const LEDGER_VARIABLE: &str = "QUORLOCK_CHAOS_LEDGER";

/// The line that the parent sends when faults are over.
pub const CALM: &str = "calm";

/// Take part in a chaos run
#[derive(Args)]
#[command(hide = true)]
pub struct Flags {}

/// The job of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub worker: usize,
    /// Counts the processes of a run.
    pub life: u64,
    pub nodes: Vec<String>,
    /// ms.
    pub lease: u64,
    pub longest_lease: u64,
    pub seed: u64,
    /// The number of concurrent tasks.
    pub tasks: u64,
    pub locks: usize,
    pub accounts: usize,
    pub fencing: bool,
}

pub fn run(_: &Flags) -> Result<u8, Failure> {
    let mut first = String::new();
    let job = std::io::stdin().read_line(&mut first).ok().and_then(|_| serde_json::from_str::<Job>(&first).ok());
    let ledger = std::env::var(LEDGER_VARIABLE).ok().and_then(|place| place.parse::<Place>().ok());
    let (Some(job), Some(ledger)) = (job, ledger) else {
        return Err(Failure::new(Exit::Usage, "a worker is started by `quorlock-lab chaos`, which says what to do"));
    };
    // Users have runtimes of both kinds.
    let mut runtime = if job.worker.is_multiple_of(2) {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let failed = |error| Failure::new(Exit::NotRunnable, format!("worker {}: {error}", job.worker + 1));
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(failed)?;
    let done = runtime.block_on(work(job, ledger));
    // A thread may be waiting for the database, or for stdin.
    runtime.shutdown_background();
    done
}

async fn work(job: Job, ledger: Place) -> Result<u8, Failure> {
    let locks = Quorlock::builder()
        .nodes(&job.nodes)
        .lease(Duration::from_millis(job.lease))
        .longest_lease(Duration::from_millis(job.longest_lease))
        .label(format!("worker-{}", job.worker + 1))
        .connect()
        .await?;
    locks.flush().await;
    let log = EventLog::new(&job);
    stalls::watch(job.life, Vec::new, |stall| {
        event_log::write_event(&stall);
        true
    });
    log.write(What::Up { worker: job.worker, life: job.life });
    let (phase, calm) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..job.tasks + 2 {
        let store = StoreThread::open(ledger.clone()).await;
        let store = store.map_err(|error| Failure::new(Exit::NotRunnable, format!("the ledger: {error}")))?;
        let workload = Workload::new(&job, task, locks.clone(), log.clone(), store);
        match task.checked_sub(job.tasks) {
            None => tasks.spawn(workload.run(calm.clone())),
            Some(0) => tasks.spawn(workload.enter_again(calm.clone())),
            Some(_) => tasks.spawn(workload.ask_for_a_free_lock(calm.clone())),
        };
    }
    let mut words = BufReader::new(tokio::io::stdin()).lines();
    tokio::select! {
        () = line_arrives(&mut words, CALM) => {}
        Some(ended) = tasks.join_next() => return Err(too_early(ended)),
    }
    phase.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        if !matches!(ended, Ok(Ok(()))) {
            return Err(too_early(ended));
        }
    }
    calm::run(&job, &locks, &log).await;
    locks.flush().await;
    line_arrives(&mut words, "").await;
    Ok(Exit::Success.code())
}

/// Returns when the parent has sent this line. Ends the process when the parent is gone.
async fn line_arrives(words: &mut Lines<BufReader<Stdin>>, word: &str) {
    while let Ok(Some(line)) = words.next_line().await {
        if line == word {
            return;
        }
    }
    std::process::exit(0);
}

fn too_early(ended: Result<Result<(), super::ledger::Error>, tokio::task::JoinError>) -> Failure {
    let why = match ended {
        Ok(Ok(())) => "it ended too early".to_owned(),
        Ok(Err(error)) => format!("the ledger: {error}"),
        Err(error) => error.to_string(),
    };
    Failure::new(Exit::NotRunnable, format!("a worker's task failed: {why}"))
}
