//! What nodes said, or failed to say, in a round.

use std::fmt;
use std::time::Duration;

use super::{ErrorKind, NodeError};
use crate::protocol::{Token, quorum};
use crate::text::{Printable, Rounded};

/// Who holds a resource, as far as a node can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Holder {
    /// A quorlock owner.
    Owner {
        /// Its [fingerprint](crate::Owner::fingerprint): it tells owners apart, and opens nothing.
        id: Box<str>,
        /// Its label for people, `host:pid` or `host:pid:name`. Printable ASCII without spaces.
        label: String,
        /// The fencing token that it holds.
        token: Token,
    },
    /// A key of another kind: another Redlock client, or data of any type.
    Foreign,
    /// A lease that the node may have forgotten.
    Forgotten,
    /// A lease that was [revoked](crate::Quorlock::revoke). The lock is free when the lease would have ended.
    Revoked {
        /// The label of the owner from whom it was taken.
        label: String,
        /// The fencing token of the lease.
        token: Token,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { label, token, .. } => write!(f, "{} (token {token})", Printable(label)),
            Self::Foreign => f.write_str("a key that is not quorlock's"),
            Self::Forgotten => f.write_str("a lease that the node may have forgotten"),
            Self::Revoked { label, token } => {
                write!(f, "a lease that was revoked from {} (token {token})", Printable(label))
            }
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
    /// Another owner has the resource there.
    #[error("held by {by}{}", for_another(by, *free_in))]
    Held {
        /// Who.
        by: Holder,
        /// When its lease ends there if nothing renews it; `None` when it never does.
        free_in: Option<Duration>,
    },
    /// The key is gone there, but the last lease was not released: by this machine's clock it may still be in force.
    #[error("the lease of {by} was not released and may be in force for {} more", Rounded(*left))]
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
    /// The resource is free there, but kept for a moment for a request that has waited longer.
    #[error("free, but kept for {} for a request that has waited longer", Rounded(*left))]
    Kept {
        /// For how long.
        left: Duration,
    },
    /// The lease is over there: a newer one was granted, or it was released.
    #[error("no longer honours this lease")]
    Gone,
    /// The node is up, as far as the client knows. The answer was not waited for: the others had decided, or the time to wait
    /// was over.
    #[error("up")]
    Up,
    /// It cannot be counted on.
    #[error("{0}")]
    Failed(#[from] NodeError),
}

/// Returns for how long the holder has it. A lease that was revoked is not renewed.
pub(super) fn for_another(by: &Holder, free_in: Option<Duration>) -> String {
    match free_in {
        Some(left) if matches!(by, Holder::Revoked { .. }) => format!(", for {} more", Rounded(left)),
        Some(left) => format!(", for {} more unless renewed", Rounded(left)),
        None => ", without an end".to_owned(),
    }
}

/// One node's part in what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeReport {
    /// The node's address, without user and password.
    pub node: String,
    /// What it said, or what is known of it.
    pub answer: Answer,
}

impl fmt::Display for NodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Printable(&self.node), self.answer)
    }
}

/// Every node's part in what happened, in the order of the node list.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
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
            write!(f, "{}{report}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Reports {
    /// What it comes to that these nodes gave no quorum.
    pub(super) fn kind(&self, needed: usize) -> ErrorKind {
        // A node that was not asked because of another list there is as little of use, whichever of them answered first.
        let is_other = |report: &NodeReport| {
            matches!(report.answer, Answer::Failed(NodeError::OtherList { .. } | NodeError::OtherCluster { .. }))
        };
        let is_other_list = self.0.iter().any(is_other);
        let can_vote = self.without(|error| {
            error.kind() == ErrorKind::Misconfigured || is_other_list && matches!(error, NodeError::NotAsked { .. })
        });
        if can_vote < needed { ErrorKind::Misconfigured } else { ErrorKind::NoQuorum }
    }

    /// Returns whether enough nodes are left without those that stay like this.
    pub(super) fn may_recover(&self, needed: usize) -> bool {
        self.without(|error| !error.is_retryable()) >= needed
    }

    fn without(&self, is_meant: impl Fn(&NodeError) -> bool) -> usize {
        let left = |report: &&NodeReport| !matches!(&report.answer, Answer::Failed(error) if is_meant(error));
        self.0.iter().filter(left).count()
    }

    /// The holder that most nodes name, when the last of them says that it is free, and how many those are.
    pub(crate) fn most_frequent_holder(&self) -> Option<(Holder, Option<Duration>, usize)> {
        let mut holders: Vec<(Holder, Option<Duration>, usize)> = Vec::new();
        for report in &self.0 {
            let (by, free_in) = match &report.answer {
                Answer::Held { by, free_in } => (by, free_in),
                Answer::Unexpired { by, left } => (by, &Some(*left)),
                _ => continue,
            };
            match holders.iter_mut().find(|(holder, _, _)| holder == by) {
                Some((_, longest, votes)) => {
                    // No end at all is longer than any.
                    *longest = longest.zip(*free_in).map(|(a, b)| a.max(b));
                    *votes += 1;
                }
                None => holders.push((by.clone(), *free_in, 1)),
            }
        }
        holders.into_iter().max_by_key(|(_, _, votes)| *votes)
    }

    pub(super) fn quorum(&self) -> usize {
        quorum(self.0.len())
    }
}

/// In what way the caller may have what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnHold {
    /// The same owner has it, through another client or process.
    Owner,
    /// The holder's label names this process.
    Process,
}

pub(super) fn hint(own: Option<OwnHold>) -> &'static str {
    match own {
        None => "",
        Some(OwnHold::Owner) => {
            ". That is the same owner, through another client: enter it there, or join what that guard's export() gives"
        }
        Some(OwnHold::Process) => {
            ". That is this process: to enter the lock again, pass the owner (LockRequest::owner, Owner::scope)"
        }
    }
}

/// The reports behind a message, in parentheses; nothing when there are none.
pub(super) fn behind(nodes: &Reports) -> String {
    if nodes.0.is_empty() { String::new() } else { format!(" ({nodes})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_were_not_asked_because_of_another_list_count_as_that() {
        let kind = |errors: Vec<NodeError>| {
            let report = |error| NodeReport { node: "node".to_owned(), answer: Answer::Failed(error) };
            Reports(errors.into_iter().map(report).collect()).kind(2)
        };
        let other = || NodeError::OtherList { ours: 3, theirs: 5 };
        let not_asked = || NodeError::NotAsked { node: "node".to_owned() };
        assert_eq!(kind(vec![other(), NodeError::Connecting, not_asked()]), ErrorKind::Misconfigured);
        assert_eq!(kind(vec![other(), NodeError::Connecting, NodeError::Connecting]), ErrorKind::NoQuorum);
        assert_eq!(kind(vec![NodeError::ListChanging, NodeError::Connecting, not_asked()]), ErrorKind::NoQuorum);
    }
}
