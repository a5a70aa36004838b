//! A proxy in front of a node that can lose what passes, requests or only the answers to them, or hold the answers back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// The node does what it is asked, and nobody hears of it.
    LoseAnswers,
    /// The node does what it is asked, and nobody hears of it yet.
    HoldAnswers,
    /// Nothing reaches the node.
    LoseRequests,
}

pub struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
    lost: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let lost = Arc::new(AtomicU64::new(0));
        let (modes, losses) = (Arc::clone(&mode), Arc::clone(&lost));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, target, modes.subscribe(), Arc::clone(&losses)));
            }
        });
        Self { port, mode, lost, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Going back to [`Mode::Pass`] breaks the connections on which something was lost: a stream cannot continue after a
    /// gap.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many bytes were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, target: u16, mut modes: watch::Receiver<Mode>, lost: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (mut asked, mut answered) = ([0; 16384], [0; 16384]);
    let mut gap = false;
    loop {
        let mode = *modes.borrow_and_update();
        if mode == Mode::Pass && gap {
            return;
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            read = client.read(&mut asked) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) if *modes.borrow() == Mode::LoseRequests => {
                    gap = true;
                    lost.fetch_add(n as u64, Ordering::Relaxed);
                }
                Ok(n) => if server.write_all(&asked[..n]).await.is_err() { return },
            },
            read = server.read(&mut answered), if mode != Mode::HoldAnswers => match read {
                Ok(0) | Err(_) => return,
                Ok(n) if *modes.borrow() == Mode::LoseAnswers => {
                    gap = true;
                    lost.fetch_add(n as u64, Ordering::Relaxed);
                }
                Ok(n) => if client.write_all(&answered[..n]).await.is_err() { return },
            },
        }
    }
}
