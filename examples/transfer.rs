//! Two locks at once: transfers that name their accounts in opposite orders do not deadlock.
//!
//! `eval "$(cluster/up)"`, then `cargo run --example transfer`.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorlock::{Quorlock, Token};

/// A stand-in for a row of a database. It stores the newest token it has seen, and refuses a write with an older one.
#[derive(Default)]
struct Account(Mutex<(i64, Option<Token>)>);

impl Account {
    /// As SQL: `UPDATE account SET token = $1 WHERE id = $2 AND token <= $1 RETURNING balance`. A read that
    /// a write follows passes the token, or an older holder could still write in between.
    fn read(&self, token: Option<Token>) -> Result<i64, String> {
        self.show(token).map(|row| row.0)
    }

    /// As SQL: `UPDATE account SET balance = $1, token = $2 WHERE id = $3 AND token <= $2`.
    fn write(&self, balance: i64, token: Option<Token>) -> Result<(), String> {
        self.show(token).map(|mut row| row.0 = balance)
    }

    fn show(&self, token: Option<Token>) -> Result<MutexGuard<'_, (i64, Option<Token>)>, String> {
        let mut row = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if token < row.1 {
            return Err("refused: a newer holder has been here".to_owned());
        }
        row.1 = token;
        Ok(row)
    }
}

type Accounts = Arc<[Account; 2]>;
const NAMES: [&str; 2] = ["account:0", "account:1"];

/// Moves `amount` between two accounts, ten times. Returns the token of the first one.
async fn transfer(locks: Quorlock, accounts: Accounts, from: usize, to: usize, amount: i64) -> Result<Token, String> {
    let mut first = None;
    for _ in 0..10 {
        let guard = locks.lock_all([NAMES[from], NAMES[to]]).acquire().await.map_err(|error| error.to_string())?;
        let tokens = (guard.token_of(NAMES[from]), guard.token_of(NAMES[to]));
        let (a, b) = (accounts[from].read(tokens.0)?, accounts[to].read(tokens.1)?);
        tokio::time::sleep(Duration::from_millis(2)).await; // A second transfer at this point would lose an update.
        accounts[from].write(a - amount, tokens.0)?;
        accounts[to].write(b + amount, tokens.1)?;
        first.get_or_insert(guard.token());
        guard.release().await.map_err(|error| error.to_string())?;
    }
    println!("ten times {amount:>2} from {} to {}: done", NAMES[from], NAMES[to]);
    first.ok_or_else(|| "nothing was transferred".to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::var("QUORLOCK_NODES").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let locks = Quorlock::builder().nodes(nodes.split(',')).connect().await?;
    let accounts = Accounts::default();
    for account in accounts.iter() {
        account.write(1000, None)?;
    }
    let there = tokio::spawn(transfer(locks.clone(), Arc::clone(&accounts), 0, 1, 10));
    let back = tokio::spawn(transfer(locks.clone(), Arc::clone(&accounts), 1, 0, 3));
    let (old, _) = (there.await??, back.await??);
    let newest = locks.lock_all(NAMES).acquire().await?;
    let [a, b] = [accounts[0].read(newest.token_of(NAMES[0]))?, accounts[1].read(newest.token_of(NAMES[1]))?];
    newest.release().await?;
    println!("{}: {a}, {}: {b}, together {} (expected 930, 1070, 2000)", NAMES[0], NAMES[1], a + b);

    println!("a write that comes late, with token {old}: {:?}", accounts[0].write(0, Some(old)));
    Ok(())
}
