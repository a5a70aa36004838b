//! The one seam between quorlock and the machine: clocks, randomness, and streams to nodes.
//!
//! The shipped code is the code under simulation: a test supplies an [`Environment`] of its own, whose time is tokio's
//! paused clock and whose nodes live in memory, and nothing else changes.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::TryRng as _;
use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use crate::protocol::Moment;

/// A byte stream to a node.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection attempt under way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

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
}

/// A random time in the range; good enough for pauses.
pub(crate) fn random_time(environment: &dyn Environment, range: Range<Duration>) -> Duration {
    let mut bytes = [0; 4];
    environment.fill(&mut bytes);
    let share = f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0);
    range.start + range.end.saturating_sub(range.start).mul_f64(share)
}

/// The operating system's clocks, random source and sockets.
#[derive(Debug)]
pub(crate) struct System;

impl Environment for System {
    fn now(&self) -> Moment {
        Moment::new(boot_time())
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn fill(&self, bytes: &mut [u8]) {
        // The operating system's source, and not a generator in this process: a copy of the process (fork, a restored
        // snapshot of a virtual machine) must not make the same owners again.
        if rand::rngs::SysRng.try_fill_bytes(bytes).is_err() {
            rand::fill(bytes);
        }
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        Box::pin(async move {
            match address {
                ConnectionAddr::Tcp(host, port) => Ok(Box::new(tcp(host, *port).await?) as Box<dyn Stream>),
                #[cfg(unix)]
                ConnectionAddr::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?) as _),
                #[cfg(feature = "tls")]
                ConnectionAddr::TcpTls { host, port, insecure, .. } => {
                    Ok(Box::new(crate::node::tls::handshake(tcp(host, *port).await?, host, *insecure).await?) as _)
                }
                _ => Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of address is not supported")),
            }
        })
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// `CLOCK_BOOTTIME` counts suspend; `Instant` is `CLOCK_MONOTONIC`, which does not, so a lease would outlive its keys by
/// as long as a laptop slept.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "fuchsia"))]
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Both fields of a clock that starts at boot are non-negative, and nanoseconds stay below 10^9.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "fuchsia")))]
fn boot_time() -> Duration {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}
