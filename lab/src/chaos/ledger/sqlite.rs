use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

use super::{Entry, Error, OPENING_BALANCE, SEE, Store, Transfer, signed, unsigned, update};

/// How long a transaction waits for another to end. A worker may be stopped in the middle of one.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Sqlite(Connection);

impl Sqlite {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        // The file is deleted after the run, so no write needs to reach the disk.
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")?;
        Ok(Self(connection))
    }
}

impl Store for Sqlite {
    fn create(&mut self, accounts: usize) -> Result<(), Error> {
        let transaction = self.0.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, token INTEGER NOT NULL);
             CREATE TABLE journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, op INTEGER, debit INTEGER, credit INTEGER,
               amount INTEGER, debit_read INTEGER, credit_read INTEGER, debit_token INTEGER, credit_token INTEGER)",
        )?;
        for account in 0..accounts {
            transaction.execute("INSERT INTO account VALUES (?1, ?2, 0)", params![signed(account), OPENING_BALANCE])?;
        }
        Ok(transaction.commit()?)
    }

    fn read(&mut self, accounts: [usize; 2], tokens: Option<[i64; 2]>) -> Result<Option<[i64; 2]>, Error> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (account, token) in accounts.into_iter().zip(tokens.into_iter().flatten()) {
            if transaction.execute(SEE, params![token, signed(account)])? == 0 {
                return Ok(None);
            }
        }
        let balance = |account: usize| {
            transaction.query_row("SELECT balance FROM account WHERE id = ?1", [signed(account)], |row| row.get(0))
        };
        let balances = [balance(accounts[0])?, balance(accounts[1])?];
        transaction.commit()?;
        Ok(Some(balances))
    }

    fn write(&mut self, transfer: &Transfer, fenced: bool) -> Result<bool, Error> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (account, balance, token) in transfer.results() {
            if transaction.execute(update(fenced), params![balance, token, account])? == 0 {
                return Ok(false);
            }
        }
        transaction.execute(
            "INSERT INTO journal VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                transfer.op.cast_signed(),
                signed(transfer.from),
                signed(transfer.to),
                transfer.amount,
                transfer.balances[0],
                transfer.balances[1],
                transfer.tokens[0],
                transfer.tokens[1]
            ],
        )?;
        transaction.commit()?;
        Ok(true)
    }

    fn audit(&mut self) -> Result<(Vec<i64>, Vec<Entry>), Error> {
        let transaction = self.0.transaction()?;
        let balances = transaction
            .prepare("SELECT balance FROM account ORDER BY id")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let entry = |row: &rusqlite::Row<'_>| {
            Ok(Entry {
                op: row.get::<_, i64>(1)?.cast_unsigned(),
                accounts: [unsigned(row.get(2)?), unsigned(row.get(3)?)],
                amount: row.get(4)?,
                balances: [row.get(5)?, row.get(6)?],
                tokens: [row.get(7)?, row.get(8)?],
            })
        };
        let journal = transaction
            .prepare("SELECT * FROM journal ORDER BY seq")?
            .query_map([], entry)?
            .collect::<Result<_, _>>()?;
        Ok((balances, journal))
    }

    /// The file goes with its folder.
    fn remove(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
