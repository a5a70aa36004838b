//! What the SQL databases have in common.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::checks::{Fenced, Refusal, again, expect, new_resource};

/// The table of the numbers.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS account (name VARCHAR(99) PRIMARY KEY, balance BIGINT NOT NULL)";

/// A server may take this long to start, or to come to where a transaction waits.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A database with the file loaded.
pub trait Database: Sync {
    fn connect(&self) -> Box<dyn Session>;
    /// Begins a transaction, by the statement that the head of the file shows.
    fn begin(&self) -> &'static str;
    /// Passes the fence, by the statement that the head of the file shows.
    fn fence(&self, resource: &str, token: &str) -> String;
    /// Returns whether a transaction waits for another one, or has waited since the last call.
    fn is_waiting(&self) -> bool;
}

/// A connection.
pub trait Session: Send {
    /// Executes one statement. Returns the first field of its last row, or an empty text.
    fn run(&mut self, statement: &str) -> Result<String, Refusal>;
}

/// Each call is a transaction that passes the fence first.
pub struct Transactions<'a> {
    database: &'a dyn Database,
    session: Box<dyn Session>,
}

impl<'a> Transactions<'a> {
    pub fn new(database: &'a dyn Database) -> Self {
        Self { database, session: database.connect() }
    }

    fn begin(&mut self, resource: &str, token: &str) -> Result<(), Refusal> {
        self.run(self.database.begin())?;
        self.run(&self.database.fence(resource, token)).map(drop)
    }

    fn balance(&mut self, resource: &str) -> Result<i64, Refusal> {
        let balance = self.run(&format!("SELECT balance FROM account WHERE name = '{resource}'"))?;
        balance.parse().map_err(|_| Refusal::Other(format!("a balance of {balance:?}")))
    }

    fn set_balance(&mut self, resource: &str, balance: i64) -> Result<(), Refusal> {
        self.run(&format!("UPDATE account SET balance = {balance} WHERE name = '{resource}'")).map(drop)
    }

    /// Executes one statement, and ends the transaction if that fails.
    fn run(&mut self, statement: &str) -> Result<String, Refusal> {
        self.session.run(statement).inspect_err(|_| {
            // SQLite has rolled back by then, and has no transaction.
            drop(self.session.run("ROLLBACK"));
        })
    }
}

impl Fenced for Transactions<'_> {
    fn create(&mut self, resource: &str) {
        let created = again(|| self.run(&format!("INSERT INTO account VALUES ('{resource}', 0)")));
        created.expect("a new account");
    }

    fn read(&mut self, resource: &str, token: &str) -> Result<i64, Refusal> {
        self.begin(resource, token)?;
        let balance = self.balance(resource)?;
        self.run("COMMIT").map(|_| balance)
    }

    fn write(&mut self, resource: &str, token: &str, value: i64) -> Result<(), Refusal> {
        self.begin(resource, token)?;
        self.set_balance(resource, value)?;
        self.run("COMMIT").map(drop)
    }

    fn update(&mut self, resource: &str, token: &str, change: fn(i64) -> i64) -> Result<(), Refusal> {
        self.begin(resource, token)?;
        let balance = self.balance(resource)?;
        self.set_balance(resource, change(balance))?;
        self.run("COMMIT").map(drop)
    }
}

/// The error when the fence does not hold the second holder back.
pub const NO_WAIT: &str = "the second holder did not wait for the first one";

/// Two holders, each in a transaction. The second one waits at the fence until the first transaction has ended.
pub fn overlap(database: &dyn Database) -> Result<(), String> {
    for has_row in [false, true] {
        let pass = |first, second, end| wait_at_the_fence(database, has_row, first, second, end);
        expect("an older holder, then a newer one", &pass("2", "3", "COMMIT")?, &(Ok(()), 11))?;
        expect("a newer holder, then an older one", &pass("3", "2", "COMMIT")?, &(Err(Refusal::Stale), 1))?;
        expect("a holder beside itself", &pass("2", "2", "COMMIT")?, &(Ok(()), 11))?;
        expect("a newer holder that rolls back", &pass("3", "2", "ROLLBACK")?, &(Ok(()), 10))?;
    }
    Ok(())
}

/// Runs a transaction that adds 1 up to the commit, which another one that adds 10 waits for. Returns the result of the second
/// one, and the balance.
fn wait_at_the_fence(
    database: &dyn Database,
    has_row: bool,
    first: &str,
    second: &str,
    end: &str,
) -> Result<(Result<(), Refusal>, i64), String> {
    let account = new_resource();
    let mut front = Transactions::new(database);
    front.create(&account);
    if has_row {
        front.read(&account, "1").map_err(|error| format!("the row: {error:?}"))?;
    }
    let mut back = Transactions::new(database);
    let failed = |error| format!("the first holder: {error:?}");
    front.begin(&account, first).map_err(failed)?;
    let balance = front.balance(&account).map_err(failed)?;
    database.is_waiting();
    let result = thread::scope(|scope| {
        let back = scope.spawn(|| again(|| back.update(&account, second, |balance| balance + 10)));
        let deadline = Instant::now() + LIMIT;
        while !back.is_finished() && !database.is_waiting() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let has_waited = !back.is_finished();
        let written = front.set_balance(&account, balance + 1).and_then(|()| front.run(end).map(drop));
        let result = back.join().expect("no panic");
        if !has_waited {
            return Err(NO_WAIT.to_owned());
        }
        written.map_err(failed).map(|()| result)
    })?;
    let balance = front.balance(&account).map_err(|error| format!("the balance: {error:?}"))?;
    Ok((result, balance))
}

/// The same database, where this statement stands in place of the one that begins a transaction.
pub struct BegunBy<'a>(pub &'a dyn Database, pub &'static str);

impl Database for BegunBy<'_> {
    fn connect(&self) -> Box<dyn Session> {
        self.0.connect()
    }

    fn begin(&self) -> &'static str {
        self.1
    }

    fn fence(&self, resource: &str, token: &str) -> String {
        self.0.fence(resource, token)
    }

    fn is_waiting(&self) -> bool {
        self.0.is_waiting()
    }
}

/// Returns the path of a program, which may also be in one of these folders.
pub fn find(program: &str, folders: &[&Path]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(folders.iter().map(|folder| folder.to_path_buf()));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Runs a command to its end.
pub fn execute(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("a program that was found");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Tries until something is there, while a server starts.
pub fn await_start<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Ok(there) => return there,
            Err(error) => assert!(Instant::now() < deadline, "the server does not start: {error:?}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server process. It ends when this is dropped, and also when the process of the test ends in any way.
pub struct ServerProcess(Child);

impl ServerProcess {
    /// Starts a server that this signal stops at once. The command has only a program and arguments. `user` is a user id.
    pub fn start(server: &Command, signal: &str, user: Option<u32>) -> Self {
        // Standard input ends when the test does.
        const SCRIPT: &str = r#"trap '' INT; signal=$1; shift; "$@" </dev/null & cat; kill -s "$signal" $!; wait"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "sh", signal]).arg(server.get_program()).args(server.get_args());
        if let Some(user) = user {
            shell.uid(user);
        }
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(shell.spawn().expect("a shell"))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
