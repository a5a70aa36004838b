//! What redis-rs achieves: scripts to all nodes at once over one multiplexed connection each. A round returns at the answer that
//! completes the majority.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisResult, Script, Value};

use super::commands::{MEMORY, OWN, PLAIN, Scripts};
use super::{LEASE, Locker};
use crate::exit::Failure;

pub const ACQUIRE: &str = "return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])";
pub const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

/// The prefix of the names of bare implementations.
pub const PREFIX: &str = "quorlock:bench:";

/// How many commands may wait until redis-rs writes them, so that they stay in order while a node is paused.
const QUEUE: usize = 1 << 16;

/// The limit for an answer. A later one comes from a paused node: its future is dropped, also when it was not sent yet.
const SETTLE_LIMIT: Duration = Duration::from_millis(200);

/// The one-line scripts.
pub async fn fan_out(urls: &[String]) -> Result<impl Locker<Hold = Words>, Failure> {
    connect(urls, PLAIN).await
}

/// quorlock's own scripts with the arguments that quorlock sends: the remaining difference to quorlock is that of the two clients.
pub async fn fan_out_scripts(urls: &[String]) -> Result<impl Locker<Hold = Words>, Failure> {
    connect(urls, OWN).await
}

async fn connect(urls: &[String], scripts: Scripts) -> Result<impl Locker<Hold = Words>, Failure> {
    // Without redis-rs's own limit of time, which would cost it a timer per command.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
    let (mut nodes, mut records) = (Vec::new(), Vec::new());
    for url in urls {
        let unreachable = |error| crate::bench::fleet::unreachable(url, &error);
        let client = Client::open(url.as_str()).map_err(unreachable)?;
        let mut node = client.get_multiplexed_async_connection_with_config(&config).await.map_err(unreachable)?;
        for code in [scripts.acquire, scripts.release] {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(code).query_async::<()>(&mut node).await.map_err(unreachable)?;
        }
        if scripts.name == OWN.name {
            records.push(redis::cmd("GET").arg("quorlock:node").query_async(&mut node).await.map_err(unreachable)?);
        }
        nodes.push(node);
    }
    let ask = |round, mut node: MultiplexedConnection, command: Arc<Cmd>| async move {
        (round, node.send_packed_command(&command).await)
    };
    Ok(FanOut {
        quorum: nodes.len() / 2 + 1,
        nodes: nodes.into(),
        acquire: Script::new(scripts.acquire).get_hash().into(),
        release: Script::new(scripts.release).get_hash().into(),
        records: records.into(),
        ask,
        round: 0,
        asked: FuturesUnordered::new(),
    })
}

/// The lease in ms, as an argument.
const LEASE_MS: &str = "10000";
const _: () = assert!(LEASE.as_millis() == 10_000);

/// What the commands of one lock contain.
pub struct Words {
    key: String,
    /// For quorlock's own scripts.
    ballot_key: Option<String>,
    value: String,
}

impl Words {
    fn new(name: &str, has_ballot: bool) -> Self {
        let (key, owner) = (format!("{PREFIX}{name}"), format!("{:032x}", rand::random::<u128>()));
        if !has_ballot {
            return Self { key, ballot_key: None, value: owner };
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (ballot, end) = (now.as_micros(), (now + LEASE).as_millis() + 1);
        let value = format!("{ballot:016} {end:013} ql1 {ballot:016} {owner} bench:1 {ballot:016x}/1:1");
        Self { ballot_key: Some(format!("quorlock:ballot:{key}")), key, value }
    }

    fn command(&self, script: &str, more: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script).arg(1 + usize::from(self.ballot_key.is_some())).arg(&self.key).arg(&self.ballot_key);
        command.arg(&self.value).arg(more);
        command
    }
}

struct FanOut<A, F> {
    nodes: Arc<[MultiplexedConnection]>,
    quorum: usize,
    acquire: Arc<str>,
    release: Arc<str>,
    /// Of each node, for quorlock's own scripts; none for one-line scripts.
    records: Arc<[String]>,
    ask: A,
    round: u64,
    /// Late answers are received during a later round. Dropping their futures would drop commands unsent.
    asked: FuturesUnordered<F>,
}

impl<A: Clone, F> Clone for FanOut<A, F> {
    fn clone(&self) -> Self {
        Self {
            nodes: Arc::clone(&self.nodes),
            quorum: self.quorum,
            acquire: Arc::clone(&self.acquire),
            release: Arc::clone(&self.release),
            records: Arc::clone(&self.records),
            ask: self.ask.clone(),
            round: 0,
            asked: FuturesUnordered::new(),
        }
    }
}

impl<A, F> FanOut<A, F>
where
    A: Fn(u64, MultiplexedConnection, Arc<Cmd>) -> F,
    F: Future<Output = (u64, RedisResult<Value>)>,
{
    /// Sends each node its command, or the one command that there is.
    async fn round(&mut self, commands: &[Arc<Cmd>]) -> bool {
        self.round += 1;
        let commands = commands.iter().cycle();
        self.asked.extend(
            self.nodes
                .iter()
                .zip(commands)
                .map(|(node, command)| (self.ask)(self.round, node.clone(), Arc::clone(command))),
        );
        let (mut yes, mut no) = (0, 0);
        while yes < self.quorum && no <= self.nodes.len() - self.quorum {
            match self.asked.next().await {
                Some((round, answer)) if round == self.round => match answer {
                    Ok(Value::Okay | Value::Int(1)) => yes += 1,
                    // The node's clock, and whether it is released.
                    Ok(Value::Array(items)) if matches!(items.as_slice(), [_, Value::Int(1)]) => yes += 1,
                    _ => no += 1,
                },
                Some(_) => {}
                None => break,
            }
        }
        yes >= self.quorum
    }
}

impl<A, F> Locker for FanOut<A, F>
where
    A: Fn(u64, MultiplexedConnection, Arc<Cmd>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = (u64, RedisResult<Value>)> + Send + 'static,
{
    type Hold = Words;

    async fn acquire(&mut self, name: &str) -> Option<Words> {
        let words = Words::new(name, !self.records.is_empty());
        let command = |more: &[&str]| Arc::new(words.command(&self.acquire, more));
        let commands: Vec<_> = if self.records.is_empty() {
            vec![command(&[LEASE_MS])]
        } else {
            self.records.iter().map(|record| command(&[LEASE_MS, record])).collect()
        };
        self.round(&commands).await.then_some(words)
    }

    async fn release(&mut self, words: Words) -> bool {
        let more: &[&str] = if words.ballot_key.is_some() { &[MEMORY] } else { &[] };
        let command = words.command(&self.release, more);
        self.round(&[Arc::new(command)]).await
    }

    async fn settle(&mut self) {
        let all = async { while self.asked.next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_LIMIT, all).await.is_err() {
            self.asked.clear();
        }
    }
}
