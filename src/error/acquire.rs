use std::time::Duration;

use humantime::format_duration;

use super::nodes::{behind, for_another, hint};
use super::{Answer, ClientError, ConfigError, ErrorKind, ExportError, Holder, NodeReport, OwnHold, Reports};
use crate::text::{Printable, Rounded, counted_nodes};

/// Nodes that are up may be enough, and yet have had too little time to answer.
fn too_few(needed: usize, nodes: &Reports) -> String {
    let verb = if needed == 1 { "is" } else { "are" };
    let counted = format!("{needed} of {} {verb} needed", counted_nodes(nodes.0.len()));
    let up = nodes.0.iter().filter(|report| matches!(report.answer, Answer::Up | Answer::Agreed)).count();
    if up < needed { format!("no quorum: {counted}") } else { format!("no quorum in time: {counted}") }
}

fn contention(nodes: &Reports) -> String {
    if nodes.0.is_empty() {
        return "another task of this process is asking for it".to_owned();
    }
    format!("no request got a majority ({nodes})")
}

/// Why a lock was not acquired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Another owner has it.
    #[error("{} is held by {by}{}{}", Printable(resource), for_another(by, *free_in), hint(*own))]
    Held {
        /// What is held, as readable text.
        resource: String,
        /// By whom.
        by: Holder,
        /// When it is free if it is not renewed; `None` when that is never.
        free_in: Option<Duration>,
        /// Set when that is the caller itself, which did not pass the owner.
        own: Option<OwnHold>,
        /// Every node's answer; empty when no node was asked because this process holds it.
        nodes: Reports,
    },
    /// Others asked at the same moment and no request got a majority; trying again may help.
    #[error("{} is contended: {}", Printable(resource), contention(nodes))]
    Contended {
        /// What is contended, as readable text.
        resource: String,
        /// Every node's answer; empty when no node was asked because another task of this process was asking.
        nodes: Reports,
    },
    /// Too few nodes answered with a vote: the others are away, in quarantine, refuse, or can have no vote.
    #[error("{} ({nodes})", too_few(*needed, nodes))]
    NoQuorum {
        /// How many nodes must agree.
        needed: usize,
        /// Every node's answer.
        nodes: Reports,
    },
    /// A majority agreed, but took so long that nothing is left of the lease. It was released.
    #[error("a majority agreed only after {}, when the lease of {} was spent ({nodes})",
        Rounded(*took), format_duration(*lease))]
    TooLate {
        /// From the first send to the decision.
        took: Duration,
        /// The lease that was asked for.
        lease: Duration,
        /// Every node's answer.
        nodes: Reports,
    },
    /// The time to wait is over.
    #[error("not acquired within {}: {last}", Rounded(*waited))]
    TimedOut {
        /// How long was waited.
        waited: Duration,
        /// What the last try met.
        last: Box<AcquireError>,
    },
    /// A re-entry, or a join, met a lease that is over, or that its exporter has released. It never becomes a new acquisition.
    #[error("the lease on {} is lost, so it cannot be entered again{}", Printable(resource), behind(nodes))]
    Lost {
        /// What was lost, as readable text.
        resource: String,
        /// Every node's answer to the last message about the lease.
        nodes: Reports,
    },
    /// The request cannot work with this client's settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was to be joined is not an exported lease, or not one of this client's key prefix.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The client cannot be used any more.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl AcquireError {
    /// Returns the kind of the error: all of one kind are handled in one way.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Held { .. } | Self::Contended { .. } => ErrorKind::Held,
            Self::NoQuorum { needed, nodes } => nodes.kind(*needed),
            Self::TooLate { .. } => ErrorKind::NoQuorum,
            Self::TimedOut { last, .. } => last.kind(),
            Self::Lost { .. } => ErrorKind::Lost,
            Self::Config(error) => error.kind(),
            Self::Export(error) => error.kind(),
            Self::Client(error) => error.kind(),
        }
    }

    /// Returns whether the same request may succeed later, without a change of the program or of the deployment.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { needed, nodes } => nodes.may_recover(*needed),
            Self::TimedOut { last, .. } => last.is_retryable(),
            error => error.kind().is_retryable(),
        }
    }

    /// Another owner has it, or the time ran out while another had it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Held { .. } | Self::Contended { .. } => true,
            Self::TimedOut { last, .. } => last.is_held(),
            _ => false,
        }
    }

    /// The time to wait is over.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Returns whether too few nodes gave a vote.
    #[must_use]
    pub fn is_no_quorum(&self) -> bool {
        matches!(self, Self::NoQuorum { .. })
    }

    /// The lease that was to be entered again is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Every node's answer, where nodes were asked.
    #[must_use]
    pub fn nodes(&self) -> &[NodeReport] {
        match self {
            Self::Held { nodes, .. }
            | Self::Contended { nodes, .. }
            | Self::NoQuorum { nodes, .. }
            | Self::TooLate { nodes, .. }
            | Self::Lost { nodes, .. } => &nodes.0,
            Self::TimedOut { last, .. } => last.nodes(),
            Self::Config(_) | Self::Export(_) | Self::Client(_) => &[],
        }
    }
}
