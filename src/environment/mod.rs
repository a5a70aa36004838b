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
mod dial;
#[cfg(test)]
mod fake;
mod system;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};
use futures::poll;
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::protocol::Moment;
#[cfg(test)]
pub(crate) use fake::Fake;
pub use redis::ConnectionAddr;
pub(crate) use system::System;

/// A byte stream to a node.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection attempt under way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

/// A wait under way.
pub type Sleeping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything that quorlock takes from outside.
pub trait Environment: fmt::Debug + Send + Sync + 'static {
    /// A monotonic clock that counts suspend.
    fn now(&self) -> Moment;

    /// Time since the Unix epoch, by the wall clock.
    fn wall(&self) -> Duration;

    /// Fills `bytes` with unpredictable ones.
    fn fill(&self, bytes: &mut [u8]);

    /// Opens a stream to a node.
    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a>;

    /// Resolves after this time, in the caller's runtime.
    fn sleep(&self, time: Duration) -> Sleeping {
        Box::pin(tokio::time::sleep(time))
    }

    /// The runtime in which the client was made has ended.
    fn runtime_has_ended(&self) {}
}

/// Waits for `future`, for at most `limit`.
pub(crate) async fn within<T>(
    environment: &dyn Environment,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    if let Poll::Ready(output) = poll!(&mut future) {
        return Some(output);
    }
    match select(future, environment.sleep(limit)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// A random time in the range; good enough for pauses.
pub(crate) fn random_time(environment: &dyn Environment, range: Range<Duration>) -> Duration {
    let mut bytes = [0; 4];
    environment.fill(&mut bytes);
    let share = f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0);
    range.start + range.end.saturating_sub(range.start).mul_f64(share)
}
