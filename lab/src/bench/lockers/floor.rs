//! The floor: the limit of the sockets themselves. One thread has one connection to each node, writes prepared bytes, and
//! only counts the answers.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};

use super::commands::{Command, Scripts, encode};
use super::{LEASE, Measured, WARM_UP};
use crate::bench::fleet::unreachable;
use crate::bench::measure::{Clock, Cycles, Stretch};
use crate::bench::turns::{Turn, Turns, now};
use crate::exit::Failure;

/// The time without an answer after which a node has failed.
const SILENCE: Duration = Duration::from_secs(5);

pub struct Floor {
    urls: Vec<String>,
    scripts: Scripts,
}

impl Floor {
    /// Returns `None` when the nodes need more than plain TCP.
    pub fn new(urls: &[String], scripts: Scripts) -> Result<Option<Self>, Failure> {
        for url in urls {
            let info = url.as_str().into_connection_info().map_err(|error| unreachable(url, &error))?;
            if !matches!(info.addr(), ConnectionAddr::Tcp(..)) {
                return Ok(None);
            }
        }
        Ok(Some(Self { urls: urls.to_vec(), scripts }))
    }

    fn warn(&self, error: &io::Error) {
        crate::messages::error(format_args!("{} on bare sockets failed: {error}", self.scripts.name));
    }

    fn loom(&self, slots: usize) -> io::Result<Loom> {
        let wires = self.urls.iter().map(|url| Wire::connect(url, self.scripts)).collect::<io::Result<Vec<Wire>>>()?;
        let slots: Vec<Slot> = (0..slots).map(|slot| Slot::new(slot, self.scripts)).collect();
        if slots.iter().any(|it| it.acquire.says_record) && wires.iter().any(|wire| wire.record == b"$-1\r\n") {
            return Err(io::Error::other("a node has no record yet; quorlock writes it when it connects"));
        }
        Ok(Loom { quorum: wires.len() / 2 + 1, wires, slots, cycles: Cycles::default() })
    }

    fn measure(&self, tasks: usize, stretch: Duration) -> io::Result<Stretch> {
        let mut loom = self.loom(tasks)?;
        loom.run(|loom| loom.cycles.count() >= WARM_UP * tasks)?;
        loom.cycles = Cycles::default();
        let (clock, began) = (Clock::start(), Instant::now());
        loom.run(|loom| loom.cycles.count() > 0 && began.elapsed() >= stretch)?;
        Ok(clock.stop(loom.cycles))
    }
}

impl Measured for Floor {
    fn name(&self) -> &'static str {
        self.scripts.name
    }

    fn is_floor(&self) -> bool {
        true
    }

    fn cycles(&self, tasks: usize, stretch: Duration) -> Stretch {
        self.measure(tasks, stretch).unwrap_or_else(|error| {
            self.warn(&error);
            Clock::start().stop(Cycles::failed(1))
        })
    }

    fn turns(&self, tasks: usize, inside: Duration, stretch: Duration) -> Option<Turns> {
        let turns = self.loom(1).and_then(|mut loom| loom.turns(tasks, inside, stretch));
        turns.inspect_err(|error| self.warn(error)).ok()
    }
}

/// One of the concurrent cycles.
struct Slot {
    acquire: Command,
    release: Command,
    ballot: u128,
    /// The number of the round, which distinguishes late answers from awaited ones.
    round: u32,
    is_release: bool,
    is_granted: bool,
    yes: usize,
    no: usize,
    began: Instant,
    running: bool,
}

impl Slot {
    fn new(task: usize, scripts: Scripts) -> Self {
        let [acquire, release] = scripts.commands(task);
        Self {
            acquire,
            release,
            ballot: 0,
            round: 0,
            is_release: false,
            is_granted: false,
            yes: 0,
            no: 0,
            began: Instant::now(),
            running: false,
        }
    }
}

/// A connection that never blocks.
struct Wire {
    stream: TcpStream,
    output: Vec<u8>,
    input: Vec<u8>,
    /// The node record as an argument, or the answer that the node has none.
    record: Vec<u8>,
    /// The slots and rounds of the next answers.
    expected: VecDeque<(usize, u32)>,
}

impl Wire {
    fn connect(url: &str, scripts: Scripts) -> io::Result<Self> {
        let info = url.into_connection_info().map_err(io::Error::other)?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(io::ErrorKind::Unsupported.into()) };
        let stream = TcpStream::connect((host.as_str(), *port))?;
        stream.set_nodelay(true)?;
        let (output, input, record) = (Vec::new(), Vec::new(), Vec::new());
        let mut wire = Self { stream, output, input, record, expected: VecDeque::new() };
        wire.shake_hands(info.redis_settings(), scripts)?;
        wire.stream.set_nonblocking(true)?;
        Ok(wire)
    }

    /// Reads the record while the connection still blocks.
    fn shake_hands(&mut self, settings: &RedisConnectionInfo, scripts: Scripts) -> io::Result<()> {
        let mut greetings = vec![encode(&["SELECT", &settings.db().to_string()])];
        if let Some(password) = settings.password() {
            let mut auth = vec!["AUTH"];
            auth.extend(settings.username());
            auth.push(password);
            greetings.insert(0, encode(&auth));
        }
        greetings.extend([scripts.acquire, scripts.release].map(|code| encode(&["SCRIPT", "LOAD", code])));
        greetings.push(encode(&["GET", "quorlock:node"]));
        self.stream.set_read_timeout(Some(SILENCE))?;
        for greeting in greetings {
            self.stream.write_all(&greeting)?;
            let mut answer = [0; 512]; // The longest is the record.
            match self.stream.read(&mut answer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read if answer[0] == b'-' => return Err(io::Error::other(String::from_utf8_lossy(&answer[..read]))),
                read => self.record = answer[..read].to_vec(), // The last one stays.
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the received answers: their slot and round, and whether they grant. Every answer of the two scripts is one
    /// line, so any other is an error.
    fn receive(&mut self, answers: &mut Vec<(usize, u32, bool)>) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.input.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut rest = self.input.as_slice();
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let (slot, round) = self.expected.pop_front().ok_or(io::ErrorKind::InvalidData)?;
            let is_yes = match &rest[..end] {
                b"+OK" | b":1" => true,
                b"$-1" | b":0" => false,
                _ => return Err(io::Error::other(format!("a node answers {}", rest.escape_ascii()))),
            };
            answers.push((slot, round, is_yes));
            rest = &rest[end + 2..];
        }
        let parsed = self.input.len() - rest.len();
        self.input.drain(..parsed);
        Ok(())
    }
}

/// All cycles over all wires.
struct Loom {
    wires: Vec<Wire>,
    slots: Vec<Slot>,
    quorum: usize,
    cycles: Cycles,
}

impl Loom {
    /// Runs until `enough`, and until all expected answers have arrived.
    fn run(&mut self, enough: impl Fn(&Self) -> bool) -> io::Result<()> {
        for slot in 0..self.slots.len() {
            self.slots[slot].running = true;
            self.begin(slot);
        }
        let mut answers = Vec::new();
        loop {
            self.wires.iter_mut().try_for_each(Wire::flush)?;
            if self.wires.iter().all(|wire| wire.expected.is_empty()) {
                return Ok(());
            }
            let ready = self.wait()?;
            let alone = self.slots.len() == 1;
            for (wire, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
                self.wires[wire].receive(&mut answers)?;
                let mut decided = false;
                for answer in answers.drain(..) {
                    decided |= self.count(answer, &enough);
                }
                if decided && alone {
                    break; // The next request goes before the late answers.
                }
            }
        }
    }

    /// Hands one lock around this number of contenders without notifying them: each message to a node releases the lock and
    /// acquires it again.
    fn turns(&mut self, contenders: usize, inside: Duration, stretch: Duration) -> io::Result<Turns> {
        let began = Instant::now();
        let (mut taken, mut failed) = (Vec::new(), 0);
        loop {
            self.begin(0);
            failed += usize::from(!self.is_granted()?);
            let entered = now();
            thread::sleep(inside);
            taken.push(Turn { who: taken.len() % contenders, entered, left: now() });
            self.slots[0].is_release = true;
            self.send(0);
            if began.elapsed() >= stretch {
                failed += usize::from(!self.is_granted()?);
                break;
            }
        }
        let mut turns = Turns::new(contenders);
        turns.add(taken, failed);
        Ok(turns)
    }

    /// Sends all queued bytes, and waits for the verdict on the latest round of the only slot.
    fn is_granted(&mut self) -> io::Result<bool> {
        let mut answers = Vec::new();
        self.wires.iter_mut().try_for_each(Wire::flush)?;
        loop {
            let ready = self.wait()?;
            for (wire, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
                self.wires[wire].receive(&mut answers)?;
                let it = &mut self.slots[0];
                for (_, _, is_yes) in answers.drain(..).filter(|(_, round, _)| *round == it.round) {
                    *(if is_yes { &mut it.yes } else { &mut it.no }) += 1;
                }
                if it.yes >= self.quorum || it.no > self.wires.len() - self.quorum {
                    return Ok(it.yes >= self.quorum);
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<bool>> {
        let mut waited: Vec<PollFd> = self
            .wires
            .iter()
            .map(|wire| {
                let unsent = if wire.output.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                PollFd::new(wire.stream.as_fd(), PollFlags::POLLIN | unsent)
            })
            .collect();
        let limit = PollTimeout::try_from(SILENCE).unwrap_or(PollTimeout::MAX);
        if poll(&mut waited, limit)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok(waited.iter().map(|fd| fd.revents().is_some_and(|events| events.intersects(readable))).collect())
    }

    /// Returns `true` when this answer decided a round.
    fn count(&mut self, (slot, round, is_yes): (usize, u32, bool), enough: &impl Fn(&Self) -> bool) -> bool {
        let most_no = self.wires.len() - self.quorum;
        let it = &mut self.slots[slot];
        if round != it.round || !it.running {
            return false;
        }
        if is_yes {
            it.yes += 1;
        } else {
            it.no += 1;
        }
        if it.yes < self.quorum && it.no <= most_no {
            return false;
        }
        let won = it.yes >= self.quorum;
        if it.is_release {
            self.cycles.add(it.began.elapsed(), it.is_granted && won);
            self.slots[slot].running = !enough(self);
            if self.slots[slot].running {
                self.begin(slot);
            }
        } else {
            it.is_granted = won;
            it.is_release = true;
            self.send(slot);
        }
        true
    }

    fn begin(&mut self, slot: usize) {
        self.slots[slot].is_release = false;
        self.slots[slot].began = Instant::now();
        self.send(slot);
    }

    fn send(&mut self, slot: usize) {
        let it = &mut self.slots[slot];
        it.round += 1;
        (it.yes, it.no) = (0, 0);
        if !it.is_release {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            it.ballot = now.as_micros().max(it.ballot + 1);
            let ballot = format!("{:016}", it.ballot);
            let end = format!("{:013}", (now + LEASE).as_millis() + 1);
            it.acquire.fill_in(&ballot, &end);
            it.release.fill_in(&ballot, &end);
        }
        let command = if it.is_release { &it.release } else { &it.acquire };
        for wire in &mut self.wires {
            command.write_to(&mut wire.output, &wire.record);
            wire.expected.push_back((slot, it.round));
        }
    }
}
