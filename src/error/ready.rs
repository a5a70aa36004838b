use super::{ClientError, ErrorKind, Reports};
use crate::text::counted_nodes;

/// Why a client could not get a lock now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// So few nodes can be counted on that no majority is left.
    #[error("not ready: {needed} of {} must be up ({nodes})", counted_nodes(nodes.0.len()))]
    NoQuorum {
        /// How many nodes must agree.
        needed: usize,
        /// What is known of every node.
        nodes: Reports,
    },
    /// The client cannot be used any more.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ReadyError {
    /// Returns the kind of the error: all of one kind are handled in one way.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoQuorum { needed, nodes } => nodes.kind(*needed),
            Self::Client(error) => error.kind(),
        }
    }

    /// Returns whether the client may be ready later, without a change of the program or of the deployment.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { needed, nodes } => nodes.may_recover(*needed),
            Self::Client(error) => error.is_retryable(),
        }
    }
}
