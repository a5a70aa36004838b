//! `revoke.lua`, reimplemented in Rust.

use super::Store;
use super::resource_state::{ResourceState, lock_words};
use super::resp::Reply;
use super::rules::{AHEAD, FORGOT, HELD, Rules, YOUNG};
use super::script_args::{RECORD, Record, number, words};

pub const REVOKED: i64 = 11;
pub const ABSENT: i64 = 12;

const NO_OWNER: &[u8] = b"00000000000000000000000000000000";

/// The words of its argument.
pub struct Revoke<'a> {
    pub token: &'a [u8],
    pub ballot: &'a [u8],
    wall: &'a [u8],
    pub record: &'a [u8],
}

impl<'a> Revoke<'a> {
    pub fn parse(argv: &[&'a [u8]]) -> Option<Self> {
        let mut words = argv.first()?.split(|byte| *byte == b' ');
        let (token, ballot, wall) = (words.next()?, words.next()?, words.next()?);
        Some(Self { token, ballot, wall, record: argv.get(1)? })
    }

    /// Returns the words of a lease with this token as those of owner 0.
    fn revoked(&self, lease: &[u8], any: bool) -> Option<Vec<u8>> {
        let rest = lease.strip_prefix(b"ql1 ")?;
        let space = |text: &[u8]| text.iter().position(|byte| *byte == b' ');
        let (token, rest) = rest.split_at(space(rest)?);
        let owner = &rest[1..1 + space(&rest[1..])?];
        let is_owner = !owner.is_empty() && owner.iter().all(u8::is_ascii_hexdigit);
        if !is_owner || token != self.token && !any {
            return None;
        }
        Some([b"ql1 ", token, b" ", NO_OWNER, &rest[1 + owner.len()..]].concat())
    }
}

fn answer(code: i64, now: u64, rest: Vec<Reply>) -> Reply {
    Reply::Array([vec![Reply::Int(code), Reply::Int(now.cast_signed())], rest].concat())
}

fn int(number: f64) -> Reply {
    Reply::Int(number as i64)
}

pub fn revoke(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let (&[lock, ballot_key], Some(asked)) = (keys, Revoke::parse(argv)) else {
        return Reply::Error("ERR too few arguments".to_owned());
    };
    let stored = store.text(RECORD, now).map(<[u8]>::to_vec);
    let said: Vec<u8> = asked.record.iter().copied().take_while(u8::is_ascii_hexdigit).collect();
    let same = |record: &Record<'_>| record.word == said || rules.ignores_record;
    let Some(record) = stored.as_deref().and_then(Record::parse).filter(same) else {
        return answer(FORGOT, now, vec![]);
    };
    let (ballot, wall) = (number(asked.ballot), number(asked.wall));
    let value = store.text(lock, now).map(<[u8]>::to_vec);
    let text = store.text(ballot_key, now).map(<[u8]>::to_vec);
    let state = ResourceState::at(ballot_key, text.as_deref());
    let mut pttl = store.pttl(lock, now);
    let new = value.as_deref().and_then(|value| asked.revoked(value, rules.revokes_any_token));
    let is_foreign = text.is_none() && store.data(ballot_key, now).is_some();
    let Some(mut state) = state.filter(|_| !is_foreign && (pttl == -2 || new.is_some())) else {
        let theirs = value.filter(|value| lock_words(value).is_some()).unwrap_or_default();
        return answer(
            HELD,
            now,
            vec![Reply::Int(1), Reply::Int(pttl), Reply::bulk(&theirs[..theirs.len().min(4096)])],
        );
    };
    let last = state.last.clone().and_then(|(end, last)| Some((end, asked.revoked(&last, rules.revokes_any_token)?)));
    let window = record.window * 1000.0;
    if ballot > now as f64 + window && !(last.is_some() && ballot <= state.highest + window) {
        return answer(AHEAD, now, vec![Reply::Int(1)]);
    }
    let longest = record.longest_ms();
    if let Some(new) = &new {
        if pttl == -1 || pttl > longest {
            pttl = longest;
        }
        if rules.revokes_by_deletion {
            store.remove(lock);
        } else {
            store.set(lock, new.clone(), pttl.max(1).cast_unsigned(), now);
        }
    }
    let floor = if state.highest == 0.0 { now as f64 - window } else { 0.0 };
    let highest = state.highest.max(floor);
    if let Some((end, last)) = &last {
        state.set_last(Some((*end, last.clone())).filter(|_| !rules.revokes_by_deletion));
        pttl = pttl.max((*end - wall.min((now / 1000) as f64)).min(longest as f64) as i64);
    }
    if !rules.revokes_without_ballot && (ballot > floor || rules.remembers_small_ballots) {
        state.raise_ballot(ballot);
    }
    state.write(store, (2.0 * record.window) as u64, Some(longest.cast_unsigned()), now);
    let asked_longest = words(asked.record).get(1).map_or(record.longest, |longest| number(longest));
    let young = if record.till > 0.0 && Some(asked.record) != stored.as_deref() {
        let longer = (asked_longest - record.longest).max(0.0);
        let waited = asked_longest >= record.longest && asked.record.ends_with(b" waited");
        let by_wall = if waited { 0.0 } else { (record.till_wall - wall).min(record.longest) + longer };
        (record.till + longer - (now / 1000) as f64).max(by_wall).max(0.0)
    } else {
        0.0
    };
    if young > 0.0 {
        let told = (record.longest > asked_longest).then(|| Reply::Array(vec![int(record.longest)]));
        return answer(YOUNG, now, [int(young)].into_iter().chain(told).collect());
    }
    match new.or(last.map(|(_, last)| last).filter(|_| pttl > 0)) {
        Some(lease) => answer(REVOKED, now, vec![int(highest), Reply::Int(pttl.max(0)), Reply::Bulk(lease)]),
        None => answer(ABSENT, now, vec![int(highest)]),
    }
}
