//! A TCP proxy between a client and a node that holds back, delays, loses and breaks what passes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// The number of pieces of up to [`PIECE`] bytes that are held for a direction before its sender must wait.
const PIECES_HELD: usize = 1024;
const PIECE: usize = 16 * 1024;

/// The treatment of the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    #[default]
    Pass,
    /// They wait, and arrive when the link recovers, as TCP repeats unacknowledged bytes.
    Hold,
    /// They are lost. A stream cannot continue after a gap, so the connection breaks when the link recovers.
    Lose,
}

/// How a link treats all of its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The treatment of the bytes from clients.
    pub requests: Flow,
    /// The treatment of the bytes from the node.
    pub answers: Flow,
    /// The delay of all bytes, each way.
    pub delay: Duration,
    /// The largest random addition to the delay.
    pub jitter: Duration,
    /// A change breaks every connection, and discards the bytes that they hold.
    pub resets: u64,
}

impl State {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::Requests => self.requests,
            Way::Answers => self.answers,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Requests,
    Answers,
}

/// A listening port whose connections go to a node. Ends when dropped.
pub struct Link {
    port: u16,
    state: Arc<watch::Sender<State>>,
    task: JoinHandle<()>,
}

impl Link {
    /// Starts a link to a node, on a free loopback port.
    pub async fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(watch::Sender::new(State::default()));
        let task = tokio::spawn(serve(listener, to, state.subscribe()));
        Ok(Self { port, state, task })
    }

    /// Returns the port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the state for all connections, those that are open too.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections to a node for ever, with a state that others may change. Dropping the future breaks them.
pub async fn serve(listener: TcpListener, to: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(connections.spawn(relay(client, to, state.clone()))),
                // Probably too many open files: some will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(client: TcpStream, to: SocketAddr, state: watch::Receiver<State>) {
    let Ok(node) = TcpStream::connect(to).await else { return };
    for stream in [&client, &node] {
        // Both fail only on a connection that is gone. It ends by a reset unless both sides close it in order.
        drop((stream.set_nodelay(true), stream.set_zero_linger()));
    }
    let resets = state.borrow().resets;
    let ((from_client, to_client), (from_node, to_node)) = (client.into_split(), node.into_split());
    let passing = async {
        let requests = pass(Way::Requests, from_client, to_node, state.clone());
        let answers = pass(Way::Answers, from_node, to_client, state.clone());
        // A broken direction ends both. A closed direction leaves the other one open.
        tokio::try_join!(requests, answers)
    };
    let mut watched = state.clone();
    tokio::select! {
        biased;
        _ = watched.wait_for(|state| state.resets != resets) => {}
        _ = passing => {}
    }
}

/// Runs one direction of a connection: a reader stamps each piece with its due time, and a writer waits for that time and for
/// the link to pass it.
async fn pass(
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: watch::Receiver<State>,
) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_HELD);
    let seen = state.clone();
    let reading = async move {
        let mut due = Instant::now();
        loop {
            let mut piece = vec![0; PIECE];
            let read = from.read(&mut piece).await?;
            if read == 0 {
                return Ok(());
            }
            piece.truncate(read);
            due = due.max(Instant::now() + lag(&seen.borrow()));
            if sender.send((due, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        let (mut state, mut watched) = (state.clone(), state);
        let resets = state.borrow().resets;
        let mut gap = false;
        loop {
            let next = tokio::select! {
                next = pieces.recv() => next,
                () = whole_again(&mut watched, way), if gap => return Err(io::ErrorKind::ConnectionReset.into()),
            };
            let due = next.as_ref().map(|(due, _)| *due);
            if let Some(due) = due {
                tokio::time::sleep_until(due).await;
            }
            let held = state.wait_for(|state| state.flow(way) != Flow::Hold).await;
            let now = held.map_or_else(|_| State::default(), |state| *state);
            if now.resets != resets {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let flow = now.flow(way);
            match next {
                Some(_) if flow == Flow::Lose || gap => gap = true,
                Some((_, piece)) => to.write_all(&piece).await?,
                // The end of a stream is lost, too.
                None if flow == Flow::Lose => {
                    whole_again(&mut state, way).await;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                None => return to.shutdown().await,
            }
        }
    };
    both(reading, writing).await
}

async fn whole_again(state: &mut watch::Receiver<State>, way: Way) {
    // An error means that the link itself has ended, and this connection with it.
    drop(state.wait_for(|state| state.flow(way) != Flow::Lose).await);
}

/// Reads until the end or an error. The bytes that it has read are still written, and a broken stream ends as a closed one.
async fn both(
    reading: impl Future<Output = io::Result<()>>,
    writing: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    let (_, written) = tokio::join!(reading, writing);
    written
}

fn lag(state: &State) -> Duration {
    state.delay + state.jitter.mul_f64(rand::random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns each received byte as a capital.
    async fn shouter() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        let shout = bytes[..read].to_ascii_uppercase();
                        if stream.write_all(&shout).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    async fn connect(link: &Link) -> TcpStream {
        TcpStream::connect(("127.0.0.1", link.port)).await.expect("a connection")
    }

    async fn receive(stream: &mut TcpStream) -> Option<String> {
        let mut bytes = [0; 64];
        let read = tokio::time::timeout(Duration::from_millis(150), stream.read(&mut bytes)).await.ok()?.unwrap_or(0);
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    #[tokio::test]
    async fn held_bytes_arrive_when_the_link_recovers() {
        for way in [Way::Requests, Way::Answers] {
            let link = Link::start(shouter().await).await.expect("a link");
            let mut stream = connect(&link).await;
            stream.write_all(b"a").await.expect("a write");
            assert_eq!(receive(&mut stream).await.as_deref(), Some("A"));
            link.change(|state| match way {
                Way::Requests => state.requests = Flow::Hold,
                Way::Answers => state.answers = Flow::Hold,
            });
            stream.write_all(b"b").await.expect("a write");
            assert_eq!(receive(&mut stream).await, None, "{way:?}");
            link.change(|state| *state = State::default());
            assert_eq!(receive(&mut stream).await.as_deref(), Some("B"), "{way:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_breaks_after_lost_bytes() {
        let link = Link::start(shouter().await).await.expect("a link");
        let mut stream = connect(&link).await;
        link.change(|state| state.answers = Flow::Lose);
        stream.write_all(b"a").await.expect("a write");
        assert_eq!(receive(&mut stream).await, None);
        link.change(|state| state.answers = Flow::Pass);
        assert_eq!(receive(&mut stream).await.as_deref(), Some(""), "its end");
        let mut stream = connect(&link).await;
        stream.write_all(b"b").await.expect("a write");
        assert_eq!(receive(&mut stream).await.as_deref(), Some("B"));
    }

    #[tokio::test]
    async fn a_reset_discards_held_bytes() {
        let link = Link::start(shouter().await).await.expect("a link");
        let mut stream = connect(&link).await;
        stream.write_all(b"a").await.expect("a write");
        assert_eq!(receive(&mut stream).await.as_deref(), Some("A"));
        link.change(|state| state.requests = Flow::Hold);
        stream.write_all(b"b").await.expect("a write");
        assert_eq!(receive(&mut stream).await, None);
        link.change(|state| (state.resets, state.requests) = (1, Flow::Pass));
        assert_eq!(receive(&mut stream).await.as_deref(), Some(""), "its end");
    }

    #[tokio::test]
    async fn a_delay_applies_both_ways_and_keeps_the_order() {
        let link = Link::start(shouter().await).await.expect("a link");
        let mut stream = connect(&link).await;
        link.change(|state| (state.delay, state.jitter) = (Duration::from_millis(30), Duration::from_millis(20)));
        let start = Instant::now();
        for byte in [b"a", b"b", b"c"] {
            stream.write_all(byte).await.expect("a write");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut received = String::new();
        while received.len() < 3 {
            received += &receive(&mut stream).await.expect("an answer");
        }
        assert_eq!(received, "ABC");
        assert!(start.elapsed() >= Duration::from_millis(60));
    }
}
