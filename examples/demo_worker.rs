//! One of the three workers of `cluster/demo`, which starts it and reads what it prints; seldom run by hand.
//!
//! `demo_worker NUMBER SECONDS START FILE` waits until the clock shows START, takes the lock, and holds it for SECONDS;
//! then an inner function takes the same lock again and adds 15 to the number in FILE. `demo_worker clock` prints that
//! clock: microseconds, the same for all processes, never set.
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use quorlock::Quorlock;

const NAME: &str = "demo";

fn clock() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It counts from the start of the machine, so neither part is negative, and a second has fewer than 2^32 ns.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn report(worker: &str, event: &str) {
    println!("{} {worker} {event}", clock().as_micros());
}

/// Takes the lock without knowing that its caller holds it.
async fn add_15(locks: &Quorlock, worker: &str, file: &Path, found: u64) -> Result<(), Box<dyn Error>> {
    let guard = locks.lock(NAME).acquire().await?;
    let sum = found + 15;
    std::fs::write(file, sum.to_string())?;
    report(worker, &format!("added {} {} {sum}", guard.hold_count(), guard.token()));
    guard.release().await?;
    Ok(())
}

async fn work(locks: &Quorlock, worker: &str, time: Duration, file: &Path) -> Result<(), Box<dyn Error>> {
    report(worker, "asked");
    let guard = locks.lock(NAME).wait(Duration::from_secs(30)).acquire().await?;
    report(worker, &format!("acquired {}", guard.token()));
    // Read now and written at the end: had two workers the lock at once, one addition would be lost.
    let found = std::fs::read_to_string(file)?.trim().parse()?;
    tokio::time::sleep(time).await;
    guard.owner().scope(add_15(locks, worker, file, found)).await?;
    report(worker, "released"); // Printed before the release, so that a delay makes no two intervals touch.
    guard.release().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo_worker: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["clock"] => println!("{}", clock().as_micros()),
        [worker, seconds, start, file] => {
            let (seconds, start) = (seconds.parse()?, Duration::from_micros(start.parse()?));
            let nodes = std::env::var("QUORLOCK_NODES")?;
            let builder = Quorlock::builder().nodes(nodes.split(',')).label(format!("worker-{worker}"));
            let locks = builder.connect().await?;
            locks.flush().await; // All connections are there before the clock starts.
            tokio::time::sleep(start.saturating_sub(clock())).await;
            work(&locks, worker, Duration::from_secs(seconds), Path::new(file)).await?;
            locks.flush().await;
        }
        _ => return Err("usage: demo_worker NUMBER SECONDS START FILE, or demo_worker clock".into()),
    }
    Ok(())
}
