//! The bytes that a client writes to its nodes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quorlock::environment::{Connecting, Environment, Moment, Stream};
use quorlock_testkit::Cluster;
use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clocks::Ahead;

const SECOND: Duration = Duration::from_secs(1);

/// This machine, with a record of all bytes that are written to nodes.
#[derive(Debug, Default)]
struct Recorded(Ahead, Arc<Mutex<Vec<u8>>>);

struct Recording(Box<dyn Stream>, Arc<Mutex<Vec<u8>>>);

impl Environment for Recorded {
    fn now(&self) -> Moment {
        self.0.now()
    }

    fn wall(&self) -> Duration {
        self.0.wall()
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        Box::pin(async move {
            let stream = self.0.connect(address).await?;
            Ok(Box::new(Recording(stream, Arc::clone(&self.1))) as Box<dyn Stream>)
        })
    }
}

impl AsyncRead for Recording {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Recording {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            self.1.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..*written]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Returns NEXT, END and the sender's wall clock in ms of each hold message in these bytes. (`src/node/lua/hold.lua`)
fn holds(written: &[u8]) -> Vec<(u64, u64, u64)> {
    let text = String::from_utf8_lossy(written);
    let words: Vec<&str> = text.split("\r\n").filter(|word| !word.starts_with('$')).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let message = |words: &[&str]| {
        let (next, rest) = words[0].split_once(' ')?;
        let end = number(rest.split_once(" ql1 ")?.0)?;
        let lease = number(words[1])?;
        let raised = words[2].rsplit_once(" +").map_or(Some(0), |(_, raised)| number(raised))?;
        Some((number(next)?, end, end - lease - 1 - raised))
    };
    let mut holds: Vec<_> = words.windows(3).filter_map(message).collect();
    holds.dedup(); // The client repeats the message to a node without the script.
    holds
}

#[tokio::test]
async fn each_hold_message_raises_the_end_and_carries_the_clock() {
    let cluster = Cluster::start(1);
    let environment = Arc::new(Recorded::default());
    let wall = || u64::try_from(environment.wall().as_millis()).expect("this century");
    let before = wall();
    let locks = cluster
        .builder()
        .node_timeout(SECOND)
        .lease(60 * SECOND)
        .environment(environment.clone())
        .connect()
        .await
        .expect("settings");
    let guard = locks.lock("x").acquire().await.expect("the lock");
    let again = locks.lock("x").owner(guard.owner()).lease(2 * SECOND).acquire().await.expect("a re-entry");
    again.release().await.expect("a release");
    guard.extend().await.expect("an extension");
    let after = wall();
    let seen = holds(&environment.1.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(seen.is_sorted_by(|(next, end, _), (later, raised, _)| next < later && end < raised), "{seen:?}");
    assert!(seen.iter().all(|(_, _, wall)| (before..=after).contains(wall)), "{seen:?} from {before} to {after}");
}
