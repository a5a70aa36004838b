//! One real redis-server process: started on a free loopback port in a folder of its own, checked to be the one that
//! answers there, and stopped by its own process number. The tests use this file too.
#![allow(dead_code, reason = "each user needs its own part of it")]

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Names the server program, when it is not `redis-server`.
const PROGRAM_VARIABLE: &str = "QUORLOCK_TEST_SERVER";

/// So often another port is tried when somebody else takes the one that was free just now.
const PORTS_TRIED: usize = 20;

const START_LIMIT: Duration = Duration::from_secs(20);

pub struct Server {
    port: u16,
    dir: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Child>,
    paused: bool,
}

impl Server {
    /// Starts one with these options on its command line and these variables in its environment.
    pub fn start(dir: PathBuf, options: &[&str], environment: &[(String, String)]) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server =
            Self { port: 0, dir, options, environment: environment.to_vec(), process: None, paused: false };
        for _ in 0..PORTS_TRIED {
            server.port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            if server.try_launch()? {
                return Ok(server);
            }
        }
        Err(io::Error::other(format!(
            "no redis-server stayed up, on {PORTS_TRIED} ports; see {}",
            server.log().display()
        )))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `None` while it is killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Is it there to answer?
    pub fn is_up(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop((process.kill(), process.wait()));
        }
        self.paused = false;
    }

    /// Starts it again on its port (after a kill, if it runs), with or without what it had stored.
    pub fn restart(&mut self, empty: bool) -> io::Result<()> {
        self.kill();
        if empty {
            fs::remove_dir_all(&self.dir)?;
            fs::create_dir_all(&self.dir)?;
        }
        if self.try_launch()? {
            return Ok(());
        }
        Err(io::Error::other(format!("the node did not come back on port {}", self.port)))
    }

    /// SIGSTOP.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
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

    /// As `cluster/up` does: this process has no earlier votes to forget.
    pub fn declare_new(&self) -> io::Result<()> {
        let declare = || {
            let mut redis = self.try_redis()?;
            let info: String = redis::cmd("INFO").arg("server").query(&mut redis)?;
            let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim();
            for database in [3, 2, 1, 0] {
                redis::cmd("SELECT").arg(database).query::<()>(&mut redis)?;
                redis::cmd("SET").arg("quorlock:new").arg(run_id).arg("EX").arg(3600).query::<()>(&mut redis)?;
            }
            Ok(())
        };
        declare().map_err(|error: redis::RedisError| io::Error::other(error))
    }

    /// A connection for looking behind the curtain.
    pub fn try_redis(&self) -> redis::RedisResult<redis::Connection> {
        let connection = redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(connection)
    }

    /// `false` when the port was taken in between.
    fn try_launch(&mut self) -> io::Result<bool> {
        let program = std::env::var(PROGRAM_VARIABLE).unwrap_or_else(|_| "redis-server".to_owned());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(&self.dir)
            .args(&self.options)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                let hint = "is it installed? Debian, Ubuntu: apt-get install redis-server";
                io::Error::new(error.kind(), format!("{program}: {error}; {hint}"))
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

    /// The process that answers, once it has read its files.
    fn serving_process(&self) -> Option<u32> {
        let info: String = redis::cmd("INFO").query(&mut self.try_redis().ok()?).ok()?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        (field("loading:") == Some("0")).then_some(())?;
        field("process_id:")?.parse().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
