use super::{ConfigError, ErrorKind, Holder, NodeReport, Reports};
use crate::protocol::Token;
use crate::text::{Printable, counted_nodes};

/// Why a lease was not revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    /// There is no such lease: it is over, or was never granted.
    #[error("{} is not held by such a lease", Printable(resource))]
    NotHeld {
        /// What was asked for, as readable text.
        resource: String,
        /// Every node's answer.
        nodes: Reports,
    },
    /// Another lease, or a key of another kind, is in its place. It was not touched.
    #[error("{} is held by {by}, which was not touched", Printable(resource))]
    Held {
        /// What is held, as readable text.
        resource: String,
        /// Who holds it.
        by: Holder,
        /// Every node's answer.
        nodes: Reports,
    },
    /// The nodes have several leases, and it was not said which one to revoke: some are left of requests that failed, or one lease
    /// has just followed another. Nothing was touched.
    #[error("the nodes have several leases on {}: say which one is meant by its token ({nodes})", Printable(resource))]
    Several {
        /// What was asked for, as readable text.
        resource: String,
        /// Their tokens, the smallest first.
        tokens: Vec<Token>,
        /// Every node's answer.
        nodes: Reports,
    },
    /// Too few nodes have answered. Some of them may refuse the holder now; repeating the call is safe.
    #[error("no quorum: {needed} of {} must revoke the lease ({nodes})", counted_nodes(nodes.0.len()))]
    NoQuorum {
        /// How many nodes must agree.
        needed: usize,
        /// Every node's answer.
        nodes: Reports,
    },
    /// The name cannot be locked.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl RevokeError {
    /// Returns the kind of the error: all of one kind are handled in one way.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotHeld { .. } => ErrorKind::Lost,
            Self::Held { .. } | Self::Several { .. } => ErrorKind::Held,
            Self::NoQuorum { needed, nodes } => nodes.kind(*needed),
            Self::Config(error) => error.kind(),
        }
    }

    /// Returns whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { needed, nodes } => nodes.may_recover(*needed),
            Self::NotHeld { .. } | Self::Held { .. } | Self::Several { .. } | Self::Config(_) => false,
        }
    }

    /// Every node's answer, where nodes were asked.
    #[must_use]
    pub fn nodes(&self) -> &[NodeReport] {
        match self {
            Self::NotHeld { nodes, .. }
            | Self::Held { nodes, .. }
            | Self::Several { nodes, .. }
            | Self::NoQuorum { nodes, .. } => &nodes.0,
            Self::Config(_) => &[],
        }
    }
}
