use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use postgres::error::SqlState;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tempfile::TempDir;

use crate::checks::Refusal;
use crate::database::{Database, ServerProcess, Session, TABLE, await_start, execute, find};

/// PostgreSQL does not run as root. This user has no files.
const UNPRIVILEGED: u32 = 65534;

/// A server with one database, which only a socket in its folder reaches. It ends before the folder is deleted.
pub struct Postgresql {
    _process: ServerProcess,
    dir: TempDir,
}

impl Postgresql {
    /// Returns `None` where PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        // Debian has a folder for each version.
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
        folders.sort();
        let initdb =
            folders.iter().rev().find_map(|folder| find("initdb", &[folder])).or_else(|| find("initdb", &[]))?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let is_root = dir.path().metadata().expect("a new folder").uid() == 0;
        let user = is_root.then_some(UNPRIVILEGED);
        if user.is_some() {
            chown(dir.path(), user, user).expect("root may do that");
        }
        let data = dir.path().join("data");
        let mut create = Command::new(&initdb);
        create.args(["--auth=trust", "--no-sync", "--username=test", "--pgdata"]).arg(&data).current_dir(dir.path());
        if let Some(user) = user {
            create.uid(user);
        }
        execute(&mut create);
        let mut server = Command::new(initdb.with_file_name("postgres"));
        server.arg("-D").arg(data).arg("-k").arg(dir.path()).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let process = ServerProcess::start(&server, "QUIT", user);
        let server = Self { _process: process, dir };
        await_start(|| server.connect()).batch_execute(TABLE).expect("a new database");
        Some(server)
    }

    fn connect(&self) -> Result<Client, postgres::Error> {
        Config::new().host_path(self.dir.path()).user("test").dbname("postgres").connect(NoTls)
    }

    /// Loads the file.
    pub fn load(&self, script: &str, isolation: &'static str) -> Loaded<'_> {
        let mut monitor = self.connect().expect("a connection");
        monitor.batch_execute("DROP TABLE IF EXISTS fencing_token").expect("no transaction runs");
        monitor.batch_execute(script).expect("the file is SQL");
        Loaded { server: self, isolation, monitor: Mutex::new(monitor) }
    }
}

/// The server with the file loaded, and the isolation level of its sessions.
pub struct Loaded<'a> {
    server: &'a Postgresql,
    isolation: &'static str,
    monitor: Mutex<Client>,
}

impl Database for Loaded<'_> {
    fn connect(&self) -> Box<dyn Session> {
        let mut client = self.server.connect().expect("a connection");
        let isolation = format!("SET default_transaction_isolation = '{}'", self.isolation);
        client.batch_execute(&isolation).expect("a known level");
        Box::new(client)
    }

    fn begin(&self) -> &'static str {
        "BEGIN"
    }

    fn fence(&self, resource: &str, token: &str) -> String {
        format!("SELECT fence('{resource}', {token})")
    }

    fn is_waiting(&self) -> bool {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
        let waiting = self.monitor.lock().expect("no panic").query_one(waiting, &[]).expect("a known view");
        waiting.get::<_, i64>(0) > 0
    }
}

impl Session for Client {
    fn run(&mut self, statement: &str) -> Result<String, Refusal> {
        let messages = self.simple_query(statement).map_err(|error| match error.code() {
            Some(code) if code.code() == "STALE" => Refusal::Stale,
            Some(&SqlState::T_R_SERIALIZATION_FAILURE) => Refusal::Conflict,
            _ => Refusal::Other(format!("{error:?}")),
        })?;
        let first = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(messages.iter().rev().find_map(first).unwrap_or_default())
    }
}
