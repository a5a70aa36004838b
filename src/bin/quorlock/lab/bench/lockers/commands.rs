//! What the bare sockets send: whose scripts, and the bytes of their commands.

use redis::Script;

use super::LEASE;
use super::fan_out::{ACQUIRE, PREFIX, RELEASE};

/// What is asked of the nodes, by two scripts and their arguments.
#[derive(Clone, Copy)]
pub struct Scripts {
    pub name: &'static str,
    pub acquire: &'static str,
    pub release: &'static str,
    words: fn(&Words) -> [Vec<&str>; 2],
}

/// What the arguments are made of.
struct Words {
    key: String,
    ballot_key: String,
    value: String,
    lease: String,
    /// The value as quorlock writes it.
    held: String,
    /// What quorlock's release says of the lease.
    known: String,
}

/// The one-line scripts of [`fan_out`](super::fan_out): a lock, and nothing that tells its holders apart.
pub const PLAIN: Scripts = Scripts {
    name: "floor",
    acquire: ACQUIRE,
    release: RELEASE,
    words: |it| [vec!["1", &it.key, &it.value, &it.lease], vec!["1", &it.key, &it.value]],
};

/// The Redis commands that a lock with a ballot cannot do without, and no other line: what time it is, the ballot, the lock,
/// the new ballot; and in the end what both are, and the lock away.
pub const FENCED: Scripts = Scripts {
    name: "fenced",
    acquire: "redis.call('TIME') redis.call('GET', KEYS[2]) \
              local set = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) \
              redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2]) return set",
    release: "redis.call('MGET', KEYS[1], KEYS[2]) return redis.call('DEL', KEYS[1])",
    words: |it| [(); 2].map(|()| vec!["2", &it.key, &it.ballot_key, &it.value, &it.lease, BALLOT]),
};

/// What quorlock itself asks, with ballots that grow: what it takes longer than this is its client's.
pub const OWN: Scripts = Scripts {
    name: "scripts",
    acquire: concat!(
        include_str!("../../../../../node/lua/mark.lua"),
        include_str!("../../../../../node/lua/hold.lua")
    ),
    release: concat!(
        include_str!("../../../../../node/lua/mark.lua"),
        include_str!("../../../../../node/lua/release.lua")
    ),
    words: |it| {
        let acquire = vec!["2", &it.key, &it.ballot_key, &it.held, &it.lease, BALLOT, MEMORY, "0"];
        [acquire, vec!["2", &it.key, &it.ballot_key, &it.held, BALLOT, MEMORY, &it.known]]
    },
};

/// Stands for the ballot of each round, and is as long.
const BALLOT: &str = "0000000000000000";

/// How long nodes remember it, in ms: quorlock's default.
const MEMORY: &str = "3600000";

impl Scripts {
    /// To lock and to unlock, for one of several tasks.
    pub fn commands(self, task: usize) -> [Command; 2] {
        let key = format!("{PREFIX}{}:{task}", self.name);
        let owner = format!("{:032x}", rand::random::<u128>());
        let words = Words {
            ballot_key: format!("{key}:ballot"),
            key,
            lease: LEASE.as_millis().to_string(),
            held: format!("ql1 {BALLOT} {owner} bench:1 {:016x}:1", rand::random::<u64>()),
            known: format!("{BALLOT} {BALLOT} 0 0"),
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
    pub bytes: Vec<u8>,
    /// Where the ballot stands in it.
    ballots: Vec<usize>,
}

impl Command {
    fn new(words: &[&str]) -> Self {
        let bytes = encode(words);
        let is_ballot = |at: &usize| bytes[*at..].starts_with(BALLOT.as_bytes());
        let ballots = (0..bytes.len()).filter(is_ballot).collect();
        Self { bytes, ballots }
    }

    /// The ballot of the next round.
    pub fn fill_in(&mut self, ballot: &str) {
        for at in &self.ballots {
            self.bytes[*at..at + BALLOT.len()].copy_from_slice(ballot.as_bytes());
        }
    }
}

/// A command as Redis reads it.
pub fn encode(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings() {
        assert_eq!(encode(&["GET", "ä"]), "*2\r\n$3\r\nGET\r\n$2\r\nä\r\n".as_bytes());
    }

    #[test]
    fn every_ballot_of_a_command_is_filled_in() {
        let mut command = Command::new(&["SET", &format!("{BALLOT} {BALLOT}"), BALLOT]);
        command.fill_in("1700000000000001");
        let filled = ["SET", "1700000000000001 1700000000000001", "1700000000000001"];
        assert_eq!(command.bytes, encode(&filled));
    }
}
