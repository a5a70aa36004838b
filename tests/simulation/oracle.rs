//! Watches the nodes: what each of them granted and released, judged command by command without asking any client.

use std::collections::BTreeMap;

use crate::node::{Node, Script, split};
use crate::resp::Reply;
use crate::rules::{LockValue, lua_number};

/// An invariant that did not hold, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    /// Simulated time in µs.
    pub at: u64,
    pub what: String,
}

/// A lock as it stands on a node.
#[derive(Clone, Debug, PartialEq)]
struct State {
    value: Option<Vec<u8>>,
    pttl: i64,
    ballot: f64,
}

/// A vote: lock key, owner and token.
type Vote = (Vec<u8>, Vec<u8>, u64);
/// A session's share: node, lock key, owner and session.
type Share = (usize, Vec<u8>, Vec<u8>, Vec<u8>);

#[derive(Debug, Default)]
pub struct Oracle {
    /// Which nodes ever gave each vote, one bit each.
    votes: BTreeMap<Vote, u64>,
    /// The latest ballot of a release that each node has seen.
    released: BTreeMap<Share, u64>,
    /// The latest token that each node granted anew.
    newest: BTreeMap<(usize, Vec<u8>), u64>,
    pub violations: Vec<Violation>,
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn integer(bytes: &[u8]) -> u64 {
    lua_number(bytes).map_or(0, |number| number as u64)
}

impl Oracle {
    /// How many nodes voted for this.
    pub fn votes(&self, lock_key: &str, owner: &str, token: u64) -> u32 {
        let vote = (lock_key.as_bytes().to_vec(), owner.as_bytes().to_vec(), token);
        self.votes.get(&vote).map_or(0, |nodes| nodes.count_ones())
    }

    /// This node has lost its memory, and so have we of it.
    pub fn forget(&mut self, node: usize) {
        self.released.retain(|(at, ..), _| *at != node);
        self.newest.retain(|(at, _), _| *at != node);
    }

    /// Lets the node execute a command that came on `conn`, and looks at what that did.
    pub fn execute(
        &mut self,
        index: usize,
        node: &mut Node,
        args: &[&[u8]],
        conn: usize,
        clock: u64,
        at: u64,
    ) -> Reply {
        let script = args.get(1).and_then(|hash| Script::by_hash(hash));
        let watched = script.filter(|script| *script != Script::Inspect && args[0] == b"EVALSHA").zip(split(args));
        let Some((script, (keys, argv))) = watched else { return node.execute(args, conn, clock) };
        let look = |node: &mut Node| -> Vec<State> {
            let look = |pair: &[&[u8]]| State {
                value: node.store.text(pair[0], clock).map(<[u8]>::to_vec),
                pttl: node.store.pttl(pair[0], clock),
                ballot: node.store.text(pair[1], clock).and_then(lua_number).unwrap_or(0.0),
            };
            keys.chunks_exact(3).map(look).collect()
        };
        let before = look(node);
        let reply = node.execute(args, conn, clock);
        let after = look(node);
        let Reply::Array(answer) = &reply else { return reply };
        let mut judge = Judge { oracle: self, index, keys, argv, before: &before, after: &after, at };
        match script {
            Script::Hold if answer[0] == Reply::Int(1) => judge.granted(),
            Script::Hold => judge.refused(),
            Script::Release => judge.released(),
            Script::Inspect => {}
        }
        reply
    }
}

/// One command on one node.
struct Judge<'a> {
    oracle: &'a mut Oracle,
    index: usize,
    keys: &'a [&'a [u8]],
    argv: &'a [&'a [u8]],
    before: &'a [State],
    after: &'a [State],
    at: u64,
}

impl Judge<'_> {
    fn violated(&mut self, invariant: &'static str, i: usize, what: &str) {
        let state = |state: &State| {
            format!(
                "{} for {} ms, ballot {}",
                state.value.as_deref().map_or("free".to_owned(), text),
                state.pttl,
                state.ballot
            )
        };
        let what = format!(
            "node {}: {what}: {} was [{}], is [{}], after {}",
            self.index,
            text(self.keys[3 * i]),
            state(&self.before[i]),
            state(&self.after[i]),
            self.argv.iter().map(|arg| text(arg)).collect::<Vec<_>>().join(" "),
        );
        self.oracle.violations.push(Violation { invariant, at: self.at, what });
    }

    fn granted(&mut self) {
        let (next, lease) = (integer(self.argv[0]), integer(self.argv[1]).cast_signed());
        let (owner, session) = (self.argv[4], self.argv[5]);
        for (i, args) in self.argv[8..].chunks_exact(3).enumerate() {
            let key = self.keys[3 * i].to_vec();
            let fresh = args[0] == b"0";
            let token = if fresh { next } else { integer(args[0]) };
            let (before, after) = (&self.before[i], &self.after[i]);
            let ours = |value: &Option<Vec<u8>>| {
                value
                    .as_deref()
                    .and_then(LockValue::parse)
                    .is_some_and(|value| value.owner == owner && (integer(value.token) == token || fresh))
            };
            let holds = after
                .value
                .as_deref()
                .and_then(LockValue::parse)
                .and_then(|value| value.entries().find(|(id, _)| *id == session).map(|(_, holds)| holds));
            let (overwrote, shrank) =
                (before.value.is_some() && !ours(&before.value), after.pttl < before.pttl.max(lease));
            let (fell, miscounted) = (after.ballot < before.ballot, holds != Some(integer(args[2]) as u32));
            if overwrote {
                self.violated("NoFalseGrant", i, "granted over somebody else's key");
            }
            if shrank {
                self.violated("LeaseNeverShrinks", i, "a lease got shorter");
            }
            if fell {
                self.violated("TokenMonotonic", i, "the ballot fell");
            }
            if miscounted {
                self.violated("ReentrantDepth", i, "the count is not what was asked for");
            }
            if fresh {
                let newest = self.oracle.newest.insert((self.index, key.clone()), token);
                if newest.is_some_and(|newest| newest >= token) {
                    self.violated("TokenUnique", i, "granted a token that is not new");
                }
            }
            let share = (self.index, key.clone(), owner.to_vec(), session.to_vec());
            if self.oracle.released.get(&share).is_some_and(|released| *released > next) {
                self.violated("NoOrphan", i, "a message that is older than its release was honoured");
            }
            *self.oracle.votes.entry((key, owner.to_vec(), token)).or_default() |= 1 << self.index;
        }
    }

    fn refused(&mut self) {
        if let Some(i) = (0..self.before.len()).find(|i| self.before[*i] != self.after[*i]) {
            self.violated("NoFalseGrant", i, "a refusal changed something");
        }
    }

    fn released(&mut self) {
        let (next, owner, session) = (integer(self.argv[0]), self.argv[3], self.argv[4]);
        for (i, args) in self.argv[5..].chunks_exact(4).enumerate() {
            if args[0] == b"0" {
                continue; // Somebody has stopped waiting.
            }
            let (before, after) = (self.before[i].clone(), &self.after[i]);
            let parsed = before.value.as_deref().and_then(LockValue::parse);
            let honest = match parsed.filter(|value| value.owner == owner && value.token == args[0]) {
                None => before.value == after.value && before.pttl == after.pttl,
                Some(value) => {
                    let others = |value: LockValue<'_>| -> Vec<(Vec<u8>, u32)> {
                        let entries = value.entries().filter(|(id, _)| *id != session);
                        entries.map(|(id, holds)| (id.to_vec(), holds)).collect()
                    };
                    let left = after.value.as_deref().and_then(LockValue::parse).map(others).unwrap_or_default();
                    left == others(value)
                }
            };
            if !honest {
                self.violated("ReleaseSafe", i, "a release touched what was not its own");
            }
            let share = (self.index, self.keys[3 * i].to_vec(), owner.to_vec(), session.to_vec());
            let released = self.oracle.released.entry(share).or_default();
            *released = (*released).max(next);
        }
    }
}
