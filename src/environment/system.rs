//! The machine itself as an [`Environment`].

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{process, thread};

use futures_timer::Delay;
use rand::TryRng as _;
use redis::ConnectionAddr;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Handle, Id, is_rt_shutdown_err};
use tokio::sync::oneshot;

use super::dial::tcp;
use super::interface::{Connecting, Environment, Moment, Sleeping, Stream};
#[cfg(feature = "tls")]
use super::tls::TlsClient;

/// A longer time is waited for in parts: the timers of a thread take no time past the end of the clock.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 3600);

/// Where no thread can be started for a wait, the caller's thread stands still for so long, and tries again.
const WITHOUT_THREAD: Duration = Duration::from_millis(10);

/// The operating system's clocks, random source and sockets.
#[derive(Debug, Default)]
pub(crate) struct System {
    home: Home,
    #[cfg(feature = "tls")]
    tls: TlsClient,
}

/// The runtime in which the client was made, whose timers are used.
#[derive(Clone, Debug, Default)]
struct Home {
    runtime: Option<Id>,
    has_ended: Arc<AtomicBool>,
}

impl System {
    /// Makes an environment that uses the timers of the caller's runtime.
    pub(crate) fn here() -> Self {
        let runtime = Handle::try_current().ok().map(|runtime| runtime.id());
        Self {
            home: Home { runtime, ..Home::default() },
            #[cfg(feature = "tls")]
            tls: TlsClient::default(),
        }
    }

    /// Uses these settings for TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn with_tls(self, tls: TlsClient) -> Self {
        Self { tls, ..self }
    }
}

impl Home {
    /// Returns whether the caller is in this runtime, and its timers can be used.
    fn is_here(&self) -> bool {
        !self.has_ended.load(Ordering::SeqCst)
            && Handle::try_current().is_ok_and(|here| Some(here.id()) == self.runtime)
    }

    /// Waits by the timers of this runtime. Returns `false` if it was polled elsewhere before its time.
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
                    let verification = self.tls.ready(*insecure).await?;
                    Ok(Box::new(verification.handshake(Socket(tcp(host, *port).await?), host).await?) as _)
                }
                _ => Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of address is not supported")),
            }
        })
    }

    /// Uses tokio's timers in the client's runtime, where they are cheap. Elsewhere it uses those of a thread: another runtime may
    /// have no timers, and a thread outside of runtimes has none. So it does where a paused clock of tokio runs ahead of this
    /// machine's.
    fn sleep(&self, time: Duration) -> Sleeping {
        let (home, end) = (self.home.clone(), boot_time().saturating_add(time));
        Box::pin(async move {
            let mut runs_ahead = false;
            loop {
                let left = end.saturating_sub(boot_time());
                if left.is_zero() {
                    return;
                }
                if runs_ahead || !home.is_here() {
                    sleep_elsewhere(left.min(LONGEST_DELAY)).await;
                } else {
                    runs_ahead = home.sleep(left).await;
                }
            }
        })
    }

    fn runtime_has_ended(&self) {
        self.home.has_ended.store(true, Ordering::SeqCst);
    }
}

/// Waits without a runtime. All waits share one thread. A fork has no such thread, and each wait there has its own.
async fn sleep_elsewhere(time: Duration) {
    static HAS_TIMERS: OnceLock<u32> = OnceLock::new();
    if *HAS_TIMERS.get_or_init(process::id) == process::id() {
        return Delay::new(time).await;
    }
    let ((over, is_over), (keep, is_dropped)) = (oneshot::channel::<()>(), mpsc::channel::<()>());
    let started = thread::Builder::new().name("quorlock timer".to_owned()).spawn(move || {
        // The wait is given up when its future is dropped.
        let _ = is_dropped.recv_timeout(time);
        drop(over);
    });
    match started {
        Ok(_) => drop(is_over.await),
        Err(_) => thread::sleep(time.min(WITHOUT_THREAD)),
    }
    drop(keep);
}

/// A socket that takes bytes also when the runtime whose driver watches it has ended.
pub(crate) struct Socket<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
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

/// Returns the time since the boot, suspend included. `Instant` goes by `CLOCK_MONOTONIC`, which does not count suspend: a lease
/// would outlive its keys by as long as a laptop slept.
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
