//! A queue of jobs in SQLite: several workers, one job at a time for each key, and the next worker takes over from one that dies.
//!
//! `eval "$(cluster/up)"`, then `cargo run -p quorlock-examples --features sqlite --example jobs`, in two terminals.
//! Add jobs by `sqlite3 jobs.db "INSERT INTO job (key) VALUES ('a'), ('b'), ('a')"`, and kill a worker. A job that was begun by
//! a worker that died is done again.
use std::time::Duration;

use quorlock::{ErrorKind, Guard, Quorlock};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use tokio::time::sleep;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn open() -> rusqlite::Result<Connection> {
    let database = Connection::open("jobs.db")?;
    database.busy_timeout(Duration::from_secs(5))?;
    Ok(database)
}

/// The keys with open jobs.
fn keys() -> rusqlite::Result<Vec<String>> {
    open()?.prepare("SELECT DISTINCT key FROM job WHERE done_by IS NULL")?.query_map([], |row| row.get(0))?.collect()
}

/// One transaction under the lock `key`, on a thread for blocking work.
async fn fenced<T: Send + 'static>(
    guard: &Guard,
    key: &str,
    work: impl FnOnce(&Transaction) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (key, token) = (key.to_owned(), guard.token().as_i64());
    let run = move || {
        let mut database = open()?;
        let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("REPLACE INTO fence VALUES (?1, ?2)", (key, token))?;
        let output = work(&transaction)?;
        transaction.commit()?;
        Ok(output)
    };
    tokio::task::spawn_blocking(run).await?
}

/// Works off the open jobs of a key.
async fn drain(guard: &Guard, key: &str) -> Result<(), Failure> {
    loop {
        let of = key.to_owned();
        let next = "SELECT id FROM job WHERE key = ?1 AND done_by IS NULL ORDER BY id LIMIT 1";
        let Some(id) =
            fenced(guard, key, move |t| t.query_one(next, [of], |row| row.get::<_, i64>(0)).optional()).await?
        else {
            return Ok(());
        };
        println!("job {id} of {key}, token {}", guard.token());
        sleep(Duration::from_secs(1)).await; // the work
        let token = guard.token().as_i64();
        fenced(guard, key, move |t| t.execute("UPDATE job SET done_by = ?2 WHERE id = ?1", (id, token))).await?;
    }
}

/// Takes the lock of one key after the other, if no other worker has it.
async fn worker(locks: &Quorlock) -> Result<(), Failure> {
    loop {
        let keys = tokio::task::spawn_blocking(keys).await??;
        for key in &keys {
            match locks.lock(key).wait(Duration::ZERO).run(async |guard| drain(guard, key).await).await {
                Err(error) if error.kind() == Some(ErrorKind::Held) => {}
                Err(error) => eprintln!("{key}: {error}"),
                Ok(()) => {}
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    open()?.execute_batch(include_str!("../docs/fencing/sqlite.sql"))?;
    open()?
        .execute_batch("CREATE TABLE IF NOT EXISTS job (id INTEGER PRIMARY KEY, key TEXT NOT NULL, done_by INTEGER)")?;
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).lease(Duration::from_secs(3)).connect().await?;
    worker(&locks).await
}
