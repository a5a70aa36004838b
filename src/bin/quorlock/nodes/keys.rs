//! What locks have left on a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorlock::NodeError;
use quorlock::admin::{Node, RECORD};
use quorlock::text::readable;

const BALLOTS: &[u8] = b"quorlock:ballot:";
const LISTS: &[u8] = b"quorlock:list:";
const QUEUES: &[u8] = b"quorlock:queue:";
/// All that quorlock keeps beside the locks, and the locks of the default prefix.
const OWN: &[u8] = b"quorlock:";
/// A lock key that is quorlock's begins so.
const LOCK: &[u8] = b"ql1 ";
/// So many keys a node looks at in one go.
const BATCH: u32 = 1000;
/// A node with so many keys, 100 million, is no lock server.
const MOST_BATCHES: usize = 100_000;

/// A lease that is in force, or may be, as far as one node shows.
#[derive(Debug)]
pub struct InForce {
    /// The lock's key, as people can read it.
    pub key: String,
    /// By the clock of this machine, the lease ends in so long; `None` while the lock's key stands.
    pub left: Option<Duration>,
}

/// A lease under this prefix that is in force on the node, by the rule that the node grants by: the lock key stands, or the
/// last lease was not released and its end is to come by the asker's clock.
pub async fn lease_in_force(node: &mut Node, prefix: &[u8]) -> Result<Option<InForce>, NodeError> {
    let locks = search(node, prefix, |key, value| {
        is_lock(prefix, key, value).then(|| InForce { key: readable(key), left: None })
    });
    if let Some(found) = locks.await? {
        return Ok(Some(found));
    }
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    search(node, &[BALLOTS, prefix].concat(), |key, value| {
        let left = unreleased_until(value)?.checked_sub(wall).filter(|left| !left.is_zero())?;
        Some(InForce { key: readable(&key[BALLOTS.len()..]), left: Some(left) })
    })
    .await
}

/// A key that shows that locks were used on this node, under any prefix. The list of this prefix is none.
pub async fn trace_of_use(node: &mut Node, prefix: &[u8]) -> Result<Option<String>, NodeError> {
    let list = node.list_key().to_vec();
    let own = search(node, OWN, |key, _| (key != list && key != RECORD.as_bytes()).then(|| readable(key)));
    if let Some(key) = own.await? {
        return Ok(Some(key));
    }
    search(node, prefix, |key, value| is_lock(prefix, key, value).then(|| readable(key))).await
}

/// Returns the number of lock keys under this prefix.
pub async fn count_locks(node: &mut Node, prefix: &[u8]) -> Result<usize, NodeError> {
    let count = std::cell::Cell::new(0);
    let counted = |key: &[u8], value: &[u8]| {
        count.set(count.get() + usize::from(is_lock(prefix, key, value)));
        None::<()>
    };
    search(node, prefix, counted).await?;
    Ok(count.get())
}

/// Returns the lock keys under this prefix, with their values; `None` for a key of another type.
pub async fn lock_keys(node: &mut Node, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, NodeError> {
    let found = all_keys(node, prefix).await?;
    let is_wanted = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| {
        !key.starts_with(QUEUES) && is_lock(prefix, key, value.as_deref().unwrap_or_default())
    };
    Ok(found.into_iter().filter(is_wanted).collect())
}

/// Returns the keys of the wait queues under this prefix, and where the name begins in each.
pub async fn queue_keys(node: &mut Node, prefix: &[u8]) -> Result<(usize, Vec<Vec<u8>>), NodeError> {
    let beginning = [QUEUES, prefix].concat();
    let found = all_keys(node, &beginning).await?;
    Ok((beginning.len(), found.into_iter().map(|(key, _)| key).collect()))
}

/// Returns the keys that begin like this, with their values; `None` for a key of another type.
async fn all_keys(node: &mut Node, beginning: &[u8]) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, NodeError> {
    // The server may show a key twice.
    let found = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let collect = |key: &[u8], value: Option<&[u8]>| {
        found.borrow_mut().insert(key.to_vec(), value.map(<[u8]>::to_vec));
        None::<()>
    };
    search_all(node, beginning, collect).await?;
    Ok(found.into_inner().into_iter().collect())
}

/// A lock key under this prefix that has no end.
pub async fn endless_lock(node: &mut Node, prefix: &[u8]) -> Result<Option<Vec<u8>>, NodeError> {
    let keys = std::cell::RefCell::new(Vec::new());
    let collect = |key: &[u8], value: &[u8]| {
        if is_lock(prefix, key, value) {
            keys.borrow_mut().push(key.to_vec());
        }
        None::<()>
    };
    search(node, prefix, collect).await?;
    for key in keys.into_inner() {
        let left: i64 = read("PTTL", node.ask(redis::cmd("PTTL").arg(&key)).await?)?;
        if left == -1 {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Under a prefix every key is a lock, also one of another client. Without one only quorlock's own can be told from data.
fn is_lock(prefix: &[u8], key: &[u8], value: &[u8]) -> bool {
    let is_kept_beside = key == RECORD.as_bytes() || [BALLOTS, LISTS].iter().any(|kind| key.starts_with(kind));
    !is_kept_beside && (!prefix.is_empty() || value.starts_with(LOCK))
}

/// The end of the last lease that a ballot key holds, while that lease was not released.
fn unreleased_until(value: &[u8]) -> Option<Duration> {
    let text = String::from_utf8_lossy(value);
    let mut words = text.split(" | ").next()?.split(' ').skip(1);
    Some(Duration::from_millis(words.next()?.parse().ok()?))
}

/// The first key that begins like this for which `wanted` gives something. Strings only: other keys of quorlock hold no lease.
async fn search<T>(
    node: &mut Node,
    beginning: &[u8],
    wanted: impl Fn(&[u8], &[u8]) -> Option<T>,
) -> Result<Option<T>, NodeError> {
    search_all(node, beginning, |key, value| wanted(key, value?)).await
}

/// The same with keys of other types, which have no value here.
async fn search_all<T>(
    node: &mut Node,
    beginning: &[u8],
    wanted: impl Fn(&[u8], Option<&[u8]>) -> Option<T>,
) -> Result<Option<T>, NodeError> {
    let pattern = [&escaped(beginning)[..], b"*"].concat();
    let mut cursor = "0".to_owned();
    for _ in 0..MOST_BATCHES {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
        let (next, keys): (String, Vec<Vec<u8>>) = read("SCAN", node.ask(&scan).await?)?;
        if !keys.is_empty() {
            let values: Vec<Option<Vec<u8>>> = read("MGET", node.ask(redis::cmd("MGET").arg(&keys)).await?)?;
            // A node may answer with anything.
            let mut stored = keys.iter().zip(values).filter(|(key, _)| key.starts_with(beginning));
            if let Some(found) = stored.find_map(|(key, value)| wanted(key, value.as_deref())) {
                return Ok(Some(found));
            }
        }
        if next == "0" {
            return Ok(None);
        }
        cursor = next;
    }
    Err(NodeError::Nonsense("a search for keys without an end".to_owned()))
}

pub fn read<T: redis::FromRedisValue>(command: &str, value: redis::Value) -> Result<T, NodeError> {
    redis::from_redis_value(value)
        .map_err(|_| NodeError::Nonsense(format!("an answer to {command} that cannot be read")))
}

/// For a pattern that is to match these very bytes.
fn escaped(text: &[u8]) -> Vec<u8> {
    let special = |byte: &u8| b"*?[]\\^-".contains(byte);
    text.iter().flat_map(|byte| special(byte).then_some(b'\\').into_iter().chain([*byte])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ends_in_ballot_keys() {
        let end = Some(Duration::from_secs(1_700_000_000));
        for (value, expected) in [
            ("17", None),
            ("17 | 0=-", None),
            ("17 1700000000000 ql1 17 af host:1 c/1:1", end),
            ("17 1700000000000 ql1 17 af host:1 c/1:1 | 5 0=- 17:c", end),
            ("", None),
        ] {
            assert_eq!(unreleased_until(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn lock_keys_with_and_without_a_prefix() {
        for (prefix, key, value, expected) in [
            ("p:", "p:a", "ql1 17 af host:1 c/1:1", true),
            ("p:", "p:a", "of another client", true),
            ("", "a", "ql1 17 af host:1 c/1:1", true),
            ("", "a", "data", false),
            ("", "quorlock:node", "ql1 ", false),
            ("quorlock:", "quorlock:list:p:", "3", false),
        ] {
            assert_eq!(is_lock(prefix.as_bytes(), key.as_bytes(), value.as_bytes()), expected, "{prefix} {key}");
        }
    }

    #[test]
    fn patterns_match_the_very_prefix() {
        assert_eq!(escaped(b"a*[b]\\?"), b"a\\*\\[b\\]\\\\\\?");
    }
}
