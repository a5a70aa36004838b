//! The smallest program: take a lock, show its fencing token, give it back.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example hello`.
use quorlock::Quorlock;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).connect().await?;
    let guard = locks.lock("account:42").acquire().await?;
    println!("holding account:42 with token {} for {:?}", guard.token(), guard.remaining());
    println!("given back: {:?}", guard.release().await?);
    Ok(())
}
