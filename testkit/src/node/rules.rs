//! `hold.lua`, reimplemented in Rust. `tests/conformance` shows that both do the same, against a real server.

use super::resource_state::{DAY_MS, ResourceState, lock_words};
use super::resp::Reply;
use super::script_args::{
    Hold, HoldOne, LockValue, RECORD, Record, lua_number, millis, number, only_of, replaced, words,
};
use super::{Data, Store};

/// Rules that a negative control leaves out; the shipped scripts have none of these set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// p ≥ F for p > F.
    pub grants_equal_ballots: bool,
    /// Repair without the check F ≤ known.
    pub repairs_over_newer: bool,
    /// A release that leaves no state.
    pub releases_without_ballot: bool,
    /// A release that deletes any key, also another owner's.
    pub releases_blindly: bool,
    /// An extension that sets the TTL instead of raising it.
    pub shrinks_leases: bool,
    /// A count that goes up with every message instead of being written.
    pub increments_counts: bool,
    /// A key that is not ours is taken over.
    pub grants_over_others: bool,
    /// A fresh acquisition is granted with any ballot.
    pub ignores_ballots: bool,
    /// A node counts its grants, and returns the count with each grant.
    pub counts_grants: bool,
    /// A vote ends by the node's clock alone.
    pub one_clock: bool,
    /// Any release forgets the last lease.
    pub any_release_forgets: bool,
    /// A release of one share forgets the last lease although others are left.
    pub forgets_other_shares: bool,
    /// Each message sets the end of a lease by its own clock and length, instead of raising it.
    pub lowers_ends: bool,
    /// Only the clock of each message is kept as the end of the lease.
    pub ends_without_lease: bool,
    /// A repair of a key that has gone leaves out the other shares.
    pub repairs_alone: bool,
    /// A hold message is honoured with any node record.
    pub ignores_record: bool,
    /// A new record begins without a quarantine.
    pub no_quarantine: bool,
    /// A quarantine ends by the node's clock alone.
    pub quarantine_by_node_clock: bool,
    /// Ballots are forgotten as soon as their lease is released.
    pub forgets_ballots: bool,
    /// A revocation deletes what is there of the lease.
    pub revokes_by_deletion: bool,
    /// A revocation leaves the ballot as it is.
    pub revokes_without_ballot: bool,
    /// A revocation takes any lease for the one with its token.
    pub revokes_any_token: bool,
    /// The ballot of a release or revocation is remembered although the node would not take it.
    pub remembers_small_ballots: bool,
}

const GRANTED: i64 = 1;
pub const HELD: i64 = 2;
pub const STALE: i64 = 3;
pub const AHEAD: i64 = 4;
pub const GONE: i64 = 5;
const KEPT: i64 = 6;
pub const EARLY: i64 = 7;
const FAR: i64 = 8;
pub const YOUNG: i64 = 9;
pub const FORGOT: i64 = 10;

fn int(number: f64) -> Reply {
    Reply::Int(number as i64)
}

fn refusal(code: i64, now: u64, rest: Vec<Reply>) -> Reply {
    Reply::Array([vec![Reply::Int(code), Reply::Int(now.cast_signed())], rest].concat())
}

/// The usual case at the start of hold.lua. Returns `None` when the request is another case.
fn usual(store: &mut Store, rules: &Rules, keys: &[&[u8]], asked: &Hold<'_>, now: u64) -> Option<Reply> {
    let (&[lock, ballot], true) = (keys, asked.usual) else { return None };
    if store.text(RECORD, now)? != asked.record || *rules != (Rules { one_clock: rules.one_clock, ..Rules::default() })
    {
        return None;
    }
    let stored = store.text(ballot, now).map(<[u8]>::to_vec);
    let next = number(asked.next);
    let highest = match &stored {
        Some(text) => lua_number(text)?,
        None => {
            let window = Record::parse(asked.record)?.window * 1000.0;
            let clock = now as f64;
            let wall = number(asked.end) - number(asked.lease) - 1.0;
            let off = (clock / 1000.0 - wall).abs();
            let agrees = next > clock - window && next <= clock + window && off <= DAY_MS as f64;
            if agrees { 0.0 } else { return None }
        }
    };
    let is_other = stored.is_none() && store.data(ballot, now).is_some();
    if next.partial_cmp(&highest) != Some(std::cmp::Ordering::Greater) || store.data(lock, now).is_some() || is_other {
        return None;
    }
    store.set(lock, asked.value.to_vec(), millis(asked.lease), now);
    store.set(ballot, asked.ballot_value.to_vec(), 2 * DAY_MS, now);
    Some(Reply::Int(1))
}

/// The same for an extension.
fn usual_extension(store: &mut Store, rules: &Rules, keys: &[&[u8]], asked: &Hold<'_>, now: u64) -> Option<Reply> {
    let (&[lock, ballot], false, b"0") = (keys, asked.usual, asked.waits) else { return None };
    if store.text(RECORD, now)? != asked.record || *rules != (Rules { one_clock: rules.one_clock, ..Rules::default() })
    {
        return None;
    }
    let is_ours = store.text(lock, now)? == asked.value;
    let [highest, last_end, last]: [&[u8]; 3] =
        store.text(ballot, now)?.splitn(3, |byte| *byte == b' ').collect::<Vec<_>>().try_into().ok()?;
    let are_digits = [highest, last_end].iter().all(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    let is_last = are_digits && highest.len() + last_end.len() == 29 && last == asked.value;
    if !is_ours || !is_last || number(asked.next) <= number(highest) || number(asked.end) <= number(last_end) {
        return None;
    }
    store.set(ballot, asked.ballot_value.to_vec(), 2 * DAY_MS, now);
    if store.pttl(lock, now) < millis(asked.lease).cast_signed() {
        store.expire(lock, millis(asked.lease), now);
    }
    Some(Reply::Int(1))
}

pub fn hold(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let Some(asked) = Hold::parse(argv) else { return Reply::Error("ERR too few arguments".to_owned()) };
    let granted = usual(store, rules, keys, &asked, now);
    if let Some(granted) = granted.or_else(|| usual_extension(store, rules, keys, &asked, now)) {
        return granted;
    }
    let stored_record = store.text(RECORD, now).unwrap_or_default().to_vec();
    let said = words(asked.record);
    let Some(record) = Record::parse(&stored_record).filter(|record| rules.ignores_record || record.word == said[0])
    else {
        return refusal(FORGOT, now, Vec::new());
    };
    let clock_ms = (now / 1000) as f64;
    let wall = number(asked.end) - number(asked.lease) - 1.0 - asked.raised();
    let mut renewed = record;
    let asked_longest = said.get(1).map_or(0.0, |longest| number(longest));
    let longer = (asked_longest - record.longest).max(0.0);
    let told = (record.longest > asked_longest).then_some(record.longest);
    renewed.longest += longer;
    let has_waited = told.is_none() && asked.record.ends_with(b" waited");
    let mut left = 0.0_f64;
    if renewed.till > 0.0 && asked.record != stored_record.as_slice() {
        renewed.till = (record.till + longer).min(clock_ms + renewed.longest);
        renewed.till_wall = record.till_wall + longer;
        let waited = has_waited || rules.quarantine_by_node_clock;
        let by_wall = if waited { 0.0 } else { (renewed.till_wall - wall).min(renewed.longest) };
        left = (renewed.till - clock_ms).max(by_wall).max(0.0);
    }
    let tell = |reply: Reply| match (reply, told) {
        (Reply::Array(mut fields), Some(longest)) => {
            fields.push(Reply::Array(vec![int(longest)]));
            Reply::Array(fields)
        }
        (reply, _) => reply,
    };
    let renewed_text = renewed.text();
    let mut deed = Deed { store, rules, asked: &asked, now, wall, record: renewed, left, created: Vec::new() };
    let done = deed.all(keys);
    let (created, store) = (deed.created, deed.store);
    let (locks, states) = match done {
        Ok(done) => done,
        Err(Refused { reply, busy_at }) => {
            let longest = renewed.longest as u64;
            if let Some(mut state) = busy_at.filter(|_| asked.ticket() != b"0") {
                state.enqueue(store, asked.ticket(), now);
                state.write(store, 2 * renewed.window as u64, Some(longest), now);
            }
            if matches!(&reply, Reply::Array(fields) if fields[0] == Reply::Int(YOUNG)) && renewed_text != stored_record
            {
                store.put(RECORD, Data::Text(renewed_text), None, now);
            }
            created.iter().for_each(|key| store.remove(key));
            return tell(reply);
        }
    };
    let lease = millis(asked.lease);
    for (lock, value) in locks {
        let left = if rules.shrinks_leases { 0 } else { u64::try_from(store.pttl(lock, now)).unwrap_or(0) };
        store.set(lock, value, left.min(renewed.longest as u64).max(lease), now);
    }
    for state in states {
        state.write(store, 2 * renewed.window as u64, Some((renewed.longest as u64).max(lease)), now);
    }
    if renewed.till > 0.0 && left == 0.0 && has_waited {
        renewed.till_wall = renewed.till_wall.min(wall);
    }
    renewed.longest = renewed.longest.max(number(asked.lease));
    let renewed_text = renewed.text();
    if renewed_text != stored_record {
        store.put(RECORD, Data::Text(renewed_text.clone()), None, now);
    }
    if left > 0.0 {
        return tell(refusal(YOUNG, now, vec![int(left)]));
    }
    if rules.counts_grants && asked.resources[0].token == b"0" {
        let counter = [b"count:", keys[0]].concat();
        let count = store.text(&counter, now).map_or(0, millis) + 1;
        store.set(&counter, count.to_string().into_bytes(), 60_000, now);
        return Reply::Array([11, now, count].map(|number| Reply::Int(number.cast_signed())).into());
    }
    if asked.record != renewed_text.as_slice() {
        return Reply::Array(vec![Reply::Int(GRANTED), Reply::Bulk(renewed_text)]);
    }
    Reply::Int(1)
}

/// A refusal, and the resources on which a ticket is stored because another lease blocks the request.
struct Refused {
    reply: Reply,
    busy_at: Option<Box<ResourceState>>,
}

impl From<Reply> for Refused {
    fn from(reply: Reply) -> Self {
        Self { reply, busy_at: None }
    }
}

/// The locks and ballots to write when no resource is refused.
type Written<'k> = (Vec<(&'k [u8], Vec<u8>)>, Vec<ResourceState>);

/// One execution of hold.lua.
struct Deed<'a, 'b, 'k> {
    store: &'a mut Store,
    rules: &'a Rules,
    asked: &'a Hold<'b>,
    now: u64,
    wall: f64,
    record: Record<'a>,
    left: f64,
    created: Vec<&'k [u8]>,
}

impl<'k> Deed<'_, '_, 'k> {
    fn all(&mut self, keys: &[&'k [u8]]) -> Result<Written<'k>, Refused> {
        let now = self.now;
        let stored: Vec<Option<Vec<u8>>> =
            keys.iter().map(|key| self.store.text(key, now).map(<[u8]>::to_vec)).collect();
        let (mut locks, mut states) = (Vec::new(), Vec::new());
        for (i, (pair, one)) in keys.chunks_exact(2).zip(&self.asked.resources).enumerate() {
            let (value, text) = (stored[2 * i].as_deref(), stored[2 * i + 1].as_deref());
            self.one(i, (pair[0], pair[1]), one, value, text, &mut locks, &mut states)?;
        }
        Ok((locks, states))
    }

    fn held(&mut self, lock: &[u8], value: &[u8], place: &Reply) -> Reply {
        let (now, longest) = (self.now, self.record.longest as i64);
        let mut pttl = self.store.pttl(lock, now);
        let mut shown = Vec::new();
        if lock_words(value).is_some() {
            if pttl > longest || pttl == -1 {
                self.store.expire(lock, longest.cast_unsigned(), now);
                pttl = longest;
            }
            shown = value[..value.len().min(4096)].to_vec();
        }
        refusal(HELD, now, vec![place.clone(), Reply::Int(pttl), Reply::Bulk(shown)])
    }

    #[allow(clippy::too_many_arguments, reason = "as the script has them")]
    fn one(
        &mut self,
        i: usize,
        (lock, ballot): (&'k [u8], &'k [u8]),
        one: &HoldOne<'_>,
        value: Option<&[u8]>,
        text: Option<&[u8]>,
        locks: &mut Vec<(&'k [u8], Vec<u8>)>,
        states: &mut Vec<ResourceState>,
    ) -> Result<(), Refused> {
        let (now, rules, asked) = (self.now, self.rules, self.asked);
        let (clock, window, next) = (now as f64, self.record.window * 1000.0, number(asked.next));
        let memory = 2 * self.record.window as u64;
        let state = ResourceState::at(ballot, text);
        let place = Reply::Int(i as i64 + 1);
        let highest = state.as_ref().map_or(0.0, |state| state.highest);
        let floor = if highest > 0.0 { highest } else { clock - window };
        let mut fresh = one.token == b"0";
        let head = [b"ql1 ".as_slice(), if fresh { asked.next } else { one.token }, b" ", asked.owner, b" "].concat();
        let entry = [b" ", one.share, b":", one.holds].concat();
        fresh &= self.left > 0.0 || next != highest || value != Some([&head, asked.label, &entry].concat().as_slice());
        let last_value = state.as_ref().and_then(|state| state.last.clone());
        let is_ours = last_value.as_ref().is_some_and(|(_, last)| last.starts_with(&head));

        if next > clock + window && (!is_ours || next > highest + window) && !rules.ignores_ballots {
            return Err(refusal(AHEAD, now, vec![place]).into());
        }
        let new = if fresh {
            self.fresh(lock, value, state.as_ref(), &place)?;
            let beyond = |floor: f64| next > floor || (next >= floor && rules.grants_equal_ballots);
            if highest == 0.0 && (clock / 1000.0 - self.wall).abs() > DAY_MS as f64 && !self.has_waited_here() {
                let (longest, time) = (int(self.record.longest), Reply::Int((now / 1000).cast_signed()));
                return Err(refusal(EARLY, now, vec![place, longest, time, Reply::bulk(self.record.word)]).into());
            }
            if !beyond(highest) && !rules.ignores_ballots {
                if highest <= clock + window {
                    return Err(refusal(STALE, now, vec![place, int(highest)]).into());
                }
                if let Some(state) = &state {
                    state.limit(self.store, memory, now);
                }
                return Err(refusal(FAR, now, vec![place, int(highest)]).into());
            }
            if highest == 0.0 && next <= clock - window && !rules.ignores_ballots {
                return Err(refusal(STALE, now, vec![place, Reply::Int(now.cast_signed())]).into());
            }
            [&head, asked.label, &entry].concat()
        } else if let Some(value) = value {
            if !value.starts_with(&head) {
                return Err(self.held(lock, value, &place).into());
            }
            match replaced(value, one.share, &entry) {
                Some(_) if rules.increments_counts => incremented(value, one.share),
                Some(renewed) => renewed,
                None if one.joins() && !has_share(value, one.known) => {
                    return Err(refusal(GONE, now, vec![place, int(highest)]).into());
                }
                None if next <= highest => return Err(refusal(STALE, now, vec![place, int(highest)]).into()),
                None => [value, &entry].concat(),
            }
        } else {
            let known = number(one.known);
            let is_last = is_ours && last_value.as_ref().is_some_and(|(_, last)| has_share(last, one.share));
            let is_newer = known < floor && !is_last && !rules.repairs_over_newer;
            if one.joins() || is_newer {
                return Err(refusal(GONE, now, vec![place, int(highest)]).into());
            }
            match &last_value {
                Some((_, last)) if is_ours && !rules.repairs_alone => {
                    let shares = lock_words(last).map_or(&[][..], |(_, shares)| shares);
                    let kept = replaced(shares, one.share, &entry).unwrap_or_else(|| [shares, &entry].concat());
                    [&head, asked.label, &kept].concat()
                }
                _ => [&head, asked.label, &entry].concat(),
            }
        };

        match value {
            Some(_) => locks.push((lock, new.clone())),
            None if self.store.data(lock, now).is_some() => {
                let pttl = Reply::Int(self.store.pttl(lock, now));
                return Err(refusal(HELD, now, vec![place, pttl, Reply::bulk("")]).into());
            }
            None => {
                self.store.set(lock, new.clone(), millis(asked.lease), now);
                self.created.push(lock);
            }
        }
        let end = number(asked.end);
        let ends = match &last_value {
            _ if rules.ends_without_lease => self.wall + 1.0,
            _ if rules.lowers_ends => end - self.asked.raised(),
            Some((theirs, _)) if is_ours => end.max(*theirs + 1.0),
            _ => end,
        };
        match (text, state) {
            (None, _) if self.store.data(ballot, now).is_none() => {
                let text = [asked.next, format!(" {ends:.0} ").as_bytes(), &new].concat();
                let life = (self.record.longest as u64).max(millis(asked.lease)).max(DAY_MS) + DAY_MS;
                self.store.set(ballot, text, life, now);
                self.created.push(ballot);
            }
            (Some(_), Some(mut state)) => {
                state.raise_ballot(next);
                state.set_last(Some((ends, new)));
                if fresh {
                    state.dequeue(asked.ticket());
                }
                states.push(state);
            }
            (None, _) | (Some(_), None) => {
                let pttl = Reply::Int(self.store.pttl(ballot, now));
                return Err(refusal(HELD, now, vec![place, pttl, Reply::bulk("")]).into());
            }
        }
        Ok(())
    }

    fn has_waited_here(&self) -> bool {
        let (now, longest) = ((self.now / 1000) as f64, self.record.longest);
        self.asked.waits.split(|byte| *byte == b' ').skip(1).any(|waited| {
            let Some(colon) = waited.iter().position(|byte| *byte == b':') else { return false };
            let near = |since: f64| (now - since).abs() <= longest + 120_000.0;
            waited[colon + 1..] == *self.record.word && lua_number(&waited[..colon]).is_some_and(near)
        })
    }

    /// Refuses a new acquisition for reasons that do not depend on its ballot.
    fn fresh(
        &mut self,
        lock: &[u8],
        value: Option<&[u8]>,
        state: Option<&ResourceState>,
        place: &Reply,
    ) -> Result<(), Refused> {
        let (now, asked, rules) = (self.now, self.asked, self.rules);
        if self.left > 0.0 {
            return Err(refusal(YOUNG, now, vec![int(self.left)]).into());
        }
        let busy = |reply| Refused { reply, busy_at: state.cloned().map(Box::new) };
        if let Some(value) = value {
            let leftover = lock_words(value)
                .is_some_and(|([_, owner, _], shares)| owner == asked.owner && only_of(asked.client(), shares));
            if !leftover && !rules.grants_over_others {
                return Err(busy(self.held(lock, value, place)));
            }
            return Ok(());
        }
        let Some(state) = state else { return Ok(()) };
        let kept = state.reserved_from(asked.ticket(), now);
        if kept > 0 {
            return Err(busy(refusal(KEPT, now, vec![place.clone(), Reply::Int(kept.cast_signed())])));
        }
        if let Some((end, last)) = state.last.as_ref().filter(|(end, _)| self.wall < *end && !rules.one_clock) {
            let token = lock_words(last).map_or(&[][..], |([token, ..], _)| token);
            if !asked.has_waited_for(&format!("{end:013.0}:{}", String::from_utf8_lossy(token))) {
                state.limit(self.store, (self.record.longest as u64).max(DAY_MS) + DAY_MS, now);
                let left = int((end - self.wall).min(self.record.longest));
                return Err(busy(refusal(
                    EARLY,
                    now,
                    vec![place.clone(), left, int(*end), Reply::bulk(last.as_slice())],
                )));
            }
        }
        Ok(())
    }
}

/// Looks for it anywhere, as the script does: the label may hold what ends no word in `%S+`.
fn has_share(value: &[u8], share: &[u8]) -> bool {
    let wanted = [b" ", share, b":"].concat();
    value.windows(wanted.len()).any(|window| window == wanted)
}

/// The broken variant of writing a count.
fn incremented(value: &[u8], share: &[u8]) -> Vec<u8> {
    let before = LockValue::parse(value).and_then(|value| value.entries().find(|(id, _)| *id == share));
    let count = before.map_or(1, |(_, holds)| holds + 1).to_string();
    replaced(value, share, &[b" ", share, b":", count.as_bytes()].concat()).unwrap_or_default()
}
