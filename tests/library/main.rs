//! The public interface of the library, against real redis-server processes: sets of resources, scopes, other processes,
//! every kind of node URL, runtimes that end.

#[cfg(feature = "blocking")]
mod blocking;
mod clocks;
mod configs;
mod distance;
mod elections;
mod endings;
mod kills;
mod messages;
mod nodes;
mod observability;
mod observers;
mod owners;
mod refusals;
mod replicas;
mod reports;
mod revoke;
mod revoke_hostile;
mod runtimes;
mod sections;
mod sets;
mod threads;
#[cfg(feature = "tls")]
mod tls;
mod turns;
mod wire;

/// Not a test: the entry point of worker processes.
#[tokio::test]
async fn worker_process() {
    if let Some(job) = quorlock_testkit::worker::job() {
        match job[0].as_str() {
            "end" => endings::end(&job),
            "fork" => endings::fork(&job),
            _ => nodes::run(&job).await,
        }
    }
}
