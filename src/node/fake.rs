//! A server and a round for tests.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

use super::request::{Exchange, Facts, ReplyTo, Request};
use crate::environment::Moment;
use crate::error::NodeError;
use crate::protocol::Ballot;
use crate::sync::locked;

/// The record of the fake server: of a list of one node, without a quarantine.
pub(crate) const RECORD: &str = "00000000000000af 10000 0 0 300000 - 1 abc";

const INFO: &str = "redis_mode:standalone\r\nrun_id:abc\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n\
                    master_replid2:0000\r\naof_enabled:1\r\n";

/// The server's end of a stream.
pub(crate) struct Server(BufReader<DuplexStream>);

impl Server {
    pub(crate) fn new(stream: DuplexStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// Answers what a client asks when it connects.
    pub(crate) async fn greet(&mut self, nodes: usize) {
        self.greet_with(INFO, RECORD, nodes).await;
    }

    /// The same, as a server of its own for each number.
    pub(crate) async fn greet_as(&mut self, number: usize, nodes: usize) {
        let run_id = format!("ab{number}");
        let record = RECORD.replace("af ", &format!("b{number} ")).replace("abc", &run_id);
        self.greet_with(&INFO.replace("abc", &run_id), &record, nodes).await;
    }

    async fn greet_with(&mut self, info: &str, record: &str, nodes: usize) {
        while let Some(command) = self.command().await {
            let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
            let reply = match command[0].as_str() {
                "INFO" => bulk(info),
                "MGET" => format!("*2\r\n{}{}", bulk(record), bulk(&nodes.to_string())),
                "TIME" => "*2\r\n:1790000000\r\n:0\r\n".to_owned(),
                "HELLO" | "SUBSCRIBE" => "*0\r\n".to_owned(),
                other => panic!("{other} is no part of a greeting"),
            };
            self.reply(&reply).await;
            if command[0] == "SUBSCRIBE" {
                return;
            }
        }
        panic!("the client has hung up");
    }

    /// The next command; `None` when the client has hung up.
    pub(crate) async fn command(&mut self) -> Option<Vec<String>> {
        let words = self.number('*').await?;
        let mut command = Vec::with_capacity(words);
        for _ in 0..words {
            let length = self.number('$').await?;
            let mut word = vec![0; length + 2];
            self.0.read_exact(&mut word).await.ok()?;
            word.truncate(length);
            command.push(String::from_utf8_lossy(&word).into_owned());
        }
        Some(command)
    }

    async fn number(&mut self, kind: char) -> Option<usize> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok()?;
        line.trim_end().strip_prefix(kind)?.parse().ok()
    }

    pub(crate) async fn reply(&mut self, reply: &str) {
        self.0.write_all(reply.as_bytes()).await.expect("the client listens");
    }
}

/// What happens to a [`FakeExchange`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    Sent,
    Resent,
    NothingSent,
    Answered(Result<Value, NodeError>),
}

pub(super) struct FakeExchange {
    facts: Facts,
    lease: u64,
    pub(super) is_decided: AtomicBool,
    pub(super) is_moot: AtomicBool,
    pub(super) is_expired: AtomicBool,
    /// Of a release. A hold that is sent sets it.
    pub(super) may_hold_state: AtomicBool,
    events: Mutex<Vec<Event>>,
}

impl FakeExchange {
    pub(super) fn new(started: Moment, lease: u64) -> Arc<Self> {
        Self::with(started, lease, true)
    }

    /// A round of a lease that goes on.
    pub(super) fn extension(started: Moment, lease: u64) -> Arc<Self> {
        Self::with(started, lease, false)
    }

    fn with(started: Moment, lease: u64, acquires: bool) -> Arc<Self> {
        let facts = Facts { started, ballot: Ballot::ZERO, length: Duration::from_secs(10), acquires };
        Arc::new(Self {
            facts,
            lease,
            is_decided: AtomicBool::new(false),
            is_moot: AtomicBool::new(false),
            is_expired: AtomicBool::new(false),
            may_hold_state: AtomicBool::new(false),
            events: Mutex::default(),
        })
    }

    /// Returns the events since the last call.
    pub(super) fn events(&self) -> Vec<Event> {
        std::mem::take(&mut locked(&self.events))
    }

    pub(super) fn hold(self: &Arc<Self>) -> Request {
        Request { command: command("hold"), reply_to: ReplyTo::Hold(Arc::<Self>::clone(self)) }
    }

    pub(super) fn release(self: &Arc<Self>) -> Request {
        Request { command: command("release"), reply_to: ReplyTo::Release(Arc::<Self>::clone(self)) }
    }
}

/// A command whose last word is left to the connection.
fn command(name: &str) -> Arc<[u8]> {
    format!("*2\r\n${}\r\n{name}\r\n", name.len()).into_bytes().into()
}

impl Exchange for FakeExchange {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn mark_sent(&self, _: usize) {
        self.may_hold_state.store(true, Ordering::Relaxed);
        locked(&self.events).push(Event::Sent);
    }

    fn mark_resent(&self, _: usize) {
        locked(&self.events).push(Event::Resent);
    }

    fn may_hold_state(&self, _: usize) -> bool {
        self.may_hold_state.load(Ordering::Relaxed)
    }

    fn is_decided(&self) -> bool {
        self.is_decided.load(Ordering::Relaxed)
    }

    fn is_moot(&self) -> bool {
        self.is_moot.load(Ordering::Relaxed)
    }

    fn is_expired(&self, _: Moment) -> bool {
        self.is_expired.load(Ordering::Relaxed)
    }

    fn add_lease_ids(&self, ids: &mut HashSet<u64>) {
        ids.insert(self.lease);
    }

    fn concerns(&self, leases: &HashSet<u64>) -> bool {
        leases.contains(&self.lease)
    }

    fn nothing_sent(&self, _: usize) {
        locked(&self.events).push(Event::NothingSent);
    }

    fn answered(&self, _: usize, reply: Result<Value, NodeError>) {
        locked(&self.events).push(Event::Answered(reply));
    }
}
