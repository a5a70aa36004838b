//! Why a node cannot be counted on, and how that is said: in errors, by `inspect`, everywhere.

use std::time::Duration;

use super::{ClientError, ErrorKind};
use crate::text::{Printable, Rounded, counted_nodes};

/// Why a node cannot be counted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The first connection is still being made.
    #[error("still connecting")]
    Connecting,
    /// There is no connection.
    #[error("cannot connect: {}", Printable(.0))]
    Connect(String),
    /// The connection broke while the answer was under way: whether the node has done it is unknown.
    #[error("the connection broke before the answer: {}", Printable(.0))]
    Disconnected(String),
    /// Nothing came back in time: whether the node has done it, or yet will, is unknown.
    #[error("no answer within {}", Rounded(*.0))]
    NoAnswer(Duration),
    /// Older replies are overdue, so nothing more is sent to the node until one comes.
    #[error("silent: it has not answered for {}", Rounded(*.0))]
    Silent(Duration),
    /// The node answered with an error of its own.
    #[error("{}", explained(code, detail))]
    Redis {
        /// The first word of the error, such as `READONLY`, `OOM` or `NOAUTH`.
        code: String,
        /// The rest of it.
        detail: String,
    },
    /// The node may have forgotten leases that are in force: it restarted, or lost its data. It grants nothing new until every
    /// such lease is over, and what it extends does not count.
    #[error("quarantined for {}: it may have forgotten leases, and has no vote until they are over", Rounded(*left))]
    Quarantined {
        /// For how long it has no vote yet.
        left: Duration,
    },
    /// The node has lost its data, or another server answers at its address. The client repeats the handshake with it.
    #[error("its record has changed: it has lost its data, or is another server")]
    Forgot,
    /// The node does not let the client ask what it must know of it.
    #[error(
        "it does not allow {}, so nothing is known of it and it has no vote: allow it (docs/operations.md, \"Rights of a Redis user\")",
        Printable(command)
    )]
    NotAllowed {
        /// The command, and its keys where the user may run it on others.
        command: String,
    },
    /// The server is part of a Redis Cluster.
    #[error("it is part of a Redis Cluster: list independent servers (cluster-enabled no)")]
    ClusterMode,
    /// The node is part of a list of another length, so two clients could both have a majority.
    #[error(
        "{} {} listed here, and this node is one of {theirs}: list the same nodes everywhere \
         (`quorlock nodes set-list`, with this prefix, changes the list)",
        counted_nodes(*ours), if *ours == 1 { "is" } else { "are" }
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
        "it was declared to be part of another cluster than {}: list the nodes of one cluster \
         (`quorlock nodes set-list`, with this prefix, changes the list)",
        Printable(other)
    )]
    OtherCluster {
        /// A node of the list that is part of another cluster.
        other: String,
    },
    /// The node was not asked, as another one shows that this client's list is not that of its nodes.
    #[error("not asked, because of what {} says of the list", Printable(node))]
    NotAsked {
        /// The other node.
        node: String,
    },
    /// The node does not know how many nodes there are, and too few other nodes have answered to write it there.
    #[error("it has not stored the number of nodes, and too few other nodes have answered yet to store it")]
    Unlisted,
    /// The node may throw keys away when its memory is full, and its votes with them.
    #[error("it may evict keys ({}): set maxmemory-policy noeviction", Printable(policy))]
    MayEvict {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// The node is a replica, whose vote counts for nothing.
    #[error("it is a replica: list masters only")]
    Replica,
    /// The node is the same server as another one of the list.
    #[error("it is the same server as {}: every vote needs a server of its own", Printable(.0))]
    SameServer(String),
    /// The node does not know the third version of the protocol.
    #[error("it does not know HELLO: quorlock needs Redis 6 or newer, or Valkey")]
    TooOld,
    /// The node was not asked, or its answer not read, because of the client itself.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node answered with something that is no answer to what was asked.
    #[error("an answer that makes no sense: {}", Printable(.0))]
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
    /// What it comes to when so many nodes are like this that there is no quorum: [`ErrorKind::Misconfigured`] for a node
    /// that can have no vote until the deployment is changed, otherwise [`ErrorKind::NoQuorum`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherList { .. }
            | Self::OtherCluster { .. }
            | Self::ListChanging
            | Self::SameServer(_)
            | Self::ClusterMode
            | Self::Replica
            | Self::MayEvict { .. }
            | Self::NotAllowed { .. }
            | Self::TooOld => ErrorKind::Misconfigured,
            Self::Client(error) => error.kind(),
            _ => ErrorKind::NoQuorum,
        }
    }

    /// Returns whether the error may pass by itself. A node that refuses the password, or can have no vote, stays like that until the
    /// settings are changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Client(error) => error.is_retryable(),
            Self::Redis { code, detail } => !Refusal::new(code, detail).is_some_and(Refusal::lasts),
            error => error.kind() == ErrorKind::NoQuorum,
        }
    }

    /// The state of the node in a word or two, for a table or a metric: `unreachable`, `refuses the password`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connect(_) | Self::Disconnected(_) => "unreachable",
            Self::NoAnswer(_) | Self::Silent(_) => "silent",
            Self::Redis { code, detail } => Refusal::new(code, detail).map_or("refuses", Refusal::state),
            Self::Quarantined { .. } => "quarantined",
            Self::Forgot => "forgot",
            Self::NotAllowed { .. } => "refuses",
            Self::ClusterMode => "cluster mode",
            Self::OtherList { .. } => "another list",
            Self::ListChanging => "list changing",
            Self::Unlisted => "unlisted",
            Self::OtherCluster { .. } => "another cluster",
            Self::NotAsked { .. } | Self::Client(_) => "not asked",
            Self::MayEvict { .. } => "evicts",
            Self::Replica => "replica",
            Self::SameServer(_) => "listed twice",
            Self::TooOld => "too old",
            Self::Nonsense(_) | Self::TooLarge { .. } => "no Redis",
        }
    }

    /// Returns whether the node knows another list than this client's.
    pub(crate) fn is_about_list(&self) -> bool {
        matches!(self, Self::OtherList { .. } | Self::OtherCluster { .. } | Self::ListChanging)
    }
}

/// What a server's own error means, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Password,
    NoPassword,
    NeedlessPassword,
    Forbidden,
    Full,
    Loading,
    Busy,
    NoDisk,
    NoReplicas,
}

impl Refusal {
    fn new(code: &str, detail: &str) -> Option<Self> {
        Some(match code {
            "WRONGPASS" => Self::Password,
            "NOAUTH" => Self::NoPassword,
            "ERR" if detail.contains("without any password configured") => Self::NeedlessPassword,
            "NOPERM" => Self::Forbidden,
            // Redis 7.0 says so of a command within a script.
            "ERR" if detail.starts_with("The user executing the script can't ") => Self::Forbidden,
            "OOM" => Self::Full,
            "LOADING" => Self::Loading,
            "BUSY" => Self::Busy,
            "MISCONF" => Self::NoDisk,
            "NOREPLICAS" => Self::NoReplicas,
            _ => return None,
        })
    }

    fn lasts(self) -> bool {
        matches!(self, Self::Password | Self::NoPassword | Self::NeedlessPassword | Self::Forbidden)
    }

    fn state(self) -> &'static str {
        match self {
            Self::Password => "refuses the password",
            Self::NoPassword => "wants a password",
            Self::NeedlessPassword => "wants no password",
            Self::Forbidden => "forbids it",
            Self::Full => "out of memory",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::NoDisk => "cannot save",
            Self::NoReplicas => "waits for replicas",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Password => "it refuses the user or the password",
            Self::NoPassword => "it wants a password, and the node's URL has none",
            Self::NeedlessPassword => "its default user has no password, and the node's URL has one",
            Self::Forbidden => "its user may not do what a lock needs (docs/operations.md, \"Rights of a Redis user\")",
            Self::Full => "its memory is full (maxmemory)",
            Self::Loading => "it is still loading its data",
            Self::Busy => "a script of another client keeps it busy",
            Self::NoDisk => "it cannot write to its disk",
            Self::NoReplicas => "it takes writes only with replicas (min-replicas-to-write)",
        }
    }
}

/// What it means, and the server's own words where they say more.
fn explained(code: &str, detail: &str) -> String {
    let (own, code) = (Printable(detail), Printable(code));
    match Refusal::new(code.0, detail) {
        Some(refusal @ (Refusal::Password | Refusal::NoPassword | Refusal::NeedlessPassword)) => {
            format!("{} ({code})", refusal.words())
        }
        Some(refusal) => format!("{}: {code} {own}", refusal.words()),
        None => format!("refused by Redis: {code} {own}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(code: &str, detail: &str) -> NodeError {
        NodeError::Redis { code: code.to_owned(), detail: detail.to_owned() }
    }

    #[test]
    fn the_table_of_states_has_them_all() {
        let text = String::new;
        let table = include_str!("../../docs/operations.md");
        let rows =
            table.lines().skip_while(|line| !line.starts_with("| State |")).take_while(|line| line.starts_with('|'));
        let states: Vec<&str> =
            rows.flat_map(|row| row.split('|').nth(1).unwrap_or("").split(',')).map(str::trim).collect();
        let codes = ["WRONGPASS", "NOAUTH", "NOPERM", "OOM", "LOADING", "BUSY", "MISCONF", "NOREPLICAS", "ERR"];
        let errors = [
            NodeError::Connecting,
            NodeError::Connect(text()),
            NodeError::Disconnected(text()),
            NodeError::NoAnswer(Duration::ZERO),
            NodeError::Silent(Duration::ZERO),
            redis("ERR", "AUTH <password> called without any password configured for the default user."),
            NodeError::Quarantined { left: Duration::ZERO },
            NodeError::Forgot,
            NodeError::NotAllowed { command: text() },
            NodeError::ClusterMode,
            NodeError::OtherList { ours: 3, theirs: 5 },
            NodeError::ListChanging,
            NodeError::OtherCluster { other: text() },
            NodeError::NotAsked { node: text() },
            NodeError::Unlisted,
            NodeError::MayEvict { policy: text() },
            NodeError::Replica,
            NodeError::SameServer(text()),
            NodeError::TooOld,
            NodeError::Nonsense(text()),
        ];
        for error in errors.into_iter().chain(codes.map(|code| redis(code, ""))) {
            assert!(states.contains(&error.state()), "{}: {error}", error.state());
        }
    }

    #[test]
    fn what_waiting_does_not_mend_is_not_retryable() {
        for (error, kind, is_retryable) in [
            (redis("WRONGPASS", "no"), ErrorKind::NoQuorum, false),
            (redis("NOPERM", "no"), ErrorKind::NoQuorum, false),
            (redis("ERR", "The user executing the script can't run this command"), ErrorKind::NoQuorum, false),
            (redis("OOM", "full"), ErrorKind::NoQuorum, true),
            (NodeError::Quarantined { left: Duration::ZERO }, ErrorKind::NoQuorum, true),
            (NodeError::Replica, ErrorKind::Misconfigured, false),
            (ClientError::RuntimeEnded.into(), ErrorKind::Usage, false),
        ] {
            assert_eq!((error.kind(), error.is_retryable()), (kind, is_retryable), "{error}");
        }
    }

    #[test]
    fn words_of_a_server_are_escaped() {
        for error in [redis("E\u{1b}", "\n\u{202e}"), NodeError::Nonsense("\u{9b}\r\n".to_owned())] {
            assert!(!error.to_string().contains(|c: char| c.is_control() || c == '\u{202e}'), "{error:?}");
        }
        let refused = redis("WRONGPASS", "invalid username-password pair or user is disabled.");
        assert_eq!(refused.to_string(), "it refuses the user or the password (WRONGPASS)");
    }
}
