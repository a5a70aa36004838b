//! What each node says of itself.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use quorlock::admin::{self, CHANGING, Node};
use quorlock::text::{Printable, counted_nodes};
use quorlock::{ErrorKind, NodeError};

use crate::exit::Failure;
use crate::nodes::keys::{count_locks, read as read_answer};
use crate::place::Place;

/// How often the round trip is measured. The shortest counts.
const PINGS: usize = 3;

/// Whether a node has a vote.
#[derive(Debug)]
pub enum State {
    Voting,
    /// It may have forgotten leases that are in force for so long.
    Quarantined(Duration),
    /// It has no record yet. The first client that connects begins a quarantine, unless the node is declared before.
    Undeclared,
    /// Why it has none.
    Not(NodeError),
}

impl State {
    /// The word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Voting => "voting",
            Self::Quarantined(_) => "quarantined",
            Self::Undeclared => "undeclared",
            Self::Not(error) => error.state(),
        }
    }
}

/// What a node that answers says of its server.
#[derive(Debug, Default)]
pub struct Facts {
    /// `Redis`, or what the server calls itself.
    pub server: String,
    pub version: String,
    pub round_trip: Duration,
    /// By how much its clock is ahead of this machine's, in ms.
    pub clock_ms: i64,
    pub uptime: Duration,
    /// The append-only log is on.
    pub aof: bool,
    /// The number of lock keys; `None` where the user may not search for them.
    pub locks: Option<usize>,
    /// The longest lease that the node knows of; `None` for one without a record.
    pub longest_lease: Option<Duration>,
}

#[derive(Debug)]
pub struct NodeStatus {
    pub name: String,
    pub state: State,
    pub facts: Option<Facts>,
}

#[derive(Debug)]
pub struct Status {
    pub nodes: Vec<NodeStatus>,
}

impl Status {
    pub fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    pub fn voting(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node.state, State::Voting)).count()
    }

    pub fn has_quorum(&self) -> bool {
        self.voting() >= self.quorum()
    }

    /// Returns whether a quorum may come back without a change of the deployment.
    pub fn can_be_waited_for(&self) -> bool {
        let misconfigured =
            |node: &&NodeStatus| matches!(&node.state, State::Not(error) if error.kind() == ErrorKind::Misconfigured);
        self.nodes.iter().filter(|node| !misconfigured(node)).count() >= self.quorum()
    }

    /// As Sentinel's CKQUORUM says it.
    pub fn summary(&self) -> String {
        let (voting, quorum) = (self.voting(), self.quorum());
        let verb = if voting == 1 { "votes" } else { "vote" };
        let head = format!("{voting} of {} {verb}, quorum {quorum}", self.nodes.len());
        match voting.checked_sub(quorum) {
            Some(spare) => format!("OK: {head}, {spare} more may fail"),
            None => format!("NOQUORUM: {head}, {} missing", counted_nodes(quorum - voting)),
        }
    }
}

/// Asks all nodes at once.
pub async fn read(place: &Place) -> Result<Status, Failure> {
    let found = admin::connect(&place.builder()).await?;
    let count = found.len();
    let most = largest_cluster(found.iter().filter_map(|(_, node)| node.as_ref().ok()));
    let prefix = place.prefix_bytes();
    let asked = found.into_iter().map(async |(name, node)| match node {
        Err(error) => NodeStatus { name, state: State::Not(error), facts: None },
        Ok(mut node) => match facts(&mut node, prefix).await {
            Ok(facts) => NodeStatus { name, state: state(&node, count, most.as_ref()), facts: Some(facts) },
            Err(error) => NodeStatus { name, state: State::Not(error), facts: None },
        },
    });
    Ok(Status { nodes: join_all(asked).await })
}

/// The word of the cluster that most nodes are part of, and one of these nodes.
fn largest_cluster<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<(u64, String)> {
    let mut clusters: HashMap<u64, (usize, &str)> = HashMap::new();
    for node in nodes {
        if let Some(cluster) = node.record().and_then(|record| record.cluster) {
            clusters.entry(cluster).or_insert((0, &node.name)).0 += 1;
        }
    }
    let largest = clusters.into_iter().max_by_key(|(cluster, (count, _))| (*count, *cluster));
    largest.map(|(cluster, (_, node))| (cluster, node.to_owned()))
}

/// Returns whether the node has a vote for a client that lists `count` nodes, most of them of the cluster `most`.
fn state(node: &Node, count: usize, most: Option<&(u64, String)>) -> State {
    match node.listed() {
        Some(listed) if listed >= CHANGING => return State::Not(NodeError::ListChanging),
        Some(listed) if listed != count => return State::Not(NodeError::OtherList { theirs: listed, ours: count }),
        _ => {}
    }
    let Some(record) = node.record() else { return State::Undeclared };
    match (record.cluster, most) {
        (Some(theirs), Some((most, other))) if theirs != *most => {
            State::Not(NodeError::OtherCluster { other: other.clone() })
        }
        _ => record.quarantine.map_or(State::Voting, State::Quarantined),
    }
}

/// Returns the shortest of several round trips, and by how much the node's clock is ahead of this machine's, in ms.
pub async fn round_trip(node: &mut Node) -> Result<(Duration, i64), NodeError> {
    let mut shortest = (Duration::MAX, 0);
    for _ in 0..PINGS {
        let (began, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let (seconds, micros): (u64, u64) = read_answer("TIME", node.ask(&redis::cmd("TIME")).await?)?;
        let took = began.elapsed();
        if took < shortest.0 {
            let there = Duration::from_secs(seconds) + Duration::from_micros(micros);
            shortest = (took, millis(there) - millis(wall + took / 2));
        }
    }
    Ok(shortest)
}

async fn facts(node: &mut Node, prefix: &[u8]) -> Result<Facts, NodeError> {
    let (round_trip, clock_ms) = round_trip(node).await?;
    let info: String = read_answer("INFO", node.ask(&redis::cmd("INFO")).await?)?;
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
    };
    let (server, version) = server(&field);
    let uptime = Duration::from_secs(field("uptime_in_seconds").parse().unwrap_or(0));
    let locks = count_locks(node, prefix).await.ok();
    let longest_lease = node.record().map(|record| record.longest);
    let aof = field("aof_enabled") == "1";
    Ok(Facts { server, version, round_trip, clock_ms, uptime, aof, locks, longest_lease })
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Valkey and Redict say the version of the Redis that they come from, and their own beside it.
fn server<'a>(field: &impl Fn(&str) -> &'a str) -> (String, String) {
    for (name, key) in [("Valkey", "valkey_version"), ("Redict", "redict_version")] {
        if !field(key).is_empty() {
            return (name.to_owned(), Printable(field(key)).to_string());
        }
    }
    ("Redis".to_owned(), Printable(field("redis_version")).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(states: Vec<State>) -> Status {
        let node = |(i, state)| NodeStatus { name: format!("node {i}"), state, facts: None };
        Status { nodes: states.into_iter().enumerate().map(node).collect() }
    }

    #[test]
    fn the_summary_says_how_many_more_may_fail() {
        use State::{Not, Quarantined, Undeclared, Voting};
        let gone = || Not(NodeError::Connecting);
        let replica = || Not(NodeError::Replica);
        for (states, summary, has_quorum, can_be_waited_for) in [
            (vec![Voting, Voting, Voting], "OK: 3 of 3 vote, quorum 2, 1 more may fail", true, true),
            (vec![Voting, Voting, gone()], "OK: 2 of 3 vote, quorum 2, 0 more may fail", true, true),
            (vec![Voting, gone(), gone()], "NOQUORUM: 1 of 3 votes, quorum 2, 1 node missing", false, true),
            (vec![Voting, Undeclared, replica()], "NOQUORUM: 1 of 3 votes, quorum 2, 1 node missing", false, true),
            (vec![replica(), replica(), Voting], "NOQUORUM: 1 of 3 votes, quorum 2, 1 node missing", false, false),
            (
                vec![Quarantined(Duration::from_secs(7)), gone(), gone()],
                "NOQUORUM: 0 of 3 vote, quorum 2, 2 nodes missing",
                false,
                true,
            ),
        ] {
            let status = status(states);
            assert_eq!((status.summary().as_str(), status.has_quorum()), (summary, has_quorum));
            assert_eq!(status.can_be_waited_for(), can_be_waited_for, "{summary}");
        }
    }

    #[test]
    fn each_kind_of_server_says_its_own_version() {
        for (info, expected) in [
            ("redis_version:7.0.15", ("Redis", "7.0.15")),
            ("redis_version:7.2.4\nserver_name:valkey\nvalkey_version:8.1.1", ("Valkey", "8.1.1")),
            ("redis_version:7.2.4\nredict_version:7.3.6", ("Redict", "7.3.6")),
        ] {
            let field = |name: &str| {
                info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default()
            };
            let (name, version) = server(&field);
            assert_eq!((name.as_str(), version.as_str()), expected);
        }
    }
}
