//! The simulated environment of a client: clocks, randomness, streams to nodes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quorlock::environment::{Connecting, Environment, Moment, Stream};
use quorlock_testkit::rng::Rng;
use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::figures::Fault;
use crate::invariant::Watch;
use crate::plan::ClientPlan;
use crate::time::{EPOCH_US, Time};
use crate::world::{Shared, lock};

const RUNNING: u64 = u64::MAX;

/// The clocks of two such clients differ by less than the drift margin of the shortest lease.
const FURTHEST_OFF_US: i64 = 500;

/// A client's clocks. They differ from true time by a rate, and stand still while the client is paused, as a process
/// that does not run cannot read them.
#[derive(Debug)]
pub struct Clock {
    time: Time,
    ppm: i64,
    skew_us: AtomicI64,
    bounded: bool,
    paused_at: AtomicU64,
    /// How far it was set back, in the one broken variant that has such a clock.
    pub set_back_us: AtomicI64,
    /// Judges read the clock without its pause.
    watch: Arc<Watch>,
}

impl Clock {
    pub fn new(time: Time, plan: &ClientPlan, watch: Arc<Watch>) -> Self {
        let &ClientPlan { ppm, skew_us, bounded, .. } = plan;
        let (skew_us, set_back_us) = (AtomicI64::new(skew_us), AtomicI64::new(0));
        Self { time, ppm, skew_us, bounded, paused_at: AtomicU64::new(RUNNING), set_back_us, watch }
    }

    /// Sets the wall clock of the machine for good.
    pub fn set_skew(&self, micros: i64) {
        self.skew_us.store(micros, Relaxed);
    }

    pub fn is_off(&self) -> bool {
        self.ppm != 0
    }

    pub fn pause(&self) {
        self.paused_at.fetch_min(self.time.now(), Relaxed);
    }

    pub fn resume(&self) {
        self.paused_at.store(RUNNING, Relaxed);
    }

    /// Returns the monotonic clock in µs.
    pub fn now(&self) -> u64 {
        let now = self.time.now();
        let now = if self.watch.shows_truth() { now } else { now.min(self.paused_at.load(Relaxed)) };
        let off = self.off(now) - self.set_back_us.load(Relaxed);
        (1_000_000_000 + now).saturating_add_signed(off)
    }

    /// Returns the wall clock in µs. It runs at the rate of the monotonic one where that is within bounds.
    fn wall(&self) -> u64 {
        let now = self.time.now();
        let off = if self.bounded { self.off(now) } else { 0 };
        (EPOCH_US + now).saturating_add_signed(off + self.skew_us.load(Relaxed))
    }

    /// Returns how far the clock is off at this true time: steadily growing, or alternating.
    fn off(&self, now: u64) -> i64 {
        let off = now.cast_signed() * self.ppm / 1_000_000;
        if !self.bounded {
            return off;
        }
        let at = off.rem_euclid(4 * FURTHEST_OFF_US);
        let from_end = (at - 2 * FURTHEST_OFF_US).abs();
        (FURTHEST_OFF_US - from_end).clamp(-FURTHEST_OFF_US, FURTHEST_OFF_US)
    }
}

#[derive(Debug)]
pub struct Machine {
    pub client: usize,
    pub clock: Arc<Clock>,
    pub rng: Mutex<Rng>,
    pub world: Weakly,
}

/// The world, in a form that can be printed.
pub struct Weakly(pub Shared);

impl std::fmt::Debug for Weakly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl Environment for Machine {
    fn now(&self) -> Moment {
        Moment::new(Duration::from_micros(self.clock.now()))
    }

    fn wall(&self) -> Duration {
        Duration::from_micros(self.clock.wall())
    }

    fn fill(&self, bytes: &mut [u8]) {
        lock(&self.rng).fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        let ConnectionAddr::Tcp(host, _) = address else { unreachable!("nodes have names") };
        let node: usize = host.trim_start_matches("node").parse().expect("a node's number");
        let world = &self.world.0;
        Box::pin(async move {
            loop {
                let (wait, met) = lock(world).try_connect(self.client, node);
                tokio::time::sleep(Duration::from_micros(wait.min(3_600_000_000))).await;
                match met {
                    None => {}
                    Some(true) => {
                        let conn = lock(world).open(self.client, node);
                        return Ok(
                            Box::new(Wire { world: Arc::clone(world), client: self.client, conn }) as Box<dyn Stream>
                        );
                    }
                    Some(false) => {
                        lock(world).figures.fault(Fault::ConnectRefused);
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                }
            }
        })
    }
}

/// The client's end of a connection.
struct Wire {
    world: Shared,
    client: usize,
    conn: usize,
}

impl Wire {
    /// A paused process reads and writes nothing.
    fn turn(&self, cx: &Context<'_>) -> Poll<()> {
        let mut world = lock(&self.world);
        if world.paused_until(self.client).is_some() {
            world.wake_after_pause(self.client, cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.turn(cx));
        let mut world = lock(&self.world);
        if world.read(self.conn, buffer) > 0 {
            return Poll::Ready(Ok(()));
        }
        if world.is_broken(self.conn) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        world.wake_reader(self.conn, cx.waker());
        Poll::Pending
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.turn(cx));
        let mut world = lock(&self.world);
        if world.is_broken(self.conn) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(world.send(self.conn, bytes)))
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
        lock(&self.world).close(self.conn);
    }
}

/// A task of a client's user: it has no turn while the client is paused.
pub struct Turns<F> {
    pub world: Shared,
    pub client: usize,
    pub task: Pin<Box<F>>,
}

impl<F: Future> Future for Turns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut world = lock(&self.world);
            if world.paused_until(self.client).is_some() {
                world.wake_after_pause(self.client, cx.waker());
                return Poll::Pending;
            }
        }
        self.task.as_mut().poll(cx)
    }
}
