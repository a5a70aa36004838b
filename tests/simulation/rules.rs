//! What `hold.lua`, `release.lua`, `inspect.lua` and `record.lua` do, once more and in Rust. That both do the same is what
//! `tests/conformance` shows, against a real server.

use super::node::{Data, Store};
use super::resp::Reply;
use super::tickets::{DAY_MS, Mark, lock_words};

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
    /// A vote ends when the node's clock alone says so.
    pub one_clock: bool,
    /// Any release forgets the last lease.
    pub any_release_forgets: bool,
    /// A release of one share forgets the last lease although others are left.
    pub forgets_other_shares: bool,
    /// The end of a lease is set by each message, not raised.
    pub lowers_ends: bool,
    /// A repair of a key that has gone leaves out the other shares.
    pub repairs_alone: bool,
    /// A hold message is honoured whatever record it carries.
    pub ignores_record: bool,
    /// A new record begins without a quarantine.
    pub no_quarantine: bool,
    /// A quarantine ends when the node's clock alone says so.
    pub quarantine_by_node_clock: bool,
    /// Ballots are forgotten as soon as their lease is released.
    pub forgets_ballots: bool,
}

const GRANTED: i64 = 1;
const HELD: i64 = 2;
const STALE: i64 = 3;
const AHEAD: i64 = 4;
const GONE: i64 = 5;
const KEPT: i64 = 6;
const EARLY: i64 = 7;
const FAR: i64 = 8;
const YOUNG: i64 = 9;
const FORGOT: i64 = 10;

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

/// A lock value: `ql1 TOKEN OWNER LABEL SHARE:HOLDS…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockValue<'a> {
    pub token: &'a [u8],
    pub owner: &'a [u8],
    /// A space before each.
    pub shares: &'a [u8],
}

impl<'a> LockValue<'a> {
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let ([token, owner, _], shares) = lock_words(value)?;
        Some(Self { token, owner, shares })
    }

    /// Each share with its holds.
    pub fn entries(self) -> impl Iterator<Item = (&'a [u8], u32)> {
        self.shares.split(|byte| *byte == b' ').filter_map(|entry| {
            let colon = entry.iter().position(|byte| *byte == b':')?;
            Some((&entry[..colon], std::str::from_utf8(&entry[colon + 1..]).ok()?.parse().ok()?))
        })
    }
}

/// Where ` SHARE:%d+` first occurs.
fn find_share(value: &[u8], share: &[u8]) -> Option<std::ops::Range<usize>> {
    let head = [b" ", share, b":"].concat();
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

fn replaced(value: &[u8], share: &[u8], entry: &[u8]) -> Option<Vec<u8>> {
    let at = find_share(value, share)?;
    Some([&value[..at.start], entry, &value[at.end..]].concat())
}

/// Are there only shares of this client? `gsub(shares, ' CLIENT/%x+:%d+', '')` leaves nothing.
fn only_of(client: &[u8], shares: &[u8]) -> bool {
    let are = |text: &[u8], kind: fn(&u8) -> bool| !text.is_empty() && text.iter().all(kind);
    shares.strip_prefix(b" ").is_some_and(|shares| {
        shares.split(|byte| *byte == b' ').all(|entry| {
            let rest = entry.strip_prefix(client).and_then(|rest| rest.strip_prefix(b"/"));
            rest.and_then(|rest| rest.iter().position(|byte| *byte == b':').map(|colon| rest.split_at(colon)))
                .is_some_and(|(lease, holds)| are(lease, u8::is_ascii_hexdigit) && are(&holds[1..], u8::is_ascii_digit))
        })
    })
}

/// A node's record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub word: &'a [u8],
    longest: f64,
    till: f64,
    till_wall: f64,
    window: f64,
    /// `CLUSTER KEEPS RUN-ID`
    rest: &'a [u8],
}

impl<'a> Record<'a> {
    /// `^(%x+) (%d+) (%d+) (%d+) (%d+) (%S+ %d %S+)$`
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let mut words = text.splitn(6, |byte| *byte == b' ');
        let word = words.next().filter(|word| !word.is_empty() && word.iter().all(u8::is_ascii_hexdigit))?;
        let mut number = || digits(words.next()?);
        let (longest, till, till_wall, window) = (number()?, number()?, number()?, number()?);
        let rest = words.next()?;
        let three: Vec<&[u8]> = rest.split(|byte| *byte == b' ').collect();
        let keeps = three.get(1).is_some_and(|keeps| keeps.len() == 1 && keeps[0].is_ascii_digit());
        let solid = |text: &&[u8]| !text.is_empty() && !text.iter().any(|byte| matches!(byte, b'\t'..=b'\r'));
        (three.len() == 3 && keeps && three.iter().all(solid)).then_some(Self {
            word,
            longest,
            till,
            till_wall,
            window,
            rest,
        })
    }

    pub fn longest_ms(self) -> i64 {
        self.longest as i64
    }

    fn text(&self) -> Vec<u8> {
        let Self { word, longest, till, till_wall, window, rest } = *self;
        [word, format!(" {longest:.0} {till:.0} {till_wall:.0} {window:.0} ").as_bytes(), rest].concat()
    }
}

fn digits(text: &[u8]) -> Option<f64> {
    let are = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if are { lua_number(text) } else { None }
}

pub const RECORD: &[u8] = b"quorlock:node";

fn words(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b' ').collect()
}

/// One resource's part of what hold.lua is asked.
#[derive(Clone, Copy, Debug)]
pub struct HoldOne<'b> {
    pub token: &'b [u8],
    pub known: &'b [u8],
    pub holds: &'b [u8],
    pub share: &'b [u8],
}

/// What hold.lua is asked, each word by itself.
#[derive(Clone, Debug)]
pub struct Hold<'b> {
    value: &'b [u8],
    head: &'b [u8],
    pub owner: &'b [u8],
    pub label: &'b [u8],
    pub lease: &'b [u8],
    pub next: &'b [u8],
    pub end: &'b [u8],
    waits: &'b [u8],
    pub resources: Vec<HoldOne<'b>>,
    pub record: &'b [u8],
    /// It is one resource, to be newly acquired, and nothing more was said.
    usual: bool,
}

/// `NEXT END `, cut where the script cuts it.
fn cut(head: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = head.len().checked_sub(15)?;
    Some((&head[..at], &head[at + 1..head.len() - 1]))
}

impl<'b> Hold<'b> {
    pub fn parse(argv: &[&'b [u8]]) -> Option<Self> {
        let &[value, lease, head, waits, ref resources @ .., record] = argv else { return None };
        let parts = words(value);
        let (&[_, _, owner, label, entry], (next, end)) = (parts.as_slice(), cut(head)?) else { return None };
        let share = entry.strip_suffix(b":1")?;
        let one = |text: &&'b [u8]| match words(text).as_slice() {
            &[token, known, holds, share] => Some(HoldOne { token, known, holds, share }),
            _ => None,
        };
        let usual = resources.is_empty();
        let resources = if usual {
            vec![HoldOne { token: b"0", known: b"0", holds: b"1", share }]
        } else {
            resources.iter().map(one).collect::<Option<_>>()?
        };
        Some(Self { value, head, owner, label, lease, next, end, waits, resources, record, usual })
    }

    fn ticket(&self) -> &'b [u8] {
        self.waits.split(|byte| *byte == b' ').next().unwrap_or_default()
    }

    fn has_waited_for(&self, name: &str) -> bool {
        self.waits.split(|byte| *byte == b' ').skip(1).any(|waited| waited == name.as_bytes())
    }

    fn client(&self) -> &'b [u8] {
        let share = words(self.value).get(4).copied().unwrap_or_default();
        share.split(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// One resource's part of what release.lua is asked.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseOne<'b> {
    pub token: &'b [u8],
    pub known: &'b [u8],
    pub share: &'b [u8],
    ticket: &'b [u8],
    keeps_place: bool,
}

/// What release.lua is asked, each word by itself.
#[derive(Clone, Debug)]
pub struct Release<'b> {
    value: &'b [u8],
    head: &'b [u8],
    pub owner: &'b [u8],
    pub sent: &'b [u8],
    memory: &'b [u8],
    pub resources: Vec<ReleaseOne<'b>>,
}

impl<'b> Release<'b> {
    pub fn parse(argv: &[&'b [u8]]) -> Option<Self> {
        let &[value, head, ref resources @ .., memory] = argv else { return None };
        let parts = words(value);
        let (&[_, token, owner, _, entry], (sent, _)) = (parts.as_slice(), cut(head)?) else { return None };
        let one = |text: &&'b [u8]| match words(text).as_slice() {
            &[token, known, share, ticket, place] => {
                Some(ReleaseOne { token, known, share, ticket, keeps_place: place == b"1" })
            }
            _ => None,
        };
        let resources = if resources.is_empty() {
            let share = entry.strip_suffix(b":1")?;
            vec![ReleaseOne { token, known: sent, share, ticket: b"0", keeps_place: false }]
        } else {
            resources.iter().map(one).collect::<Option<_>>()?
        };
        Some(Self { value, head, owner, sent, memory, resources })
    }
}

/// The straight line at the beginning of hold.lua. `None` when it does not end there.
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
            let agrees = next > clock - window && next <= clock + window && wall > clock / 1000.0 - DAY_MS as f64;
            if agrees { 0.0 } else { return None }
        }
    };
    // NaN is larger than nothing, and nothing is larger than it.
    if !(next > highest) || store.data(lock, now).is_some() {
        return None;
    }
    store.set(lock, asked.value.to_vec(), millis(asked.lease), now);
    store.set(ballot, [asked.head, asked.value].concat(), 2 * DAY_MS, now);
    Some(Reply::Int(1))
}

pub fn hold(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let Some(asked) = Hold::parse(argv) else { return Reply::Error("ERR too few arguments".to_owned()) };
    if let Some(granted) = usual(store, rules, keys, &asked, now) {
        return granted;
    }
    let stored_record = store.text(RECORD, now).unwrap_or_default().to_vec();
    let said = words(asked.record);
    let Some(record) = Record::parse(&stored_record).filter(|record| rules.ignores_record || record.word == said[0])
    else {
        return refusal(FORGOT, now, Vec::new());
    };
    let clock_ms = (now / 1000) as f64;
    let wall = number(asked.end) - number(asked.lease) - 1.0;
    let mut renewed = record;
    let longer = said.get(1).map_or(0.0, |longest| number(longest)).max(number(asked.lease)) - record.longest;
    if longer > 0.0 {
        renewed.longest += longer;
        if record.till > 0.0 {
            (renewed.till, renewed.till_wall) = (record.till + longer, record.till_wall + longer);
        }
    }
    let mut left = 0.0_f64;
    if renewed.till > 0.0 && asked.record != stored_record.as_slice() {
        renewed.till = renewed.till.min(clock_ms + renewed.longest);
        let waited = asked.record.ends_with(b" waited") || rules.quarantine_by_node_clock;
        let by_wall = if waited { 0.0 } else { (renewed.till_wall - wall).min(renewed.longest) };
        left = (renewed.till - clock_ms).max(by_wall).max(0.0);
    }
    let renewed_text = renewed.text();
    let mut deed = Deed { store, rules, asked: &asked, now, wall, record: renewed, left, created: Vec::new() };
    let done = deed.all(keys);
    let (created, store) = (deed.created, deed.store);
    let (locks, marks) = match done {
        Ok(done) => done,
        Err(Refused { reply, busy_at }) => {
            let longest = renewed.longest as u64;
            if let Some(mut mark) = busy_at.filter(|_| asked.ticket() != b"0") {
                mark.enter(asked.ticket());
                mark.write(store, 2 * renewed.window as u64, Some(longest), now);
            }
            if matches!(&reply, Reply::Array(fields) if fields[0] == Reply::Int(YOUNG)) && renewed_text != stored_record
            {
                store.put(RECORD, Data::Text(renewed_text), None, now);
            }
            created.iter().for_each(|key| store.remove(key));
            return reply;
        }
    };
    let lease = millis(asked.lease);
    for (lock, value) in locks {
        let left = if rules.shrinks_leases { 0 } else { u64::try_from(store.pttl(lock, now)).unwrap_or(0) };
        store.set(lock, value, left.min(renewed.longest as u64).max(lease), now);
    }
    for mark in marks {
        mark.write(store, 2 * renewed.window as u64, Some(renewed.longest as u64), now);
    }
    if renewed_text != stored_record {
        store.put(RECORD, Data::Text(renewed_text.clone()), None, now);
    }
    if left > 0.0 {
        return refusal(YOUNG, now, vec![int(left)]);
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

/// A refusal, and where a ticket is to be left: another lease is in the way there.
struct Refused {
    reply: Reply,
    busy_at: Option<Mark>,
}

impl From<Reply> for Refused {
    fn from(reply: Reply) -> Self {
        Self { reply, busy_at: None }
    }
}

/// What is to be written when no resource is refused: locks, and ballots.
type Written<'k> = (Vec<(&'k [u8], Vec<u8>)>, Vec<Mark>);

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
        let (mut locks, mut marks) = (Vec::new(), Vec::new());
        for (i, (pair, one)) in keys.chunks_exact(2).zip(&self.asked.resources).enumerate() {
            let (value, text) = (stored[2 * i].as_deref(), stored[2 * i + 1].as_deref());
            self.one(i, (pair[0], pair[1]), one, value, text, &mut locks, &mut marks)?;
        }
        Ok((locks, marks))
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
        marks: &mut Vec<Mark>,
    ) -> Result<(), Refused> {
        let (now, rules, asked) = (self.now, self.rules, self.asked);
        let (clock, window, next) = (now as f64, self.record.window * 1000.0, number(asked.next));
        let memory = 2 * self.record.window as u64;
        let mark = Mark::at(ballot, text, now);
        let place = Reply::Int(i as i64 + 1);
        let highest = mark.as_ref().map_or(0.0, |mark| mark.highest);
        let fresh = one.token == b"0";
        let head = [b"ql1 ".as_slice(), if fresh { asked.next } else { one.token }, b" ", asked.owner, b" "].concat();
        let entry = [b" ", one.share, b":", one.holds].concat();
        let last_value = mark.as_ref().and_then(|mark| mark.last.clone());
        let is_ours = last_value.as_ref().is_some_and(|(_, last)| last.starts_with(&head));

        if next > clock + window && (fresh || text.is_none() || next > highest + window) && !rules.ignores_ballots {
            return Err(refusal(AHEAD, now, vec![place]).into());
        }
        let new = if fresh {
            self.fresh(lock, value, mark.as_ref(), &place)?;
            let beyond = |mark: f64| next > mark || (next >= mark && rules.grants_equal_ballots);
            if text.is_none() && (clock / 1000.0 - self.wall).abs() > DAY_MS as f64 && !asked.has_waited_for("0:0") {
                let longest = int(self.record.longest);
                return Err(refusal(EARLY, now, vec![place, longest, Reply::Int(0), Reply::bulk("")]).into());
            }
            if !beyond(highest) && !rules.ignores_ballots {
                if highest <= clock + window {
                    return Err(refusal(STALE, now, vec![place, int(highest)]).into());
                }
                if let Some(mark) = &mark {
                    mark.limit(self.store, memory, now);
                }
                return Err(refusal(FAR, now, vec![place, int(highest)]).into());
            }
            if text.is_none() && next <= clock - window && !rules.ignores_ballots {
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
                None if next <= highest => return Err(refusal(STALE, now, vec![place, int(highest)]).into()),
                None => [value, &entry].concat(),
            }
        } else {
            let floor = if text.is_some() { highest } else { clock - window };
            let known = number(one.known);
            if one.known == b"0000000000000000" || (known < floor && !rules.repairs_over_newer) {
                return Err(refusal(GONE, now, vec![place, int(floor)]).into());
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
            Some((theirs, _)) if is_ours && !rules.lowers_ends => end.max(*theirs),
            _ => end,
        };
        match (text, mark) {
            (None, _) if self.store.data(ballot, now).is_none() => {
                let text = [asked.next, format!(" {ends:.0} ").as_bytes(), &new].concat();
                self.store.set(ballot, text, (self.record.longest as u64).max(DAY_MS) + DAY_MS, now);
                self.created.push(ballot);
            }
            (Some(_), Some(mut mark)) => {
                mark.raise(next);
                mark.set_last(Some((ends, new)));
                if fresh {
                    mark.leave(asked.ticket());
                }
                marks.push(mark);
            }
            (None, _) | (Some(_), None) => {
                let pttl = Reply::Int(self.store.pttl(ballot, now));
                return Err(refusal(HELD, now, vec![place, pttl, Reply::bulk("")]).into());
            }
        }
        Ok(())
    }

    /// What may be in the way of a new acquisition before its ballot is looked at.
    fn fresh(&mut self, lock: &[u8], value: Option<&[u8]>, mark: Option<&Mark>, place: &Reply) -> Result<(), Refused> {
        let (now, asked, rules) = (self.now, self.asked, self.rules);
        if self.left > 0.0 {
            return Err(refusal(YOUNG, now, vec![int(self.left)]).into());
        }
        let busy = |reply| Refused { reply, busy_at: mark.cloned() };
        if let Some(value) = value {
            let leftover = lock_words(value)
                .is_some_and(|([_, owner, _], shares)| owner == asked.owner && only_of(asked.client(), shares));
            if !leftover && !rules.grants_over_others {
                return Err(busy(self.held(lock, value, place)));
            }
            return Ok(());
        }
        let Some(mark) = mark else { return Ok(()) };
        let kept = mark.reserved_from(asked.ticket(), now);
        if kept > 0 {
            return Err(busy(refusal(KEPT, now, vec![place.clone(), Reply::Int(kept.cast_signed())])));
        }
        if let Some((end, last)) = mark.last.as_ref().filter(|(end, _)| self.wall < *end && !rules.one_clock) {
            let token = lock_words(last).map_or(&[][..], |([token, ..], _)| token);
            if !asked.has_waited_for(&format!("{end:.0}:{}", String::from_utf8_lossy(token))) {
                mark.limit(self.store, (self.record.longest as u64).max(DAY_MS) + DAY_MS, now);
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

/// The broken variant of writing a count.
fn incremented(value: &[u8], share: &[u8]) -> Vec<u8> {
    let before = LockValue::parse(value).and_then(|value| value.entries().find(|(id, _)| *id == share));
    let count = before.map_or(1, |(_, holds)| holds + 1).to_string();
    replaced(value, share, &[b" ", share, b":", count.as_bytes()].concat()).unwrap_or_default()
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
    let memory = if rules.forgets_ballots { 1 } else { millis(asked.memory) };
    let stored: Vec<Option<Vec<u8>>> = keys.iter().map(|key| store.text(key, now).map(<[u8]>::to_vec)).collect();
    // In the usual case there is little to do, and the answer is as short as what it is about.
    let is_plain = keys.len() == 2
        && stored[0].as_deref() == Some(asked.value)
        && stored[1] == Some([asked.head, asked.value].concat())
        && !asked.resources[0].keeps_place;
    if is_plain && !rules.releases_without_mark {
        store.remove(keys[0]);
        store.set(keys[1], asked.sent.to_vec(), memory, now);
        return Reply::Int(1);
    }
    let mut answer = vec![Reply::Int(now.cast_signed())];
    let mut is_free = vec![false; keys.len() / 2];
    let mut marks = Vec::new();
    for (i, (pair, one)) in keys.chunks_exact(2).zip(&asked.resources).enumerate() {
        let lock = pair[0];
        let (value, text) = (stored[2 * i].as_deref(), stored[2 * i + 1].as_deref());
        let mut mark = Mark::at(pair[1], text, now);
        let head = [b"ql1 ", one.token, b" ", asked.owner, b" "].concat();
        let is_last =
            mark.as_ref().and_then(|mark| mark.last.as_ref()).is_some_and(|(_, last)| last.starts_with(&head));
        let has_shares = |value: &[u8]| value.get(head.len()..).is_some_and(|shares| shares.contains(&b' '));
        let mut honoured = 0;
        match value {
            _ if one.token == b"0" => {
                honoured = 1;
                is_free[i] = store.data(lock, now).is_none();
            }
            None => {
                is_free[i] = store.data(lock, now).is_none();
                let floor = match (text, &mark) {
                    (Some(_), Some(mark)) => mark.highest,
                    _ => now as f64 - number(asked.memory) * 500.0,
                };
                honoured = i64::from(is_free[i] && (is_last || number(one.known) >= floor));
            }
            Some(value) if value.starts_with(&head) => {
                honoured = 1;
                let rest = replaced(value, one.share, b"");
                if !has_shares(rest.as_deref().unwrap_or(value)) {
                    store.remove(lock);
                    is_free[i] = true;
                } else if let Some(rest) = rest {
                    store.keep(lock, rest);
                }
            }
            Some(_) if rules.releases_blindly => store.remove(lock),
            Some(_) => {}
        }
        answer.push(Reply::Int(honoured));
        if let Some(mark) = &mut mark {
            let last = mark.last.clone().filter(|_| is_last);
            if let Some((end, last)) = last {
                let rest = replaced(&last, one.share, b"");
                if !has_shares(rest.as_deref().unwrap_or(&last)) || rules.forgets_other_shares {
                    mark.set_last(None);
                } else if let Some(rest) = rest {
                    mark.set_last(Some((end, rest)));
                }
            } else if rules.any_release_forgets && one.token != b"0" && mark.last.is_some() && value.is_none() {
                mark.set_last(None);
            }
        }
        marks.push(mark);
    }
    for (i, (mark, one)) in marks.into_iter().zip(&asked.resources).enumerate() {
        let Some(mut mark) = mark else { continue };
        if one.token != b"0" && !rules.releases_without_mark {
            let most = mark.highest.max(now as f64) + number(asked.memory) * 500.0;
            mark.raise(number(asked.sent).min(most));
        }
        if one.keeps_place {
            mark.enter(one.ticket);
        } else {
            mark.leave(one.ticket);
        }
        if is_free[i] && mark.reserved_from(b"-", now) == 0 {
            mark.call(now, publish);
        }
        mark.write(store, memory, None, now);
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

/// What record.lua does.
pub fn record(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let (&[key, list], &[seen, head, wait, ends, wall, rest, nodes]) = (keys, argv) else {
        return Reply::Error("ERR too few arguments".to_owned());
    };
    let stored = store.text(key, now).unwrap_or_default().to_vec();
    let mut text = stored.clone();
    if stored == seen || (seen.is_empty() && Record::parse(&stored).is_none()) {
        let begins = !wait.is_empty() && !rules.no_quarantine;
        let ends = if begins {
            let wall = if rules.quarantine_by_node_clock { b"0" } else { wall };
            let till = now.div_ceil(1000) as f64 + number(wait);
            [format!("{till:.0} ").as_bytes(), wall].concat()
        } else {
            ends.to_vec()
        };
        text = [head, b" ", &ends, b" ", rest].concat();
        store.put(key, Data::Text(text.clone()), None, now);
    }
    let mut listed = store.text(list, now).map(<[u8]>::to_vec);
    if !nodes.is_empty() && listed.is_none() {
        store.put(list, Data::Text(nodes.to_vec()), None, now);
        listed = Some(nodes.to_vec());
    }
    Reply::Array(vec![Reply::Bulk(text), Reply::Bulk(listed.unwrap_or_default())])
}
