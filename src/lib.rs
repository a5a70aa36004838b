#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![warn(clippy::pedantic)]
//! A reentrant lock held by a majority of independent Redis masters.

mod client;
mod config;
mod error;
mod export;
mod guard;
mod inspect;
mod keeper;
mod lease;
mod lock;
mod node;
mod owner;
mod protocol;
mod resource;
mod round;
mod sync;
mod table;
mod waiting;

#[doc(hidden)]
pub mod environment;

pub use client::Quorlock;
pub use config::{Builder, DEFAULT_LEASE, DEFAULT_PREFIX};
pub use error::{
    AcquireError, Answer, ConfigError, Distrust, ExportError, ExtendError, Holder, LostError, NodeError, NodeReport,
    ReleaseError, Reports,
};
pub use guard::{Guard, Released};
pub use inspect::{Inspection, NodeState, NodeView, Verdict};
pub use lock::LockRequest;
pub use owner::Owner;
pub use protocol::Token;
