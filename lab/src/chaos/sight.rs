//! What the nodes show of the locks, from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use quorlock::text::Printable;
use redis::{Connection, RedisResult, Script};
use serde::{Deserialize, Serialize};

/// A node that answers later than this is not waited for.
pub const LIMIT: Duration = Duration::from_millis(200);

const BALLOTS: &str = "quorlock:ballot:";
/// So many characters of a value that is not quorlock's are kept.
const MOST_FOREIGN: usize = 60;

/// The owner of a revoked lease, which no client is.
const NO_OWNER: &str = "00000000000000000000000000000000";

/// A lease of a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    /// 0 for a key that is not quorlock's.
    pub token: u64,
    pub owner: String,
    /// The label of the owner, or the value of a key that is not quorlock's.
    pub label: String,
}

impl Lease {
    /// Reads `ql1 TOKEN OWNER LABEL SHARES`.
    fn of(value: &str) -> Option<Self> {
        let mut words = value.splitn(5, ' ');
        let (head, token, owner, label) = (words.next()?, words.next()?, words.next()?, words.next()?);
        (head == "ql1" && words.next().is_some()).then_some(())?;
        Some(Self { token: token.parse().ok()?, owner: owner.to_owned(), label: label.to_owned() })
    }

    fn foreign(value: &str) -> Self {
        let label = Printable(value).to_string().chars().take(MOST_FOREIGN).collect();
        Self { token: 0, owner: String::new(), label }
    }

    /// Returns whether the lock has granted it.
    pub fn is_own(&self) -> bool {
        self.token > 0
    }

    pub fn is_revoked(&self) -> bool {
        self.owner == NO_OWNER
    }
}

/// What a node has for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    /// The lease in the lock key.
    pub held: Option<Lease>,
    /// The highest ballot that the node has honoured.
    pub ballot: u64,
    /// The lease that the node has honoured last, unless it was released there, and its end by the wall clock, in ms.
    pub last: Option<(Lease, u64)>,
}

impl Key {
    fn of(name: String, kind: &str, value: &str, ballot: &str) -> Self {
        let held = match kind {
            "none" => None,
            "string" => Some(Lease::of(value).unwrap_or_else(|| Lease::foreign(value))),
            kind => Some(Lease::foreign(kind)),
        };
        // 'BALLOT END VALUE | WAITING', without END and VALUE where the last lease was released.
        let text = ballot.split(" | ").next().unwrap_or_default();
        let mut words = text.splitn(3, ' ');
        let ballot = words.next().and_then(|ballot| ballot.parse().ok()).unwrap_or(0);
        let end = words.next().and_then(|end| end.parse().ok());
        let last = words.next().and_then(Lease::of).zip(end);
        Self { name, held, ballot, last }
    }
}

/// What a node has for all names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub keys: BTreeMap<String, Key>,
    /// The longest lease that was used there, in ms.
    pub longest: u64,
}

/// What has changed on a node since it was read before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSight {
    pub node: usize,
    /// It did not answer, so nothing is known of it now.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub blind: bool,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub keys: Vec<Key>,
}

/// Reads a node.
pub fn read(redis: &mut Connection, prefix: &str) -> RedisResult<View> {
    type Row = (String, String, String, String);
    let script = Script::new(include_str!("sight.lua"));
    let ballots = pattern(&format!("{BALLOTS}{prefix}"));
    let answer: Vec<redis::Value> = script.arg(pattern(prefix)).arg(ballots).arg(BALLOTS.len()).invoke(redis)?;
    let mut answer = answer.into_iter();
    let record: String = answer.next().map(redis::from_redis_value).transpose()?.unwrap_or_default();
    let rows: Vec<Row> = answer.map(redis::from_redis_value).collect::<Result<_, _>>()?;
    let keys = rows.into_iter().filter_map(|(key, kind, value, ballot)| {
        let name = key.strip_prefix(prefix)?.to_owned();
        Some((name.clone(), Key::of(name, &kind, &value, &ballot)))
    });
    let longest = record.split(' ').nth(1).and_then(|longest| longest.parse().ok()).unwrap_or(0);
    Ok(View { keys: keys.collect(), longest })
}

/// Returns the pattern of all keys that begin with this.
pub fn pattern(prefix: &str) -> String {
    let special = |c: char| "*?[]\\^".contains(c);
    let escaped = prefix.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c]));
    escaped.chain(['*']).collect()
}

/// Returns what has changed, and notes it: `known` is what each node had, and whether it answered.
pub fn changes(known: &mut Vec<(bool, View)>, views: Vec<Option<View>>) -> Vec<NodeSight> {
    known.resize_with(views.len(), Default::default);
    let mut changed = Vec::new();
    for (node, (view, (answered, known))) in views.into_iter().zip(known).enumerate() {
        let Some(view) = view else {
            if std::mem::take(answered) {
                changed.push(NodeSight { node, blind: true, keys: Vec::new() });
            }
            continue;
        };
        let gone = known.keys.keys().filter(|name| !view.keys.contains_key(*name));
        let gone = gone.map(|name| Key { name: name.clone(), ..Key::default() });
        let new = view.keys.values().filter(|key| known.keys.get(&key.name) != Some(*key)).cloned();
        let keys: Vec<Key> = gone.chain(new).collect();
        if !keys.is_empty() || !*answered {
            changed.push(NodeSight { node, blind: false, keys });
        }
        (*answered, *known) = (true, view);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "ql1 70 af host:1 c/1:2";

    fn key(kind: &str, value: &str, ballot: &str) -> Key {
        Key::of("job".to_owned(), kind, value, ballot)
    }

    #[test]
    fn a_key_shows_the_holder_and_the_last_lease_that_was_not_released() {
        let lease = Lease { token: 70, owner: "af".to_owned(), label: "host:1".to_owned() };
        let held = key("string", VALUE, &format!("75 9000 {VALUE} | 8=7:1"));
        assert_eq!((held.held, held.ballot, held.last), (Some(lease.clone()), 75, Some((lease, 9000))));
        let released = key("none", "", "76 | 8=7:1");
        assert_eq!((released.held, released.ballot, released.last), (None, 76, None));
        for (kind, value) in [("string", "mine"), ("string", "ql1 x af host:1 c/1:2"), ("hash", "")] {
            assert_eq!(key(kind, value, "").held.map(|lease| lease.is_own()), Some(false), "{kind} {value}");
        }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let view = |keys: &[Key]| {
            let keys = keys.iter().map(|key| (key.name.clone(), key.clone())).collect();
            Some(View { keys, longest: 1 })
        };
        let held = key("string", VALUE, "75");
        let mut known = Vec::new();
        let first = changes(&mut known, vec![view(&[]), view(std::slice::from_ref(&held))]);
        assert_eq!(first.iter().map(|sight| sight.keys.len()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(changes(&mut known, vec![view(&[]), view(&[held])]), []);
        let blind = changes(&mut known, vec![view(&[]), None]);
        assert_eq!(blind, [NodeSight { node: 1, blind: true, keys: Vec::new() }]);
        let gone = Key { name: "job".to_owned(), ..Key::default() };
        let back = changes(&mut known, vec![view(&[]), view(&[])]);
        assert_eq!(back, [NodeSight { node: 1, blind: false, keys: vec![gone] }]);
    }

    #[test]
    fn a_pattern_takes_the_prefix_as_it_is() {
        assert_eq!(pattern("a[b]*:"), "a\\[b\\]\\*:*");
    }
}
