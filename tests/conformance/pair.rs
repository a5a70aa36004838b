//! A real server and a simulated node, side by side.

use quorlock_testkit::node::resp::Reply;
use quorlock_testkit::node::script_args::RECORD;
use quorlock_testkit::node::{Data, Node, Script};

pub const NAMES: [&str; 3] = ["x", "y", "quite a long name"];
pub const OWNERS: [&str; 2] = ["00000000000000000000000000000aaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbb000"];
pub const CLIENTS: [&str; 3] = ["0000000000000051", "0000000000000052", "00000000000000f0"];
/// Sessions of a subscribed client, and of a client that is gone.
pub const LISTENING: [&str; 2] = [CLIENTS[0], CLIENTS[1]];
pub const WINDOW_US: u64 = 300_000_000;
pub const FIRST_RECORD: &str = "00000000000000af 120000 0 0 300000 - 0 0123456789abcdef";
pub const LIST: &[u8] = b"quorlock:list:quorlock:lock:";

/// Remaining lifetimes may differ by as long as a command takes on a busy machine; those that are set differ by far more.
pub const TTL_TOLERANCE_MS: i64 = 2_000;

/// A key with less time left may exist at one read and not at the next.
const ENDING_MS: i64 = 50;

/// Both arms.
pub struct Pair {
    pub real: redis::Connection,
    pub node: Node,
    pub log: Vec<String>,
    /// Receives the calls of the real server.
    pub calls: redis::Connection,
}

impl Pair {
    /// Returns the real server's clock, in µs.
    pub fn now(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut self.real).expect("the time");
        seconds * 1_000_000 + micros
    }

    pub fn both(&mut self, args: &[&[u8]]) -> (Reply, Reply, u64) {
        let mut command = redis::Cmd::new();
        command.arg(args);
        let real = match command.query::<redis::Value>(&mut self.real) {
            Ok(value) => reply(value),
            Err(error) => {
                Reply::Error(format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default()))
            }
        };
        let now = stamp(&real).unwrap_or_else(|| self.now());
        (real, self.node.execute(args, 0, now), now)
    }

    pub fn listen(&mut self) {
        let mut pubsub = self.calls.as_pubsub();
        for session in LISTENING {
            let channel = format!("quorlock:call:{session}");
            pubsub.subscribe(&channel).expect("a subscription");
            self.node.execute(&[b"SUBSCRIBE", channel.as_bytes()], 0, 0);
        }
        std::mem::forget(pubsub); // Its drop would unsubscribe.
    }

    /// Checks that the last command called the same sessions on both.
    pub fn compare_calls(&mut self) -> Result<(), String> {
        let mine: Vec<Reply> = self.node.pushes.drain(..).map(|(_, push)| push).collect();
        for push in mine {
            let Reply::Push(fields) = push else { return Err(format!("the node sent {push:?}")) };
            let real =
                self.calls.recv_response().map_err(|error| format!("{fields:?}, and from the server: {error}"))?;
            let redis::Value::Array(real) = real else { return Err(format!("the server sent {real:?}")) };
            let real: Vec<Reply> = real.into_iter().map(reply).collect();
            if real != fields {
                return Err(format!("the server sent {real:?}, the node {fields:?}"));
            }
        }
        Ok(())
    }

    /// Changes keys on both arms without the scripts.
    pub fn put(&mut self, key: &[u8], data: &Data, life: Option<u64>) {
        let now = self.now();
        redis::cmd("DEL").arg(key).exec(&mut self.real).expect("DEL");
        match data {
            Data::Text(text) => redis::cmd("SET").arg(key).arg(text).exec(&mut self.real).expect("SET"),
            Data::Queue(members) => {
                let mut add = redis::cmd("ZADD");
                add.arg(key);
                for (score, member) in members {
                    add.arg(score).arg(member);
                }
                add.exec(&mut self.real).expect("ZADD");
            }
            Data::Other("list") => redis::cmd("RPUSH").arg(key).arg("item").exec(&mut self.real).expect("RPUSH"),
            Data::Other(_) => redis::cmd("HSET").arg(key).arg("a").arg("b").exec(&mut self.real).expect("HSET"),
        }
        if let Some(life) = life {
            // The same end for both, independent of the duration of earlier commands.
            redis::cmd("PEXPIREAT").arg(key).arg(now / 1000 + life).exec(&mut self.real).expect("PEXPIREAT");
        }
        self.node.store.put(key, data.clone(), life, now);
    }

    /// Sets a declared record on both.
    pub fn set_record(&mut self, record: &str) {
        self.put(RECORD, &Data::Text(record.into()), None);
    }

    pub fn remove(&mut self, key: &[u8]) {
        redis::cmd("DEL").arg(key).exec(&mut self.real).expect("DEL");
        self.node.store.remove(key);
    }

    /// Checks that the records are the same, except for the start of a quarantine. The node takes the server's.
    fn compare_records(&mut self) -> Result<(), String> {
        let real: Option<String> = redis::cmd("GET").arg(RECORD).query(&mut self.real).expect("GET");
        let now = self.now();
        let mine = self.node.store.text(RECORD, now).map(|text| String::from_utf8_lossy(text).into_owned());
        if real.as_deref().map(without_end) != mine.as_deref().map(without_end) {
            return Err(format!("the record on the server is {real:?}, on the node {mine:?}"));
        }
        if let Some(real) = real {
            self.node.store.put(RECORD, Data::Text(real.into_bytes()), None, now);
        }
        let real: Option<String> = redis::cmd("GET").arg(LIST).query(&mut self.real).expect("GET");
        let mine = self.node.store.text(LIST, now).map(|text| String::from_utf8_lossy(text).into_owned());
        if real == mine { Ok(()) } else { Err(format!("the list on the server is {real:?}, on the node {mine:?}")) }
    }

    /// Checks that all keys of both arms are the same.
    pub fn compare_keys(&mut self) -> Result<(), String> {
        self.compare_records()?;
        for name in NAMES {
            for key in [lock_key(name), ballot_key(name), queue_key(name)] {
                let kind: String = redis::cmd("TYPE").arg(&key).query(&mut self.real).expect("TYPE");
                let pttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut self.real).expect("PTTL");
                let real = match kind.as_str() {
                    "none" => None,
                    "string" => Some(Data::Text(redis::cmd("GET").arg(&key).query(&mut self.real).expect("GET"))),
                    "zset" => {
                        let mut range = redis::cmd("ZRANGE");
                        range.arg(&key).arg(0).arg(-1).arg("WITHSCORES");
                        let members: Vec<(Vec<u8>, u64)> = range.query(&mut self.real).expect("ZRANGE");
                        Some(Data::Queue(members.into_iter().map(|(member, score)| (score, member)).collect()))
                    }
                    "list" => Some(Data::Other("list")),
                    _ => Some(Data::Other("hash")),
                };
                let now = self.now();
                let mine = self.node.store.data(&key, now).cloned();
                let left = self.node.store.pttl(&key, now);
                let same_end = (pttl < 0 || left < 0) && pttl == left || (pttl - left).abs() <= TTL_TOLERANCE_MS;
                if let (Some(Data::Text(text)), Some(Data::Text(other))) = (&real, &mine)
                    && text != other
                    && without_until(text) == without_until(other)
                {
                    // The node takes the server's time.
                    self.node.store.keep(&key, text.clone());
                    continue;
                }
                // It ends between the two reads.
                if real.is_some() != mine.is_some()
                    && ((0..=ENDING_MS).contains(&pttl) || (0..=ENDING_MS).contains(&left))
                {
                    continue;
                }
                let key = String::from_utf8_lossy(&key).into_owned();
                if real != mine {
                    return Err(format!(
                        "{key}: the server has {}, the node {}",
                        shown(real.as_ref()),
                        shown(mine.as_ref())
                    ));
                }
                if real.is_some() && !same_end {
                    return Err(format!("{key}: {pttl} ms are left on the server, {left} ms on the node"));
                }
            }
        }
        Ok(())
    }
}

/// Returns a record without the end of its quarantine by the node's clock, if it has one.
fn without_end(record: &str) -> String {
    let mut words: Vec<&str> = record.split(' ').collect();
    if words.len() > 3 && words[2] != "0" {
        if words[3] == words[2] {
            words[3] = "END";
        }
        words[2] = "END";
    }
    words.join(" ")
}

/// Returns a ballot key without the time until which it is reserved.
fn without_until(text: &[u8]) -> Vec<u8> {
    let Some(bar) = text.windows(3).position(|window| window == b" | ") else { return text.to_vec() };
    let digits = text[bar + 3..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    [&text[..bar + 3], &text[bar + 3 + digits..]].concat()
}

pub fn shown(data: Option<&Data>) -> String {
    match data {
        Some(Data::Text(text)) => String::from_utf8_lossy(text).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Returns the time at which a script ran, from its answer or its first two numbers. The node runs it at that time too.
pub fn stamp(reply: &Reply) -> Option<u64> {
    let number = |item: &Reply| if let Reply::Int(n) = item { Some(*n) } else { None };
    let largest = match reply {
        Reply::Array(items) => items.iter().take(2).filter_map(number).max(),
        reply => number(reply),
    };
    largest.map(i64::cast_unsigned).filter(|time| *time > 1)
}

pub fn lock_key(name: &str) -> Vec<u8> {
    format!("quorlock:lock:{name}").into_bytes()
}

pub fn ballot_key(name: &str) -> Vec<u8> {
    [b"quorlock:ballot:".as_slice(), &lock_key(name)].concat()
}

pub fn queue_key(name: &str) -> Vec<u8> {
    [b"quorlock:queue:".as_slice(), &lock_key(name)].concat()
}

pub fn reply(value: redis::Value) -> Reply {
    match value {
        redis::Value::Okay => Reply::Okay,
        redis::Value::SimpleString(text) => Reply::Simple(text),
        redis::Value::Int(number) => Reply::Int(number),
        redis::Value::BulkString(bytes) => Reply::Bulk(bytes),
        redis::Value::Array(items) => Reply::Array(items.into_iter().map(reply).collect()),
        redis::Value::Nil => Reply::Nil,
        other => Reply::Error(format!("{other:?}")),
    }
}

/// Returns an answer without its times, and these times.
pub fn masked(script: Script, reply: &Reply, now: u64) -> (Reply, Option<i64>) {
    let Reply::Array(items) = reply else { return (reply.clone(), None) };
    let mut items = items.clone();
    let mut left = None;
    let mut mask = |items: &mut Vec<Reply>, i: usize| {
        if let Some(Reply::Int(number)) = items.get(i).cloned() {
            items[i] = Reply::Int(0);
            left = Some(number);
        }
    };
    let masked_record = |item: &Reply| match item {
        Reply::Bulk(record) => Reply::bulk(without_end(&String::from_utf8_lossy(record))),
        other => other.clone(),
    };
    match script {
        Script::Record => items[0] = masked_record(&items[0]),
        Script::Hold if items[0] == Reply::Int(1) => items[1] = masked_record(&items[1]),
        Script::Hold => {
            mask(&mut items, 1);
            match items[0] {
                Reply::Int(2 | 6) => mask(&mut items, 3),
                Reply::Int(9) => mask(&mut items, 2),
                // The node's own time, for a lease that it may have forgotten.
                Reply::Int(7) if matches!(&items[5], Reply::Bulk(word) if word.len() == 16) => {
                    mask(&mut items, 4);
                    left = None;
                }
                // A floor that is the node's own clock.
                Reply::Int(3 | 5) => {
                    let near = |floor: i64| {
                        floor.abs_diff(now.cast_signed()) < 5_000_000
                            || floor.abs_diff(now.cast_signed() - WINDOW_US.cast_signed()) < 5_000_000
                    };
                    if matches!(items[3], Reply::Int(floor) if near(floor)) {
                        items[3] = Reply::Int(0);
                    }
                    left = None;
                }
                _ => left = None,
            }
        }
        Script::Release => {
            mask(&mut items, 0);
            left = None;
        }
        Script::Revoke => {
            mask(&mut items, 1);
            match items[0] {
                Reply::Int(2 | 11) => mask(&mut items, 3),
                Reply::Int(9) => mask(&mut items, 2),
                _ => left = None,
            }
            // The floor of a node that remembers no ballot goes by its clock.
            if let (Reply::Int(11 | 12), Some(Reply::Int(highest))) = (&items[0], items.get(2))
                && highest.abs_diff(now.cast_signed() - WINDOW_US.cast_signed()) < 5_000_000
            {
                items[2] = Reply::Int(0);
            }
        }
        Script::Inspect => {
            mask(&mut items, 0);
            mask(&mut items, 3);
            if let Reply::Bulk(ballot) = &items[4] {
                items[4] = Reply::Bulk(without_until(ballot));
            }
        }
    }
    (Reply::Array(items), left)
}
