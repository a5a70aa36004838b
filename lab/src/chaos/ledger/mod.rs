//! Accounts in a real database, which the lock protects. A transfer reads two balances, waits, and writes both back. The
//! database refuses a write whose token is smaller than the largest one that an account has seen.

mod audit;
mod postgres;
mod sqlite;
mod store_thread;

use std::path::PathBuf;
use std::str::FromStr;

pub use audit::{Audit, Entry};
pub use store_thread::StoreThread;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The initial balance of every account.
pub const OPENING_BALANCE: i64 = 1000;

/// Where the accounts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Sqlite(PathBuf),
    /// The schema is a run's own.
    Postgres {
        url: String,
        schema: String,
    },
}

impl Place {
    pub fn open(&self) -> Result<Box<dyn Store>, Error> {
        Ok(match self {
            Self::Sqlite(path) => Box::new(sqlite::Sqlite::open(path)?),
            Self::Postgres { url, schema } => Box::new(postgres::Postgres::open(url, schema)?),
        })
    }

    /// Returns the text for the environment of a worker: a URL may hold a password.
    pub fn to_text(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite {}", path.display()),
            Self::Postgres { url, schema } => format!("postgres {schema} {url}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = match text.split_once(' ') {
            Some(("sqlite", path)) => Some(Self::Sqlite(path.into())),
            Some(("postgres", rest)) => rest
                .split_once(' ')
                .map(|(schema, url)| Self::Postgres { url: url.to_owned(), schema: schema.to_owned() }),
            _ => None,
        };
        place.ok_or_else(|| "no place of a ledger".to_owned())
    }
}

/// A transfer as it is written: both balances were read before, and both are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub op: u64,
    pub from: usize,
    pub to: usize,
    pub amount: i64,
    /// The balances that were read.
    pub balances: [i64; 2],
    /// One for each account.
    pub tokens: [i64; 2],
}

impl Transfer {
    /// Returns the balances to store.
    fn results(&self) -> [(i64, i64, i64); 2] {
        [
            (signed(self.from), self.balances[0] - self.amount, self.tokens[0]),
            (signed(self.to), self.balances[1] + self.amount, self.tokens[1]),
        ]
    }
}

/// One connection to the database. Reads and writes are transactions of their own, so only the lock and its token keep an
/// update from being lost.
pub trait Store: Send {
    /// Creates the tables with this number of accounts.
    fn create(&mut self, accounts: usize) -> Result<(), Error>;

    /// Reads both balances. With tokens, the accounts store them, so no writer with an older token can write between this
    /// read and the write that follows. Returns `None` when an account has seen a larger token.
    fn read(&mut self, accounts: [usize; 2], tokens: Option<[i64; 2]>) -> Result<Option<[i64; 2]>, Error>;

    /// Writes both balances and a line in the journal, or nothing. `fenced`: `false` when the database refuses because
    /// an account has seen a larger token.
    fn write(&mut self, transfer: &Transfer, fenced: bool) -> Result<bool, Error>;

    /// All balances, and the journal in the order in which the database accepted it.
    fn audit(&mut self) -> Result<(Vec<i64>, Vec<Entry>), Error>;

    /// Removes the tables.
    fn remove(&mut self) -> Result<(), Error>;
}

/// SQL has no unsigned numbers.
fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reverses `signed`.
fn unsigned(number: i64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Stores a token (`$1`) that an account has seen.
const SEE: &str = "UPDATE account SET token = $1 WHERE id = $2 AND token <= $1";

/// Returns the statement that updates an account; `$1` is the balance, `$2` the token, `$3` the account. Both databases accept it.
fn update(fenced: bool) -> &'static str {
    if fenced {
        "UPDATE account SET balance = $1, token = $2 WHERE id = $3 AND token <= $2"
    } else {
        "UPDATE account SET balance = $1, token = $2 WHERE id = $3"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(op: u64, balances: [i64; 2], token: i64) -> Transfer {
        Transfer { op, from: 0, to: 1, amount: 10, balances, tokens: [token, token] }
    }

    /// Checks the fencing of a store.
    fn fences(store: &mut dyn Store) {
        store.create(3).expect("tables");
        let read = [OPENING_BALANCE; 2];
        assert_eq!(store.read([0, 1], Some([5, 5])).expect("balances"), Some(read));
        assert_eq!(store.read([0, 1], Some([4, 6])).expect("balances"), None, "an older token");
        assert!(!store.write(&transfer(9, read, 4), true).expect("a write"), "a newer token has read");
        assert!(store.write(&transfer(1, read, 5), true).expect("a write"));
        assert!(!store.write(&transfer(2, read, 4), true).expect("a write"), "an older token");
        assert_eq!(store.read([0, 1], None).expect("balances"), Some([990, 1010]), "a refused write leaves nothing");
        assert!(store.write(&transfer(3, [990, 1010], 5), true).expect("a write"), "the same token again");
        assert!(store.write(&transfer(4, read, 4), false).expect("a write"), "no token is checked");
        let (balances, journal) = store.audit().expect("the journal");
        assert_eq!(balances, [990, 1010, 1000]);
        assert_eq!(journal.iter().map(|entry| entry.op).collect::<Vec<_>>(), [1, 3, 4]);
        let audit = Audit::of(&balances, &journal);
        assert_eq!((audit.lost_updates, audit.stale_accepted), (2, 2), "one on each account");
    }

    #[test]
    fn sqlite_refuses_stale_tokens() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = Place::Sqlite(dir.path().join("ledger")).open().expect("a database");
        fences(store.as_mut());
    }

    #[test]
    fn a_ledger_place_round_trips_as_text() {
        let places = [
            Place::Sqlite("/tmp/a b/ledger".into()),
            Place::Postgres { url: "postgres://me:x@host/db".to_owned(), schema: "s1".to_owned() },
        ];
        for place in places {
            assert_eq!(place.to_text().parse(), Ok(place));
        }
        assert!("elsewhere".parse::<Place>().is_err());
    }
}
