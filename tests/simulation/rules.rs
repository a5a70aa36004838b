//! What `hold.lua`, `release.lua` and `inspect.lua` do, once more and in Rust. That both do the same is what
//! `tests/conformance` shows, against a real server.

use super::node::{Data, Store};
use super::resp::Reply;
use super::tickets::Mark;

/// Rules that a negative control leaves out; the shipped scripts have none of these set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// p ≥ F for p > F.
    pub grants_equal_ballots: bool,
    /// Repair without asking for F ≤ known.
    pub repairs_over_newer: bool,
    /// A release that leaves no mark.
    pub releases_without_mark: bool,
    /// A release that deletes whatever key is there.
    pub releases_blindly: bool,
    /// An extension that sets the TTL instead of raising it.
    pub shrinks_leases: bool,
    /// A count that goes up with every message instead of being written.
    pub increments_counts: bool,
    /// A key that is not ours is taken over.
    pub grants_over_others: bool,
    /// A fresh acquisition is granted whatever its number.
    pub ignores_ballots: bool,
    /// A node counts what it grants, and says the count beside its yes.
    pub counts_grants: bool,
}

const HELD: i64 = 2;
const STALE: i64 = 3;
const AHEAD: i64 = 4;
const GONE: i64 = 5;
const KEPT: i64 = 6;

fn int(number: f64) -> Reply {
    Reply::Int(number as i64)
}

fn refusal(code: i64, now: u64, rest: Vec<Reply>) -> Reply {
    Reply::Array([vec![Reply::Int(code), Reply::Int(now.cast_signed())], rest].concat())
}

/// Lua's `tonumber` of a string.
pub fn lua_number(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(|number| number as f64),
        None => text.parse().ok(),
    }
}

fn number(text: &[u8]) -> f64 {
    lua_number(text).unwrap_or(0.0)
}

fn millis(text: &[u8]) -> u64 {
    number(text) as u64
}

/// A lock value: `ql1 TOKEN OWNER LABEL SESSION:HOLDS…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockValue<'a> {
    pub token: &'a [u8],
    pub owner: &'a [u8],
    pub sessions: &'a [u8],
}

impl<'a> LockValue<'a> {
    /// `^ql1 %d+ (%x+) %S+ (.*)$`
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let rest = value.strip_prefix(b"ql1 ")?;
        let (token, rest) = word(rest, u8::is_ascii_digit)?;
        let (owner, rest) = word(rest, u8::is_ascii_hexdigit)?;
        let (_, sessions) = word(rest, |byte| !matches!(byte, b' ' | b'\t'..=b'\r'))?;
        Some(Self { token, owner, sessions })
    }

    /// Each session with its holds.
    pub fn entries(self) -> impl Iterator<Item = (&'a [u8], u32)> {
        self.sessions.split(|byte| *byte == b' ').filter_map(|entry| {
            let colon = entry.iter().position(|byte| *byte == b':')?;
            Some((&entry[..colon], std::str::from_utf8(&entry[colon + 1..]).ok()?.parse().ok()?))
        })
    }
}

/// One or more bytes of a kind, then a space.
fn word(text: &[u8], kind: impl Fn(&u8) -> bool) -> Option<(&[u8], &[u8])> {
    let length = text.iter().position(|byte| !kind(byte))?;
    (length > 0 && text[length] == b' ').then(|| (&text[..length], &text[length + 1..]))
}

/// Where ` SESSION:%d+` first occurs.
fn find_session(value: &[u8], session: &[u8]) -> Option<std::ops::Range<usize>> {
    let head = [b" ", session, b":"].concat();
    let mut from = 0;
    while let Some(at) = value[from..].windows(head.len()).position(|window| window == head) {
        let start = from + at;
        let digits = value[start + head.len()..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            return Some(start..start + head.len() + digits);
        }
        from = start + 1;
    }
    None
}

fn replaced(value: &[u8], session: &[u8], entry: &[u8]) -> Option<Vec<u8>> {
    let at = find_session(value, session)?;
    Some([&value[..at.start], entry, &value[at.end..]].concat())
}

/// What hold.lua is asked, each word by itself.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a, 'b> {
    pub owner: &'b [u8],
    pub label: &'b [u8],
    pub session: &'b [u8],
    pub lease: &'b [u8],
    pub next: &'b [u8],
    memory: &'b [u8],
    ticket: &'b [u8],
    /// Token, known and holds of each resource.
    pub resources: &'a [&'b [u8]],
}

impl<'a, 'b> Hold<'a, 'b> {
    pub fn parse(argv: &'a [&'b [u8]]) -> Option<Self> {
        let &[_, _, owner, label, entry, lease, next, memory, ticket, ref resources @ ..] = argv else { return None };
        // What the usual case leaves out.
        let resources: &[&[u8]] = if resources.is_empty() { &[b"0", b"0", b"1"] } else { resources };
        Some(Self { owner, label, session: entry.strip_suffix(b":1")?, lease, next, memory, ticket, resources })
    }
}

/// What release.lua is asked, each word by itself.
#[derive(Clone, Copy, Debug)]
pub struct Release<'a, 'b> {
    /// The lock key of who holds it alone and once, in words.
    alone: &'a [&'b [u8]],
    pub owner: &'b [u8],
    pub session: &'b [u8],
    pub next: &'b [u8],
    memory: &'b [u8],
    /// Token, known, ticket and place of each resource.
    pub resources: &'a [&'b [u8]],
}

impl<'a, 'b> Release<'a, 'b> {
    pub fn parse(argv: &'a [&'b [u8]]) -> Option<Self> {
        let (alone, rest) = argv.split_at_checked(5)?;
        let &[next, memory, ref resources @ ..] = rest else { return None };
        Some(Self { alone, owner: alone[2], session: alone[4].strip_suffix(b":1")?, next, memory, resources })
    }
}

/// How far `next` and `known` may lie from a node's clock, in µs.
const WINDOW: f64 = 1_800_000_000.0;

pub fn hold(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let clock = now as f64;
    let Some(asked) = Hold::parse(argv) else { return Reply::Error("ERR too few arguments".to_owned()) };
    let Hold { owner, label, session, ticket, resources, next: next_text, .. } = asked;
    let (next, lease, memory) = (number(next_text), millis(asked.lease), millis(asked.memory));
    if next > clock + WINDOW {
        return refusal(AHEAD, now, vec![Reply::Int(1)]);
    }
    let stored: Vec<Option<Vec<u8>>> = keys.iter().map(|key| store.text(key, now).map(<[u8]>::to_vec)).collect();
    let mut created: Vec<&[u8]> = Vec::new();
    let mut lock_values: Vec<(&[u8], Vec<u8>)> = Vec::new();
    let mut marks: Vec<Mark> = Vec::new();
    // Somebody else is in the way here: the ticket is left for when that is over.
    let mut busy_at: Option<Mark> = None;

    let refused = 'all: {
        for (i, (place_keys, args)) in keys.chunks_exact(2).zip(resources.chunks_exact(3)).enumerate() {
            let (lock, ballot) = (place_keys[0], place_keys[1]);
            let (value, mark_text) = (stored[2 * i].as_deref(), stored[2 * i + 1].as_deref());
            let mark = Mark::at(ballot, mark_text, now);
            let (token, known, holds) = (args[0], number(args[1]), args[2]);
            let place = Reply::Int(i as i64 + 1);
            let highest = mark.as_ref().map_or(0.0, |mark| mark.highest);
            let floor = if rules.ignores_ballots { 0.0 } else { highest.max(clock - WINDOW) };
            let fresh = token == b"0";
            let head = [b"ql1 ".as_slice(), if fresh { next_text } else { token }, b" ", owner, b" "].concat();
            let entry = [b" ", session, b":", holds].concat();
            let held = |store: &mut Store, key: &[u8], shown: &[u8]| {
                refusal(HELD, now, vec![place.clone(), Reply::Int(store.pttl(key, now)), Reply::bulk(shown)])
            };

            if fresh {
                if let Some(value) = value {
                    let leftover = LockValue::parse(value).is_some_and(|theirs| {
                        let mut only = theirs.sessions.strip_prefix(session).and_then(|rest| rest.strip_prefix(b":"));
                        theirs.owner == owner
                            && only
                                .take()
                                .is_some_and(|count| !count.is_empty() && count.iter().all(u8::is_ascii_digit))
                    });
                    if !leftover && !rules.grants_over_others {
                        busy_at = mark;
                        break 'all Some(held(store, lock, value));
                    }
                    lock_values.push((lock, [&head, label, &entry].concat()));
                }
                let kept = mark.as_ref().map_or(0, |mark| mark.kept_from(ticket, now));
                if kept > 0 && value.is_none() {
                    busy_at = mark;
                    break 'all Some(refusal(KEPT, now, vec![place, Reply::Int(kept.cast_signed())]));
                }
                let beyond = |mark: f64| next > mark || (next >= mark && rules.grants_equal_ballots);
                if !beyond(highest) && !rules.ignores_ballots {
                    break 'all Some(refusal(STALE, now, vec![place, int(highest)]));
                }
                if !beyond(floor) {
                    break 'all Some(refusal(STALE, now, vec![place, Reply::Int(now.cast_signed())]));
                }
            } else if let Some(value) = value {
                if !value.starts_with(&head) {
                    break 'all Some(held(store, lock, value));
                }
                let renewed = match replaced(value, session, &entry) {
                    Some(_) if rules.increments_counts => incremented(value, session),
                    Some(renewed) => renewed,
                    None if next <= highest => break 'all Some(refusal(STALE, now, vec![place, int(highest)])),
                    None => [value, &entry].concat(),
                };
                lock_values.push((lock, renewed));
            } else if known < floor && !rules.repairs_over_newer {
                break 'all Some(refusal(GONE, now, vec![place, int(floor)]));
            }

            if value.is_none() {
                if store.data(lock, now).is_some() {
                    break 'all Some(held(store, lock, b""));
                }
                store.set(lock, [&head, label, &entry].concat(), lease, now);
                created.push(lock);
            }
            match (mark_text, mark) {
                (None, _) => {
                    if store.data(ballot, now).is_some() {
                        break 'all Some(held(store, ballot, b""));
                    }
                    store.set(ballot, next_text.to_vec(), memory, now);
                    created.push(ballot);
                }
                (Some(text), None) => break 'all Some(held(store, ballot, text)),
                (Some(_), Some(mut mark)) => {
                    mark.raise(next);
                    if fresh {
                        mark.leave(ticket);
                    }
                    marks.push(mark);
                }
            }
        }
        None
    };
    if let Some(refusal) = refused {
        if let Some(mut mark) = busy_at.filter(|_| ticket != b"0") {
            mark.enter(ticket);
            mark.write(store, memory, now);
        }
        created.iter().for_each(|key| store.remove(key));
        return refusal;
    }
    for (lock, value) in lock_values {
        let left = if rules.shrinks_leases { 0 } else { u64::try_from(store.pttl(lock, now)).unwrap_or(0) };
        store.set(lock, value, left.max(lease), now);
    }
    marks.into_iter().for_each(|mark| mark.write(store, memory, now));
    if rules.counts_grants && resources[0] == b"0" {
        let counter = [b"count:", keys[0]].concat();
        let count = store.text(&counter, now).map_or(0, millis) + 1;
        store.set(&counter, count.to_string().into_bytes(), memory, now);
        return Reply::Array([1, now, count].map(|number| Reply::Int(number.cast_signed())).into());
    }
    Reply::Int(now.cast_signed())
}

/// The broken variant of writing a count.
fn incremented(value: &[u8], session: &[u8]) -> Vec<u8> {
    let before = LockValue::parse(value).and_then(|value| value.entries().find(|(id, _)| *id == session));
    let count = before.map_or(1, |(_, holds)| holds + 1).to_string();
    replaced(value, session, &[b" ", session, b":", count.as_bytes()].concat()).unwrap_or_default()
}

/// `publish` says how many heard a message on a channel.
pub fn release(
    store: &mut Store,
    rules: &Rules,
    keys: &[&[u8]],
    argv: &[&[u8]],
    now: u64,
    publish: &mut dyn FnMut(&[u8], &[u8]) -> usize,
) -> Reply {
    let Some(asked) = Release::parse(argv) else { return Reply::Error("ERR too few arguments".to_owned()) };
    let Release { owner, session, resources, .. } = asked;
    let (next, memory) = (number(asked.next), millis(asked.memory));
    let stored: Vec<Option<Vec<u8>>> = keys.iter().map(|key| store.text(key, now).map(<[u8]>::to_vec)).collect();
    // In the usual case there is nothing to write, and the answer is as short as what it is about.
    let is_plain = {
        let is_alone = keys.len() == 2 && stored[0] == Some(asked.alone.join(&b' '));
        is_alone && resources[3] == b"0" && stored[1].as_deref() == Some(asked.next)
    };
    if is_plain {
        store.remove(keys[0]);
        return Reply::Int(1);
    }
    let mut answer = vec![Reply::Int(now.cast_signed())];
    let mut is_free = vec![false; keys.len() / 2];
    let mut marks = Vec::new();
    for (i, (place_keys, args)) in keys.chunks_exact(2).zip(resources.chunks_exact(4)).enumerate() {
        let lock = place_keys[0];
        let (value, mark) = (stored[2 * i].as_deref(), Mark::at(place_keys[1], stored[2 * i + 1].as_deref(), now));
        let head = [b"ql1 ", args[0], b" ", owner, b" "].concat();
        let mut honoured = 0;
        match value {
            _ if args[0] == b"0" => {
                honoured = 1;
                is_free[i] = store.data(lock, now).is_none();
            }
            None => {
                is_free[i] = store.data(lock, now).is_none();
                let floor = mark.as_ref().map_or(0.0, |mark| mark.highest).max(now as f64 - WINDOW);
                honoured = i64::from(number(args[1]) >= floor && is_free[i]);
            }
            Some(value) if value.starts_with(&head) => {
                honoured = 1;
                let rest = replaced(value, session, b"");
                let left = rest.as_deref().unwrap_or(value);
                if !left.get(head.len()..).is_some_and(|sessions| sessions.contains(&b' ')) {
                    store.remove(lock);
                    is_free[i] = true;
                } else if let Some(rest) = rest {
                    let life = u64::try_from(store.pttl(lock, now)).unwrap_or(0).max(1);
                    store.set(lock, rest, life, now);
                }
            }
            Some(_) if rules.releases_blindly => store.remove(lock),
            Some(_) => {}
        }
        answer.push(Reply::Int(honoured));
        marks.push(mark);
    }
    for (i, (mark, args)) in marks.into_iter().zip(resources.chunks_exact(4)).enumerate() {
        let Some(mut mark) = mark else { continue };
        let (ticket, keeps_place) = (args[2], args[3] == b"1");
        if args[0] != b"0" && !rules.releases_without_mark {
            mark.raise(next);
        }
        if keeps_place {
            mark.enter(ticket);
        } else {
            mark.leave(ticket);
        }
        if is_free[i] && mark.kept_from(b"-", now) == 0 {
            mark.call(now, publish);
        }
        mark.write(store, memory, now);
    }
    Reply::Array(answer)
}

pub fn inspect(store: &mut Store, keys: &[&[u8]], now: u64) -> Reply {
    let &[lock, ballot] = keys else { return Reply::Error("ERR wrong number of keys".to_owned()) };
    let kind = match store.data(lock, now) {
        None => "none",
        Some(Data::Text(_)) => "string",
        Some(Data::Other(kind)) => kind,
    };
    let text = |store: &mut Store, key| Reply::bulk(store.text(key, now).unwrap_or_default());
    Reply::Array(vec![
        Reply::Int(now.cast_signed()),
        Reply::bulk(kind),
        text(store, lock),
        Reply::Int(store.pttl(lock, now)),
        text(store, ballot),
    ])
}
