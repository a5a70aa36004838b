//! A Redis master in memory: keys that expire by its own clock, and the few commands that the lock sends.

mod releases;
pub mod resource_state;
pub mod resp;
pub mod revocations;
pub mod rules;
pub mod script_args;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use resp::Reply;
use rules::Rules;

/// The scripts of the library, in the order of [`Script`].
pub const SCRIPTS: [&str; 5] = quorlock::scripts();

/// The script that a hash stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    Hold,
    Release,
    Inspect,
    Record,
    Revoke,
}

static HASHES: LazyLock<[String; 5]> =
    LazyLock::new(|| SCRIPTS.map(|code| redis::Script::new(code).get_hash().to_owned()));

impl Script {
    const ALL: [Self; 5] = [Self::Hold, Self::Release, Self::Inspect, Self::Record, Self::Revoke];

    pub fn by_hash(hash: &[u8]) -> Option<Self> {
        HASHES.iter().position(|known| known.as_bytes() == hash).map(|i| Self::ALL[i])
    }

    /// Returns the script that a command runs, by hash or by code.
    pub fn of(args: &[&[u8]]) -> Option<Self> {
        match *args.first()? {
            b"EVALSHA" => Self::by_hash(args.get(1)?),
            b"EVAL" => SCRIPTS.iter().position(|code| Some(&code.as_bytes()) == args.get(1)).map(|i| Self::ALL[i]),
            _ => None,
        }
    }

    pub fn hash(self) -> &'static str {
        &HASHES[self as usize]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Text(Vec<u8>),
    /// A sorted set: each member behind its score.
    Queue(BTreeSet<(u64, Vec<u8>)>),
    /// A key of another type, by its name.
    Other(&'static str),
}

#[derive(Clone, Debug)]
struct Entry {
    data: Data,
    /// In ms of the node's clock.
    until: Option<u64>,
}

/// The keys. `now` is the node's clock in µs; as in Redis, a key is gone when its last millisecond is over.
#[derive(Clone, Debug, Default)]
pub struct Store(BTreeMap<Vec<u8>, Entry>);

impl Store {
    fn entry(&mut self, key: &[u8], now: u64) -> Option<&mut Entry> {
        if self.0.get(key).is_some_and(|entry| entry.until.is_some_and(|until| now / 1000 > until)) {
            self.0.remove(key);
        }
        self.0.get_mut(key)
    }

    pub fn data(&mut self, key: &[u8], now: u64) -> Option<&Data> {
        self.entry(key, now).map(|entry| &entry.data)
    }

    pub fn data_mut(&mut self, key: &[u8], now: u64) -> Option<&mut Data> {
        self.entry(key, now).map(|entry| &mut entry.data)
    }

    /// Removes a set without members.
    pub fn remove_empty(&mut self, key: &[u8]) {
        if matches!(self.0.get(key), Some(Entry { data: Data::Queue(members), .. }) if members.is_empty()) {
            self.0.remove(key);
        }
    }

    /// Returns the value as MGET does: a key of another type is missing.
    pub fn text(&mut self, key: &[u8], now: u64) -> Option<&[u8]> {
        match self.data(key, now) {
            Some(Data::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the lifetime as PTTL does: -1 for no end, -2 for no key.
    pub fn pttl(&mut self, key: &[u8], now: u64) -> i64 {
        match self.entry(key, now) {
            None => -2,
            Some(Entry { until: None, .. }) => -1,
            Some(Entry { until: Some(until), .. }) => (*until - now / 1000).cast_signed(),
        }
    }

    pub fn put(&mut self, key: &[u8], data: Data, life: Option<u64>, now: u64) {
        self.0.insert(key.to_vec(), Entry { data, until: life.map(|life| now / 1000 + life) });
    }

    /// SET key value PX life.
    pub fn set(&mut self, key: &[u8], value: Vec<u8>, life: u64, now: u64) {
        self.put(key, Data::Text(value), Some(life), now);
    }

    /// SET key value KEEPTTL, of an existing key.
    pub fn keep(&mut self, key: &[u8], value: Vec<u8>) {
        if let Some(entry) = self.0.get_mut(key) {
            entry.data = Data::Text(value);
        }
    }

    /// PEXPIRE.
    pub fn expire(&mut self, key: &[u8], life: u64, now: u64) {
        if let Some(entry) = self.entry(key, now) {
            entry.until = Some(now / 1000 + life);
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    /// Removes expired keys, also those that are not read.
    pub fn expire_all(&mut self, now: u64) {
        self.0.retain(|_, entry| entry.until.is_none_or(|until| now / 1000 <= until));
    }

    /// Returns the text keys under a prefix that have not expired.
    pub fn texts<'a>(&'a self, prefix: &'a [u8], now: u64) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let live = move |entry: &Entry| entry.until.is_none_or(|until| now / 1000 <= until);
        self.0.iter().filter(move |(key, entry)| key.starts_with(prefix) && live(entry)).filter_map(|(key, entry)| {
            match &entry.data {
                Data::Text(text) => Some((key.as_slice(), text.as_slice())),
                Data::Queue(_) | Data::Other(_) => None,
            }
        })
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub store: Store,
    pub rules: Rules,
    pub run_id: String,
    /// Every write is logged before it is answered.
    pub durable: bool,
    /// It refuses writes, and will get the data of another node.
    pub is_replica: bool,
    /// It has been a replica since its process began.
    pub was_replica: bool,
    known: [bool; 5],
    /// The channels and their subscribed connections.
    subscribers: Vec<(Vec<u8>, usize)>,
    /// Calls to be sent, and their connections.
    pub pushes: Vec<(usize, Reply)>,
}

impl Node {
    pub fn new(rules: Rules, run_id: String) -> Self {
        Self {
            store: Store::default(),
            rules,
            run_id,
            durable: false,
            is_replica: false,
            was_replica: false,
            known: [false; 5],
            subscribers: Vec::new(),
            pushes: Vec::new(),
        }
    }

    /// Declares a new cluster of this number of nodes, as the bundled scripts do.
    pub fn declare_new(&mut self, word: u64, cluster: u64, nodes: usize, window: Duration, now: u64) {
        let run_id = &self.run_id[..16];
        let (window, keeps) = (window.as_millis(), u8::from(self.durable));
        let record = format!("{word:016x} 1000 0 0 {window} {cluster:016x} {keeps} {run_id}");
        self.store.put(script_args::RECORD, Data::Text(record.into_bytes()), None, now);
        let list = [b"quorlock:list:", quorlock_prefix()].concat();
        self.store.put(&list, Data::Text(nodes.to_string().into_bytes()), None, now);
    }

    /// Removes the scripts, as SCRIPT FLUSH and a restart do.
    pub fn flush_scripts(&mut self) {
        self.known = [false; 5];
    }

    /// Ends a connection on the side of the server.
    pub fn disconnected(&mut self, connection: usize) {
        self.subscribers.retain(|(_, subscriber)| *subscriber != connection);
    }

    /// Ends the process.
    pub fn disconnect_all(&mut self) {
        self.subscribers.clear();
    }

    /// Executes a command. `connection` is its source, `now` the node's wall clock in µs.
    pub fn execute(&mut self, args: &[&[u8]], connection: usize, now: u64) -> Reply {
        let word = |i: usize| args.get(i).map(|arg| arg.to_ascii_uppercase()).unwrap_or_default();
        match (word(0).as_slice(), word(1).as_slice()) {
            (b"EVALSHA" | b"EVAL", _) => self.eval(args, now),
            (b"PING", _) => Reply::Simple("PONG".to_owned()),
            (b"SCRIPT", b"LOAD") => {
                let hash = match SCRIPTS.iter().position(|code| Some(&code.as_bytes()) == args.get(2)) {
                    Some(i) => {
                        self.known[i] = true;
                        Script::ALL[i].hash().to_owned()
                    }
                    None => return Reply::Error("ERR a script that this node has no code for".to_owned()),
                };
                Reply::bulk(hash)
            }
            (b"SCRIPT", b"FLUSH") => {
                self.flush_scripts();
                Reply::Okay
            }
            (b"INFO", _) => Reply::bulk(self.info(now)),
            (b"MGET", _) => Reply::Array(
                args[1..].iter().map(|key| self.store.text(key, now).map_or(Reply::Nil, Reply::bulk)).collect(),
            ),
            (b"TIME", _) => Reply::Array([now / 1_000_000, now % 1_000_000].map(|n| Reply::bulk(n.to_string())).into()),
            (b"CLIENT" | b"AUTH" | b"SELECT", _) => Reply::Okay,
            (b"HELLO", _) => Reply::Map(vec![Reply::bulk("proto"), Reply::Int(3)]),
            (b"SUBSCRIBE", _) => {
                self.subscribers.push((args[1].to_vec(), connection));
                Reply::Push(vec![Reply::bulk("subscribe"), Reply::bulk(args[1]), Reply::Int(1)])
            }
            (other, _) => Reply::Error(format!("ERR unknown command '{}'", String::from_utf8_lossy(other))),
        }
    }

    fn eval(&mut self, args: &[&[u8]], now: u64) -> Reply {
        if let (b"EVAL", Some(script)) = (args[0], Script::of(args)) {
            self.known[script as usize] = true;
        }
        let Some(script) = Script::of(args).filter(|script| self.known[*script as usize]) else {
            return Reply::Error("NOSCRIPT No matching script. Please use EVAL.".to_owned());
        };
        let Some((keys, argv)) = split(args) else { return Reply::Error("ERR wrong number of arguments".to_owned()) };
        if self.is_replica && script != Script::Inspect {
            let why = "READONLY You can't write against a read only replica.";
            return Reply::Error(why.to_owned());
        }
        match script {
            Script::Hold => rules::hold(&mut self.store, &self.rules, keys, argv, now),
            Script::Record => releases::record(&mut self.store, &self.rules, keys, argv, now),
            Script::Release => {
                let (subscribers, pushes) = (&self.subscribers, &mut self.pushes);
                let mut publish = |channel: &[u8], text: &[u8]| {
                    let subscribed = subscribers.iter().filter(|(theirs, _)| theirs == channel);
                    let message = || Reply::Push(vec![Reply::bulk("message"), Reply::bulk(channel), Reply::bulk(text)]);
                    let before = pushes.len();
                    pushes.extend(subscribed.map(|(_, connection)| (*connection, message())));
                    pushes.len() - before
                };
                releases::release(&mut self.store, &self.rules, keys, argv, now, &mut publish)
            }
            Script::Inspect => releases::inspect(&mut self.store, keys, now),
            Script::Revoke => revocations::revoke(&mut self.store, &self.rules, keys, argv, now),
        }
    }

    fn info(&self, now: u64) -> String {
        let role = if self.is_replica { "slave" } else { "master" };
        let earlier = if self.was_replica { "f" } else { "0" };
        [
            "# Server".to_owned(),
            "redis_version:7.0.15".to_owned(),
            "redis_mode:standalone".to_owned(),
            format!("run_id:{}", self.run_id),
            format!("server_time_usec:{now}"),
            "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction".to_owned(),
            format!("# Persistence\r\nloading:0\r\naof_enabled:{}", u8::from(self.durable)),
            format!("# Replication\r\nrole:{role}\r\nmaster_replid2:{}\r\n", earlier.repeat(40)),
        ]
        .join("\r\n")
    }
}

/// The words of a command.
type Args<'a, 'b> = &'a [&'b [u8]];

/// Keys and arguments of an EVALSHA.
pub fn split<'a, 'b>(args: Args<'a, 'b>) -> Option<(Args<'a, 'b>, Args<'a, 'b>)> {
    let count: usize = std::str::from_utf8(args.get(2)?).ok()?.parse().ok()?;
    args.get(3..)?.split_at_checked(count)
}

fn quorlock_prefix() -> &'static [u8] {
    b"quorlock:lock:"
}
