//! A proxy in front of a node that loses or holds back requests or answers, and counts what it did.
#![allow(clippy::large_futures, reason = "a buffer for a connection is no matter in tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The treatment of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything arrives.
    Pass,
    /// The node executes the requests, and the answers are lost.
    LoseAnswers,
    /// The node executes the requests, and the answers are held back.
    HoldAnswers,
    /// The requests are lost.
    LoseRequests,
}

/// The state that all connections of a proxy share.
#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// The port of the node.
    target: u16,
    /// Connections with smaller numbers hold back their requests, also after the client has closed them.
    holds_before: usize,
    /// Connections with smaller numbers deliver the requests that they held back.
    delivers_before: usize,
}

impl State {
    fn holds(&self, connection: usize) -> bool {
        connection < self.holds_before && connection >= self.delivers_before
    }
}

/// A proxy in front of a node. Ends when dropped.
pub struct Proxy {
    port: u16,
    state: Arc<watch::Sender<State>>,
    lost: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
    made: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to the node on this port.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let new = State { mode: Mode::Pass, target, holds_before: 0, delivers_before: 0 };
        let state = Arc::new(watch::Sender::new(new));
        let (lost, held, made) = (Arc::default(), Arc::default(), Arc::new(AtomicUsize::new(0)));
        let (states, losses, holds) = (Arc::clone(&state), Arc::clone(&lost), Arc::clone(&held));
        let numbers = Arc::clone(&made);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let (lost, held) = (Arc::clone(&losses), Arc::clone(&holds));
                connections.spawn(Relay { number, states: states.subscribe(), lost, held }.run(client));
            }
        });
        Self { port, state, lost, held, made, task }
    }

    /// Returns the URL that clients connect to.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sets the mode. Going back to [`Mode::Pass`] breaks the connections on which something was lost: a stream cannot continue after a
    /// gap.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Holds back the requests on open connections until [`deliver`](Self::deliver). New connections work.
    pub fn hold_requests(&self) {
        let made = self.made.load(Ordering::Relaxed);
        self.state.send_modify(|state| state.holds_before = made);
    }

    /// Delivers held requests to the node, also those of clients that have closed the connection.
    pub fn deliver(&self) {
        self.state.send_modify(|state| state.delivers_before = state.holds_before);
    }

    /// Returns how many bytes were held back so far.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns how many connections were made so far.
    pub fn connections(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Leads to the server on another port from now on. Breaks all connections.
    pub fn lead_to(&self, target: u16) {
        self.state.send_modify(|state| state.target = target);
    }

    /// Returns how many bytes were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection through the proxy.
struct Relay {
    number: usize,
    states: watch::Receiver<State>,
    lost: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
}

impl Relay {
    async fn run(mut self, mut client: TcpStream) {
        let State { target, .. } = *self.states.borrow();
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
        drop((client.set_nodelay(true), server.set_nodelay(true)));
        let (mut asked, mut answered) = ([0; 16384], [0; 16384]);
        let mut gap = false;
        loop {
            let state = *self.states.borrow_and_update();
            if (state.mode == Mode::Pass && gap) || state.target != target {
                return;
            }
            if state.holds(self.number) {
                return self.hold(client, server, Vec::new()).await;
            }
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return },
                read = client.read(&mut asked) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(n) if self.states.borrow().mode == Mode::LoseRequests => {
                        gap = true;
                        self.lost.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    Ok(n) if self.states.borrow().holds(self.number) => {
                        self.held.fetch_add(n as u64, Ordering::Relaxed);
                        return self.hold(client, server, asked[..n].to_vec()).await;
                    }
                    Ok(n) => if server.write_all(&asked[..n]).await.is_err() { return },
                },
                read = server.read(&mut answered), if state.mode != Mode::HoldAnswers => match read {
                    Ok(0) | Err(_) => return,
                    Ok(n) if self.states.borrow().mode == Mode::LoseAnswers => {
                        gap = true;
                        self.lost.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    Ok(n) => if client.write_all(&answered[..n]).await.is_err() { return },
                },
            }
        }
    }

    /// Reads the remaining requests of the client, and delivers them when their time comes. It keeps the connection to the
    /// node open: a node that loses it may not read all requests.
    async fn hold(mut self, mut client: TcpStream, mut server: TcpStream, mut late: Vec<u8>) {
        let mut is_open = true;
        while self.states.borrow_and_update().holds(self.number) {
            let mut asked = [0; 16384];
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return },
                read = client.read(&mut asked), if is_open => match read {
                    Ok(n) if n > 0 => {
                        late.extend_from_slice(&asked[..n]);
                        self.held.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    _ => is_open = false,
                },
            }
        }
        if server.write_all(&late).await.is_ok() {
            let mut ignored = [0; 16384];
            while let Ok(1..) = server.read(&mut ignored).await {}
        }
    }
}
