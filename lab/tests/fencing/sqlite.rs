use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, Error, types::Value};
use tempfile::TempDir;

use crate::checks::Refusal;
use crate::database::{Database, Session, TABLE};

/// Set while a connection waits for the lock of the file. A busy handler has no state of its own.
static HAS_WAITED: AtomicBool = AtomicBool::new(false);

/// A database file.
pub struct Sqlite(TempDir);

impl Sqlite {
    pub fn start(script: &str) -> Self {
        let sqlite = Self(tempfile::tempdir().expect("a temporary folder"));
        sqlite.open().execute_batch(&format!("{script};{TABLE}")).expect("the file is SQL");
        sqlite
    }

    fn open(&self) -> Connection {
        let connection = Connection::open(self.0.path().join("data")).expect("a database");
        connection.busy_handler(Some(wait)).expect("no statement runs");
        connection.execute_batch("PRAGMA synchronous = OFF").expect("a known pragma");
        connection
    }
}

/// Waits for ever, until the other transaction ends.
fn wait(_times: i32) -> bool {
    HAS_WAITED.store(true, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(1));
    true
}

impl Database for Sqlite {
    fn connect(&self) -> Box<dyn Session> {
        Box::new(self.open())
    }

    fn begin(&self) -> &'static str {
        "BEGIN IMMEDIATE"
    }

    fn fence(&self, resource: &str, token: &str) -> String {
        format!("REPLACE INTO fence VALUES ('{resource}', {token})")
    }

    fn is_waiting(&self) -> bool {
        HAS_WAITED.swap(false, Ordering::Relaxed)
    }
}

impl Session for Connection {
    fn run(&mut self, statement: &str) -> Result<String, Refusal> {
        let mut last = String::new();
        let mut run = || {
            let mut statement = self.prepare(statement)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let Value::Integer(number) = row.get(0)? {
                    last = number.to_string();
                }
            }
            Ok(())
        };
        run().map_err(|error| match error {
            Error::SqliteFailure(_, Some(text)) if text == "stale fencing token" => Refusal::Stale,
            error => Refusal::Other(error.to_string()),
        })?;
        Ok(last)
    }
}
