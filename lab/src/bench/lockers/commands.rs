//! The commands of the bare sockets: their scripts and their bytes.

use redis::Script;

use super::LEASE;
use super::fan_out::{ACQUIRE, PREFIX, RELEASE};

/// The commands to the nodes: two scripts and their arguments.
#[derive(Clone, Copy)]
pub struct Scripts {
    pub name: &'static str,
    pub acquire: &'static str,
    pub release: &'static str,
    words: fn(&Words) -> [Vec<&str>; 2],
}

/// The values that the arguments contain.
struct Words {
    key: String,
    ballot_key: String,
    value: String,
    lease: String,
    /// The ballot key while the lock is held: ballot, end, and a copy of the lock key.
    ballot_value: String,
}

/// The one-line scripts of [`fan_out`](super::fan_out): a lock, and no value that distinguishes its holders.
pub const PLAIN: Scripts = Scripts {
    name: "floor",
    acquire: ACQUIRE,
    release: RELEASE,
    words: |it| [vec!["1", &it.key, &it.value, &it.lease], vec!["1", &it.key, &it.value]],
};

/// The least Redis commands of a lock with a ballot. Lock: read the node record and the last ballot, write the lock, and the
/// new ballot with a copy of the lock. Unlock: read both, delete the lock, and write the ballot alone.
pub const FENCED: Scripts = Scripts {
    name: "fenced",
    acquire: "redis.call('MGET', 'quorlock:node', KEYS[2]) \
              local set = redis.call('SET', KEYS[1], string.sub(ARGV[1], 32), 'NX', 'PX', ARGV[2]) \
              redis.call('PSETEX', KEYS[2], '172800000', ARGV[1]) return set",
    release: "redis.call('MGET', KEYS[1], KEYS[2]) local gone = redis.call('DEL', KEYS[1]) \
              redis.call('PSETEX', KEYS[2], ARGV[2], string.sub(ARGV[1], 1, 16)) return gone",
    words: |it| {
        let acquire = vec!["2", &it.key, &it.ballot_key, &it.ballot_value, &it.lease];
        [acquire, vec!["2", &it.key, &it.ballot_key, &it.ballot_value, MEMORY]]
    },
};

/// The commands of quorlock itself, with growing ballots. The remaining difference to quorlock is the cost of its client.
pub const OWN: Scripts = Scripts {
    name: "scripts",
    acquire: concat!(
        include_str!("../../../../src/node/lua/resource_state.lua"),
        include_str!("../../../../src/node/lua/hold.lua")
    ),
    release: concat!(
        include_str!("../../../../src/node/lua/resource_state.lua"),
        include_str!("../../../../src/node/lua/release.lua")
    ),
    words: |it| {
        let acquire = vec!["2", &it.key, &it.ballot_key, &it.ballot_value, &it.lease, RECORD];
        [acquire, vec!["2", &it.key, &it.ballot_key, &it.ballot_value, MEMORY]]
    },
};

/// The placeholder of each round's ballot, of the same length.
const BALLOT: &str = "0000000000000000";

/// The placeholder of the end of each round's lease by the wall clock, in ms, of the same length.
const END: &str = "9999999999999";

/// The placeholder of the node record, at the end of a command: it differs for each connection.
const RECORD: &str = "record";

/// How long nodes remember a ballot, in ms: quorlock's default.
pub const MEMORY: &str = "600000";

impl Scripts {
    /// The commands to lock and to unlock, for one of several tasks.
    pub fn commands(self, task: usize) -> [Command; 2] {
        let key = format!("{PREFIX}{}:{task}", self.name);
        let owner = format!("{:032x}", rand::random::<u128>());
        let words = Words {
            ballot_key: format!("{key}:ballot"),
            key,
            lease: LEASE.as_millis().to_string(),
            ballot_value: format!("{BALLOT} {END} ql1 {BALLOT} {owner} bench:1 {:016x}/1:1", rand::random::<u64>()),
            value: owner,
        };
        let codes = [self.acquire, self.release].map(|code| Script::new(code).get_hash().to_owned());
        let [acquire, release] = (self.words)(&words);
        let ask = |hash: &str, words: Vec<&str>| Command::new(&[&["EVALSHA", hash], words.as_slice()].concat());
        [ask(&codes[0], acquire), ask(&codes[1], release)]
    }
}

/// A command as it goes over the wire.
pub struct Command {
    bytes: Vec<u8>,
    /// The positions of the ballot.
    ballots: Vec<usize>,
    /// The positions of the end of the lease.
    ends: Vec<usize>,
    /// The last argument is the record of the node.
    pub says_record: bool,
}

impl Command {
    fn new(words: &[&str]) -> Self {
        let mut bytes = encode(words);
        let says_record = words.last() == Some(&RECORD);
        if says_record {
            bytes.truncate(bytes.len() - argument(RECORD).len());
        }
        let places = |of: &str| (0..bytes.len()).filter(|at| bytes[*at..].starts_with(of.as_bytes())).collect();
        Self { ballots: places(BALLOT), ends: places(END), says_record, bytes }
    }

    /// The ballot of the next round, and the end of its lease.
    pub fn fill_in(&mut self, ballot: &str, end: &str) {
        for (places, text) in [(&self.ballots, ballot), (&self.ends, end)] {
            for at in places {
                self.bytes[*at..at + text.len()].copy_from_slice(text.as_bytes());
            }
        }
    }

    /// For a node with this record, which is an argument already.
    pub fn write_to(&self, output: &mut Vec<u8>, record: &[u8]) {
        output.extend_from_slice(&self.bytes);
        if self.says_record {
            output.extend_from_slice(record);
        }
    }
}

/// A command as Redis reads it.
pub fn encode(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    bytes.extend(words.iter().flat_map(|word| argument(word).into_bytes()));
    bytes
}

/// One word of it, which is also how Redis answers with a string.
fn argument(word: &str) -> String {
    format!("${}\r\n{word}\r\n", word.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded_as_arrays_of_strings() {
        assert_eq!(encode(&["GET", "ä"]), "*2\r\n$3\r\nGET\r\n$2\r\nä\r\n".as_bytes());
    }

    #[test]
    fn every_ballot_and_end_in_a_command_is_filled_in() {
        let mut command = Command::new(&["SET", &format!("{BALLOT} {END} {BALLOT}"), BALLOT]);
        command.fill_in("1700000000000001", "1700000010000");
        let filled = ["SET", "1700000000000001 1700000010000 1700000000000001", "1700000000000001"];
        assert_eq!(command.bytes, encode(&filled));
    }

    #[test]
    fn each_node_gets_its_own_record() {
        let (mut with_record, mut without) = (Vec::new(), Vec::new());
        Command::new(&["SET", "key", RECORD]).write_to(&mut with_record, argument("other words").as_bytes());
        Command::new(&["SET", RECORD, "key"]).write_to(&mut without, argument("other words").as_bytes());
        assert_eq!(with_record, encode(&["SET", "key", "other words"]));
        assert_eq!(without, encode(&["SET", RECORD, "key"]));
    }
}
