//! When all faults are over, every lock must be to be had again.

use std::time::Duration;

use quorlock::Quorlock;

use super::Job;
use super::diary::Diary;
use super::workload::{account_name, lock_name};
use crate::chaos::history::What;

/// Far more than the others can take: each has every lock once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Has every lock once.
pub async fn run(job: &Job, locks: &Quorlock, diary: &Diary) {
    let names: Vec<String> = (0..job.locks).map(lock_name).chain((0..job.accounts).map(account_name)).collect();
    let mut acquired = 0;
    for name in &names {
        if let Ok(guard) = locks.lock(name).wait(PATIENCE).acquire().await {
            acquired += 1;
            // Whether a release is confirmed is seen at the end, in what the nodes have.
            drop(guard.release().await);
        }
    }
    diary.write(What::Calm { worker: job.worker, acquired, of: names.len() });
}
