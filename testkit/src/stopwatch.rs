//! Time without that for which the machine did not run what was ready to run.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the thread looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How late a thread wakes on an idle machine.
const USUAL: Duration = Duration::from_millis(1);

/// Measures how long something takes, and for how long the machine stalled meanwhile: a thread that does nothing but sleep says
/// how late it wakes. So a limit in a test means the same on a busy machine.
pub struct Stopwatch {
    start: Instant,
    /// The pressure at the start.
    pressure: Option<u64>,
    stalled: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Stopwatch {
    /// Starts it.
    #[expect(clippy::new_without_default, reason = "it has an effect")]
    pub fn new() -> Self {
        let (stalled, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (start, pressure) = (Instant::now(), pressure());
        let watch = Self { start, pressure, stalled: Arc::clone(&stalled), is_over: Arc::clone(&is_over) };
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let before = Instant::now();
                thread::sleep(LOOK_EVERY);
                let late = before.elapsed().saturating_sub(LOOK_EVERY + USUAL);
                stalled.fetch_add(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        watch
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The total time for which the machine did not run the thread although it was ready.
    pub fn stalled(&self) -> Duration {
        Duration::from_micros(self.stalled.load(Ordering::Relaxed))
    }

    /// The total time in which a task of this machine waited for a core, which is most of the time on a machine with more to do than it
    /// has cores. Zero where the system does not count it.
    pub fn contended(&self) -> Duration {
        let since = |before: u64| pressure().map_or(0, |now| now.saturating_sub(before));
        Duration::from_micros(self.pressure.map_or(0, since))
    }

    /// The time since the start, without that for which the machine stalled.
    pub fn took(&self) -> Duration {
        self.elapsed().saturating_sub(self.stalled())
    }
}

/// Returns for how many microseconds since its start this machine had tasks that waited for a core.
fn pressure() -> Option<u64> {
    let said = fs::read_to_string("/proc/pressure/cpu").ok()?;
    said.lines().next()?.split("total=").nth(1)?.trim().parse().ok()
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
