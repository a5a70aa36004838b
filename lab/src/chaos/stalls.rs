//! Whether the machine has time for the processes of a run. What is late on a busy machine says nothing about the lock.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::history::{Event, What, now};

/// The interval of the check.
const TICK: Duration = Duration::from_millis(50);

/// How late a thread may wake up on a machine that is only busy.
const LATE: Duration = Duration::from_millis(60);

/// For how long in one interval a thread that could run may wait for a processor. A few such waits, of a node, a link and a
/// worker, use up the node timeout of a short lease.
const WAITED: Duration = Duration::from_millis(20);

/// Reports whenever this task did not run in time. For a process without the lock, where a late runtime shows a stall of the
/// machine as well.
pub async fn watch_runtime(life: u64, report: impl Fn(Event) -> bool) {
    loop {
        let due = now() + micros(TICK);
        tokio::time::sleep(TICK).await;
        let at = now();
        if at > due + micros(LATE) && !report(Event { at, what: What::Stall { life, from: due } }) {
            return;
        }
    }
}

/// Starts a thread that reports whenever it did not run in time, or a thread of this process or of `others` waited for a
/// processor, until `report` returns `false`. It uses no runtime, because a blocked runtime is no excuse.
pub fn watch(
    life: u64,
    others: impl Fn() -> Vec<u32> + Send + 'static,
    report: impl Fn(Event) -> bool + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut waits = waits(&others());
        loop {
            let (begin, due) = (now(), now() + micros(TICK));
            std::thread::sleep(TICK);
            let (at, before) = (now(), waits);
            waits = self::waits(&others());
            let has_waited = |(thread, wait): (&PathBuf, &Duration)| {
                before.get(thread).is_some_and(|before| wait.saturating_sub(*before) >= WAITED)
            };
            let what = if at > due + micros(LATE) {
                What::Stall { life, from: due }
            } else if waits.iter().any(has_waited) {
                What::Wait { from: begin }
            } else {
                continue;
            };
            if !report(Event { at, what }) {
                return;
            }
        }
    });
}

/// Returns for how long each thread of this process and of these has waited for a processor, where the system counts it (Linux).
fn waits(others: &[u32]) -> BTreeMap<PathBuf, Duration> {
    let others = others.iter().map(|pid| PathBuf::from(format!("/proc/{pid}/task")));
    let threads = others.chain([PathBuf::from("/proc/self/task")]).filter_map(|of| fs::read_dir(of).ok()).flatten();
    threads
        .filter_map(|thread| Some(thread.ok()?.path()))
        .filter_map(|path| Some((path.clone(), wait(&path)?)))
        .collect()
}

/// The second number of `schedstat`, in ns.
fn wait(thread: &Path) -> Option<Duration> {
    let statistics = fs::read_to_string(thread.join("schedstat")).ok()?;
    statistics.split(' ').nth(1)?.parse().ok().map(Duration::from_nanos)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    /// More threads that never sleep than there are processors.
    #[test]
    fn threads_that_wait_for_a_processor_are_reported() {
        if wait(Path::new("/proc/self/task").join(std::process::id().to_string()).as_path()).is_none() {
            return; // Not counted here.
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = 3 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spin = |_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || while !is_over.load(Ordering::Relaxed) {})
        };
        let spinning: Vec<_> = (0..threads).map(spin).collect();
        let (sender, reports) = mpsc::channel();
        let is_wait = |event: &Event| matches!(event.what, What::Wait { from } if from < event.at);
        watch(1, Vec::new, move |event| !is_wait(&event) || sender.send(event).is_ok());
        let report = reports.recv_timeout(Duration::from_secs(20));
        is_over.store(true, Ordering::Relaxed);
        for thread in spinning {
            thread.join().expect("a loop");
        }
        report.expect("a thread has waited");
    }
}
