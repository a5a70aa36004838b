//! A batch program without tokio: it runs its steps under a lock, and stops when the lock is lost.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example blocking`.
use quorlock::{LostError, Quorlock};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).connect_blocking()?;
    let steps = locks.lock("report:nightly").run(|guard| {
        guard.on_lost(|lost| eprintln!("{lost}")); // at once, on another thread
        for step in 1..=3 {
            guard.check()?; // before each step
            println!("step {step} with token {}", guard.token());
            std::thread::sleep(std::time::Duration::from_secs(1)); // the work
        }
        Ok::<_, LostError>(3)
    })?; // the lock is released here, also when a step fails or panics
    println!("{steps} steps are done");
    Ok(())
}
