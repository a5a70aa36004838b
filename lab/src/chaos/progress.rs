//! The progress of a run, as a line on stderr.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::fault::Kind;
use super::history::What;
use crate::messages;

/// The interval of lines where they cannot replace each other.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    quiet: bool,
    /// One line, written over and over.
    terminal: bool,
    lasts: Duration,
    start: Instant,
    said: Instant,
    /// What is counted, and how many so far.
    counted: &'static str,
    count: u64,
    counted_said: u64,
    last_draw: Instant,
    rate: u64,
    active: BTreeMap<usize, (Kind, Vec<usize>, Option<usize>)>,
}

impl Progress {
    pub fn new(quiet: bool, lasts: Duration, counted: &'static str) -> Self {
        let now = Instant::now();
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            lasts,
            start: now,
            said: now,
            counted,
            count: 0,
            counted_said: 0,
            last_draw: now,
            rate: 0,
            active: BTreeMap::new(),
        }
    }

    pub fn note(&mut self, what: &What) {
        match what {
            What::Grant { .. } | What::Line { .. } => self.count += 1,
            What::Fault { id, kind, nodes, worker, .. } => {
                self.active.insert(*id, (*kind, nodes.clone(), *worker));
            }
            What::Heal { id, .. } => drop(self.active.remove(id)),
            _ => {}
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Writes the progress, at most once per interval.
    pub fn draw(&mut self) {
        if self.quiet {
            return;
        }
        let since = self.last_draw.elapsed().as_millis().max(1);
        self.rate = u64::try_from(u128::from(self.count - self.counted_said) * 1000 / since).unwrap_or(0);
        (self.counted_said, self.last_draw) = (self.count, Instant::now());
        if self.terminal {
            // Return to the start of the line, and clear the rest of it.
            self.write(&format!("\r{}\x1b[K", self.text()));
        } else if self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            self.write(&format!("{}\n", self.text()));
        }
    }

    fn text(&self) -> String {
        let left = self.lasts.saturating_sub(self.start.elapsed()).as_secs();
        let faults: Vec<String> =
            self.active.values().map(|(kind, nodes, worker)| named(*kind, nodes, *worker)).collect();
        let faults = if faults.is_empty() { "all is well".to_owned() } else { faults.join(", ") };
        let line = format!("chaos: {left} s left, {} {}, {}/s; {faults}", self.count, self.counted, self.rate);
        // A line that wraps could not be overwritten.
        if self.terminal { line.chars().take(columns()).collect() } else { line }
    }

    /// Writes a line that stays.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.end();
            messages::Verbosity::Normal.notice(text);
        }
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.terminal && !self.quiet {
            self.write("\r\x1b[K");
        }
    }

    #[expect(clippy::unused_self, reason = "only the owner of the line may write")]
    fn write(&self, text: &str) {
        // A closed stderr does not end the run.
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok();
    size.map_or(80, |size| usize::from(size.ws_col)).max(20) - 1
}

/// Returns the description of a fault, with its nodes or worker.
pub fn named(kind: Kind, nodes: &[usize], worker: Option<usize>) -> String {
    let numbers = |of: &[usize]| of.iter().map(|i| (i + 1).to_string()).collect::<Vec<_>>().join(" ");
    match (worker, nodes) {
        (Some(worker), _) => format!("{kind} ({})", worker + 1),
        (None, nodes) => format!("{kind} ({})", numbers(nodes)),
    }
}
