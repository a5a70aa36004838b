//! The arguments of the scripts and the contents of keys, word by word.

use super::resource_state::lock_words;

/// Lua's `tonumber` of a string.
pub fn lua_number(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(|number| number as f64),
        None => text.parse().ok(),
    }
}

pub fn number(text: &[u8]) -> f64 {
    lua_number(text).unwrap_or(0.0)
}

pub fn millis(text: &[u8]) -> u64 {
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

/// Returns where ` SHARE:%d+` first occurs.
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

pub fn replaced(value: &[u8], share: &[u8], entry: &[u8]) -> Option<Vec<u8>> {
    let at = find_share(value, share)?;
    Some([&value[..at.start], entry, &value[at.end..]].concat())
}

/// Returns whether all shares are of this client: `gsub(shares, ' CLIENT/%x+:%d+', '')` leaves nothing.
pub fn only_of(client: &[u8], shares: &[u8]) -> bool {
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
    pub longest: f64,
    pub till: f64,
    pub till_wall: f64,
    pub window: f64,
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

    pub fn text(&self) -> Vec<u8> {
        let Self { word, longest, till, till_wall, window, rest } = *self;
        [word, format!(" {longest:.0} {till:.0} {till_wall:.0} {window:.0} ").as_bytes(), rest].concat()
    }
}

fn digits(text: &[u8]) -> Option<f64> {
    let are = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if are { lua_number(text) } else { None }
}

pub const RECORD: &[u8] = b"quorlock:node";

pub fn words(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b' ').collect()
}

/// One resource in the arguments of hold.lua.
#[derive(Clone, Copy, Debug)]
pub struct HoldOne<'b> {
    pub token: &'b [u8],
    /// A ballot; of a join, the share that was exported.
    pub known: &'b [u8],
    pub holds: &'b [u8],
    pub share: &'b [u8],
}

impl HoldOne<'_> {
    pub fn joins(&self) -> bool {
        self.known.contains(&b'/')
    }
}

/// The arguments of hold.lua, word by word.
#[derive(Clone, Debug)]
pub struct Hold<'b> {
    /// `NEXT END VALUE`
    pub ballot_value: &'b [u8],
    pub value: &'b [u8],
    pub owner: &'b [u8],
    pub label: &'b [u8],
    pub lease: &'b [u8],
    pub next: &'b [u8],
    pub end: &'b [u8],
    pub waits: &'b [u8],
    pub resources: Vec<HoldOne<'b>>,
    pub record: &'b [u8],
    /// Whether it is one resource, to be newly acquired, without further words.
    pub usual: bool,
}

/// `NEXT END VALUE`, cut where the scripts cut it.
fn cut(ballot_value: &[u8]) -> Option<[&[u8]; 3]> {
    Some([ballot_value.get(..16)?, ballot_value.get(17..30)?, ballot_value.get(31..)?])
}

impl<'b> Hold<'b> {
    pub fn parse(argv: &[&'b [u8]]) -> Option<Self> {
        let &[ballot_value, lease, ref said @ .., record] = argv else { return None };
        let [next, end, value] = cut(ballot_value)?;
        let (waits, resources) = said.split_first().map_or((&b"0"[..], said), |(waits, resources)| (*waits, resources));
        let parts = words(value);
        let &[_, _, owner, label, entry] = parts.as_slice() else { return None };
        let colon = entry.iter().position(|byte| *byte == b':')?;
        let share = &entry[..colon];
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
        Some(Self { ballot_value, value, owner, label, lease, next, end, waits, resources, record, usual })
    }

    pub fn ticket(&self) -> &'b [u8] {
        self.waits.split(|byte| *byte == b' ').next().unwrap_or_default()
    }

    /// Returns how much later its end is than its clock plus its lease, in ms.
    pub fn raised(&self) -> f64 {
        let last = self.waits.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        last.strip_prefix(b"+").map_or(0.0, number)
    }

    pub fn has_waited_for(&self, name: &str) -> bool {
        self.waits.split(|byte| *byte == b' ').skip(1).any(|waited| waited == name.as_bytes())
    }

    pub fn client(&self) -> &'b [u8] {
        let share = words(self.value).get(4).copied().unwrap_or_default();
        share.split(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// One resource in the arguments of release.lua.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseOne<'b> {
    pub token: &'b [u8],
    pub known: &'b [u8],
    pub share: &'b [u8],
    pub ticket: &'b [u8],
    pub keeps_place: bool,
}

/// The arguments of release.lua, word by word.
#[derive(Clone, Debug)]
pub struct Release<'b> {
    /// `NEXT END VALUE`
    pub ballot_value: &'b [u8],
    pub value: &'b [u8],
    pub owner: &'b [u8],
    pub sent: &'b [u8],
    pub memory: &'b [u8],
    pub resources: Vec<ReleaseOne<'b>>,
}

impl<'b> Release<'b> {
    pub fn parse(argv: &[&'b [u8]]) -> Option<Self> {
        let &[ballot_value, ref resources @ .., memory] = argv else { return None };
        let [sent, _, value] = cut(ballot_value)?;
        let parts = words(value);
        let &[_, token, owner, _, entry] = parts.as_slice() else { return None };
        let one = |text: &&'b [u8]| match words(text).as_slice() {
            &[token, known, share, ticket, place] => {
                Some(ReleaseOne { token, known, share, ticket, keeps_place: place == b"1" })
            }
            _ => None,
        };
        let plain = match resources {
            [] => Some(&b"0"[..]),
            [ticket] if !ticket.contains(&b' ') => Some(*ticket),
            _ => None,
        };
        let resources = if let Some(ticket) = plain {
            let share = entry.strip_suffix(b":1")?;
            vec![ReleaseOne { token, known: sent, share, ticket, keeps_place: false }]
        } else {
            resources.iter().map(one).collect::<Option<_>>()?
        };
        Some(Self { ballot_value, value, owner, sent, memory, resources })
    }
}
