//! Re-entry: a function that holds a lock calls others that take the same lock, and no function waits for itself.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example reentrant`.
use quorlock::{AcquireError, Guard, Owner, Quorlock};

/// Gets the owner of the lock as an argument, and re-enters as that owner.
async fn inner_by_owner(locks: &Quorlock, owner: &Owner) -> Result<(), AcquireError> {
    let guard = locks.lock("report:daily").owner(owner).acquire().await?;
    show("  inner, by owner", &guard);
    Ok(()) // Dropping the guard gives this hold back; the outer one stays.
}

/// Gets no owner: it re-enters as the owner in whose scope it runs.
async fn inner_by_scope(locks: &Quorlock) -> Result<(), AcquireError> {
    let guard = locks.lock("report:daily").acquire().await?;
    show("  inner, by scope", &guard);
    Ok(())
}

fn show(who: &str, guard: &Guard) {
    println!("{who:<18} depth {}, token {}", guard.hold_count(), guard.token());
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).connect().await?;
    let guard = locks.lock("report:daily").acquire().await?;
    show("outer", &guard);
    inner_by_owner(&locks, guard.owner()).await?;
    guard.owner().scope(inner_by_scope(&locks)).await?;
    show("outer again", &guard);

    // Without the owner it counts as another owner, although it is the same task of the same process.
    match locks.lock("report:daily").try_acquire().await {
        Ok(_) => println!("another owner got the lock"),
        Err(refused) => println!("another owner is refused: {refused}"),
    }
    println!("given back: {:?}", guard.release().await?);
    Ok(())
}
