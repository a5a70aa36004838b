//! What the nodes have under a prefix.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use quorlock::admin::{self, Node, holder_of};
use quorlock::{ErrorKind, Holder, NodeError};

use crate::exit::Failure;
use crate::nodes::keys::{lock_keys, queue_keys, read as read_answer};
use crate::place::Place;

/// So many keys are asked about in one go.
const BATCH: usize = 500;

/// A lock as the nodes have it.
#[derive(Debug)]
pub struct Lock {
    pub name: Vec<u8>,
    /// The holder that most nodes have.
    pub holder: Option<Holder>,
    pub holds: u32,
    /// How many nodes have this holder.
    pub votes: usize,
    /// The longest life of its keys; `None` when they never end.
    pub ttl: Option<Duration>,
    pub waiters: usize,
    /// How long the one that has waited longest does.
    pub oldest: Option<Duration>,
}

impl Lock {
    pub fn label(&self) -> Option<&str> {
        match &self.holder {
            Some(Holder::Owner { label, .. } | Holder::Revoked { label, .. }) => Some(label),
            _ => None,
        }
    }

    pub fn token(&self) -> Option<u64> {
        match &self.holder {
            Some(Holder::Owner { token, .. } | Holder::Revoked { token, .. }) => Some(token.get()),
            _ => None,
        }
    }

    /// Since the time in the token.
    pub fn held_for(&self, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(Duration::from_micros(self.token()?)))
    }
}

/// What was found.
#[derive(Debug)]
pub struct Locks {
    #[expect(clippy::struct_field_names, reason = "nodes and failures stand beside them")]
    pub locks: Vec<Lock>,
    /// How many nodes the list has.
    pub nodes: usize,
    /// The nodes that could not be asked.
    pub failed: Vec<(String, NodeError)>,
    /// The wall clock when they were asked.
    pub now: Duration,
}

impl Locks {
    pub fn quorum(&self) -> usize {
        self.nodes / 2 + 1
    }

    pub fn answered(&self) -> usize {
        self.nodes - self.failed.len()
    }

    /// Returns whether a quorum may answer later without a change of the deployment.
    pub fn can_be_waited_for(&self) -> bool {
        let lasting = self.failed.iter().filter(|(_, error)| error.kind() == ErrorKind::Misconfigured).count();
        self.nodes - lasting >= self.quorum()
    }
}

/// One node's part of a lock.
#[derive(Debug, Default)]
struct Part {
    held: Option<(Holder, u32)>,
    ttl: Option<Duration>,
    waiters: usize,
    /// The number of the oldest ticket: when its request began, in µs.
    oldest: Option<u64>,
}

/// Asks all nodes at once.
pub async fn read(place: &Place) -> Result<Locks, Failure> {
    let found = admin::connect(&place.builder()).await?;
    let nodes = found.len();
    let prefix = place.prefix_bytes();
    let asked = found.into_iter().map(async |(name, node)| match node {
        Err(error) => (name, Err(error)),
        Ok(mut node) => (name, parts(&mut node, prefix).await),
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut failed, mut all) = (Vec::new(), Vec::new());
    for (name, parts) in join_all(asked).await {
        match parts {
            Ok(parts) => all.push(parts),
            Err(error) => failed.push((name, error)),
        }
    }
    Ok(Locks { locks: merged(all, now), nodes, failed, now })
}

async fn parts(node: &mut Node, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Part>, NodeError> {
    let mut parts: BTreeMap<Vec<u8>, Part> = BTreeMap::new();
    let found = lock_keys(node, prefix).await?;
    for batch in found.chunks(BATCH) {
        let lives: Vec<redis::Cmd> = batch.iter().map(|(key, _)| with_key("PTTL", key)).collect();
        for ((key, value), life) in batch.iter().zip(node.ask_all(&lives).await?) {
            let life: i64 = read_answer("PTTL", life)?;
            if life != -2 {
                let held = Some(value.as_deref().and_then(holder_of).unwrap_or((Holder::Foreign, 1)));
                let ttl = u64::try_from(life).ok().map(Duration::from_millis);
                parts.insert(key[prefix.len()..].to_vec(), Part { held, ttl, ..Part::default() });
            }
        }
    }
    let (beginning, queues) = queue_keys(node, prefix).await?;
    for batch in queues.chunks(BATCH / 2) {
        let questions = batch.iter().flat_map(|key| {
            let mut first = with_key("ZRANGE", key);
            first.arg(0).arg(0);
            [with_key("ZCARD", key), first]
        });
        let answers = node.ask_all(&questions.collect::<Vec<_>>()).await?;
        for (key, answers) in batch.iter().zip(answers.chunks_exact(2)) {
            let part = parts.entry(key[beginning..].to_vec()).or_default();
            part.waiters = read_answer("ZCARD", answers[0].clone())?;
            let first: Vec<String> = read_answer("ZRANGE", answers[1].clone())?;
            part.oldest = first.first().and_then(|ticket| ticket.split(':').next()?.parse().ok());
        }
    }
    Ok(parts)
}

fn with_key(command: &str, key: &[u8]) -> redis::Cmd {
    let mut command = redis::cmd(command);
    command.arg(key);
    command
}

/// Joins what the nodes have, the locks with the most waiters first, and then those that are held longest.
fn merged(nodes: Vec<BTreeMap<Vec<u8>, Part>>, now: Duration) -> Vec<Lock> {
    let mut names: BTreeMap<Vec<u8>, Vec<Part>> = BTreeMap::new();
    for node in nodes {
        for (name, part) in node {
            names.entry(name).or_default().push(part);
        }
    }
    let mut locks: Vec<Lock> = names.into_iter().map(|(name, parts)| lock(name, &parts, now)).collect();
    locks.sort_by_key(|lock| (std::cmp::Reverse(lock.waiters), lock.token().unwrap_or(u64::MAX)));
    locks
}

fn lock(name: Vec<u8>, parts: &[Part], now: Duration) -> Lock {
    let votes = |holder: &Holder| {
        let same = |part: &&Part| part.held.as_ref().is_some_and(|(other, _)| other == holder);
        parts.iter().filter(same).count()
    };
    let holders = parts.iter().filter_map(|part| Some(&part.held.as_ref()?.0));
    let holder = holders.max_by_key(|holder| votes(holder)).cloned();
    let of_holder = || parts.iter().filter(|part| part.held.as_ref().map(|(other, _)| other) == holder.as_ref());
    let ttl = if holder.is_some() && of_holder().all(|part| part.ttl.is_some()) {
        of_holder().filter_map(|part| part.ttl).max()
    } else {
        None
    };
    let oldest = parts.iter().filter_map(|part| part.oldest).min();
    Lock {
        votes: holder.as_ref().map_or(0, votes),
        holds: of_holder().filter_map(|part| Some(part.held.as_ref()?.1)).max().unwrap_or(0),
        waiters: parts.iter().map(|part| part.waiters).max().unwrap_or(0),
        oldest: oldest.map(|number| now.saturating_sub(Duration::from_micros(number))),
        holder,
        ttl,
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn part(value: &str, ttl: u32) -> Part {
        let held = holder_of(value.as_bytes()).unwrap_or((Holder::Foreign, 1));
        Part { held: Some(held), ttl: Some(ttl * SECOND), ..Part::default() }
    }

    #[test]
    fn the_holder_is_the_one_that_most_nodes_have() {
        let (a, b) = ("ql1 7000000 af host:1 c/1:2", "ql1 9000000 bf host:2 c/1:1");
        let found = lock(b"job".to_vec(), &[part(b, 9), part(a, 3), part(a, 5)], 10 * SECOND);
        assert_eq!((found.label(), found.votes, found.holds), (Some("host:1"), 2, 2));
        assert_eq!((found.ttl, found.held_for(10 * SECOND)), (Some(5 * SECOND), Some(3 * SECOND)));
        let foreign = lock(b"job".to_vec(), &[part("data", 9)], SECOND);
        assert_eq!((foreign.holder, foreign.votes), (Some(Holder::Foreign), 1));
    }

    #[test]
    fn those_with_the_most_waiters_come_first_and_then_the_oldest() {
        let waits = |waiters, oldest| Part { waiters, oldest: Some(oldest), ..Part::default() };
        let node = |parts: Vec<(&str, Part)>| {
            parts.into_iter().map(|(name, part)| (name.as_bytes().to_vec(), part)).collect::<BTreeMap<_, _>>()
        };
        let found = merged(
            vec![
                node(vec![("new", part("ql1 9 af h:1 c/1:1", 1)), ("wanted", waits(2, 7_000_000))]),
                node(vec![("old", part("ql1 5 bf h:2 c/1:1", 1)), ("wanted", waits(3, 8_000_000))]),
            ],
            10 * SECOND,
        );
        let names: Vec<&[u8]> = found.iter().map(|lock| lock.name.as_slice()).collect();
        assert_eq!(names, [b"wanted".as_slice(), b"old", b"new"]);
        assert_eq!((found[0].waiters, found[0].oldest, found[0].votes), (3, Some(3 * SECOND), 0));
    }
}
