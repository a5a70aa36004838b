//! The one seam between quorlock and the machine: clocks, timers, randomness, and streams to nodes.
//!
//! The shipped code is the code under simulation: a test supplies an [`Environment`] of its own to
//! [`Builder::environment`](crate::Builder::environment), and nothing else changes. Its streams lead to nodes in memory, which
//! speak the Redis protocol; its clocks go as the test moves them. This one refuses every connection and lives in tokio's time,
//! which a test can pause:
//!
//! ```
//! use std::io;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use quorlock::environment::{Connecting, ConnectionAddr, Environment, Moment};
//! use quorlock::{AcquireError, Quorlock};
//! use tokio::time::Instant;
//!
//! #[derive(Debug)]
//! struct NoNodes(Instant);
//!
//! impl Environment for NoNodes {
//!     fn now(&self) -> Moment {
//!         Moment::new(self.0.elapsed())
//!     }
//!     fn wall(&self) -> Duration {
//!         Duration::from_secs(1_790_000_000) + self.0.elapsed()
//!     }
//!     fn fill(&self, bytes: &mut [u8]) {
//!         bytes.fill(7); // The same in every run. Two clients need different bytes.
//!     }
//!     fn connect<'a>(&'a self, _: &'a ConnectionAddr) -> Connecting<'a> {
//!         Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), quorlock::ConfigError> {
//! let environment = Arc::new(NoNodes(Instant::now()));
//! let locks = Quorlock::builder().nodes(["redis://node"]).environment(environment).connect().await?;
//! let refused = locks.lock("report").try_acquire().await;
//! assert!(matches!(refused, Err(AcquireError::NoQuorum { .. })));
//! # Ok(()) }
//! ```

mod beside;
mod both_clocks;
#[cfg(feature = "tls")]
mod certificates;
mod dial;
#[cfg(test)]
mod fake;
mod interface;
mod system;
mod timing;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_settings;

pub(crate) use beside::Beside;
pub(crate) use both_clocks::both_clocks;
#[cfg(test)]
pub(crate) use fake::Fake;
pub use interface::{Connecting, Environment, Moment, Sleeping, Stream};
pub use redis::ConnectionAddr;
pub(crate) use system::System;
pub(crate) use timing::{random_time, within};
#[cfg(feature = "tls")]
pub(crate) use tls::TlsClient;
#[cfg(feature = "tls")]
pub use tls_settings::Tls;
