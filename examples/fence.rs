//! Fencing in the database: a transfer between two accounts in SQLite, with the tokens of its locks in the same transaction.
//!
//! `eval "$(cluster/up)"`, then `cargo run -p quorlock-examples --features sqlite --example fence`.
use quorlock::{Quorlock, Token};
use rusqlite::{Connection, TransactionBehavior};

/// Accounts have the names of their locks.
const NAMES: [&str; 2] = ["account:0", "account:1"];

/// Moves `amount` from the first account to the second one. Fails when one of them has seen a newer token.
fn transfer(database: &mut Connection, tokens: [Token; 2], amount: i64) -> rusqlite::Result<()> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (name, token) in NAMES.into_iter().zip(tokens) {
        transaction.execute("REPLACE INTO fence VALUES (?1, ?2)", (name, token.as_i64()))?;
    }
    let balance = "SELECT balance FROM account WHERE name = ?1";
    let [from, to] = NAMES.map(|name| transaction.query_one(balance, [name], |row| row.get::<_, i64>(0)));
    let update = "UPDATE account SET balance = ?2 WHERE name = ?1";
    transaction.execute(update, (NAMES[0], from? - amount))?;
    transaction.execute(update, (NAMES[1], to? + amount))?;
    transaction.commit()
}

/// Takes both locks. Returns their tokens, and releases the locks: as if the holder had slept until its lease was over.
async fn tokens(locks: &Quorlock) -> Result<[Token; 2], Box<dyn std::error::Error>> {
    let guard = locks.lock_all(NAMES).acquire().await?;
    let tokens = NAMES.map(|name| guard.token_of(name).expect("the guard has both names"));
    guard.release().await?;
    Ok(tokens)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).connect().await?;
    let mut database = Connection::open_in_memory()?;
    database.execute_batch(include_str!("../docs/fencing/sqlite.sql"))?;
    database.execute_batch(
        "CREATE TABLE account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL);
         INSERT INTO account VALUES ('account:0', 1000), ('account:1', 1000)",
    )?;

    let old = tokens(&locks).await?;
    let guard = locks.lock_all(NAMES).acquire().await?;
    let new = NAMES.map(|name| guard.token_of(name).expect("the guard has both names"));
    // It blocks the thread. In a program with more to do, run it by `spawn_blocking`.
    transfer(&mut database, new, 30)?;
    println!("a transfer with tokens {} and {}: done", new[0], new[1]);
    guard.release().await?;

    let late = transfer(&mut database, old, 500);
    println!("a late transfer with tokens {} and {}: {}", old[0], old[1], late.expect_err("the tokens are older"));
    let books = "SELECT group_concat(name || ': ' || balance, ', ') FROM account";
    let books: String = database.query_one(books, [], |row| row.get(0))?;
    println!("{books} (expected 970 and 1030)");
    Ok(())
}
