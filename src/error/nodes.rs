//! What nodes said, or failed to say.

use std::fmt;
use std::time::Duration;

use humantime::format_duration;

use super::ClientError;
use crate::protocol::Token;

/// Why a node cannot be counted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// There is no connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke while the answer was under way: whether the node obeyed is unknown.
    #[error("the connection broke before the answer: {0}")]
    Disconnected(String),
    /// Nothing came back in time: whether the node obeyed, or yet will, is unknown.
    #[error("no answer within {}", format_duration(*.0))]
    NoAnswer(Duration),
    /// The node owes older answers, so nothing more is sent to it until it gives one.
    #[error("silent: it has owed an answer for {}", format_duration(*.0))]
    Silent(Duration),
    /// The node answered with an error of its own.
    #[error("refused by Redis: {code} {detail}")]
    Redis {
        /// The first word of the error, such as `READONLY`, `OOM` or `NOAUTH`.
        code: String,
        /// The rest of it.
        detail: String,
    },
    /// The node may have forgotten leases that are in force: it restarted, or lost its data. It grants nothing new until every
    /// such lease is over, and what it extends does not count.
    #[error("it may have forgotten leases, so it has no vote for {}", format_duration(Duration::from_millis(millis(*left))))]
    Quarantined {
        /// For how long it has no vote yet.
        left: Duration,
    },
    /// The node has lost its data, or another server answers at its address. The client introduces itself to it anew.
    #[error("its record has changed: it has lost its data, or is another server")]
    Forgot,
    /// The node does not let the client ask what it must know of it.
    #[error(
        "it does not allow {command}, so nothing is known of it and it has no vote: allow it (README, \"The nodes\")"
    )]
    NotAllowed {
        /// The command.
        command: String,
    },
    /// The server is part of a Redis Cluster.
    #[error("it is part of a Redis Cluster: list independent servers (cluster-enabled no)")]
    ClusterMode,
    /// The node is part of a list of another length, so two clients could both have a majority.
    #[error(
        "{ours} nodes are listed here, and this node is one of {theirs}: list the same nodes everywhere \
         (`quorlock nodes set-list` changes the list)"
    )]
    OtherList {
        /// How many nodes this client's list has.
        ours: usize,
        /// How many the node's list has.
        theirs: usize,
    },
    /// The list of nodes is being changed, or that was interrupted: no list is valid there.
    #[error(
        "its list of nodes is being changed: wait for `quorlock nodes set-list` to end, or run it again if it was interrupted"
    )]
    ListChanging,
    /// The node is part of another cluster than the other nodes of the list.
    #[error(
        "it was declared to be part of another cluster than {other}: list the nodes of one cluster \
         (`quorlock nodes set-list` changes the list)"
    )]
    OtherCluster {
        /// A node of the list that is part of another cluster.
        other: String,
    },
    /// The node was not asked, as another one shows that this client's list is not that of its nodes.
    #[error("not asked, because of what {node} says of the list")]
    NotAsked {
        /// The other node.
        node: String,
    },
    /// The node does not know how many nodes there are, and too few others have been heard to tell it.
    #[error("it does not know the list of nodes, and too few other nodes can be asked for it yet")]
    Unlisted,
    /// The node may throw keys away when its memory is full, and its votes with them.
    #[error("it may evict keys ({policy}): set maxmemory-policy noeviction")]
    MayEvict {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// The node is a replica, whose vote counts for nothing.
    #[error("it is a replica: list masters only")]
    Replica,
    /// The node is the same server as another one of the list.
    #[error("it is the same server as {0}: every vote needs a server of its own")]
    SameServer(String),
    /// The node does not know the third version of the protocol.
    #[error("it does not know HELLO: quorlock needs Redis 6 or newer, or Valkey")]
    TooOld,
    /// The node was not asked, or its answer not read, because of the client itself.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node answered with something that is no answer to what was asked.
    #[error("an answer that makes no sense: {0}")]
    Nonsense(String),
    /// The node's answer is larger than anything that quorlock asks for, so it is not read to its end.
    #[error(
        "an answer too large for what was asked: more than {most_bytes} bytes, {most_values} values or {most_levels} levels"
    )]
    TooLarge {
        /// The most bytes that an answer may have.
        most_bytes: usize,
        /// The most values within an answer.
        most_values: usize,
        /// How deep an answer may be nested.
        most_levels: usize,
    },
}

impl NodeError {
    /// Does the node say that this client's list is not the one that it knows?
    pub(crate) fn is_about_list(&self) -> bool {
        matches!(self, Self::OtherList { .. } | Self::OtherCluster { .. } | Self::ListChanging)
    }
}

/// Who holds a resource, as far as a node can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Holder {
    /// A quorlock owner.
    Owner {
        /// Its random bits in hexadecimal.
        id: String,
        /// Its label for people, `host:pid` or `host:pid:name`.
        label: String,
        /// The fencing token that it holds.
        token: Token,
    },
    /// A key of another kind: another Redlock client, or data of any type.
    Foreign,
    /// A lease that the node may have forgotten.
    Forgotten,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { label, token, .. } => write!(f, "{label} (token {token})"),
            Self::Foreign => f.write_str("a key that is not quorlock's"),
            Self::Forgotten => f.write_str("a lease that the node may have forgotten"),
        }
    }
}

/// What one node said, or failed to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Answer {
    /// It agreed.
    #[error("agreed")]
    Agreed,
    /// Somebody else has the resource there.
    #[error("held by {by}{}", for_another(*free_in))]
    Held {
        /// Who.
        by: Holder,
        /// When its lease ends there if nothing renews it; `None` when it never does.
        free_in: Option<Duration>,
    },
    /// The key is gone there, but the last lease was not released: by this machine's clock it may still be in force.
    #[error("the lease of {by} was not released and may be in force for {} more", format_duration(Duration::from_millis(millis(*left))))]
    Unexpired {
        /// Who held it last.
        by: Holder,
        /// For how long it may be in force.
        left: Duration,
    },
    /// The ballot there is further ahead of the node's clock than ballots may be.
    #[error("has a ballot that is far ahead of its clock, which was set: the ballot is forgotten in some minutes")]
    BallotAhead,
    /// It has seen a newer ballot than the one proposed.
    #[error("has seen a newer ballot")]
    Stale,
    /// The proposal is further ahead of its clock than can be right.
    #[error("its clock is minutes behind this machine's: set the clocks")]
    ClockBehind,
    /// Nobody has the resource there, but it is kept for a moment for somebody who has waited longer.
    #[error("free, but kept for {} for somebody who has waited longer", format_duration(*left))]
    Kept {
        /// For how long.
        left: Duration,
    },
    /// The lease is over there: somebody newer was granted, or it was released.
    #[error("no longer honours this lease")]
    Gone,
    /// It had not answered when the others had decided.
    #[error("had not answered yet")]
    Awaited,
    /// It cannot be counted on.
    #[error("{0}")]
    Failed(#[from] NodeError),
}

pub(super) fn for_another(free_in: Option<Duration>) -> String {
    match free_in {
        Some(left) => format!(", for {} more unless renewed", format_duration(Duration::from_millis(millis(left)))),
        None => ", without an end".to_owned(),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One node's part in what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeReport {
    /// The node's address, without user and password.
    pub node: String,
    /// What it said.
    pub answer: Answer,
}

/// Every node's part in what happened, in the order of the node list.
#[derive(Clone, PartialEq, Eq)]
pub struct Reports(pub Vec<NodeReport>);

/// In words: this is what `fn main() -> Result<(), Box<dyn Error>>` shows.
impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, report) in self.0.iter().enumerate() {
            write!(f, "{}{}: {}", if i == 0 { "" } else { "; " }, report.node, report.answer)?;
        }
        Ok(())
    }
}
