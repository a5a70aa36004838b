//! Nodes as their administrator meets them: for the command's verbs that declare nodes. No part of the library's interface.
//!
//! A connection is made and checked as for a client, with the same URLs. It takes no part in locking: it takes no place of a node list, and
//! nothing is written before it is asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use redis::{Cmd, Value};
use tokio::time::timeout;

use super::address::NodeAddress;
use super::handshake::{MOST_WRITES, greet, not_in_time, write};
use super::health::{self, Health};
use super::replies::holder;
use super::scan::Most;
use super::server_error::{node_error, said};
use super::stream::RespStream;
use crate::environment::Environment;
use crate::error::{Holder, NodeError};
use crate::protocol::{Newcomer, Record};

pub use super::health::{CHANGING, RECORD};

/// So long a node may take to be connected to, and to answer one command, where the builder has no node timeout.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A node that was asked what it is, and has nothing against having a vote.
pub struct Node {
    /// The address, without user and password.
    pub name: String,
    stream: RespStream,
    /// So long it may take to answer.
    limit: Duration,
    /// Why the connection is over: an answer that is still to come would be taken for that to a later command.
    broken: Option<NodeError>,
    health: Health,
    list_key: Vec<u8>,
    environment: Arc<dyn Environment>,
}

/// Returns who holds a lock, and how deep, by the value of its key; `None` for a value that is not quorlock's.
#[must_use]
pub fn holder_of(value: &[u8]) -> Option<(Holder, u32)> {
    holder(value)
}

/// What a node's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The record as it stands in its key.
    pub text: String,
    /// The word that all nodes of one declaration share.
    pub cluster: Option<u64>,
    /// The longest lease that was used there.
    pub longest: Duration,
    /// How long ballots are kept there.
    pub ballot_ttl: Duration,
    /// The record never had a quarantine.
    pub is_settled: bool,
    /// The node may have forgotten leases: for how long its quarantine lasts, or would last if it began now.
    pub quarantine: Option<Duration>,
}

/// Connects to every node of a list, in its order. `limit` is for each connection and each answer.
pub(crate) async fn connect(
    addresses: Vec<NodeAddress>,
    list_key: &[u8],
    limit: Duration,
    environment: &Arc<dyn Environment>,
) -> Vec<(String, Result<Node, NodeError>)> {
    let connecting = addresses.into_iter().map(|address| {
        let (list_key, environment) = (list_key.to_vec(), Arc::clone(environment));
        async move { (address.name.clone(), Node::connect(address, list_key, limit, environment).await) }
    });
    let mut nodes = join_all(connecting).await;
    let mut servers: HashMap<String, String> = HashMap::new();
    for (name, node) in &mut nodes {
        let Ok(found) = node else { continue };
        match servers.get(&found.health.run_id) {
            Some(first) => *node = Err(NodeError::SameServer(first.clone())),
            None => drop(servers.insert(found.health.run_id.clone(), name.clone())),
        }
    }
    nodes
}

/// Bounds what a node may take.
async fn bounded<T>(limit: Duration, asked: impl Future<Output = Result<T, NodeError>>) -> Result<T, NodeError> {
    timeout(limit, asked).await.unwrap_or(Err(NodeError::NoAnswer(limit)))
}

impl Node {
    async fn connect(
        address: NodeAddress,
        list_key: Vec<u8>,
        limit: Duration,
        environment: Arc<dyn Environment>,
    ) -> Result<Self, NodeError> {
        let is_open = AtomicBool::new(false);
        let greeted = greet(environment.as_ref(), &address, health::questions(&list_key), &is_open);
        let greeted = timeout(limit, greeted).await;
        let late = |_| Err(not_in_time(&address, limit, is_open.load(Ordering::Relaxed)));
        let (mut stream, answers) = greeted.unwrap_or_else(late)?;
        stream.allow(Most::OF_REDIS);
        let health = health::judge(answers, address.info.redis_settings().db())?;
        Ok(Self { name: address.name, stream, limit, broken: None, health, list_key, environment })
    }

    /// Sends one command and waits for its answer.
    ///
    /// # Errors
    ///
    /// The server's error, or why there is no answer. Then there are no further answers, either.
    pub async fn ask(&mut self, command: &Cmd) -> Result<Value, NodeError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let asked = bounded(self.limit, self.stream.ask(std::slice::from_ref(command))).await;
        let answers = asked.inspect_err(|error| self.broken = Some(error.clone()))?;
        said(answers.into_iter().next().unwrap_or(Value::Nil)).map_err(|error| node_error(&error))
    }

    /// Sends commands in one go and waits for all their answers. A command that the server refuses has its error in its place.
    ///
    /// # Errors
    ///
    /// Why there are no answers. Then there are no further ones, either.
    pub async fn ask_all(&mut self, commands: &[Cmd]) -> Result<Vec<Value>, NodeError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let asked = bounded(self.limit, self.stream.ask(commands)).await;
        asked.inspect_err(|error| self.broken = Some(error.clone()))
    }

    /// The key of the list.
    #[must_use]
    pub fn list_key(&self) -> &[u8] {
        &self.list_key
    }

    /// What stood in the list key; see [`CHANGING`].
    #[must_use]
    pub fn listed(&self) -> Option<usize> {
        self.health.listed
    }

    /// The node's record, as it was when last read here.
    #[must_use]
    pub fn record(&self) -> Option<Declared> {
        let (text, record) = self.health.record.as_ref()?;
        let newcomer = self.newcomer(record.longest, record.window);
        let begins = Record::due(Some(record), &self.health.process, &newcomer).and_then(|change| change.wait);
        let by_node = record.ends.0.saturating_sub(self.health.clock / 1000);
        let by_wall = record.ends.1.saturating_sub(newcomer.wall);
        let left = begins.unwrap_or_else(|| by_node.max(by_wall));
        Some(Declared {
            text: text.clone(),
            cluster: record.cluster,
            longest: record.longest,
            ballot_ttl: 2 * record.window,
            is_settled: record.is_settled() && begins.is_none(),
            quarantine: (left > 0).then(|| Duration::from_millis(left).min(record.longest)),
        })
    }

    /// A record for this server process, without a quarantine and with a word of its own.
    #[must_use]
    pub fn new_record(&self, longest: Duration, ballot_ttl: Duration, cluster: u64, keeps: bool) -> String {
        let run_id = self.health.process.run_id().to_owned();
        let (word, window, ends) = (self.random(), ballot_ttl / 2, (0, 0));
        Record { word, longest, ends, window, cluster: Some(cluster), keeps, run_id }.to_string()
    }

    /// Writes what is due in the node's record, as every client does that connects: a node that may have forgotten leases
    /// is in quarantine from now on.
    ///
    /// # Errors
    ///
    /// Why there is no answer, or that other clients write the record all the time.
    pub async fn settle(&mut self, longest: Duration, ballot_ttl: Duration) -> Result<(), NodeError> {
        for _ in 0..MOST_WRITES {
            let newcomer = self.newcomer(longest, ballot_ttl / 2);
            let seen = self.health.record.as_ref();
            let Some(change) = Record::due(seen.map(|(_, record)| record), &self.health.process, &newcomer) else {
                return Ok(());
            };
            let seen = seen.map(|(text, _)| text.as_str());
            let written = write(&mut self.stream, &self.list_key, seen, Some(&change), None);
            (self.health.record, self.health.listed) = bounded(self.limit, written).await?;
        }
        Err(NodeError::Connect("other clients write the record of this node all the time".to_owned()))
    }

    fn newcomer(&self, longest: Duration, window: Duration) -> Newcomer {
        let wall = u64::try_from(self.environment.wall().as_millis()).unwrap_or(u64::MAX);
        Newcomer { word: self.random(), longest, proven: longest, window, wall, cluster: None }
    }

    /// A random number from the same source as the words of clients.
    #[must_use]
    pub fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.environment.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }
}
