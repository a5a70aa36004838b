//! What an environment supplies.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::protocol::Moment;

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
