//! A **reentrant lock held by a majority of independent Redis masters**, with a fencing token that the majority agrees on,
//! and a signal on time when the lock is lost.
//!
//! ```
//! use std::time::Duration;
//! use quorlock::Quorlock;
//!
//! async fn transfer(nodes: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
//!     let locks = Quorlock::builder().nodes(nodes.iter().copied()).lease(Duration::from_secs(10)).connect().await?;
//!
//!     let guard = locks.lock("account:42").wait(Duration::from_secs(5)).acquire().await?;
//!     println!("fencing token {}, valid for {:?}", guard.token(), guard.remaining());
//!
//!     // The same owner enters again: same lease, same token, one level deeper.
//!     let inner = locks.lock("account:42").owner(guard.owner()).acquire().await?;
//!     inner.release().await?;
//!
//!     // Dropped at its next await if the lock is lost.
//!     guard.protect(async { /* the work; send the token along with every write */ }).await?;
//!     guard.release().await?;
//!     Ok(())
//! }
//! ```
//!
//! # What is guaranteed
//!
//! - At most one owner holds a resource at a time. A second owner needs a node whose clock is ahead and, at the same time,
//!   a client whose wall clock is ahead of the holder's by more than the drift allowance
//!   ([`drift_factor`](Builder::drift_factor)). DESIGN.md lists the exceptions.
//! - Tokens of a resource are unique and increase from one acquisition to the next, as long as a majority of nodes keeps
//!   its ballots. A store that refuses a token smaller than one it has seen is safe even from a holder that does not know
//!   that it lost the lock.
//! - A lost lease never comes back. A holder whose process runs learns of the loss before another owner can be granted the lock.
//! - A release takes away its own share of a lease and no other, however late it arrives.
//! - A minority of nodes that is dead, hung or slow is not waited for. A node that may have forgotten its votes has none until
//!   every lease that it may have forgotten is over.
//! - Clients whose lists of nodes differ in length do not both get locks: the nodes know how many they are.
//!
//! # What is not
//!
//! A lock cannot stop code that does not look: a thread that hangs past its lease writes late, and only a fenced store
//! refuses that. A new server in a list of the same length is not noticed: all clients must list the same nodes.
//! See README.md for when not to use this crate, and DESIGN.md for why it works.
//!
//! # Where to begin
//!
//! [`Quorlock::builder`] makes a client, [`Quorlock::lock`] and [`Quorlock::lock_all`] ask for locks, [`LockRequest::run`] runs work
//! under them in one call. A [`Guard`] is a hold, an [`Owner`] is who may enter again. [`Quorlock::elect`] and [`Quorlock::observe`]
//! are for leaders. Errors: [`ConfigError`], [`AcquireError`], [`RunError`], [`LostError`], [`ExtendError`], [`ReleaseError`],
//! [`RevokeError`], [`ReadyError`]; those of a round name the nodes and what each of them said.
//!
//! # Testing code that locks
//!
//! The crate `quorlock-testkit` has a cluster in memory for this client, with faults by call, on tokio's clock. docs/cookbook.md has
//! an example. [`environment`] is the seam beneath it: clocks, timers, randomness and sockets.
//!
//! # What it reports
//!
//! A client reports by [`tracing`](https://docs.rs/tracing), with the target `quorlock`: what endangers a lock or takes it away
//! at `WARN`, each request and release at `DEBUG`, each answer of a node at `TRACE`. docs/operations.md has a table of all names.
//! Without a subscriber this costs nanoseconds.
//!
//! # Features
//!
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![warn(clippy::pedantic)]

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod admin;
#[cfg(feature = "blocking")]
pub mod blocking;
mod builder;
mod client;
mod coordinator;
mod election;
pub mod environment;
mod error;
mod export;
mod guard;
mod inspect;
mod node;
mod observation;
mod owner;
mod protocol;
mod released;
mod request;
mod resource;
mod revoke;
#[doc(hidden)]
pub mod secrets;
mod settings;
mod sync;
mod telemetry;
#[doc(hidden)]
pub mod text;
mod waiting;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
#[cfg(doctest)]
#[doc = include_str!("../DESIGN.md")]
mod design {}
#[cfg(all(doctest, feature = "blocking"))] // One of its recipes needs it.
#[doc = include_str!("../docs/cookbook.md")]
mod cookbook {}

pub use builder::{Builder, DEFAULT_LEASE, DEFAULT_PREFIX};
pub use client::Quorlock;
pub use election::Election;
#[cfg(feature = "tls")]
pub use environment::Tls;
pub use error::{
    AcquireError, Answer, ClientError, ConfigError, ErrorKind, ExportError, ExtendError, Holder, LostError, NodeError,
    NodeReport, OwnHold, ReadyError, ReleaseError, Reports, RevokeError, RunError,
};
pub use guard::Guard;
pub use inspect::{Inspection, NodeState, NodeView, Verdict};
pub use node::NodeConfig;
#[doc(hidden)]
pub use node::scripts;
pub use observation::{Leader, Leadership, Observation};
pub use owner::Owner;
pub use protocol::{Outage, ParseTokenError, Token};
pub use released::Released;
pub use request::LockRequest;
pub use revoke::Revoked;
pub use telemetry::{
    AcquireStats, Event, ExtensionStats, LockName, Locks, LossCause, LossStats, NodeStats, Observer, Stats,
};
