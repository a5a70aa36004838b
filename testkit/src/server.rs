//! One real redis-server process: started on a free loopback port in a folder of its own, checked to be the one that
//! answers there, and stopped by its own process number.

use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::program;

/// How many ports a start tries: another process may take a free port first.
const PORTS_TRIED: usize = 20;

/// Returns a free port. The system gives none of these to outgoing connections, so a server that was stopped finds it free again.
pub fn free_port() -> io::Result<u16> {
    Ok(reserve_port()?.0)
}

/// Returns a free port, and the UDP socket of the same number: while that lives, no other process that chooses its ports here
/// takes the port, also while its server is stopped.
fn reserve_port() -> io::Result<(u16, UdpSocket)> {
    const PORTS: Range<u16> = 20_000..32_768;
    let reserved = |port: u16| {
        let reservation = UdpSocket::bind(("127.0.0.1", port)).ok()?;
        let port = reservation.local_addr().ok()?.port();
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some((port, reservation))
    };
    let tried = (0..PORTS_TRIED).map(|_| rand::random_range(PORTS)).chain([0]);
    tried.map(reserved).find_map(|found| found).ok_or_else(|| io::Error::other("no free port was found"))
}

/// Returns a random password.
pub fn new_password() -> String {
    format!("{:032x}", rand::random::<u128>())
}

const START_LIMIT: Duration = Duration::from_secs(20);

/// The node record and the number of nodes that a node of a new cluster gets.
#[derive(Clone, Copy, Debug)]
#[must_use = "a server gets it by declare_new"]
pub struct Declaration {
    /// Makes the word that all nodes of one cluster share, another one for each database.
    cluster: u64,
    nodes: usize,
    /// ms: the longest lease that clients are expected to use.
    longest: u64,
    /// ms: how far ballots may lie from a node's clock.
    window: u64,
}

impl Declaration {
    /// Databases of a node that are declared, of which tests use one each.
    const DATABASES: u64 = 4;
    /// ms.
    const LONGEST: u64 = 10_000;
    const WINDOW: u64 = 300_000;
    /// The length of the part of the run id in the record.
    const RUN_ID_LENGTH: usize = 16;

    /// Creates the declaration of a cluster of this number of nodes, with a random word.
    pub fn new(nodes: usize) -> Self {
        Self { cluster: rand::random(), nodes, longest: Self::LONGEST, window: Self::WINDOW }
    }

    /// Sets the longest lease, in ms.
    pub fn longest(self, longest: u64) -> Self {
        Self { longest, ..self }
    }

    /// Sets how far ballots may differ from the clock of a node, in ms.
    pub fn window(self, window: u64) -> Self {
        Self { window, ..self }
    }

    /// A node's record, with a word of its own and no quarantine.
    fn record(self, database: u64, keeps: bool, run_id: &str) -> String {
        let (word, cluster) = (rand::random::<u64>(), self.cluster.wrapping_add(database));
        let Self { longest, window, .. } = self;
        let database = if database == 0 { String::new() } else { format!("/{database}") };
        format!("{word:016x} {longest} 0 0 {window} {cluster:016x} {} {run_id}{database}", u8::from(keeps))
    }
}

/// A server process, killed when dropped.
pub struct Server {
    port: u16,
    /// Keeps the port from other tests.
    reservation: UdpSocket,
    dir: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    password: Option<String>,
    process: Option<Child>,
    paused: bool,
}

impl Server {
    /// Starts a server in this folder, with these options on its command line and these variables in its environment.
    pub fn start(dir: PathBuf, options: &[&str], environment: &[(String, String)]) -> io::Result<Self> {
        Self::start_as(dir, options, environment, None)
    }

    /// The same with a password: other users of the machine reach the port, too.
    pub fn start_with_password(
        dir: PathBuf,
        options: &[&str],
        environment: &[(String, String)],
        password: &str,
    ) -> io::Result<Self> {
        Self::start_as(dir, options, environment, Some(password.to_owned()))
    }

    fn start_as(
        dir: PathBuf,
        options: &[&str],
        environment: &[(String, String)],
        password: Option<String>,
    ) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let environment = environment.to_vec();
        let (port, reservation) = reserve_port()?;
        let mut server = Self { port, reservation, dir, options, environment, password, process: None, paused: false };
        for _ in 0..PORTS_TRIED {
            if server.try_launch(&[])? {
                return Ok(server);
            }
            (server.port, server.reservation) = reserve_port()?;
        }
        Err(io::Error::other(format!(
            "no redis-server stayed up, on {PORTS_TRIED} ports; see {}",
            server.log().display()
        )))
    }

    /// Returns its port, which it keeps when it is started again.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its URL, with the password if there is one.
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// Returns the URL of a proxy in front of it, on another port.
    pub fn url_at(&self, port: u16) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}"),
            None => format!("redis://127.0.0.1:{port}"),
        }
    }

    /// Returns its process number, or `None` after a kill.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Returns whether its process has loaded libraries: not if it is linked statically, and then it loads no clock either.
    pub(crate) fn loads_libraries(&self) -> bool {
        let maps = self.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).ok());
        maps.is_none_or(|maps| maps.contains(".so"))
    }

    /// Returns whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Returns whether it runs and is not paused.
    pub fn is_up(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop((process.kill(), process.wait()));
        }
        self.paused = false;
    }

    /// Starts it again on its port (after a kill, if it runs), with or without its stored data.
    pub fn restart(&mut self, empty: bool) -> io::Result<()> {
        self.restart_with(empty, &[])
    }

    /// Starts an empty server in its place, which is a replica of the one on this port from its first moment.
    pub fn restart_as_replica(&mut self, of: u16) -> io::Result<()> {
        self.restart_with(true, &["--replicaof".to_owned(), "127.0.0.1".to_owned(), of.to_string()])
    }

    fn restart_with(&mut self, empty: bool, once: &[String]) -> io::Result<()> {
        self.kill();
        if empty {
            fs::remove_dir_all(&self.dir)?;
            fs::create_dir_all(&self.dir)?;
        }
        if self.try_launch(once)? {
            return Ok(());
        }
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last = log.lines().last().unwrap_or_default();
        Err(io::Error::other(format!("the node did not come back on port {}: {last}", self.port)))
    }

    /// Stops it until [`resume`](Self::resume) (SIGSTOP).
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets it continue (SIGCONT).
    pub fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.process {
            Some(process) => Ok(kill_process(Pid::from_child(process), signal)?),
            None => Ok(()),
        }
    }

    /// Writes the node record and the number of nodes, as `cluster/up` does: this process has no earlier votes to forget.
    /// A record that is there already stays as it is.
    pub fn declare_new(&self, new: Declaration) -> io::Result<()> {
        let declare = || {
            let mut redis = self.try_redis()?;
            let info: String = redis::cmd("INFO").arg("server").query(&mut redis)?;
            let pid = info_field(&info, "process_id:").and_then(|pid| pid.parse().ok());
            if self.pid().is_none() || pid != self.pid() {
                let taken =
                    (redis::ErrorKind::Client, "another process answers on this port than the one that was started");
                return Err(taken.into());
            }
            let run_id = info_field(&info, "run_id:").unwrap_or_default();
            let run_id = run_id.get(..Declaration::RUN_ID_LENGTH).unwrap_or(run_id);
            let list = format!("quorlock:list:{}", quorlock::DEFAULT_PREFIX);
            for database in (0..Declaration::DATABASES).rev() {
                let record = new.record(database, self.keeps_every_write(), run_id);
                redis::cmd("SELECT").arg(database).query::<()>(&mut redis)?;
                redis::cmd("SET").arg("quorlock:node").arg(record).arg("NX").query::<Option<String>>(&mut redis)?;
                redis::cmd("SET").arg(&list).arg(new.nodes).arg("NX").query::<Option<String>>(&mut redis)?;
            }
            Ok(())
        };
        declare().map_err(|error: redis::RedisError| io::Error::other(error))
    }

    /// Returns whether its options require that every write is on disk before its answer.
    fn keeps_every_write(&self) -> bool {
        let is_set = |name: &str, value: &str| self.options.windows(2).any(|pair| pair == [name, value]);
        is_set("--appendonly", "yes")
            && is_set("--appendfsync", "always")
            && !is_set("--no-appendfsync-on-rewrite", "yes")
    }

    /// Returns a new connection to it.
    pub fn try_redis(&self) -> redis::RedisResult<redis::Connection> {
        let connection = redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(connection)
    }

    /// `false` when the port was taken in between. `once` are options that a later start does not repeat.
    fn try_launch(&mut self, once: &[String]) -> io::Result<bool> {
        let program = program::program()?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&program)
            .current_dir(&self.dir)
            .args(self.password_file()?)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir", "./"])
            .args(&self.options)
            .args(once)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                let hint = "is it installed? Debian, Ubuntu: apt-get install redis-server";
                io::Error::new(error.kind(), format!("{}: {error}; {hint}", program.display()))
            })?;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            if self.serving_process() == Some(child.id()) {
                self.process = Some(child);
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        drop((child.kill(), child.wait()));
        Ok(false)
    }

    /// Writes a configuration with the password, which every user of the machine would see on the command line.
    /// Returns its name.
    fn password_file(&self) -> io::Result<Option<&'static str>> {
        const NAME: &str = "./password.conf";
        let Some(password) = &self.password else { return Ok(None) };
        let path = self.dir.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        write!(file, "requirepass {password}\nmasterauth {password}\n")?;
        Ok(Some(NAME))
    }

    /// Returns the number of the process that answers, once it has read its files.
    fn serving_process(&self) -> Option<u32> {
        let info: String = redis::cmd("INFO").query(&mut self.try_redis().ok()?).ok()?;
        (info_field(&info, "loading:") == Some("0")).then_some(())?;
        info_field(&info, "process_id:")?.parse().ok()
    }
}

/// Returns the value of INFO behind this name, which ends with a colon.
pub fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
