//! What redis-rs achieves: one-line scripts to all nodes at once over one multiplexed connection each. A round returns at
//! the answer that completes the majority.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisResult, Script, Value};

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

/// Connects to all nodes.
pub async fn fan_out(urls: &[String]) -> Result<impl Locker<Hold = (String, String)>, Failure> {
    // Without redis-rs's own limit of time, which would cost it a timer per command.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
    let mut nodes = Vec::new();
    for url in urls {
        let unreachable = |error| crate::bench::fleet::unreachable(url, &error);
        let client = Client::open(url.as_str()).map_err(unreachable)?;
        let mut node = client.get_multiplexed_async_connection_with_config(&config).await.map_err(unreachable)?;
        for code in [ACQUIRE, RELEASE] {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(code).query_async::<()>(&mut node).await.map_err(unreachable)?;
        }
        nodes.push(node);
    }
    let ask = |round, mut node: MultiplexedConnection, command: Arc<Cmd>| async move {
        (round, node.send_packed_command(&command).await)
    };
    Ok(FanOut {
        quorum: nodes.len() / 2 + 1,
        nodes: nodes.into(),
        acquire: Script::new(ACQUIRE).get_hash().into(),
        release: Script::new(RELEASE).get_hash().into(),
        ask,
        round: 0,
        asked: FuturesUnordered::new(),
    })
}

struct FanOut<A, F> {
    nodes: Arc<[MultiplexedConnection]>,
    quorum: usize,
    acquire: Arc<str>,
    release: Arc<str>,
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
    async fn round(&mut self, command: Cmd) -> bool {
        let command = Arc::new(command);
        self.round += 1;
        self.asked.extend(self.nodes.iter().map(|node| (self.ask)(self.round, node.clone(), Arc::clone(&command))));
        let (mut yes, mut no) = (0, 0);
        while yes < self.quorum && no <= self.nodes.len() - self.quorum {
            match self.asked.next().await {
                Some((round, answer)) if round == self.round => match answer {
                    Ok(Value::Okay | Value::Int(1)) => yes += 1,
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
    /// Key and value.
    type Hold = (String, String);

    async fn acquire(&mut self, name: &str) -> Option<Self::Hold> {
        let (key, value) = (format!("{PREFIX}{name}"), format!("{:032x}", rand::random::<u128>()));
        let mut command = redis::cmd("EVALSHA");
        let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        command.arg(&*self.acquire).arg(1).arg(&key).arg(&value).arg(lease);
        self.round(command).await.then_some((key, value))
    }

    async fn release(&mut self, (key, value): Self::Hold) -> bool {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&*self.release).arg(1).arg(key).arg(value);
        self.round(command).await
    }

    async fn settle(&mut self) {
        let all = async { while self.asked.next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_LIMIT, all).await.is_err() {
            self.asked.clear();
        }
    }
}
