//! The phase after all faults: every lock must be available again.

use std::time::Duration;

use quorlock::Quorlock;
use tokio::time::Instant;

use super::Job;
use super::event_log::EventLog;
use super::workload::{account_name, lock_name};
use crate::chaos::history::What;

/// The limit for one lock: far more than the other workers need, each of which acquires every lock once.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the margin of a lock may grow that no other worker asks for.
const GROWING: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Acquires every lock once, and a lock of its own until every node has it.
pub async fn run(job: &Job, locks: &Quorlock, log: &EventLog) {
    let names: Vec<String> = (0..job.locks).map(lock_name).chain((0..job.accounts).map(account_name)).collect();
    let mut acquired = 0;
    for name in &names {
        // One that is missing is enough: the run shall not wait for all.
        let Ok(guard) = locks.lock(name).wait(PATIENCE).acquire().await else { break };
        acquired += 1;
        // The final scan of the nodes shows whether the release took effect.
        drop(guard.release().await);
    }
    if let Ok(guard) = locks.lock(format!("calm-{}", job.worker + 1)).wait(PATIENCE).acquire().await {
        acquired += 1;
        let limit = Instant::now() + GROWING;
        let most = job.nodes.len() - (job.nodes.len() / 2 + 1);
        while guard.margin() < most && Instant::now() < limit {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        log.write(What::Margin { worker: job.worker, margin: guard.margin() });
        drop(guard.release().await);
    }
    log.write(What::Calm { worker: job.worker, acquired, of: names.len() + 1 });
}
