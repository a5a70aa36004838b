//! The acceptance rows, each against real redis-server processes: what a reentrant lock must do, row by row.
//!
//! Two oracles judge mutual exclusion, and neither asks the lock: intervals on CLOCK_MONOTONIC that must not overlap, and
//! a register in a file that is read, slept on and written, so that an overlap loses an update.

mod clocks;
mod crash;
mod demo;
mod exclusion;
mod failures;
mod forgetting;
mod hostile;
mod hygiene;
mod identity;
mod late;
mod leaps;
mod lease;
mod lists;
mod load;
mod reentry;
mod register;
mod replies;
mod restarts;
mod silence;
mod waiting;
mod workers;

/// Rows about what servers may do differently: calls of waiters, the script cache, databases, types of keys, replicas.
#[test]
fn some_rows_hold_on_other_servers() {
    let _alone = quorlock_testkit::Cluster::quiet(1); // Other tests of this process measure time.
    let rows = ["acc_17", "acc_26", "acc_27", "acc_32", "acc_33", "acc_36_a_former_replica"];
    quorlock_testkit::program::run_on_others(&rows);
}

/// Not a test: the entry point of worker processes.
#[tokio::test]
async fn worker_process() {
    if let Some(job) = quorlock_testkit::worker::job() {
        workers::run(&job).await;
    }
}
