//! The one seam between quorlock and the machine: clocks, randomness, and streams to nodes.
//!
//! The shipped code is the code under simulation: a test supplies an [`Environment`] of its own, whose time is tokio's
//! paused clock and whose nodes live in memory, and nothing else changes.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{Either, select};
use futures::poll;
use futures_timer::Delay;
use rand::TryRng as _;
use redis::ConnectionAddr;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Handle, Id, is_rt_shutdown_err};

use crate::dial::tcp;
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

/// The operating system's clocks, random source and sockets.
#[derive(Debug, Default)]
pub(crate) struct System(Home);

/// The runtime in which the client was made, whose timers are used.
#[derive(Clone, Debug, Default)]
struct Home {
    runtime: Option<Id>,
    has_ended: Arc<AtomicBool>,
}

impl System {
    /// At home in the runtime that the caller is in.
    pub(crate) fn here() -> Self {
        Self(Home { runtime: Handle::try_current().ok().map(|runtime| runtime.id()), ..Home::default() })
    }
}

impl Home {
    /// Is the caller in it, and can its timers be used?
    fn is_here(&self) -> bool {
        !self.has_ended.load(Ordering::SeqCst)
            && Handle::try_current().is_ok_and(|here| Some(here.id()) == self.runtime)
    }

    /// Returns `false` when the future was polled elsewhere before its time.
    async fn sleep(&self, time: Duration) -> bool {
        let mut sleep = pin!(tokio::time::sleep(time));
        poll_fn(|cx| if self.is_here() { sleep.as_mut().poll(cx).map(|()| true) } else { Poll::Ready(false) }).await
    }
}

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
                ConnectionAddr::Tcp(host, port) => Ok(Box::new(Socket(tcp(host, *port).await?)) as Box<dyn Stream>),
                #[cfg(unix)]
                ConnectionAddr::Unix(path) => Ok(Box::new(Socket(tokio::net::UnixStream::connect(path).await?)) as _),
                #[cfg(feature = "tls")]
                ConnectionAddr::TcpTls { host, port, insecure, .. } => {
                    let tls = crate::node::tls::Tls::new(*insecure).await?;
                    Ok(Box::new(tls.handshake(Socket(tcp(host, *port).await?), host).await?) as _)
                }
                _ => Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of address is not supported")),
            }
        })
    }

    /// By tokio's timers in the client's runtime, where they are cheap. Another runtime may have none, and a thread outside of
    /// runtimes has none. A paused clock of tokio runs ahead of this machine's. There the timer is that of a thread.
    fn sleep(&self, time: Duration) -> Sleeping {
        let (home, end) = (self.0.clone(), boot_time().saturating_add(time));
        Box::pin(async move {
            let mut runs_ahead = false;
            loop {
                let left = end.saturating_sub(boot_time());
                if left.is_zero() {
                    return;
                }
                if runs_ahead || !home.is_here() {
                    Delay::new(left).await;
                } else {
                    runs_ahead = home.sleep(left).await;
                }
            }
        })
    }

    fn runtime_has_ended(&self) {
        self.0.has_ended.store(true, Ordering::SeqCst);
    }
}

/// A socket that takes bytes also when the runtime whose driver watches it has ended.
pub(crate) struct Socket<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, room)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.0).poll_write(cx, bytes) {
            Poll::Ready(Err(error)) if is_rt_shutdown_err(&error) => {
                match send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
                    sent => Poll::Ready(sent.map_err(Into::into)),
                }
            }
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
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
