//! The files of `docs/fencing` on real databases: an older token is refused, on reads and on writes. Each file is also broken on
//! purpose, and the checks must catch that.

mod checks;
mod database;
mod mysql;
mod postgresql;
mod redis;
mod sqlite;

use checks::{expect, race, tokens};
use database::{BegunBy, Database, NO_WAIT, Transactions, overlap};

/// Checks the file of a database.
fn check(database: &dyn Database) -> Result<(), String> {
    tokens(&mut Transactions::new(database), &mut Transactions::new(database))?;
    race(|| Transactions::new(database))?;
    overlap(database)?;
    // No transaction.
    let outside = overlap(&BegunBy(database, "SELECT 1"));
    expect("the fence outside of a transaction", &outside, &Err(NO_WAIT.to_owned()))
}

/// Requires that a file passes, and that it fails with each of these replacements, whose first words are once in the file.
fn check_with_breaks(script: &str, breaks: &[(&str, &str)], check: impl Fn(&str) -> Result<(), String>) {
    assert_eq!(check(script), Ok(()));
    for (right, wrong) in breaks {
        assert_eq!(script.matches(right).count(), 1, "{right}");
        let caught = check(&script.replace(right, wrong));
        println!("{right} -> {wrong}: {caught:?}");
        assert!(caught.is_err(), "{wrong} in place of {right} is not caught");
    }
}

#[test]
fn sqlite_refuses_older_tokens() {
    let breaks = [
        ("NEW.token <", "NEW.token <="),
        ("NEW.token <", "NEW.token >"),
        ("SELECT RAISE(ROLLBACK, 'stale fencing token')", "SELECT 0"),
        ("resource = NEW.resource", "resource <> ''"),
        ("CHECK (token > 0)", ""),
    ];
    let script = include_str!("../../../docs/fencing/sqlite.sql");
    check_with_breaks(script, &breaks, |script| check(&sqlite::Sqlite::start(script)));
}

#[test]
fn postgresql_refuses_older_tokens() {
    let Some(server) = postgresql::Postgresql::start() else {
        return println!("skipped: PostgreSQL is not installed (Debian, Ubuntu: apt-get install postgresql)");
    };
    let breaks = [
        ("stored.token <= excluded.token", "stored.token < excluded.token"),
        ("stored.token <= excluded.token", "true"),
        ("IF NOT FOUND", "IF false"),
        ("SET token = excluded.token", "SET token = stored.token"),
        ("CHECK (token > 0)", ""),
    ];
    let script = include_str!("../../../docs/fencing/postgresql.sql");
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        assert_eq!(check(&server.load(script, isolation)), Ok(()), "{isolation}");
    }
    check_with_breaks(script, &breaks, |script| check(&server.load(script, "READ COMMITTED")));
}

#[test]
fn mysql_refuses_older_tokens() {
    let Some(server) = mysql::Mariadb::start() else {
        return println!("skipped: MariaDB is not installed (Debian, Ubuntu: apt-get install mariadb-server)");
    };
    let breaks = [
        ("largest > new_token", "largest >= new_token"),
        ("largest > new_token", "false"),
        ("GREATEST(", "LEAST("),
        ("token = GREATEST(token, new_token)", "token = token"),
        ("CHECK (token > 0)", ""),
    ];
    let script = include_str!("../../../docs/fencing/mysql.sql");
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        assert_eq!(check(&server.load(script, isolation)), Ok(()), "{isolation}");
    }
    let database = server.load(script, "REPEATABLE READ");
    let early = overlap(&BegunBy(&database, "START TRANSACTION WITH CONSISTENT SNAPSHOT"));
    assert!(early.is_err(), "a snapshot from before the fence is older than the last write");
    check_with_breaks(script, &breaks, |script| check(&server.load(script, "REPEATABLE READ")));
}

#[test]
fn redis_refuses_older_tokens() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = quorlock_testkit::server::Server::start(dir.path().join("redis"), &[], &[]).expect("a redis-server");
    let breaks = [
        ("token < largest", "token <= largest"),
        ("token < largest", "token > largest"),
        ("redis.call('SET', KEYS[1], ARGV[1])", ""),
        ("'^[1-9]%d*$'", "'.*'"),
    ];
    check_with_breaks(include_str!("../../../docs/fencing/redis.lua"), &breaks, |script| {
        let open = || redis::Script::open(&server, script);
        tokens(&mut open(), &mut open())?;
        race(open)
    });
}
