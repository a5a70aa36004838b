//! quorlock, by its public interface.

use quorlock::{Guard, Owner, Quorlock};

use super::{LEASE, Locker};
use crate::exit::Failure;

/// Returns the prefix for a cluster of this number of nodes. No lock in use on given nodes has it. Nodes store the number of
/// nodes in the list for each prefix, so clusters of several sizes need one prefix each.
pub fn lock_prefix(nodes: usize) -> String {
    format!("quorlock:bench:{nodes}:lock:")
}

#[derive(Clone)]
pub struct Ours {
    pub locks: Quorlock,
}

impl Ours {
    pub async fn connect(urls: &[String]) -> Result<Self, Failure> {
        let locks = Quorlock::builder().nodes(urls).prefix(lock_prefix(urls.len())).lease(LEASE).connect().await?;
        // Nodes that have just started may be in quarantine for a lease.
        let guard = locks.lock("first").wait(2 * LEASE).acquire().await?;
        drop(guard);
        locks.flush().await;
        Ok(Self { locks })
    }
}

impl Locker for Ours {
    type Hold = Guard;

    async fn acquire(&mut self, name: &str) -> Option<Guard> {
        self.locks.lock(name).acquire().await.ok()
    }

    async fn release(&mut self, hold: Guard) -> bool {
        hold.release().await.is_ok()
    }

    async fn acquire_all(&mut self, names: &[String]) -> Option<Vec<Guard>> {
        Some(vec![self.locks.lock_all(names).acquire().await.ok()?])
    }

    async fn settle(&mut self) {
        self.locks.flush().await;
    }
}

/// Re-enters the one lock that it already holds, for any name.
#[derive(Clone)]
pub struct Nested {
    pub locks: Quorlock,
    pub owner: Owner,
    pub name: &'static str,
}

impl Locker for Nested {
    type Hold = Guard;

    async fn acquire(&mut self, _: &str) -> Option<Guard> {
        self.locks.lock(self.name).owner(&self.owner).acquire().await.ok()
    }

    async fn release(&mut self, hold: Guard) -> bool {
        hold.release().await.is_ok()
    }
}
