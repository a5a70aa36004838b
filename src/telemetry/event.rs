//! What a client reports.

use std::fmt;
use std::time::Duration;

use crate::error::{AcquireError, NodeError, Reports};
use crate::owner::Owner;
use crate::protocol::Token;
use crate::resource::Resource;
use crate::text::readable;

/// So many names of one request are shown.
const MOST_SHOWN: usize = 8;

/// Something that has happened in a client, in the order in which operators need it: a request ends, a lease ends, a node changes.
///
/// The text of an event (`Debug`) has no password and no id of an owner. To write an owner down, use its
/// [fingerprint](Owner::fingerprint) and its label, and not its [id](Owner::id).
/// Extensions are no events of this kind: a held lease is extended every few seconds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request got its guard: a new lease, or one more hold of a lease that its owner has already.
    #[non_exhaustive]
    Granted {
        /// The names that were asked for.
        locks: Locks<'a>,
        /// The owner that holds them.
        owner: &'a Owner,
        /// The fencing token of the name that was given first.
        token: Token,
        /// How many nodes honoured the round when the request ended. Slower nodes may follow.
        votes: usize,
        /// How many rounds the request took.
        rounds: u32,
        /// The time from the call to the guard.
        waited: Duration,
    },
    /// A request ended without a guard.
    #[non_exhaustive]
    Refused {
        /// The names that were asked for.
        locks: Locks<'a>,
        /// The owner that asked.
        owner: &'a Owner,
        /// The error that the caller gets.
        error: &'a AcquireError,
        /// How many rounds the request took.
        rounds: u32,
        /// The time from the call to the error.
        waited: Duration,
    },
    /// The future of a request was dropped before the request ended.
    #[non_exhaustive]
    Cancelled {
        /// The names that were asked for.
        locks: Locks<'a>,
        /// The owner that asked.
        owner: &'a Owner,
        /// The time from the call to the drop.
        waited: Duration,
    },
    /// A held lease could not be renewed, and its end is near.
    #[non_exhaustive]
    Endangered {
        /// What is held.
        lock: LockName<'a>,
        /// The owner that holds it.
        owner: &'a Owner,
        /// Its fencing token.
        token: Token,
        /// The validity that is left.
        left: Duration,
        /// Every node's answer to the last message about the lease, or what is known of the node.
        nodes: &'a Reports,
    },
    /// A held lease is over although it was not released.
    #[non_exhaustive]
    Lost {
        /// What was held.
        lock: LockName<'a>,
        /// The owner that held it.
        owner: &'a Owner,
        /// Its fencing token.
        token: Token,
        /// Why it is over.
        cause: LossCause,
        /// The time from the grant to the end.
        held: Duration,
        /// Every node's answer to the last message about the lease, or what is known of the node.
        nodes: &'a Reports,
    },
    /// The last hold of this client in a lease was given back. The release is on its way to the nodes.
    #[non_exhaustive]
    Released {
        /// What was held.
        lock: LockName<'a>,
        /// The owner that held it.
        owner: &'a Owner,
        /// Its fencing token.
        token: Token,
        /// The time from the grant to the release.
        held: Duration,
    },
    /// A node can be counted on from now on.
    #[non_exhaustive]
    NodeUp {
        /// The node's address, without user and password.
        node: &'a str,
        /// The client could not count on it before. `false` for the first connection, if nothing delayed it.
        is_back: bool,
    },
    /// A node cannot be reached, or an answer is overdue.
    #[non_exhaustive]
    NodeDown {
        /// The node's address, without user and password.
        node: &'a str,
        /// The reason.
        error: &'a NodeError,
    },
    /// A node may have forgotten leases, and has no vote until they are over.
    #[non_exhaustive]
    NodeQuarantined {
        /// The node's address, without user and password.
        node: &'a str,
        /// The time for which it has no vote.
        left: Duration,
    },
    /// A node can be reached, and refuses the client, answers requests for locks with errors, or can have no vote. A node whose answers
    /// change between errors and others brings about this event and the next [`NodeUp`](Self::NodeUp) once in five seconds at most.
    #[non_exhaustive]
    NodeRefuses {
        /// The node's address, without user and password.
        node: &'a str,
        /// The reason.
        error: &'a NodeError,
    },
}

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// No majority renewed it before its validity was spent.
    Expired,
    /// A majority of the nodes does not honour it any more.
    Refused,
    /// The lease was [revoked](crate::Quorlock::revoke), so a majority of the nodes does not honour it any more.
    Revoked,
}

impl LossCause {
    /// The word for logs and metrics: `expired`, `refused` or `revoked`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Revoked => "revoked",
        }
    }
}

/// The name of a lock. It prints as text on one line, cut when it is long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName<'a>(pub(super) &'a [u8]);

impl<'a> LockName<'a> {
    /// Returns the bytes of the name.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Display for LockName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&readable(self.0))
    }
}

impl fmt::Debug for LockName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The names of one request, sorted. It prints as text on one line.
#[derive(Clone, Copy)]
pub struct Locks<'a>(pub(super) &'a [Resource]);

impl<'a> Locks<'a> {
    /// Returns the names, each once.
    pub fn iter(self) -> impl Iterator<Item = LockName<'a>> {
        self.0.iter().map(|resource| LockName(resource.name()))
    }
}

impl fmt::Display for Locks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.iter().take(MOST_SHOWN).enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(MOST_SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Debug for Locks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_request_are_shown_on_one_line() {
        let resources = |count: usize| -> Vec<Resource> {
            (0..count).filter_map(|i| Resource::new(b"", format!("a\n{i}").as_bytes())).collect()
        };
        assert_eq!(Locks(&resources(2)).to_string(), "a\\n0, a\\n1");
        assert!(Locks(&resources(10)).to_string().ends_with(", a\\n7 and 2 more"));
        assert_eq!(format!("{:?}", Locks(&resources(1))), "[\"a\\n0\"]");
    }
}
