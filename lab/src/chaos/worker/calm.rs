//! The phase after all faults: every lock must be available again.

use std::time::Duration;

use quorlock::Quorlock;

use super::Job;
use super::event_log::EventLog;
use super::workload::{account_name, lock_name};
use crate::chaos::history::What;

/// The limit for one lock: far more than the other workers need, each of which acquires every lock once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Acquires every lock once.
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
    log.write(What::Calm { worker: job.worker, acquired, of: names.len() });
}
