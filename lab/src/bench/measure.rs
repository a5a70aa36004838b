//! Stretches of time in which one implementation is measured, rounds of such stretches, and their statistics.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// The result of one implementation in one stretch of time.
#[derive(Default)]
pub struct Stretch {
    /// The durations of the cycles that did not fail, sorted.
    latencies: Vec<Duration>,
    pub failed: usize,
    took: Duration,
    /// The processor time of this whole process.
    cpu: Duration,
    /// The processor time of the bench's own servers, where the system shows it.
    nodes_cpu: Option<Duration>,
}

/// Cycles that have ended. A failed one is counted and not timed: an error may be faster than any lock.
#[derive(Default)]
pub struct Cycles {
    latencies: Vec<Duration>,
    failed: usize,
}

impl Cycles {
    pub fn failed(failed: usize) -> Self {
        Self { latencies: Vec::new(), failed }
    }

    pub fn add(&mut self, took: Duration, is_done: bool) {
        if is_done {
            self.latencies.push(took);
        } else {
            self.failed += 1;
        }
    }

    pub fn append(&mut self, mut others: Self) {
        self.latencies.append(&mut others.latencies);
        self.failed += others.failed;
    }

    /// Returns the number of all cycles, failed ones too.
    pub fn count(&self) -> usize {
        self.latencies.len() + self.failed
    }
}

/// Measures a stretch from its start on.
pub struct Clock {
    began: Instant,
    cpu: Duration,
    nodes_cpu: Option<Duration>,
}

impl Clock {
    pub fn start() -> Self {
        let nodes_cpu = nodes_cpu_time();
        Self { began: Instant::now(), cpu: cpu_time(), nodes_cpu }
    }

    pub fn stop(self, cycles: Cycles) -> Stretch {
        let Cycles { mut latencies, failed } = cycles;
        let (took, cpu) = (self.began.elapsed(), cpu_time().saturating_sub(self.cpu));
        let nodes_cpu = nodes_cpu_time().zip(self.nodes_cpu).map(|(after, before)| after.saturating_sub(before));
        latencies.sort_unstable();
        Stretch { latencies, failed, took, cpu, nodes_cpu }
    }
}

impl Stretch {
    pub fn p50_us(&self) -> f64 {
        quantile_us(&self.latencies, 0.5)
    }

    pub fn p99_us(&self) -> f64 {
        quantile_us(&self.latencies, 0.99)
    }

    pub fn cycles_per_s(&self) -> f64 {
        number(self.latencies.len()) / self.took.as_secs_f64()
    }

    pub fn cpu_us_per_cycle(&self) -> f64 {
        micros(self.cpu) / number(self.latencies.len())
    }

    /// Of all nodes together. NaN on given nodes.
    pub fn nodes_cpu_us_per_cycle(&self) -> f64 {
        self.nodes_cpu.map_or(f64::NAN, micros) / number(self.latencies.len())
    }
}

/// The same stretches again and again, one implementation after the other: a disturbance of the machine that lasts longer
/// than a stretch affects all of them. Implementations and circumstances are the columns.
#[derive(Default)]
pub struct Rounds(Vec<Vec<Stretch>>);

impl Rounds {
    pub fn push(&mut self, round: Vec<Stretch>) {
        self.0.push(round);
    }

    /// The median over the rounds.
    pub fn median(&self, column: usize, figure: impl Fn(&Stretch) -> f64) -> f64 {
        median(self.0.iter().map(|round| figure(&round[column])).collect())
    }

    /// The median over the rounds of the ratio of two columns: `figure` of the one divided by that of the other.
    pub fn ratio(&self, column: usize, other: usize, figure: impl Fn(&Stretch) -> f64) -> f64 {
        median(self.0.iter().map(|round| figure(&round[column]) / figure(&round[other])).collect())
    }

    pub fn failed(&self, column: usize) -> usize {
        self.0.iter().map(|round| round[column].failed).sum()
    }
}

/// Returns NaN when there are no values.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}

/// Returns a quantile of sorted durations, or NaN when there are none.
pub fn quantile_us(sorted: &[Duration], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the length")]
    let rank = (number(sorted.len()) * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().map_or(f64::NAN, micros)
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "counts of things that were waited for stay far below 2^52")]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// Returns the processor time that this process has used, in its own code and in the kernel.
pub fn cpu_time() -> Duration {
    // Fails only for a wrong first argument.
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// The bench's own servers.
static SERVERS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// From now on the processor time of these processes is measured as that of the nodes.
pub fn count_as_nodes(pids: Vec<u32>) {
    *SERVERS.lock().unwrap_or_else(PoisonError::into_inner) = pids;
}

/// Returns `None` when there are no own servers, or where the system does not show it in nanoseconds (Linux does).
fn nodes_cpu_time() -> Option<Duration> {
    let servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let times = servers.iter().map(|pid| process_cpu_time(*pid));
    times.sum::<Option<Duration>>().filter(|_| !servers.is_empty())
}

/// Of all threads of a process.
fn process_cpu_time(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_thread = |thread: std::io::Result<fs::DirEntry>| {
        let statistics = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        Some(Duration::from_nanos(statistics.split(' ').next()?.parse().ok()?))
    };
    threads.map(of_thread).sum()
}

/// Returns the resident memory of a process in bytes, where the system shows it (Linux).
pub fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kibibytes: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().split(' ').next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        let is_near = |figure: f64, expected: f64| (figure - expected).abs() < 1e-6;
        assert!(is_near(quantile_us(&sorted, 0.5), 100.0));
        assert!(is_near(quantile_us(&sorted, 0.99), 198.0));
        assert!(is_near(quantile_us(&sorted[..1], 0.99), 1.0));
        assert!(quantile_us(&[], 0.5).is_nan(), "no latency is not a latency of zero");
    }

    #[test]
    fn a_failed_cycle_is_counted_and_not_timed() {
        let mut cycles = Cycles::default();
        cycles.add(Duration::from_micros(300), true);
        cycles.add(Duration::from_micros(1), false);
        cycles.append(Cycles::failed(2));
        assert_eq!(cycles.count(), 4);
        let stretch = Clock::start().stop(cycles);
        assert_eq!((stretch.latencies.as_slice(), stretch.failed), ([Duration::from_micros(300)].as_slice(), 3));
        assert!(Clock::start().stop(Cycles::failed(1)).p50_us().is_nan(), "a figure that meets no target");
    }

    #[test]
    fn a_ratio_is_taken_within_the_round() {
        let stretch = |us| Stretch { latencies: vec![Duration::from_micros(us)], ..Stretch::default() };
        let mut rounds = Rounds::default();
        for (ours, theirs) in [(100, 50), (900, 600), (200, 100)] {
            rounds.push(vec![stretch(ours), stretch(theirs)]);
        }
        assert!((rounds.ratio(0, 1, Stretch::p50_us) - 2.0).abs() < 1e-9);
        assert!((rounds.median(0, Stretch::p50_us) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn memory_and_processor_time_are_measured() {
        let of_process = || process_cpu_time(std::process::id()).unwrap_or_default();
        let (before, as_of_a_server, start) = (cpu_time(), of_process(), Instant::now());
        // The system updates the second figure at the ticks of its clock, and leaves out threads of other tests that have ended.
        let is_counted = || of_process() > as_of_a_server + Duration::from_millis(20) || !cfg!(target_os = "linux");
        while cpu_time() < before + Duration::from_millis(50) || !is_counted() {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}, {:?}", cpu_time(), of_process());
        }
        assert!(!cfg!(target_os = "linux") || resident(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }
}
