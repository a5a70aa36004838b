//! The events of a worker, one line each on stdout.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Job;
use crate::chaos::history::{Event, What, now};

/// More requests than any life of a worker makes.
const OPS_PER_LIFE: u64 = 10_000_000;

#[derive(Clone)]
pub struct EventLog {
    ops: Arc<AtomicU64>,
}

impl EventLog {
    pub fn new(job: &Job) -> Self {
        Self { ops: Arc::new(AtomicU64::new(job.life * OPS_PER_LIFE)) }
    }

    /// Returns a number that no other request of the run has.
    pub fn next_op(&self) -> u64 {
        self.ops.fetch_add(1, Ordering::Relaxed)
    }

    /// Now.
    pub fn write(&self, what: What) {
        self.write_at(now(), what);
    }

    #[expect(clippy::unused_self, reason = "only a worker has a log")]
    pub fn write_at(&self, at: u64, what: What) {
        write_event(&Event { at, what });
    }
}

/// Writes each line in one call, so that a killed process leaves whole lines. When the reader is gone, the process
/// ends.
pub fn write_event(event: &Event) {
    let Ok(mut line) = serde_json::to_vec(event) else { return };
    line.push(b'\n');
    if std::io::stdout().lock().write_all(&line).is_err() {
        std::process::exit(0);
    }
}
