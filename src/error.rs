//! What can go wrong, one type per operation, each naming the nodes and what every one of them said.

mod acquire;
mod kind;
mod node;
mod nodes;
mod ready;
mod revoke;

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use humantime::format_duration;

pub use acquire::AcquireError;
pub use kind::ErrorKind;
pub use node::NodeError;
pub use nodes::{Answer, Holder, NodeReport, OwnHold, Reports};
pub use ready::ReadyError;
pub use revoke::RevokeError;

use crate::text::{Printable, Rounded};

/// Why a client cannot be built, or a request cannot work with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// [`connect`](crate::Builder::connect) was called outside of a tokio runtime.
    #[error(
        "a client connects inside a tokio runtime, which then has its connections: use #[tokio::main] or Runtime::block_on"
    )]
    NoRuntime,
    /// The thread that keeps the leases of a `blocking` client could not be started.
    #[error("the thread of the client could not be started: {0}")]
    NoThread(String),
    /// No node was given.
    #[error("no nodes were given: name at least one Redis master, better three or five, as redis://host:port")]
    NoNodes,
    /// More nodes than a round can count.
    #[error("{0} nodes were given; at most 63 are supported, and more than 7 are seldom of use")]
    TooManyNodes(usize),
    /// A node's URL, or its [`NodeConfig`](crate::NodeConfig), cannot be used. The text shows no password.
    #[error("node {position} ({}) cannot be used: {}", Printable(address), Printable(reason))]
    NodeUrl {
        /// Its place in the list, from 1.
        position: usize,
        /// Its address. Of a URL only the scheme is shown: what stands behind that may be a password.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was set for TLS cannot be used. The text shows no part of a key.
    #[error("{} cannot be used: {}", Printable(what), Printable(reason))]
    Tls {
        /// The certificate, the key or the name, and its file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The same server was named twice, so that one failure would take two votes.
    #[error(
        "node {second} is the same server as node {first} ({}); every vote needs a server of its own, \
         and another database of the same server is no other server",
        Printable(address)
    )]
    DuplicateNode {
        /// The place of the first, from 1.
        first: usize,
        /// The place of the second.
        second: usize,
        /// The address without user and password.
        address: String,
    },
    /// The lease is zero, or too short for the clock drift and the time a node may take.
    #[error(
        "the lease of {} is too short: it must exceed the drift allowance of {} plus the node timeout of {}",
        format_duration(*lease), format_duration(*drift), format_duration(*node_timeout)
    )]
    LeaseTooShort {
        /// The lease that was asked for.
        lease: Duration,
        /// What is taken off for clock drift.
        drift: Duration,
        /// How long a node may take to answer.
        node_timeout: Duration,
    },
    /// The lease is longer than a client takes.
    #[error("the lease of {} is too long: at most {} (a lease extends itself while it is held)",
        format_duration(*lease), format_duration(*longest))]
    LeaseTooLong {
        /// The lease that was asked for.
        lease: Duration,
        /// The longest one.
        longest: Duration,
    },
    /// Nodes would keep a ballot for too short a time, or for ever.
    #[error("ballots cannot be kept for {}: it must be at least {} and at most {}",
        format_duration(*ttl), format_duration(*shortest), format_duration(*longest))]
    BallotTtl {
        /// The time that was set.
        ttl: Duration,
        /// The shortest that works.
        shortest: Duration,
        /// The longest that works.
        longest: Duration,
    },
    /// A round would end before any node can answer, or would wait for a silent node without an end.
    #[error("a node timeout of {} cannot work: it must be at least {} and at most {}",
        format_duration(*timeout), format_duration(*shortest), format_duration(*longest))]
    NodeTimeout {
        /// The timeout that was set.
        timeout: Duration,
        /// The shortest that works.
        shortest: Duration,
        /// The longest that works.
        longest: Duration,
    },
    /// The drift factor is not a number from 0 to below 0.5.
    #[error("a drift factor of {0} cannot work: it is a share of the lease, from 0 to below 0.5 (0.01 is usual)")]
    DriftFactor(String),
    /// The warning would come before an extension had a chance.
    #[error(
        "a warning {} before the end is too early for a lease of {}: it must come after the first extension, \
         so at most {} before the end", format_duration(*before), format_duration(*lease), format_duration(*longest)
    )]
    WarningTooEarly {
        /// The setting.
        before: Duration,
        /// The lease.
        lease: Duration,
        /// The largest that works.
        longest: Duration,
    },
    /// The name's key would lie where quorlock keeps other things.
    #[error(
        "the name {} cannot be locked under this key prefix: quorlock:node, and keys that begin with quorlock:ballot:, \
         quorlock:queue: or quorlock:list:, are quorlock's own", Printable(.0)
    )]
    ReservedName(String),
    /// No name was given to lock.
    #[error("no name was given: lock_all needs at least one")]
    NoNames,
    /// So many names that no script could take them.
    #[error("{0} names were given; one acquisition takes at most 500")]
    TooManyNames(usize),
}

/// Why a client cannot be used any more, where no node is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The tokio runtime in which the client connected has ended, and its connections with it.
    #[error("the tokio runtime in which this client connected has ended: connect in the runtime that is in use now")]
    RuntimeEnded,
    /// The tokio runtime in which the client connected has not run its connections for so long.
    #[error(
        "the tokio runtime in which this client connected did nothing for {}: no thread runs it, or a task blocks it",
        Rounded(*.0)
    )]
    RuntimeStalled(Duration),
    /// This process is a copy of the one that connected (`fork`). It has no part in the connections of that one.
    #[error("this client connected in process {from}, of which this one is a fork: connect anew after the fork")]
    Forked {
        /// The number of the process that connected.
        from: u32,
    },
}

/// A string is not an exported lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not an exported lease: pass on exactly what export() returned, or the value of QUORLOCK_LEASE")]
pub struct ExportError;

impl ConfigError {
    /// [`ErrorKind::Usage`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }

    /// Never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl ClientError {
    /// [`ErrorKind::Usage`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }

    /// A runtime that stalls may go on; otherwise connect anew.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::RuntimeStalled(_))
    }
}

impl ExportError {
    /// [`ErrorKind::Usage`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }

    /// Never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// The lease is over although it was not released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease on {} is lost{}", Printable(resource), nodes::behind(nodes))]
#[non_exhaustive]
pub struct LostError {
    /// What was lost, as readable text.
    pub resource: String,
    /// Every node's answer to the last message about the lease, or what is known of the node.
    pub nodes: Reports,
}

impl LostError {
    /// [`ErrorKind::Lost`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Lost
    }

    /// Never: what is lost never comes back.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Why [`run`](crate::LockRequest::run) failed. `E` is the error of the work, and `T` its output: work that was done is not lost with
/// its lock. `RunError` without them is for work that cannot fail and returns `()`.
///
/// It implements `Error` for each `E` that can be printed, `Box<dyn Error>` included, and for every `T`. To pass it on as the error of a
/// function with another output, use [`without_output`](Self::without_output).
///
/// ```
/// # use quorlock::{Quorlock, RunError};
/// # async fn charge() -> std::io::Result<String> { Ok(String::new()) }
/// async fn pay(locks: &Quorlock) -> Result<String, RunError<std::io::Error>> {
///     match locks.lock("invoice:7").run(async |_| charge().await).await {
///         // It is paid. Only the release is not confirmed.
///         Err(RunError::Release { output: receipt, .. }) => Ok(receipt),
///         run => run.map_err(|error| {
///             if let RunError::Late { output: receipt, .. } = &error {
///                 println!("{receipt}: look for a second payment, as another owner may have had the lock");
///             }
///             error.without_output()
///         }),
///     }
/// }
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError<E = Infallible, T = ()> {
    /// The lock was not acquired, and the work has not begun.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// The work returned this error. The lock has been released, or had been lost meanwhile.
    #[error("{0}")]
    Work(E),
    /// The lock was lost before the end of the work, which was dropped. What it had sent by then may have arrived.
    #[error(transparent)]
    Lost(#[from] LostError),
    /// The work has ended without an error, but the lock had been lost by then, or its release shows that it had been: another owner
    /// may have worked at the same time.
    #[error("the work is done, but {error}")]
    Late {
        /// What the work returned.
        output: T,
        /// What was lost.
        #[source]
        error: LostError,
    },
    /// The work has ended without an error, under the lock, but its release is not confirmed. Do not repeat the work: the client goes on
    /// sending the release, and what nodes keep ends with the lease.
    #[error("the work is done, but {error}")]
    Release {
        /// What the work returned.
        output: T,
        /// Why the release is not confirmed.
        #[source]
        error: ReleaseError,
    },
}

impl<E, T> RunError<E, T> {
    /// Returns the error of work that has ended without one, when its release fails like this.
    pub(crate) fn of_release(output: T, error: ReleaseError) -> Self {
        match error {
            ReleaseError::NotHeld { resource, nodes } => Self::Late { output, error: LostError { resource, nodes } },
            error => Self::Release { output, error },
        }
    }

    /// Returns what the work returned, if it has ended without an error.
    #[must_use]
    pub fn into_output(self) -> Option<T> {
        match self {
            Self::Late { output, .. } | Self::Release { output, .. } => Some(output),
            Self::Acquire(_) | Self::Work(_) | Self::Lost(_) => None,
        }
    }

    /// Drops what the work returned, and keeps the reason.
    #[must_use]
    pub fn without_output(self) -> RunError<E> {
        match self {
            Self::Acquire(error) => RunError::Acquire(error),
            Self::Work(error) => RunError::Work(error),
            Self::Lost(error) => RunError::Lost(error),
            Self::Late { error, .. } => RunError::Late { output: (), error },
            Self::Release { error, .. } => RunError::Release { output: (), error },
        }
    }

    /// Returns the kind of the error: all of one kind are handled in one way. `None` for the error of the work.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Acquire(error) => Some(error.kind()),
            Self::Work(_) => None,
            Self::Lost(error) | Self::Late { error, .. } => Some(error.kind()),
            Self::Release { error, .. } => Some(error.kind()),
        }
    }

    /// Returns whether the same call may succeed later, without a change of the program or of the deployment. Work that has begun is not to be
    /// repeated unseen.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Acquire(error) if error.is_retryable())
    }

    /// The lock was lost before the end of the work: [`Lost`](Self::Lost) or [`Late`](Self::Late).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Late { .. })
    }
}

/// Without the output, which need not have a text.
impl<E: fmt::Debug, T> fmt::Debug for RunError<E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire(error) => f.debug_tuple("Acquire").field(error).finish(),
            Self::Work(error) => f.debug_tuple("Work").field(error).finish(),
            Self::Lost(error) => f.debug_tuple("Lost").field(error).finish(),
            Self::Late { error, .. } => f.debug_struct("Late").field("error", error).finish_non_exhaustive(),
            Self::Release { error, .. } => f.debug_struct("Release").field("error", error).finish_non_exhaustive(),
        }
    }
}

/// Why a lease was not extended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtendError {
    /// The lease is over.
    #[error(transparent)]
    Lost(#[from] LostError),
    /// No majority agreed in time; the lease runs on towards its end, and extension goes on trying.
    #[error("no majority agreed to extend; {} of validity are left ({nodes})", Rounded(*remaining))]
    NoQuorum {
        /// What is left.
        remaining: Duration,
        /// Every node's answer.
        nodes: Reports,
    },
    /// No extension can give that much.
    #[error("{} of validity cannot be had from a lease of {}", format_duration(*asked), format_duration(*lease))]
    TooLong {
        /// The validity asked for.
        asked: Duration,
        /// The lease.
        lease: Duration,
    },
    /// The client cannot be used any more; the lease runs on towards its end.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ExtendError {
    /// Returns the kind of the error: all of one kind are handled in one way.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Lost(error) => error.kind(),
            Self::NoQuorum { nodes, .. } => nodes.kind(nodes.quorum()),
            Self::TooLong { .. } => ErrorKind::Usage,
            Self::Client(error) => error.kind(),
        }
    }

    /// Returns whether the same call may succeed later. The lease runs on meanwhile.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { nodes, .. } => nodes.may_recover(nodes.quorum()),
            error => error.kind().is_retryable(),
        }
    }

    /// The lease is over.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// Why a release did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// It was not held any more: the lease had been lost before. Nothing of another owner's was touched.
    #[error(
        "not held: the lease on {} had been lost before it was released{}",
        Printable(resource),
        nodes::behind(nodes)
    )]
    NotHeld {
        /// What had been lost, as readable text.
        resource: String,
        /// Every node's answer to the last message about the lease.
        nodes: Reports,
    },
    /// No majority has confirmed it yet. Nodes that come back still get it; what they keep ends with the lease.
    #[error("the release is not confirmed by a majority yet ({nodes})")]
    Unconfirmed {
        /// Every node's answer.
        nodes: Reports,
    },
    /// The client cannot be used any more. Where its runtime has ended, the release was written to the connections that were
    /// left, and nothing answers; what a node keeps ends with the lease.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ReleaseError {
    /// Returns the kind of the error: all of one kind are handled in one way.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotHeld { .. } => ErrorKind::Lost,
            Self::Unconfirmed { .. } => ErrorKind::Unconfirmed,
            Self::Client(error) => error.kind(),
        }
    }

    /// Never: the guard is gone, and the client goes on sending the release by itself.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// The lease had been lost before the release.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::NotHeld { .. })
    }
}
