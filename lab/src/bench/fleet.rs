//! The nodes under measurement: the bench's own servers, or given ones.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::time::{Duration, Instant};

use quorlock_testkit::server::{Declaration, Server, new_password};
use redis::Client;

use super::measure;
use crate::exit::{Exit, Failure};

/// Commands that only a client can send. The server counts a script's inner commands under other names.
const FROM_CLIENTS: [&str; 12] = [
    "blpop",
    "brpop",
    "bzpopmin",
    "eval",
    "evalsha",
    "evalsha_ro",
    "fcall",
    "psubscribe",
    "ssubscribe",
    "subscribe",
    "unsubscribe",
    "xread",
];

/// A server that was paused has this long to answer again.
const WAKE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Fleet {
    servers: Vec<Server>,
    urls: Vec<String>,
    /// The temporary folder, removed with the fleet.
    dir: Option<tempfile::TempDir>,
}

/// How often a command was called, and how much time that took, on all nodes together.
#[derive(Clone, Copy, Default)]
pub struct Calls {
    pub count: u64,
    pub micros: u64,
}

impl Fleet {
    pub fn given(urls: Vec<String>) -> Self {
        Self { urls, ..Self::default() }
    }

    pub fn start(&mut self, count: usize) -> io::Result<()> {
        let dir = tempfile::Builder::new().prefix("quorlock-bench.").tempdir()?;
        let path = dir.path().to_owned();
        self.dir = Some(dir);
        let (new, password) = (Declaration::new(count), new_password());
        for i in 0..count {
            self.servers.push(Server::start_with_password(path.join(format!("node-{i}")), &[], &[], &password)?);
            self.servers[i].declare_new(new)?;
            self.urls.push(self.servers[i].url());
        }
        measure::count_as_nodes(self.servers.iter().filter_map(Server::pid).collect());
        Ok(())
    }

    /// Stops the bench's own servers and removes their data.
    pub fn stop(&mut self) {
        self.servers.clear();
        self.dir = None;
    }

    pub fn urls(&self, count: usize) -> Vec<String> {
        self.urls.iter().take(count).cloned().collect()
    }

    /// Returns whether nodes may be paused: given servers may not.
    pub fn can_pause(&self) -> bool {
        !self.servers.is_empty()
    }

    pub fn pause(&mut self, node: usize) -> Result<(), Failure> {
        self.servers[node].pause().map_err(|error| failure("cannot pause a server", &error))
    }

    /// Returns when the node has answered, with the time at which it had.
    pub fn resume(&mut self, node: usize) -> Result<Instant, Failure> {
        self.servers[node].resume().map_err(|error| failure("cannot resume a server", &error))?;
        let deadline = Instant::now() + WAKE_LIMIT;
        loop {
            let answer = Client::open(self.urls[node].as_str())
                .and_then(|client| client.get_connection_with_timeout(WAKE_LIMIT))
                .and_then(|mut redis| redis::cmd("PING").query::<()>(&mut redis));
            match answer {
                Ok(()) => return Ok(Instant::now()),
                Err(error) if Instant::now() > deadline => return Err(unreachable(&self.urls[node], &error)),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Returns the statistics of one command on the first `count` nodes.
    pub fn calls(&self, count: usize, command: &str) -> Result<Calls, Failure> {
        Ok(self.statistics(count)?.get(command).copied().unwrap_or_default())
    }

    /// Returns how many commands clients have sent to the first `count` nodes, without those that open a connection.
    pub fn commands(&self, count: usize) -> Result<u64, Failure> {
        let statistics = self.statistics(count)?;
        Ok(FROM_CLIENTS.iter().filter_map(|command| statistics.get(*command)).map(|calls| calls.count).sum())
    }

    fn statistics(&self, count: usize) -> Result<HashMap<String, Calls>, Failure> {
        let mut all: HashMap<String, Calls> = HashMap::new();
        for url in self.urls.iter().take(count) {
            let info: String = query(url, redis::cmd("INFO").arg("commandstats"))?;
            for (command, calls) in info.lines().filter_map(parse_calls) {
                let sum = all.entry(command.to_owned()).or_default();
                sum.count += calls.count;
                sum.micros += calls.micros;
            }
        }
        Ok(all)
    }

    /// Returns how much memory the first `count` nodes use, in bytes.
    pub fn used_memory(&self, count: usize) -> Result<u64, Failure> {
        let used = |url: &String| -> Result<u64, Failure> {
            let info: String = query(url, redis::cmd("INFO").arg("memory"))?;
            let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
            used.ok_or_else(|| unreachable(url, &"it does not say how much memory it uses"))
        };
        self.urls.iter().take(count).map(used).sum()
    }

    /// Returns the longest remaining lifetime of this key on the first `count` nodes, in seconds: infinite when it does not
    /// expire on one of them, NaN when none has it.
    pub fn time_to_live(&self, count: usize, key: &str) -> Result<f64, Failure> {
        let left = |url: &String| query::<i64>(url, redis::cmd("PTTL").arg(key));
        let left: Vec<i64> = self.urls.iter().take(count).map(left).collect::<Result<_, _>>()?;
        Ok(longest(&left))
    }

    /// Returns how many keys with this prefix the first `count` nodes have.
    pub fn keys(&self, count: usize, prefix: &str) -> Result<usize, Failure> {
        let keys = |url: &String| query::<Vec<String>>(url, redis::cmd("KEYS").arg(format!("{prefix}*")));
        self.urls.iter().take(count).map(|url| keys(url).map(|keys| keys.len())).sum()
    }
}

/// The longest of these answers to `PTTL`, in seconds.
fn longest(left: &[i64]) -> f64 {
    /// The answer for a key that does not expire. The one for a missing key is -2.
    const FOR_EVER: i64 = -1;
    if left.contains(&FOR_EVER) {
        return f64::INFINITY;
    }
    let millis = left.iter().filter_map(|left| u64::try_from(*left).ok());
    millis.max().map_or(f64::NAN, |millis| Duration::from_millis(millis).as_secs_f64())
}

/// `cmdstat_evalsha:calls=3,usec=152,...`
fn parse_calls(line: &str) -> Option<(&str, Calls)> {
    let (command, fields) = line.strip_prefix("cmdstat_")?.split_once(':')?;
    let field = |name: &str| fields.split(',').find_map(|field| field.strip_prefix(name)?.parse().ok());
    Some((command, Calls { count: field("calls=")?, micros: field("usec=")? }))
}

fn query<T: redis::FromRedisValue>(url: &str, command: &redis::Cmd) -> Result<T, Failure> {
    let ask = || command.query(&mut Client::open(url)?.get_connection_with_timeout(WAKE_LIMIT)?);
    ask().map_err(|error: redis::RedisError| unreachable(url, &error))
}

pub fn unreachable(url: &str, error: &dyn Display) -> Failure {
    let address = url.rsplit('@').next().unwrap_or(url); // Without user and password.
    Failure::new(Exit::NoQuorum, format!("{address}: {error}. Every node must be up to be measured; see --nodes"))
}

pub fn failure(what: &str, error: &dyn Display) -> Failure {
    Failure::new(Exit::NoQuorum, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_statistics_are_parsed() {
        let line = "cmdstat_evalsha:calls=3,usec=152,usec_per_call=50.67,rejected_calls=0,failed_calls=0";
        let (command, calls) = parse_calls(line).expect("a statistic");
        assert_eq!((command, calls.count, calls.micros), ("evalsha", 3, 152));
        assert!(parse_calls("# Commandstats").is_none());
    }

    #[test]
    fn a_key_that_never_expires_and_a_missing_key_have_no_short_life() {
        assert!((longest(&[-2, 1500, 2500]) - 2.5).abs() < 1e-9);
        assert!(longest(&[2500, -1, -2]).is_infinite());
        assert!(longest(&[-2, -2]).is_nan() && longest(&[]).is_nan());
    }
}
