//! An [`Environment`] for tests: tokio's clock, which a test can pause, and streams whose other ends the test gets.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::interface::{Connecting, Environment, Moment, Stream};

/// What fits into a stream before its reader takes it.
const CAPACITY: usize = 1 << 16;

/// The wall clock when a fake is made.
const EPOCH: Duration = Duration::from_secs(1_790_000_000);

#[derive(Debug)]
pub(crate) struct Fake {
    began: Instant,
    words: AtomicU64,
    servers: UnboundedSender<DuplexStream>,
}

impl Fake {
    /// A fake, and the servers' ends of the streams that it opens. When those are dropped, connections are refused.
    pub(crate) fn new() -> (Self, UnboundedReceiver<DuplexStream>) {
        let (servers, opened) = unbounded_channel();
        (Self { began: Instant::now(), words: AtomicU64::new(1), servers }, opened)
    }
}

impl Environment for Fake {
    fn now(&self) -> Moment {
        Moment::new(Duration::from_secs(1000) + self.began.elapsed())
    }

    fn wall(&self) -> Duration {
        EPOCH + self.began.elapsed()
    }

    /// Other bytes each time.
    fn fill(&self, bytes: &mut [u8]) {
        let word = self.words.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        bytes.fill(0);
        for (byte, own) in bytes.iter_mut().rev().zip(word.into_iter().rev()) {
            *byte = own;
        }
    }

    fn connect<'a>(&'a self, _: &'a ConnectionAddr) -> Connecting<'a> {
        let (client, server) = duplex(CAPACITY);
        let connected = self.servers.send(server).map_err(|_| io::ErrorKind::ConnectionRefused.into());
        Box::pin(async move { connected.map(|()| Box::new(client) as Box<dyn Stream>) })
    }
}
