//! What the scripts answer, typed.

use std::time::Duration;

use redis::Value;

use super::commands::{LastEnd, LastOf};
use crate::error::{Answer, Holder, NodeError};
use crate::owner::fingerprint;
use crate::protocol::{Ballot, Token};
use crate::text::{LONGEST_LABEL, excerpt, word};

/// A node's part in a round.
#[derive(Clone, Debug)]
pub(crate) enum Vote {
    /// It did as asked, or, in a release, had still honoured the lease.
    Yes,
    /// In a release of several: which of the leases it had still honoured.
    Partly(Vec<bool>),
    No(Refusal),
    /// In a release: nothing was ever sent there that could have left a key.
    Untouched,
    NoReply(NodeError),
}

/// Why a node did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Held {
        resource: usize,
        by: Holder,
        free_in: Option<Duration>,
    },
    Stale {
        floor: Ballot,
        /// The node's, in µs.
        clock: u64,
    },
    Ahead {
        /// The node's, in µs.
        clock: u64,
    },
    /// The ballot there is further ahead of the node's clock than ballots may be.
    Far,
    /// Free there, but the last lease was not released and may be in force for so long, by this machine's wall clock.
    Early {
        resource: usize,
        by: Holder,
        last: LastEnd,
        left: Duration,
    },
    Gone {
        resource: usize,
        /// The newest ballot there; zero for none, and where a release says so.
        floor: Ballot,
    },
    /// Free, but kept for this long for a request that has waited longer.
    Kept {
        left: Duration,
    },
}

impl Refusal {
    /// Returns the resource whose lease is over on that node. `None` if another proposal, or a later one, may be taken.
    pub(crate) fn ends(&self) -> Option<usize> {
        match self {
            Self::Held { resource, .. } | Self::Gone { resource, .. } => Some(*resource),
            Self::Stale { .. } | Self::Ahead { .. } | Self::Far | Self::Early { .. } | Self::Kept { .. } => None,
        }
    }

    /// Returns the resource that another owner has there, and that owner.
    pub(crate) fn holder(&self) -> Option<(usize, &Holder)> {
        match self {
            Self::Held { resource, by, .. } | Self::Early { resource, by, .. } => Some((*resource, by)),
            _ => None,
        }
    }
}

impl From<&Vote> for Answer {
    fn from(vote: &Vote) -> Self {
        match vote {
            Vote::Yes | Vote::Untouched => Self::Agreed,
            Vote::No(Refusal::Held { by, free_in, .. }) => Self::Held { by: by.clone(), free_in: *free_in },
            Vote::No(Refusal::Stale { .. }) => Self::Stale,
            Vote::No(Refusal::Ahead { .. }) => Self::ClockBehind,
            Vote::No(Refusal::Far) => Self::BallotAhead,
            Vote::No(Refusal::Early { by, left, .. }) => Self::Unexpired { by: by.clone(), left: *left },
            Vote::Partly(_) | Vote::No(Refusal::Gone { .. }) => Self::Gone,
            Vote::No(Refusal::Kept { left }) => Self::Kept { left: *left },
            Vote::NoReply(error) => Self::Failed(error.clone()),
        }
    }
}

fn nonsense(value: &Value) -> NodeError {
    NodeError::Nonsense(excerpt(&format!("{value:?}")))
}

/// Reads the answer of `hold.lua`. What cannot be read is no vote.
pub(crate) fn parse_hold(value: &Value) -> Vote {
    hold(value).unwrap_or_else(|| Vote::NoReply(nonsense(value)))
}

fn hold(value: &Value) -> Option<Vote> {
    let place = |i: i64| usize::try_from(i).ok()?.checked_sub(1);
    let fields = match value {
        Value::Int(1) => return Some(Vote::Yes),
        Value::Array(fields) => fields,
        _ => return None,
    };
    let time = |now: i64| u64::try_from(now).ok();
    let millis = |ms: i64| Some(Duration::from_millis(u64::try_from(ms).ok()?));
    // What the refusal tells of the node's record is not about the lock.
    let fields = if let [fields @ .., Value::Array(_)] = fields.as_slice() { fields } else { fields };
    let refusal = match fields {
        [Value::Int(1), Value::BulkString(_)] => return Some(Vote::Yes),
        [Value::Int(2), Value::Int(_), Value::Int(i), Value::Int(pttl), Value::BulkString(value)] => Refusal::Held {
            resource: place(*i)?,
            by: LockValue::parse(value).map_or(Holder::Foreign, LockValue::into_holder),
            free_in: millis(*pttl),
        },
        [Value::Int(3), Value::Int(now), Value::Int(_), Value::Int(floor)] => {
            Refusal::Stale { floor: Ballot::from_wire(u64::try_from(*floor).ok()?)?, clock: time(*now)? }
        }
        [Value::Int(4), Value::Int(now), Value::Int(_)] => Refusal::Ahead { clock: time(*now)? },
        [Value::Int(5), Value::Int(_), Value::Int(i), Value::Int(floor)] => {
            Refusal::Gone { resource: place(*i)?, floor: Ballot::from_wire(u64::try_from(*floor).ok()?)? }
        }
        [Value::Int(6), Value::Int(_), Value::Int(_), Value::Int(left)] => Refusal::Kept { left: millis(*left)? },
        [Value::Int(7), Value::Int(_), Value::Int(i), Value::Int(left), Value::Int(end), Value::BulkString(value)] => {
            let holder = LockValue::parse(value);
            let of = match &holder {
                Some(holder) => LastOf::Token(holder.token.into()),
                None => LastOf::Word(u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok()?),
            };
            Refusal::Early {
                resource: place(*i)?,
                last: LastEnd { end: time(*end)?, of },
                by: holder.map_or(Holder::Forgotten, LockValue::into_holder),
                left: millis(*left)?,
            }
        }
        [Value::Int(8), Value::Int(_), Value::Int(_), Value::Int(_)] => Refusal::Far,
        _ => return None,
    };
    Some(Vote::No(refusal))
}

/// Reads the answer of `release.lua`. For several resources: yes if the node honoured every one of them, or else each one's answer.
pub(crate) fn parse_release(value: &Value) -> Vote {
    let fields = match value {
        Value::Int(1) => return Vote::Yes,
        Value::Array(fields) => fields,
        _ => return Vote::NoReply(nonsense(value)),
    };
    match fields.as_slice() {
        [Value::Int(_), codes @ ..] if !codes.is_empty() => {
            let honoured: Vec<bool> = codes.iter().map(|code| *code == Value::Int(1)).collect();
            match honoured.as_slice() {
                [false] => Vote::No(Refusal::Gone { resource: 0, floor: Ballot::ZERO }),
                honoured if honoured.iter().all(|honoured| *honoured) => Vote::Yes,
                _ => Vote::Partly(honoured),
            }
        }
        _ => Vote::NoReply(nonsense(value)),
    }
}

/// Reads the answer of `revoke.lua`.
pub(crate) fn parse_revoke(value: &Value) -> Result<RevokeReply, NodeError> {
    revoke_reply(value).unwrap_or_else(|| Err(nonsense(value)))
}

fn revoke_reply(value: &Value) -> Option<Result<RevokeReply, NodeError>> {
    let Value::Array(fields) = value else { return None };
    let count = |number: i64| u64::try_from(number).ok();
    let ballot = |number: i64| Ballot::from_wire(count(number)?);
    Some(match fields.as_slice() {
        [Value::Int(2), Value::Int(_), Value::Int(_), Value::Int(pttl), Value::BulkString(value)] => {
            let by = LockValue::parse(value).map_or(Holder::Foreign, LockValue::into_holder);
            Ok(RevokeReply::Held { by, free_in: count(*pttl).map(Duration::from_millis) })
        }
        [Value::Int(4), Value::Int(now), Value::Int(_)] => Ok(RevokeReply::Ahead { clock: count(*now)? }),
        [Value::Int(9), Value::Int(_), Value::Int(left), ..] => {
            Err(NodeError::Quarantined { left: Duration::from_millis(count(*left)?) })
        }
        [Value::Int(10), Value::Int(_)] => Err(NodeError::Forgot),
        [Value::Int(11), Value::Int(_), Value::Int(highest), Value::Int(left), Value::BulkString(value)] => {
            let label = word(LockValue::parse(value)?.label, LONGEST_LABEL);
            let lease = (label, Duration::from_millis(count(*left)?));
            Ok(RevokeReply::Done { highest: ballot(*highest)?, lease: Some(lease) })
        }
        [Value::Int(12), Value::Int(_), Value::Int(highest)] => {
            Ok(RevokeReply::Done { highest: ballot(*highest)?, lease: None })
        }
        _ => return None,
    })
}

/// What a node did about a lease that is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RevokeReply {
    /// It honours no message of the lease that names a ballot below the sent one as known.
    Done {
        /// The highest ballot that it had honoured before.
        highest: Ballot,
        /// The holder's label and how long the lock stays closed there; `None` where nothing of the lease was.
        lease: Option<(String, Duration)>,
    },
    /// Another lease, or another kind of key, is in its place.
    Held { by: Holder, free_in: Option<Duration> },
    /// The ballot is further ahead of the node's clock than ballots may be.
    Ahead {
        /// The node's, in µs.
        clock: u64,
    },
}

/// What `inspect.lua` saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InspectReply {
    pub(crate) held: Option<(Holder, u32)>,
    /// The key as it is, to tell one foreign holder from another.
    pub(crate) raw: Vec<u8>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) ballot: Option<u64>,
    /// The last lease honoured there, if it was not released: its end, in ms of its holder's wall clock, and its token.
    pub(crate) last: Option<(u64, Token)>,
}

pub(crate) fn parse_inspect(value: &Value) -> Result<InspectReply, NodeError> {
    inspect_reply(value).ok_or_else(|| nonsense(value))
}

fn inspect_reply(value: &Value) -> Option<InspectReply> {
    let Value::Array(fields) = value else { return None };
    let [Value::Int(_), kind, Value::BulkString(raw), Value::Int(pttl), Value::BulkString(ballot)] = fields.as_slice()
    else {
        return None;
    };
    let kind = match kind {
        Value::BulkString(kind) => String::from_utf8_lossy(kind).into_owned(),
        Value::SimpleString(kind) => kind.clone(),
        _ => return None,
    };
    let held = match kind.as_str() {
        "none" => None,
        "string" => Some(holder(raw).unwrap_or((Holder::Foreign, 1))),
        _ => Some((Holder::Foreign, 1)),
    };
    let last = std::str::from_utf8(ballot).ok().and_then(|text| {
        let (_, rest) = text.split(" | ").next()?.split_once(' ')?;
        let (end, value) = rest.split_once(' ')?;
        Some((end.parse().ok()?, LockValue::parse(value.as_bytes())?.token.into()))
    });
    Some(InspectReply {
        last,
        held,
        raw: [kind.as_bytes(), b" ", raw].concat(),
        ttl: u64::try_from(*pttl).ok().map(Duration::from_millis),
        // The rest of the key is of no interest here. The ballot is 0 where there are only tickets.
        ballot: std::str::from_utf8(ballot)
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .filter(|b| *b > 0),
    })
}

/// Returns who holds a lock, and how deep, by the value of its key; `None` for a value that is not quorlock's.
pub(super) fn holder(value: &[u8]) -> Option<(Holder, u32)> {
    let value = LockValue::parse(value)?;
    let holds = value.holds;
    Some((value.into_holder(), holds))
}

/// `ql1 TOKEN OWNER LABEL SHARE:HOLDS…`, as `hold.lua` writes it.
struct LockValue<'a> {
    token: Ballot,
    owner: &'a str,
    label: &'a str,
    holds: u32,
}

/// Of a longer value a node shows so many bytes: the last share may be cut.
const MOST_SHOWN: usize = 4096;

impl<'a> LockValue<'a> {
    fn parse(value: &'a [u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        if words.next()? != "ql1" {
            return None;
        }
        let token = Ballot::from_wire(words.next()?.parse().ok()?)?;
        let owner = words.next()?;
        let label = words.next()?;
        let mut holds: u32 = 0;
        for share in words {
            let count = share.split_once(':').and_then(|(_, count)| count.parse().ok());
            match count {
                Some(count) => holds = holds.saturating_add(count),
                None if value.len() == MOST_SHOWN => break,
                None => return None,
            }
        }
        Some(Self { token, owner, label, holds })
    }

    fn into_holder(self) -> Holder {
        // Any client can write any key.
        if self.owner.bytes().all(|digit| digit == b'0') {
            return Holder::Revoked { label: word(self.label, LONGEST_LABEL), token: Token::from(self.token) };
        }
        Holder::Owner {
            id: fingerprint(self.owner).into(),
            label: word(self.label, LONGEST_LABEL),
            token: Token::from(self.token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(fields: Vec<Value>) -> Value {
        Value::Array(fields)
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn of_a_value_that_was_cut_the_last_share_does_not_count() {
        let long = format!("ql1 7 ab host:1{}", " 0123456789abcdef/1:2".repeat(300));
        let holds = |bytes: usize| LockValue::parse(&long.as_bytes()[..bytes]).map(|value| value.holds);
        assert_eq!(holds(MOST_SHOWN), Some(2 * 194));
        assert_eq!(holds(MOST_SHOWN - 1), None, "only there the node has cut it");
        assert_eq!(holds(long.len()), Some(600));
    }

    #[test]
    fn answers_to_hold() {
        let int = Value::Int;
        assert!(matches!(parse_hold(&int(1)), Vote::Yes));
        assert!(matches!(parse_hold(&array(vec![int(1), text("a record")])), Vote::Yes));
        let held = parse_hold(&array(vec![int(2), int(99), int(2), int(1500), text("ql1 7 ab host:1 s:2 t:1")]));
        let Vote::No(Refusal::Held { resource: 1, by: Holder::Owner { id, label, token }, free_in }) = held else {
            panic!("{held:?}")
        };
        assert_eq!((&*id, label.as_str(), token.get()), (&*fingerprint("ab"), "host:1", 7));
        assert_eq!(free_in, Some(Duration::from_millis(1500)));
        let foreign = parse_hold(&array(vec![int(2), int(99), int(1), int(-1), text("")]));
        assert!(matches!(foreign, Vote::No(Refusal::Held { resource: 0, by: Holder::Foreign, free_in: None })));
        let stale = parse_hold(&array(vec![int(3), int(99), int(1), int(41)]));
        assert!(matches!(stale, Vote::No(Refusal::Stale { floor, clock: 99 }) if floor.get() == 41));
        assert!(matches!(parse_hold(&array(vec![int(4), int(99), int(1)])), Vote::No(Refusal::Ahead { clock: 99 })));
        let gone = parse_hold(&array(vec![int(5), int(99), int(1), int(3)]));
        assert!(matches!(gone, Vote::No(Refusal::Gone { resource: 0, floor }) if floor.get() == 3));
    }

    #[test]
    fn the_last_lease_may_be_in_force() {
        let int = Value::Int;
        let early =
            parse_hold(&array(vec![int(7), int(99), int(1), int(1500), int(88), text("ql1 7 ab host:1 s/1:2")]));
        let Vote::No(Refusal::Early { resource: 0, by: Holder::Owner { label, .. }, last, left }) = early else {
            panic!("{early:?}")
        };
        assert_eq!((label.as_str(), left), ("host:1", Duration::from_millis(1500)));
        assert_eq!((last.end, last.of), (88, LastOf::Token(Ballot::from_wire(7).unwrap().into())));
        let unknown = parse_hold(&array(vec![int(7), int(99), int(1), int(1500), int(88), text("00af")]));
        let nothing = LastEnd { end: 88, of: LastOf::Word(0xaf) };
        assert!(
            matches!(&unknown, Vote::No(Refusal::Early { by: Holder::Forgotten, last, .. }) if *last == nothing),
            "{unknown:?}"
        );
    }

    #[test]
    fn a_longest_lease_behind_a_refusal_is_no_part_of_it() {
        let int = Value::Int;
        for refusal in [vec![int(4), int(99), int(1)], vec![int(6), int(99), int(1), int(1500)]] {
            let plain = parse_hold(&array(refusal.clone()));
            let telling = parse_hold(&array([refusal, vec![array(vec![int(60_000)])]].concat()));
            assert!(matches!(plain, Vote::No(_)));
            assert_eq!(format!("{plain:?}"), format!("{telling:?}"));
        }
    }

    #[test]
    fn nonsense_is_never_a_vote() {
        let int = Value::Int;
        for value in [
            Value::Nil,
            Value::Okay,
            int(0),
            int(99),
            array(vec![]),
            array(vec![int(99)]),
            array(vec![int(1), int(99)]),
            array(vec![int(6), int(99)]),
            array(vec![int(2), int(99), int(0), int(5), text("")]),
            array(vec![int(3), int(99), int(1), int(-4)]),
            array(vec![int(3), int(99), int(1), int(1 << 53)]),
        ] {
            let vote = parse_hold(&value);
            assert!(matches!(vote, Vote::NoReply(NodeError::Nonsense(_))), "{value:?} {vote:?}");
        }
        assert!(matches!(parse_release(&array(vec![int(9)])), Vote::NoReply(_)));
        assert!(matches!(parse_release(&Value::Nil), Vote::NoReply(_)));
        assert!(matches!(parse_release(&int(0)), Vote::NoReply(_)));
    }

    #[test]
    fn a_release_of_several_needs_every_one() {
        let int = Value::Int;
        assert!(matches!(parse_release(&int(1)), Vote::Yes));
        assert!(matches!(parse_release(&array(vec![int(9), int(1), int(1)])), Vote::Yes));
        assert!(
            matches!(parse_release(&array(vec![int(9), int(1), int(0)])), Vote::Partly(each) if each == [true, false])
        );
        assert!(matches!(parse_release(&array(vec![int(9), int(0)])), Vote::No(Refusal::Gone { resource: 0, .. })));
    }

    #[test]
    fn answers_to_revoke() {
        let int = Value::Int;
        let value = "ql1 0000000000000007 00000000000000000000000000000000 host:1 s/1:2";
        let lease = Some(("host:1".to_owned(), Duration::from_millis(900)));
        let highest = |number| Ballot::from_wire(number).unwrap();
        let table = [
            (
                vec![int(11), int(99), int(8), int(900), text(value)],
                Ok(RevokeReply::Done { highest: highest(8), lease }),
            ),
            (vec![int(12), int(99), int(0)], Ok(RevokeReply::Done { highest: Ballot::ZERO, lease: None })),
            (
                vec![int(2), int(99), int(1), int(-1), text("")],
                Ok(RevokeReply::Held { by: Holder::Foreign, free_in: None }),
            ),
            (
                vec![int(2), int(99), int(1), int(5), text(value)],
                Ok(RevokeReply::Held {
                    by: Holder::Revoked { label: "host:1".to_owned(), token: highest(7).into() },
                    free_in: Some(Duration::from_millis(5)),
                }),
            ),
            (vec![int(4), int(99), int(1)], Ok(RevokeReply::Ahead { clock: 99 })),
            (vec![int(9), int(99), int(70)], Err(NodeError::Quarantined { left: Duration::from_millis(70) })),
            (vec![int(10), int(99)], Err(NodeError::Forgot)),
        ];
        for (fields, expected) in table {
            assert_eq!(parse_revoke(&array(fields.clone())), expected, "{fields:?}");
        }
        for value in
            [Value::Nil, int(11), array(vec![int(11), int(99), int(8)]), array(vec![int(12), int(99), int(-1)])]
        {
            assert!(matches!(parse_revoke(&value), Err(NodeError::Nonsense(_))), "{value:?}");
        }
    }

    #[test]
    fn inspect_replies() {
        let look = |kind: &str, value: &str, pttl, ballot: &str| {
            parse_inspect(&array(vec![Value::Int(1), text(kind), text(value), Value::Int(pttl), text(ballot)])).unwrap()
        };
        let free = look("none", "", -2, "12 0=- 7:51");
        assert_eq!((free.held, free.ttl, free.ballot, free.last), (None, None, Some(12), None));
        let last = look("none", "", -2, "12 88 ql1 7 ab host:1 s/1:2 | 0=-").last;
        assert_eq!(last.map(|(end, token)| (end, token.get())), Some((88, 7)));
        let held = look("string", "ql1 7 ab host:1 s:2 t:1", 900, "");
        assert_eq!(held.held.map(|(_, holds)| holds), Some(3));
        assert_eq!((held.ttl, held.ballot), (Some(Duration::from_millis(900)), None));
        assert_eq!(look("none", "", -2, "0 0=- 7:51").ballot, None, "a request waits, and there was no owner yet");
        assert_eq!(look("list", "", -1, "").held, Some((Holder::Foreign, 1)));
        assert_eq!(look("string", "ql1 x", 5, "").held, Some((Holder::Foreign, 1)));
    }

    #[test]
    fn only_a_refusal_for_one_resource_ends_its_lease() {
        let int = Value::Int;
        let ends = |fields: Vec<Value>| {
            let vote = parse_hold(&array(fields));
            let Vote::No(refusal) = &vote else { panic!("{vote:?}") };
            refusal.ends()
        };
        assert_eq!(ends(vec![int(2), int(99), int(2), int(-1), text("")]), Some(1));
        assert_eq!(ends(vec![int(5), int(99), int(3), int(3)]), Some(2));
        assert_eq!(ends(vec![int(3), int(99), int(1), int(41)]), None);
        assert_eq!(ends(vec![int(4), int(99), int(1)]), None);
        let kept = vec![int(6), int(99), int(1), int(1500)];
        assert!(matches!(parse_hold(&array(kept.clone())),
            Vote::No(Refusal::Kept { left }) if left == Duration::from_millis(1500)));
        assert_eq!(ends(kept), None);
        let far = vec![int(8), int(99), int(1), int(3)];
        assert!(matches!(parse_hold(&array(far.clone())), Vote::No(Refusal::Far)));
        assert_eq!(ends(far), None);
    }

    #[test]
    fn a_key_of_another_kind_is_held_by_something_else() {
        for kind in [Value::SimpleString("list".to_owned()), text("list")] {
            let reply = array(vec![Value::Int(1), kind, text(""), Value::Int(-1), text("")]);
            assert!(matches!(inspect_reply(&reply).and_then(|reply| reply.held), Some((Holder::Foreign, 1))));
        }
    }
}
