//! Election: of several copies of this program one leads at a time. Start two of them, and end the leader (Ctrl-C), or revoke it.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example leader`, also in another terminal. To depose the leader:
//! `quorlock release scheduler --force`; to see an outage: `cluster/pause 1 2 3`, and afterwards `cluster/resume 1 2 3`.
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::time::Duration;

use quorlock::{Guard, Leadership, Quorlock};
use tokio::time::sleep;

/// The work of one term. It is dropped when the leader steps down; its writes carry the token. It resigns after 20 jobs.
async fn lead(term: &Guard) -> Result<ControlFlow<()>, Infallible> {
    for job in 1..=20 {
        println!("job {job:>2} of term {}", term.token());
        sleep(Duration::from_millis(500)).await;
    }
    Ok(ControlFlow::Continue(()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).lease(Duration::from_secs(3)).connect().await?;
    let mut leaders = locks.observe("scheduler");
    tokio::spawn(async move {
        while let Ok(leadership) = leaders.changed().await {
            match leadership {
                Leadership::Led(leader) => println!("{} leads", leader.label),
                other => println!("no leader: {other:?}"),
            }
        }
    });
    Ok(locks.elect("scheduler").run(lead).await?)
}
