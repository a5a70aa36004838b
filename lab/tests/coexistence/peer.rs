//! One lock client beside quorlock, whichever it is.

use std::collections::HashMap;
use std::time::Duration;

use rslock::{Lock, LockManager};

use crate::program::Program;

/// Another lock client. It keeps the last lock of each name, also after its release.
pub enum Peer {
    Rslock { locks: LockManager, held: HashMap<String, Lock> },
    Program(Box<Program>),
}

/// How to start a client of the nodes with these URLs.
pub type Start = fn(&[String]) -> Peer;

impl Peer {
    pub fn rslock(urls: &[String]) -> Self {
        Self::Rslock { locks: LockManager::new(urls.to_vec()), held: HashMap::new() }
    }

    pub fn redlock_4(urls: &[String]) -> Self {
        Self::Program(Box::new(Program::node("redlock-4", urls)))
    }

    pub fn redlock_5(urls: &[String]) -> Self {
        Self::Program(Box::new(Program::node("redlock-5", urls)))
    }

    pub fn redlock_py(urls: &[String]) -> Self {
        Self::Program(Box::new(Program::python("redlock", urls)))
    }

    pub fn redis_py_lock(urls: &[String]) -> Self {
        Self::Program(Box::new(Program::python("redis", urls)))
    }

    /// Tries once, and returns whether the lock was granted.
    pub async fn try_acquire(&mut self, name: &str, ttl: Duration) -> bool {
        match self {
            Self::Rslock { locks, held } => {
                let mut once = locks.clone();
                once.set_retry(1, Duration::from_millis(1));
                let granted = once.lock(name, ttl).await;
                granted.map(|lock| held.insert(name.to_owned(), lock)).is_ok()
            }
            Self::Program(program) => program.ask(&format!("try {name} {}", ttl.as_millis())).await,
        }
    }

    /// Waits for the lock in the manner of the client.
    pub async fn acquire(&mut self, name: &str, ttl: Duration) {
        match self {
            Self::Rslock { locks, held } => {
                let lock = locks.acquire_no_guard(name, ttl).await.expect("a time that fits");
                held.insert(name.to_owned(), lock);
            }
            Self::Program(program) => assert!(program.ask(&format!("wait {name} {}", ttl.as_millis())).await),
        }
    }

    /// Extends the last lock of this name, and returns whether the client has confirmed that.
    pub async fn extend(&mut self, name: &str, ttl: Duration) -> bool {
        match self {
            Self::Rslock { locks, held } => {
                let extended = locks.extend(&held[name], ttl).await;
                extended.map(|lock| held.insert(name.to_owned(), lock)).is_ok()
            }
            Self::Program(program) => program.ask(&format!("extend {name} {}", ttl.as_millis())).await,
        }
    }

    /// Releases the last lock of this name. Not every client says whether it was held.
    pub async fn release(&mut self, name: &str) {
        match self {
            Self::Rslock { locks, held } => locks.unlock(&held[name]).await,
            Self::Program(program) => drop(program.ask(&format!("release {name}")).await),
        }
    }
}
