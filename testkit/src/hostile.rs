//! A node that turns hostile: it sends endless or malformed bytes, or reads nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How soon a change of the kind takes effect.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long every second connection to a hostile node behaves honestly.
const MANNERS: Duration = Duration::from_millis(30);

/// The behaviour of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passes all bytes on to a server.
    Honest,
    /// Endless answers without a request.
    Answers,
    /// Endless calls of waiters.
    Calls,
    /// One line without an end.
    Line,
    /// The announcement of a string of 2 GiB, and endless bytes.
    Length,
    /// The announcement of as many values, and such values.
    Count,
    /// A string of 100 MB.
    Value,
    /// Endlessly nested arrays.
    Nested,
    /// Random bytes.
    Garbage,
    /// Neither reads nor writes.
    Stuck,
}

/// Every kind but [`Kind::Honest`].
pub const HOSTILE: [Kind; 9] = [
    Kind::Answers,
    Kind::Calls,
    Kind::Line,
    Kind::Length,
    Kind::Count,
    Kind::Value,
    Kind::Nested,
    Kind::Garbage,
    Kind::Stuck,
];

impl Kind {
    /// Returns the bytes that are sent first, and those that are repeated after them.
    fn bytes(self) -> (Vec<u8>, Vec<u8>) {
        const CALL: &[u8] = b">3\r\n$7\r\nmessage\r\n$30\r\nquorlock:call:0123456789abcdef\r\n$4\r\n1234\r\n";
        let again = |bytes: &[u8]| bytes.repeat(1 + (1 << 16) / bytes.len());
        match self {
            Self::Honest | Self::Stuck => (Vec::new(), Vec::new()),
            Self::Answers => (Vec::new(), again(b":1\r\n")),
            Self::Calls => (Vec::new(), again(CALL)),
            Self::Line => (b"+".to_vec(), again(b"a")),
            Self::Length => (b"$2147483647\r\n".to_vec(), again(b"a")),
            Self::Count => (b"*2147483647\r\n".to_vec(), again(b":1\r\n")),
            Self::Value => (b"$100000000\r\n".to_vec(), again(b"a")),
            Self::Nested => (Vec::new(), again(b"*1\r\n")),
            Self::Garbage => {
                let mut state: u32 = 1;
                let next = |_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                };
                (Vec::new(), (0..1 << 16).map(next).collect())
            }
        }
    }
}

#[derive(Debug)]
struct State {
    kind: AtomicUsize,
    made: AtomicUsize,
    ends: AtomicBool,
}

impl State {
    fn kind(&self) -> Kind {
        let all = [&[Kind::Honest][..], &HOSTILE].concat();
        all[self.kind.load(Ordering::Relaxed)]
    }
}

/// A proxy in front of a server, in threads of its own. Ends when dropped.
pub struct Hostile {
    port: u16,
    state: Arc<State>,
}

impl Hostile {
    /// Starts an honest one, in front of the server on this port.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State { kind: 0.into(), made: 0.into(), ends: false.into() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.ends.load(Ordering::Relaxed) {
                    return;
                }
                let number = shared.made.fetch_add(1, Ordering::Relaxed);
                serve(client, target, number, &shared);
            }
        });
        Self { port, state }
    }

    /// Returns the URL that clients connect to.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sets the behaviour from now on. The change back to an honest node breaks all connections.
    pub fn set(&self, kind: Kind) {
        let place = HOSTILE.iter().position(|hostile| *hostile == kind).map_or(0, |place| place + 1);
        self.state.kind.store(place, Ordering::Relaxed);
    }

    /// Returns how many connections were made so far.
    pub fn connections(&self) -> usize {
        self.state.made.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// Runs the two threads of a connection: one for each direction.
#[expect(clippy::too_many_lines, reason = "one arm for each kind of hostility")]
fn serve(client: TcpStream, target: u16, number: usize, state: &Arc<State>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(LOOK_EVERY)).expect("a socket");
        stream.set_write_timeout(Some(LOOK_EVERY)).expect("a socket");
    }
    let manners = if number.is_multiple_of(2) { MANNERS } else { Duration::ZERO };
    let hostile_from = if state.kind() == Kind::Honest { Instant::now() } else { Instant::now() + manners };
    let (mut asks, mut answered) = (client.try_clone().expect("a socket"), client);
    let (mut to_server, mut from_server) = (server.try_clone().expect("a socket"), server);
    let is_hostile = move |state: &State| state.kind() != Kind::Honest && Instant::now() >= hostile_from;
    let shared = Arc::clone(state);
    thread::spawn(move || {
        let mut bytes = [0; 1 << 14];
        let mut was_hostile = false;
        while !shared.ends.load(Ordering::Relaxed) && (is_hostile(&shared) || !was_hostile) {
            was_hostile |= is_hostile(&shared);
            if was_hostile && shared.kind() == Kind::Stuck {
                thread::sleep(LOOK_EVERY);
                continue;
            }
            match asks.read(&mut bytes) {
                Ok(read) if read > 0 => {
                    if !was_hostile && to_server.write_all(&bytes[..read]).is_err() {
                        break;
                    }
                }
                Err(error) if is_passing(error.kind()) => {}
                _ => break,
            }
        }
        drop((asks.shutdown(Shutdown::Both), to_server.shutdown(Shutdown::Both)));
    });
    let shared = Arc::clone(state);
    thread::spawn(move || {
        let mut bytes = [0; 1 << 14];
        while !shared.ends.load(Ordering::Relaxed) && !is_hostile(&shared) {
            match from_server.read(&mut bytes) {
                Ok(read) if read > 0 => {
                    if answered.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
                Err(error) if is_passing(error.kind()) => {}
                _ => return,
            }
        }
        let kind = shared.kind();
        let (first, again) = kind.bytes();
        if answered.write_all(&first).is_err() {
            return;
        }
        let mut left: &[u8] = &again;
        while !left.is_empty() && !shared.ends.load(Ordering::Relaxed) && shared.kind() == kind {
            match answered.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if is_passing(error.kind()) => {}
                Err(_) => return,
            }
            if left.is_empty() {
                left = &again;
            }
        }
    });
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
