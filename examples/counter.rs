//! Two clients that add to a number in a file, each addition under the lock: a program to try under faults.
//!
//! `cargo build --example counter`, then `cluster/chaos --for 60s --lease 2s -- target/debug/examples/counter FILE`. By hand:
//! `eval "$(cluster/up)"`, then `cargo run --example counter FILE`; it ends with Ctrl-C. `counter.sh` does the
//! same with `quorlock run`.
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorlock::{Guard, Quorlock, RunError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

fn number(file: &Path) -> Result<u64, Box<dyn Error>> {
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

/// When the lease is lost, `run` drops this at the `.await`: before the write, not after it.
async fn add(guard: &Guard, file: &Path, added: &AtomicU64) -> Result<(), Box<dyn Error>> {
    let found = number(file)?;
    sleep(Duration::from_millis(50)).await; // Another holder at this point would lose an addition.
    fs::write(file, (found + 1).to_string())?;
    added.fetch_add(1, Ordering::Relaxed);
    println!("{} with token {}", found + 1, guard.token());
    Ok(())
}

async fn work(locks: Quorlock, file: &Path, added: &AtomicU64) -> Result<(), Box<dyn Error>> {
    loop {
        let request = locks.lock("counter").wait(Duration::from_secs(30));
        match request.run(async |guard| add(guard, file, added).await).await {
            Ok(()) => {}
            Err(RunError::Work(error)) => return Err(error),
            // No majority answered in time, or the lease was lost: the next try may do better.
            Err(error) => eprintln!("{error}"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args_os().nth(1).ok_or("usage: counter FILE")?;
    let file = Path::new(&file);
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let builder = Quorlock::builder().nodes(nodes.split(',')).lease(Duration::from_secs(2));
    let (one, other) = (builder.clone().connect().await?, builder.connect().await?);
    let added = AtomicU64::new(0);
    fs::write(file, "0")?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work(one.clone(), file, &added) => done?,
        done = work(other.clone(), file, &added) => done?,
        _ = terminate.recv() => {}
        done = tokio::signal::ctrl_c() => done?,
    }
    tokio::join!(one.flush(), other.flush()); // The releases are on their way; this waits for their end.
    match (number(file)?, added.into_inner()) {
        (counted, added) if counted == added => println!("{added} additions, and none was lost"),
        (counted, added) => return Err(format!("{added} additions, and the number is {counted}").into()),
    }
    Ok(())
}
