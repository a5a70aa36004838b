//! Judges the grants and releases of each node, command by command and independent of the clients.

use std::collections::HashMap;
use std::sync::Arc;

use crate::invariant::{Findings, Invariant, Watch};
use quorlock_testkit::node::resp::Reply;
use quorlock_testkit::node::revocations::{ABSENT, REVOKED, Revoke};
use quorlock_testkit::node::script_args::{Hold, LockValue, RECORD, Record, Release, lua_number};
use quorlock_testkit::node::{Node, Script, split};

/// A lock as a node stores it.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// Empty when there is none.
    value: Vec<u8>,
    pttl: i64,
    ballot: f64,
}

impl State {
    fn look(&mut self, node: &mut Node, pair: &[&[u8]], clock: u64) {
        self.value.clear();
        self.value.extend_from_slice(node.store.text(pair[0], clock).unwrap_or_default());
        self.pttl = node.store.pttl(pair[0], clock);
        // The waiting requests follow behind it.
        let ballot = |mark: &[u8]| lua_number(mark.split(|byte| *byte == b' ').next()?);
        self.ballot = node.store.text(pair[1], clock).and_then(ballot).unwrap_or(0.0);
    }

    fn lock(&self) -> Option<LockValue<'_>> {
        LockValue::parse(&self.value)
    }

    fn described(&self) -> String {
        let value = if self.value.is_empty() { "free".to_owned() } else { text(&self.value) };
        format!("{value} for {} ms, ballot {}", self.pttl, self.ballot)
    }
}

/// Resource, owner and token.
type Vote = (usize, u128, u64);
/// Of a client in a lease.
type ShareWord = Vec<u8>;
/// Node, resource, owner and share.
type Share = (usize, usize, u128, ShareWord);

/// The nodes that gave a vote, one bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    given: u64,
    /// Votes of nodes that answered that they count.
    counted: u64,
    /// Votes of nodes that cannot have forgotten an earlier vote.
    sound: u64,
}

/// The node that executes a command.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub node: usize,
    /// The connection of the command.
    pub conn: usize,
    /// Its clock in µs.
    pub clock: u64,
    /// Simulated time in µs.
    pub at: u64,
    /// No lease that it may have voted for and forgotten can still run.
    pub remembers: bool,
    /// Its clock has leapt by hours: it may refuse a correct ballot as too far ahead.
    pub leaps: bool,
}

#[derive(Debug)]
pub struct Oracle {
    pub findings: Findings,
    /// Lock keys, by their numbers.
    keys: Vec<Vec<u8>>,
    votes: HashMap<Vote, Votes>,
    /// The largest ballot of a release that each node has seen.
    released: HashMap<Share, u64>,
    /// The ballot of the latest revocation that each node has done, by node, resource and token.
    revoked: HashMap<(usize, usize, u64), u64>,
    /// The messages of each share that have reached any node.
    sent: HashMap<(usize, u128, u64, ShareWord), Sent>,
    /// The latest token that each node granted anew.
    newest: HashMap<(usize, usize), u64>,
    /// The longest lease that each node honoured, in µs.
    longest: HashMap<usize, u64>,
    /// The ballots that each node takes for a resource.
    floors: HashMap<(usize, usize), Floor>,
    /// What each node's clock showed last, in µs.
    clocks: HashMap<usize, u64>,
    before: Vec<State>,
    after: Vec<State>,
}

/// The lowest ballot that a node has taken lately.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    lowest: f64,
    /// It is further ahead of the node's clock than ballots may be.
    is_far: bool,
}

/// The largest ballots of the hold messages of a share, and of its releases.
#[derive(Debug, Default)]
struct Sent {
    holds: u64,
    releases: Option<u64>,
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn integer(bytes: &[u8]) -> u64 {
    lua_number(bytes).map_or(0, |number| number as u64)
}

fn hexadecimal(bytes: &[u8]) -> u128 {
    std::str::from_utf8(bytes).ok().and_then(|text| u128::from_str_radix(text, 16).ok()).unwrap_or(u128::MAX)
}

impl Oracle {
    pub fn new(watch: Arc<Watch>) -> Self {
        Self {
            findings: Findings::new(watch),
            keys: Vec::new(),
            votes: HashMap::new(),
            released: HashMap::new(),
            revoked: HashMap::new(),
            sent: HashMap::new(),
            newest: HashMap::new(),
            longest: HashMap::new(),
            floors: HashMap::new(),
            clocks: HashMap::new(),
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    fn key(&mut self, key: &[u8]) -> usize {
        self.keys.iter().position(|known| known == key).unwrap_or_else(|| {
            self.keys.push(key.to_vec());
            self.keys.len() - 1
        })
    }

    /// Returns how many nodes voted for this, and how many of them had all their votes.
    pub fn votes(&self, lock_key: &str, owner: &str, token: u64) -> (u32, u32) {
        let key = self.keys.iter().position(|known| known == lock_key.as_bytes());
        let votes = key.and_then(|key| self.votes.get(&(key, hexadecimal(owner.as_bytes()), token)));
        votes.map_or((0, 0), |votes| (votes.given.count_ones(), votes.sound.count_ones()))
    }

    /// Returns how many nodes gave a vote for this that counts, by their answers.
    pub fn counted(&self, lock_key: &str, owner: &str, token: u64) -> u32 {
        let key = self.keys.iter().position(|known| known == lock_key.as_bytes());
        let votes = key.and_then(|key| self.votes.get(&(key, hexadecimal(owner.as_bytes()), token)));
        votes.map_or(0, |votes| votes.counted.count_ones())
    }

    /// Records that this node has lost its memory. Returns the longest lease that it may have forgotten, in µs.
    pub fn forget(&mut self, node: usize) -> u64 {
        self.released.retain(|(at, ..), _| *at != node);
        self.revoked.retain(|(at, ..), _| *at != node);
        self.newest.retain(|(at, _), _| *at != node);
        self.floors.retain(|(at, _), _| *at != node);
        self.longest.get(&node).copied().unwrap_or(0)
    }

    /// Lets the node execute a command, and judges the effect.
    pub fn execute(&mut self, place: Place, node: &mut Node, args: &[&[u8]]) -> Reply {
        let watched = Script::of(args)
            .filter(|script| matches!(script, Script::Hold | Script::Release | Script::Revoke))
            .zip(split(args));
        let Some((script, (keys, argv))) = watched else { return node.execute(args, place.conn, place.clock) };
        let (mut before, mut after) = (std::mem::take(&mut self.before), std::mem::take(&mut self.after));
        let look = |node: &mut Node, states: &mut Vec<State>| {
            states.resize_with(keys.len() / 2, State::default);
            states.iter_mut().zip(keys.chunks_exact(2)).for_each(|(state, pair)| state.look(node, pair, place.clock));
        };
        look(node, &mut before);
        if self.clocks.insert(place.node, place.clock).is_some_and(|clock| place.clock < clock) {
            self.floors.retain(|(at, _), _| *at != place.node); // Its clock was set back.
        }
        let record = node.store.text(RECORD, place.clock).unwrap_or_default().to_vec();
        let reply = node.execute(args, place.conn, place.clock);
        look(node, &mut after);
        let mut judge = Judge { oracle: self, place, keys, argv, before: &before, after: &after, record: &record };
        match (script, &reply) {
            (Script::Hold, Reply::Int(_)) => judge.granted(true),
            (Script::Hold, Reply::Array(answer)) if matches!(answer[0], Reply::Int(1 | 11)) => judge.granted(true),
            // It honours an extension, and answers that this is no vote.
            (Script::Hold, Reply::Array(answer)) if answer[0] == Reply::Int(9) && !judge.acquires() => {
                judge.granted(false);
            }
            (Script::Hold, Reply::Array(_)) => judge.refused(),
            (Script::Release, Reply::Int(_) | Reply::Array(_)) => judge.released(),
            (Script::Revoke, Reply::Array(answer)) => {
                judge.revoked(matches!(answer[0], Reply::Int(REVOKED | ABSENT)));
            }
            _ => {}
        }
        (0..judge.before.len()).for_each(|i| judge.floor_stays(i));
        (self.before, self.after) = (before, after);
        reply
    }
}

/// One command on one node.
struct Judge<'a> {
    oracle: &'a mut Oracle,
    place: Place,
    keys: &'a [&'a [u8]],
    argv: &'a [&'a [u8]],
    before: &'a [State],
    after: &'a [State],
    /// The node's, before the command.
    record: &'a [u8],
}

impl Judge<'_> {
    /// While a node keeps its memory and its clock is not set back, it takes no smaller ballot than before: it remembers
    /// ballots for longer than any of them is above the floor of a node that remembers none. A ballot that is further ahead
    /// than others is an exception, because it may be forgotten before it is reached.
    fn floor_stays(&mut self, i: usize) {
        let Some(record) = Record::parse(self.record) else { return };
        let (clock, window) = (self.place.clock as f64, 1000.0 * record.window);
        let floor = |state: &State| if state.ballot > 0.0 { state.ballot } else { clock - window };
        let (before, after) = (floor(&self.before[i]), floor(&self.after[i]));
        let place = (self.place.node, self.oracle.key(self.keys[2 * i]));
        let known = self.oracle.floors.get(&place).copied().unwrap_or_default();
        let lowest = known.lowest.max(before);
        let holds = known.is_far || (before >= known.lowest && after >= lowest);
        self.judge(Invariant::TokenMonotonic, i, holds, "takes smaller ballots than before");
        let is_far = after > clock + window || known.is_far && after == known.lowest;
        self.oracle.floors.insert(place, Floor { lowest: after, is_far });
    }

    fn judge(&mut self, invariant: Invariant, i: usize, holds: bool, what: &str) {
        let Self { place, keys, argv, before, after, .. } = *self;
        self.oracle.findings.judge(invariant, place.at, holds, || {
            format!(
                "node {}: {what}: {} was [{}], is [{}], after {}",
                place.node,
                text(keys[2 * i]),
                before[i].described(),
                after[i].described(),
                argv.iter().map(|arg| text(arg)).collect::<Vec<_>>().join(" "),
            )
        });
    }

    fn acquires(&self) -> bool {
        Hold::parse(self.argv).is_some_and(|asked| asked.resources.iter().any(|one| one.token == b"0"))
    }

    fn granted(&mut self, counts: bool) {
        let Some(asked) = Hold::parse(self.argv) else { return };
        let (next, lease) = (integer(asked.next), integer(asked.lease).cast_signed());
        let owner = hexadecimal(asked.owner);
        let said = asked.record.split(|byte| *byte == b' ').next();
        let same = Record::parse(self.record).is_some_and(|record| Some(record.word) == said);
        self.judge(Invariant::RecordHolds, 0, same, "honoured a message that carries another record");
        let honoured = self.oracle.longest.entry(self.place.node).or_default();
        *honoured = (*honoured).max(1000 * lease.cast_unsigned());
        let longest = Record::parse(self.record).map_or(i64::MAX, Record::longest_ms);
        for (i, one) in asked.resources.iter().enumerate() {
            let key = self.oracle.key(self.keys[2 * i]);
            let fresh = one.token == b"0";
            let token = if fresh { next } else { integer(one.token) };
            let (before, after) = (&self.before[i], &self.after[i]);
            let ours =
                before.lock().is_some_and(|lock| lock.owner == asked.owner && (fresh || integer(lock.token) == token));
            let mine = after.lock().and_then(|lock| lock.entries().find(|(id, _)| *id == one.share));
            let holds = mine.map(|(_, holds)| u64::from(holds));
            // A clock that was set back keeps a key for longer than any lease.
            let (own, long, grown) = (
                before.value.is_empty() || ours,
                after.pttl >= before.pttl.min(longest).max(lease),
                after.ballot >= before.ballot,
            );
            self.judge(Invariant::NoFalseGrant, i, own, "granted over another's key");
            self.judge(Invariant::LeaseNeverShrinks, i, long, "a lease got shorter");
            self.judge(Invariant::TokenMonotonic, i, grown, "the ballot fell");
            self.judge(
                Invariant::ReentrantDepth,
                i,
                holds == Some(integer(one.holds)),
                "the count differs from the request",
            );
            if fresh {
                // The same message may come twice, if no other has come between.
                let again =
                    before.value == after.value && (before.ballot, after.ballot) == (token as f64, token as f64);
                // As in floor_stays.
                let is_far = self.oracle.floors.get(&(self.place.node, key)).is_some_and(|floor| floor.is_far);
                let newest = self.oracle.newest.insert((self.place.node, key), token).filter(|_| !is_far);
                let new = newest.is_none_or(|newest| newest < token || (newest == token && again));
                self.judge(Invariant::TokenUnique, i, new, "granted a token that is not new");
            }
            let released = self.oracle.released.get(&(self.place.node, key, owner, one.share.to_vec()));
            let late = released.is_some_and(|released| *released >= next);
            self.judge(Invariant::NoOrphan, i, !late, "a message from before its release brought its share back");
            let revoked = self.oracle.revoked.get(&(self.place.node, key, token)).copied().unwrap_or(0);
            let newer = revoked == 0 || integer(one.known) >= revoked;
            if newer {
                // A majority has honoured the lease since, so the revocation had none.
                self.oracle.revoked.remove(&(self.place.node, key, token));
            }
            self.judge(Invariant::RevocationHolds, i, newer, "honoured a lease that was revoked here");
            let sent = self.oracle.sent.entry((key, owner, token, one.share.to_vec())).or_default();
            sent.holds = sent.holds.max(next);
            let covered = sent.releases.is_none_or(|released| next <= released);
            self.judge(Invariant::NoOrphan, i, covered, "a release did not cover this message of its share");
            let votes = self.oracle.votes.entry((key, owner, token)).or_default();
            if counts {
                votes.given |= 1 << self.place.node;
                votes.counted |= 1 << self.place.node;
                votes.sound |= u64::from(self.place.remembers) << self.place.node;
            }
        }
    }

    fn refused(&mut self) {
        let differs = |i: &usize| {
            let (before, after) = (&self.before[*i], &self.after[*i]);
            // A key that a set-back clock keeps for longer than any lease may be shortened.
            (&before.value, before.ballot) != (&after.value, after.ballot) || after.pttl > before.pttl.max(0)
        };
        let changed = (0..self.before.len()).find(differs);
        self.judge(Invariant::NoFalseGrant, changed.unwrap_or(0), changed.is_none(), "a refusal changed something");
    }

    fn revoked(&mut self, done: bool) {
        let Some(Revoke { token, ballot, .. }) = Revoke::parse(self.argv) else { return };
        let key = self.oracle.key(self.keys[0]);
        // One with a smaller ballot than the node's or the lease's does not count; its client asks again with a larger one.
        let is_newer = integer(ballot) as f64 > self.before[0].ballot && integer(ballot) > integer(token);
        if done && !self.place.leaps && is_newer {
            let revoked = self.oracle.revoked.entry((self.place.node, key, integer(token))).or_default();
            *revoked = (*revoked).max(integer(ballot));
        }
        let (before, after) = (&self.before[0], &self.after[0]);
        let is_meant = before.lock().is_some_and(|lock| lock.token == token);
        let touched = before.value != after.value;
        self.judge(Invariant::RevocationHolds, 0, is_meant || !touched, "a revocation touched another lease");
        let longest = Record::parse(self.record).map_or(i64::MAX, Record::longest_ms);
        let (before, after) = (&self.before[0], &self.after[0]);
        let stays = before.value.is_empty() || after.pttl >= before.pttl.min(longest);
        self.judge(Invariant::RevocationHolds, 0, stays, "a revocation opened the lock before its end");
        let grown = self.after[0].ballot >= self.before[0].ballot;
        self.judge(Invariant::TokenMonotonic, 0, grown, "the ballot fell");
    }

    fn released(&mut self) {
        let Some(Release { owner, sent, resources, .. }) = Release::parse(self.argv) else { return };
        let next = integer(sent);
        for (i, one) in resources.iter().enumerate() {
            if one.token == b"0" {
                continue; // A request has stopped waiting.
            }
            let (before, after) = (&self.before[i], &self.after[i]);
            let honest = match before.lock().filter(|lock| lock.owner == owner && lock.token == one.token) {
                None => before.value == after.value && before.pttl == after.pttl,
                Some(lock) => {
                    let others = lock.entries().filter(|(id, _)| *id != one.share);
                    let left = after.lock().map(LockValue::entries).into_iter().flatten();
                    left.filter(|(id, _)| *id != one.share).eq(others)
                }
            };
            self.judge(Invariant::ReleaseSafe, i, honest, "a release touched what was not its own");
            let key = self.oracle.key(self.keys[2 * i]);
            let share = (self.place.node, key, hexadecimal(owner), one.share.to_vec());
            if !self.place.leaps {
                let released = self.oracle.released.entry(share).or_default();
                *released = (*released).max(next);
            }
            let sent = (key, hexadecimal(owner), integer(one.token), one.share.to_vec());
            if let Some(sent) = self.oracle.sent.get_mut(&sent) {
                sent.releases = sent.releases.max(Some(next));
                let covers = next >= sent.holds;
                self.judge(Invariant::NoOrphan, i, covers, "a release does not cover what its share has sent");
            }
        }
    }
}
