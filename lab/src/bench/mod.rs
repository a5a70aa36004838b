//! `quorlock-lab bench`: what lock and unlock cost, beside what the same nodes allow at all.
//!
//! `cargo bench -p quorlock-lab` runs this very code with other crates beside quorlock; see `benches/peers.rs`.

mod cases;
mod fleet;
pub mod lockers;
mod measure;
mod plot;
mod report;
mod turns;
mod worker;

use std::fmt::Display;
use std::path::PathBuf;
use std::process;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use self::cases::Case;
use self::fleet::Fleet;
use self::lockers::{
    Callers, FENCED, Floor, InRuntime, Measured, OWN, Ours, PLAIN, Place, Scripts, fan_out, fan_out_scripts,
};
use self::report::Report;
use crate::exit::{self, Exit, Failure};
use crate::messages::Verbosity;

/// The exit code of `--check` when a target is missed.
const MISSED: u8 = 1;

const SHORTEST_STRETCH: Duration = Duration::from_millis(1);

const ABOUT: &str = "\
Measure lock and unlock beside what the same nodes allow at all.

Each case runs in rounds: every implementation for a short stretch of time, one after the other, again and again. What \
counts are ratios within a round, so that noise which lasts longer hits all alike; printed is the median of the rounds.

  floor     bare sockets: one thread, bytes written by hand, one-line scripts, back at the answer that makes a majority
  fenced    the same with the Redis commands that a lock with a ballot cannot do without, and no other line of script:
            MGET, SET, SET to lock, and MGET, DEL, SET to unlock
  scripts   the same with quorlock's own scripts
  redis-rs  the one-line scripts by redis-rs, one multiplexed connection for each node, from a spawned tokio task
  redis-rs-scripts  the same with quorlock's own scripts
  quorlock  this library, as its users call it, from a spawned tokio task

Without --nodes it starts redis-servers of its own on loopback and stops them at the end. On given nodes it writes keys \
that begin with quorlock:bench: and, for ten minutes, their ballots; the cases that pause servers are left out.

Missed targets are printed as such; the exit code does not change unless --check is given (then it is 1).";

/// Measure lock and unlock beside what the same nodes allow at all
#[derive(Args)]
#[command(long_about = ABOUT)]
pub struct Flags {
    /// Measure on these Redis masters, URLs with commas between, instead of servers of its own
    #[arg(long, short, value_name = "URL,...", value_delimiter = ',', conflicts_with = "nodes_count")]
    nodes: Vec<String>,

    /// How many servers of its own to start
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [3, 5])]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=63))]
    nodes_count: Vec<u8>,

    /// How many rounds
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    /// How long an implementation is measured in each round
    #[arg(long = "for", value_name = "DURATION", default_value = "400ms", value_parser = humantime::parse_duration)]
    stretch: Duration,

    /// Which cases [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_enum)]
    case: Vec<Case>,

    /// Which implementations [default: all]; with one alone, a profiler sees nothing else
    #[arg(long = "impl", value_name = "NAME,...", value_delimiter = ',')]
    implementations: Vec<String>,

    /// Print one JSON object per line
    #[arg(long)]
    json: bool,

    /// Also draw the figures
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// End with code 1 when a target is missed
    #[arg(long)]
    check: bool,

    /// Print no progress
    #[arg(long, short)]
    quiet: bool,

    /// The job of a process that the bench starts itself
    #[arg(long, hide = true, value_enum)]
    worker: Option<worker::Kind>,

    #[arg(long, hide = true, default_value = "quorlock")]
    locker: String,
}

/// Another implementation: its name, and how it connects.
pub struct Peer {
    pub name: &'static str,
    pub connect: fn(Place, &[String]) -> Connected,
}

pub type Connected = Result<Box<dyn Measured>, Failure>;

/// The delay between the effect of a signal on other processes of the group and its receipt here.
const INTERRUPTING: Duration = Duration::from_millis(300);

/// Runs the bench with `peers` beside quorlock, in a program that takes `words` before these flags.
pub fn run(flags: &Flags, peers: &[Peer], words: &'static [&'static str]) -> Result<u8, Failure> {
    if flags.stretch < SHORTEST_STRETCH {
        return Err(Failure::new(Exit::Usage, "a measurement takes time: choose a longer --for, as in `--for 400ms`"));
    }
    let known: Vec<&str> = implementations(peers).collect();
    if let Some(unknown) = flags.implementations.iter().find(|name| !known.contains(&name.as_str())) {
        let message = format!("there is no implementation '{unknown}'; --impl takes {}", known.join(", "));
        return Err(Failure::new(Exit::Usage, message));
    }
    // The runtime that `#[tokio::main]` builds.
    let runtime = Arc::new(Runtime::new().map_err(|error| fleet::failure("cannot start", &error))?);
    if let Some(kind) = flags.worker {
        return worker::work(kind, &runtime, peers, flags).map(|()| Exit::Success.code());
    }
    let fleet = Arc::new(Mutex::new(Fleet::given(flags.nodes.clone())));
    let _stop = StopAtEnd(Arc::clone(&fleet));
    stop_on_signals(&runtime, &fleet)?;
    let done = measure(flags, peers, words, &fleet, &runtime);
    if done.is_err() {
        // Ctrl-C reaches the whole process group: the servers may end before it is received here. Then the signal ends this
        // process meanwhile, and the error of a measurement says nothing.
        std::thread::sleep(INTERRUPTING);
    }
    done
}

fn measure(
    flags: &Flags,
    peers: &[Peer],
    words: &'static [&'static str],
    fleet: &Arc<Mutex<Fleet>>,
    runtime: &Arc<Runtime>,
) -> Result<u8, Failure> {
    let mut counts: Vec<usize> = flags.nodes_count.iter().copied().map(usize::from).collect();
    if flags.nodes.is_empty() {
        let most = counts.iter().copied().max().unwrap_or(1);
        locked(fleet).start(most).map_err(|error| fleet::failure("cannot start the servers", &error))?;
    } else {
        counts = vec![flags.nodes.len()];
    }
    let verbosity = if flags.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let fleet = Arc::clone(fleet);
    let mut bench = Bench { flags, counts, fleet, runtime, peers, words, verbosity, fields: Vec::new() };
    let mut report = Report::new(flags.json);
    for case in Case::chosen(&flags.case) {
        bench.verbosity.notice(format_args!("measuring {}: {}", case.name(), case.about()));
        case.measure(&mut bench, &mut report)?;
    }
    report.print(!peers.is_empty());
    if let Some(file) = &flags.plot {
        let drawn = std::fs::write(file, plot::draw(report.entries()));
        drawn.map_err(|error| fleet::failure(&format!("cannot write {}", file.display()), &error))?;
    }
    Ok(if flags.check && report.has_missed() { MISSED } else { Exit::Success.code() })
}

/// The state that all cases share.
pub struct Bench<'a> {
    flags: &'a Flags,
    counts: Vec<usize>,
    fleet: Arc<Mutex<Fleet>>,
    runtime: &'a Arc<Runtime>,
    peers: &'a [Peer],
    words: &'static [&'static str],
    verbosity: Verbosity,
    /// The implementations for each number of nodes, connected when they are first needed.
    fields: Vec<(usize, Field)>,
}

/// The implementations side by side.
pub type Field = Rc<Vec<Box<dyn Measured>>>;

impl Bench<'_> {
    /// The largest number of nodes.
    fn nodes(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(1)
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        locked(&self.fleet)
    }

    /// Connects to the first `nodes` nodes: the floors (unless they need TLS), redis-rs, quorlock, and the peers.
    fn field(&mut self, nodes: usize) -> Result<Field, Failure> {
        if let Some((_, field)) = self.fields.iter().find(|(count, _)| *count == nodes) {
            return Ok(Rc::clone(field));
        }
        let urls = self.fleet().urls(nodes);
        let mut all: Vec<Box<dyn Measured>> = Vec::new();
        for scripts in FLOORS.into_iter().filter(|scripts| self.is_chosen(scripts.name)) {
            match Floor::new(&urls, scripts)? {
                Some(floor) => all.push(Box::new(floor)),
                None => self.skip(scripts.name, "bare sockets speak plain TCP only"),
            }
        }
        all.extend(self.connect_all(&self.tasks(), nodes)?);
        let field = Rc::new(all);
        self.fields.push((nodes, Rc::clone(&field)));
        Ok(field)
    }

    /// Connects the implementations that need a runtime to the first `nodes` nodes.
    fn connect_all(&self, place: &Place, nodes: usize) -> Result<Vec<Box<dyn Measured>>, Failure> {
        let urls = self.fleet().urls(nodes);
        let chosen = clients(self.peers).filter(|name| self.is_chosen(name));
        chosen.map(|name| connect(name, place.clone(), self.peers, &urls)).collect()
    }

    fn is_chosen(&self, name: &str) -> bool {
        self.flags.implementations.is_empty() || self.flags.implementations.iter().any(|chosen| chosen == name)
    }

    /// Spawned tasks, on the default runtime.
    fn tasks(&self) -> Place {
        Place { runtime: Arc::clone(self.runtime), callers: Callers::Tasks }
    }

    fn skip(&self, what: &str, why: impl Display) {
        self.verbosity.notice(format_args!("left out: {what}; {why}"));
    }
}

const FLOORS: [Scripts; 3] = [PLAIN, FENCED, OWN];

fn implementations(peers: &[Peer]) -> impl Iterator<Item = &'static str> {
    FLOORS.iter().map(|floor| floor.name).chain(clients(peers))
}

/// The implementations that need a runtime.
fn clients(peers: &[Peer]) -> impl Iterator<Item = &'static str> {
    ["redis-rs", "redis-rs-scripts", "quorlock"].into_iter().chain(peers.iter().map(|peer| peer.name))
}

/// Connects one implementation that needs a runtime.
fn connect(name: &str, place: Place, peers: &[Peer], urls: &[String]) -> Connected {
    let runtime = &place.runtime;
    match name {
        "redis-rs" => {
            let locker = runtime.block_on(fan_out(urls))?;
            Ok(Box::new(InRuntime { name: "redis-rs", locker, place, waits: false }))
        }
        "redis-rs-scripts" => {
            let locker = runtime.block_on(fan_out_scripts(urls))?;
            Ok(Box::new(InRuntime { name: "redis-rs-scripts", locker, place, waits: false }))
        }
        "quorlock" => {
            let locker = runtime.block_on(Ours::connect(urls))?;
            Ok(Box::new(InRuntime { name: "quorlock", locker, place, waits: true }))
        }
        name => {
            let peer = peers.iter().find(|peer| peer.name == name);
            let peer = peer.ok_or_else(|| Failure::new(Exit::Usage, format!("there is no implementation '{name}'")))?;
            (peer.connect)(place, urls)
        }
    }
}

/// The servers end with the bench, also when it panics.
struct StopAtEnd(Arc<Mutex<Fleet>>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        locked(&self.0).stop();
    }
}

fn stop_on_signals(runtime: &Runtime, fleet: &Arc<Mutex<Fleet>>) -> Result<(), Failure> {
    let _inside = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).map_err(|error| fleet::failure("cannot wait for signals", &error))?;
        let fleet = Arc::clone(fleet);
        runtime.spawn(async move {
            signals.recv().await;
            locked(&fleet).stop();
            process::exit(exit::ended_by(kind.as_raw_value()).into());
        });
    }
    Ok(())
}

fn locked(fleet: &Mutex<Fleet>) -> MutexGuard<'_, Fleet> {
    fleet.lock().unwrap_or_else(PoisonError::into_inner)
}
