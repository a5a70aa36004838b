//! Loss: a holder that can no longer extend its lease gets a warning, then the signal of the loss, which is final.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example lost`; while it works, in another terminal, freeze a
//! majority: `cluster/pause 1 2 3`. Afterwards: `cluster/resume 1 2 3`.
use std::future::pending;
use std::time::Duration;

use quorlock::{Guard, Quorlock};
use tokio::time::sleep;

/// Works for 20 s in small steps. A real program would write down how far it came when it is warned; this one works on.
async fn work(guard: &Guard) {
    let steps = async {
        for step in 1..=40 {
            sleep(Duration::from_millis(500)).await;
            println!("step {step:>2}: {:.1?} left", guard.remaining());
        }
    };
    let warning = async {
        guard.endangered().await;
        println!("endangered: {:.1?} left. This is the time to stop cleanly", guard.remaining());
        pending().await
    };
    tokio::select! { () = steps => {}, () = warning => {} }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).lease(Duration::from_secs(2)).connect().await?;
    let guard = locks.lock("import").acquire().await?;
    println!("holding import with a lease of 2 s. To see it lost, in another terminal: cluster/pause 1 2 3");

    match guard.protect(work(&guard)).await {
        Ok(()) => println!("20 s are over and the lease was never lost"),
        Err(lost) => {
            println!("{lost}: the work was dropped at its next .await");
            let again = locks.lock("import").owner(guard.owner()).acquire().await;
            println!("entering again: {}", again.map_or_else(|error| error.to_string(), |_| "it worked?".to_owned()));
        }
    }
    match guard.release().await {
        Ok(released) => println!("given back: {released:?}"),
        Err(error) => println!("release: {error}"),
    }
    Ok(())
}
