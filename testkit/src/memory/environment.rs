//! What a client on a host gets in place of the machine: tokio's clock, seeded randomness, and streams to nodes in memory.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quorlock::environment::{Connecting, ConnectionAddr, Environment, Moment, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::world::World;
use crate::rng::Rng;

/// The monotonic clock of each host at the start.
const BOOTED: Duration = Duration::from_secs(1000);

/// Returns the URL of a node.
pub(super) fn url(node: usize) -> String {
    format!("redis://node{node}")
}

fn node_of(address: &ConnectionAddr) -> Option<usize> {
    let ConnectionAddr::Tcp(host, _) = address else { return None };
    host.strip_prefix("node")?.parse().ok()
}

/// The cluster, as all handles and streams share it.
pub(super) struct Shared {
    began: Instant,
    world: Mutex<World>,
    healed: Notify,
}

impl Shared {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let began = Instant::now();
        Self { began, world: Mutex::new(World::new(nodes, seed, began)), healed: Notify::new() }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the connection attempts that wait for the end of a cut go on.
    pub(super) fn has_healed(&self) {
        self.healed.notify_waiters();
    }
}

/// The environment of one client.
pub(super) struct HostEnvironment {
    shared: Arc<Shared>,
    host: usize,
    rng: Mutex<Rng>,
}

impl HostEnvironment {
    pub(super) fn new(shared: Arc<Shared>, host: usize) -> Self {
        let rng = Mutex::new(shared.world().add_client());
        Self { shared, host, rng }
    }
}

impl fmt::Debug for HostEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostEnvironment").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Environment for HostEnvironment {
    fn now(&self) -> Moment {
        Moment::new(BOOTED + self.shared.began.elapsed())
    }

    fn wall(&self) -> Duration {
        super::world::EPOCH + self.shared.began.elapsed()
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        Box::pin(async move {
            let node = node_of(address).filter(|node| *node < self.shared.world().len());
            let node = node.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not a node of this cluster"))?;
            loop {
                let healed = self.shared.healed.notified(); // Created first, so no call is missed.
                let opened = self.shared.world().open(self.host, node);
                match opened {
                    Some(opened) => {
                        return Ok(Box::new(Wire { id: opened?, shared: Arc::clone(&self.shared) }) as Box<dyn Stream>);
                    }
                    None => healed.await,
                }
            }
        })
    }
}

/// The client's end of a connection.
struct Wire {
    shared: Arc<Shared>,
    id: usize,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.world().read(self.id, buffer, cx.waker())
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.shared.world().write(self.id, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.world().close(self.id);
    }
}
