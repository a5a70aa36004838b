use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;

use crate::checks::Refusal;
use crate::database::{Database, ServerProcess, Session, TABLE, await_start, execute, find};

/// A server with one database, which only a socket in its folder reaches. It ends before the folder is deleted.
pub struct Mariadb {
    _process: ServerProcess,
    client: PathBuf,
    dir: TempDir,
}

impl Mariadb {
    /// Returns `None` where MariaDB is not installed.
    pub fn start() -> Option<Self> {
        let client = find("mariadb", &[])?;
        let server = find("mariadbd", &[Path::new("/usr/sbin")])?;
        let create = find("mariadb-install-db", &[])?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Small files, which need not reach the disk. Without the last option, root may not start it.
        let mut options = vec!["--no-defaults".to_owned(), format!("--datadir={}", dir.path().join("data").display())];
        options.extend(["--innodb-log-file-size=4M", "--loose-debug-no-sync"].map(str::to_owned));
        if rustix::process::geteuid().is_root() {
            options.push("--user=root".to_owned());
        }
        let access = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"];
        execute(Command::new(create).args(&options).args(access));
        let socket = dir.path().join("socket");
        let mut command = Command::new(server);
        command.args(options).arg("--skip-networking").arg(format!("--socket={}", socket.display()));
        command.arg(format!("--pid-file={}", dir.path().join("pid").display()));
        let process = ServerProcess::start(&command, "KILL", None);
        await_start(|| UnixStream::connect(&socket));
        let server = Self { _process: process, client, dir };
        server.connect("mysql").run("CREATE DATABASE data").expect("a new server");
        server.connect("data").run(TABLE).expect("a new database");
        Some(server)
    }

    fn connect(&self, database: &str) -> Client {
        let (output, into) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(&self.client);
        command.arg("--no-defaults").arg(format!("--socket={}", self.dir.path().join("socket").display()));
        command.args(["--user=root", "--batch", "--skip-column-names", "--unbuffered", "--force", database]);
        let errors = into.try_clone().expect("a pipe");
        let child = command.stdin(Stdio::piped()).stdout(into).stderr(errors).spawn().expect("a client");
        Client { child, output: BufReader::new(output) }
    }

    /// Loads the file.
    pub fn load(&self, script: &str, isolation: &'static str) -> Loaded<'_> {
        let mut monitor = self.connect("data");
        monitor.run("DROP TABLE IF EXISTS fencing_token").expect("no transaction runs");
        monitor.run(script).expect("the file is SQL");
        Loaded { server: self, isolation, monitor: Mutex::new(monitor) }
    }
}

/// The server with the file loaded, and the isolation level of its sessions.
pub struct Loaded<'a> {
    server: &'a Mariadb,
    isolation: &'static str,
    monitor: Mutex<Client>,
}

impl Database for Loaded<'_> {
    fn connect(&self) -> Box<dyn Session> {
        let mut client = self.server.connect("data");
        client.run(&format!("SET SESSION TRANSACTION ISOLATION LEVEL {}", self.isolation)).expect("a known level");
        Box::new(client)
    }

    fn begin(&self) -> &'static str {
        "START TRANSACTION"
    }

    fn fence(&self, resource: &str, token: &str) -> String {
        format!("CALL fence('{resource}', {token})")
    }

    fn is_waiting(&self) -> bool {
        // The views of information_schema are up to 100 ms old.
        let waiting = "SHOW GLOBAL STATUS WHERE variable_name = 'Innodb_row_lock_current_waits' AND value > 0";
        !self.monitor.lock().expect("no panic").run(waiting).expect("a known counter").is_empty()
    }
}

/// The command line client, which reads statements from a pipe.
pub struct Client {
    child: Child,
    output: BufReader<PipeReader>,
}

impl Session for Client {
    fn run(&mut self, statement: &str) -> Result<String, Refusal> {
        const END: &str = "end of the statement";
        let input = self.child.stdin.as_mut().expect("it is piped");
        writeln!(input, "{statement};\nSELECT '{END}';").expect("the client reads");
        let mut last = Ok(String::new());
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("the client writes text");
            assert!(length > 0, "the client has ended: {last:?}");
            let line = line.trim_end();
            match line.strip_prefix("ERROR ") {
                _ if line == END => return last,
                Some(error) if error.contains("(STALE)") => last = Err(Refusal::Stale),
                Some(error) if error.contains("(40001)") => last = Err(Refusal::Conflict),
                Some(error) => last = Err(Refusal::Other(error.to_owned())),
                None => last = last.map(|_| line.to_owned()),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
