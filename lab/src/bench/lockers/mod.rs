//! The implementations under measurement: locks behind one small interface.

mod commands;
mod fan_out;
mod floor;
mod ours;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{Barrier, oneshot};

use super::measure::{Clock, Cycles, Stretch};
use super::turns::{Turn, Turns, now};

pub use commands::{FENCED, OWN, PLAIN, Scripts};
pub use fan_out::{fan_out, fan_out_scripts};
pub use floor::Floor;
pub use ours::{Nested, Ours, lock_prefix};

/// How long a lock outlives its holder, for every implementation.
pub const LEASE: Duration = Duration::from_secs(10);

/// The number of warm-up cycles of every task before its stretch is measured.
const WARM_UP: usize = 20;

/// Numbers the stretches, so that a lock that is left on a paused node in one stretch does not affect the next.
static SERIAL: AtomicUsize = AtomicUsize::new(0);

/// A lock as a task uses it. Each task has its own clone.
pub trait Locker: Clone + Send + 'static {
    type Hold: Send;

    /// Waits as long as the implementation does by default. Returns `None` when it timed out or failed.
    fn acquire(&mut self, name: &str) -> impl Future<Output = Option<Self::Hold>> + Send;

    /// Returns `false` when the lock was no longer held.
    fn release(&mut self, hold: Self::Hold) -> impl Future<Output = bool> + Send;

    /// Takes several locks at once, or else one after the other.
    fn acquire_all(&mut self, names: &[String]) -> impl Future<Output = Option<Vec<Self::Hold>>> + Send {
        async move {
            let mut holds = Vec::with_capacity(names.len());
            for name in names {
                holds.push(self.acquire(name).await?);
            }
            Some(holds)
        }
    }

    /// Waits for messages in transit, for a limited time.
    fn settle(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// An implementation as the cases measure it.
pub trait Measured {
    fn name(&self) -> &'static str;

    /// Returns whether it is one of the floors, which only lock and unlock.
    fn is_floor(&self) -> bool {
        false
    }

    /// Locks and unlocks in a loop, in this number of tasks at once, each with its own name.
    fn cycles(&self, tasks: usize, stretch: Duration) -> Stretch;

    /// The same with this number of names at once, in one task.
    fn sets(&self, _size: usize, _stretch: Duration) -> Option<Stretch> {
        None
    }

    /// Runs this number of tasks that contend for the same lock all the time and hold it for `inside`.
    fn turns(&self, _tasks: usize, _inside: Duration, _stretch: Duration) -> Option<Turns> {
        None
    }
}

/// Where callers of a [`Locker`] run.
#[derive(Clone)]
pub struct Place {
    pub runtime: Arc<Runtime>,
    pub callers: Callers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Spawned tasks.
    Tasks,
    /// The future that the runtime was entered with, as in `main` and in tests. On the default runtime its thread is none of
    /// those that drive the sockets, and is woken by them.
    BlockOn,
}

/// A [`Locker`] in a tokio runtime.
pub struct InRuntime<L> {
    pub name: &'static str,
    pub locker: L,
    pub place: Place,
    /// Whether it waits for a lock that another owner holds.
    pub waits: bool,
}

impl<L: Locker> Measured for InRuntime<L> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cycles(&self, tasks: usize, stretch: Duration) -> Stretch {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let names = (0..tasks).map(|task| vec![format!("{}:{serial}:{task}", self.name)]).collect();
        self.measure(names, stretch)
    }

    fn sets(&self, size: usize, stretch: Duration) -> Option<Stretch> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let names = (0..size).map(|i| format!("{}:{serial}:set:{i}", self.name)).collect();
        Some(self.measure(vec![names], stretch))
    }

    fn turns(&self, tasks: usize, inside: Duration, stretch: Duration) -> Option<Turns> {
        let Place { runtime, .. } = &self.place;
        self.waits.then(|| runtime.block_on(take_turns(&self.locker, self.name, tasks, inside, stretch)))
    }
}

impl<L: Locker> InRuntime<L> {
    /// Measures one caller for each of these sets of names.
    fn measure(&self, names: Vec<Vec<String>>, stretch: Duration) -> Stretch {
        let Place { runtime, callers } = &self.place;
        match (callers, names.as_slice()) {
            (Callers::BlockOn, [names]) => runtime.block_on(in_block_on(self.locker.clone(), names, stretch)),
            _ => runtime.block_on(in_tasks(&self.locker, names, stretch)),
        }
    }
}

async fn in_block_on<L: Locker>(mut locker: L, names: &[String], stretch: Duration) -> Stretch {
    warm_up(&mut locker, names, stretch).await;
    let clock = Clock::start();
    let done = clock.stop(cycles(&mut locker, names, stretch).await);
    locker.settle().await;
    done
}

async fn in_tasks<L: Locker>(locker: &L, names: Vec<Vec<String>>, stretch: Duration) -> Stretch {
    let start = Arc::new(Barrier::new(names.len() + 1));
    let spawn = |names: Vec<String>| {
        let (mut locker, start) = (locker.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            warm_up(&mut locker, &names, stretch).await;
            start.wait().await;
            let done = cycles(&mut locker, &names, stretch).await;
            (locker, done)
        })
    };
    let tasks: Vec<_> = names.into_iter().map(spawn).collect();
    start.wait().await;
    let clock = Clock::start();
    let (mut all, mut lockers) = (Cycles::default(), Vec::new());
    for task in tasks {
        let (locker, its_cycles) = joined(task.await);
        all.append(its_cycles);
        lockers.push(locker);
    }
    let done = clock.stop(all);
    for mut locker in lockers {
        locker.settle().await;
    }
    done
}

async fn warm_up<L: Locker>(locker: &mut L, names: &[String], stretch: Duration) {
    let began = Instant::now();
    for _ in 0..WARM_UP {
        if began.elapsed() > stretch / 4 {
            break;
        }
        cycle(locker, names).await;
    }
}

/// Locks and unlocks for this time, at least once.
async fn cycles<L: Locker>(locker: &mut L, names: &[String], stretch: Duration) -> Cycles {
    let began = Instant::now();
    let (mut cycles, mut last) = (Cycles::default(), began);
    while cycles.count() == 0 || last - began < stretch {
        let is_done = cycle(locker, names).await;
        let now = Instant::now();
        cycles.add(now - last, is_done);
        last = now;
    }
    cycles
}

async fn cycle<L: Locker>(locker: &mut L, names: &[String]) -> bool {
    if let [name] = names {
        return match locker.acquire(name).await {
            Some(hold) => locker.release(hold).await,
            None => false,
        };
    }
    let Some(holds) = locker.acquire_all(names).await else { return false };
    let mut all = true;
    for hold in holds {
        all &= locker.release(hold).await;
    }
    all
}

/// Sleeps for the task that holds the lock, so for one at a time. The timer of tokio counts whole milliseconds and rounds up:
/// a task would hold the lock for twice as long as the bare sockets do.
#[derive(Clone)]
struct Sleeper(mpsc::Sender<oneshot::Sender<()>>);

impl Sleeper {
    fn new(time: Duration) -> Self {
        let (sleeper, sleeps) = mpsc::channel::<oneshot::Sender<()>>();
        thread::spawn(move || {
            for woken in sleeps {
                thread::sleep(time);
                drop(woken); // Dropping the sender wakes the task, too.
            }
        });
        Self(sleeper)
    }

    async fn sleep(&self) {
        let (woken, wake) = oneshot::channel();
        let _ = self.0.send(woken); // The thread ends after the last of its tasks.
        let _ = wake.await;
    }
}

/// Runs the turns of several tasks. Worker processes use it as well.
pub async fn take_turns<L: Locker>(locker: &L, name: &str, tasks: usize, inside: Duration, stretch: Duration) -> Turns {
    let began = Instant::now();
    let sleeper = Sleeper::new(inside);
    let spawn = |task: usize| {
        let sleeper = sleeper.clone();
        let (mut locker, name) = (locker.clone(), format!("{name}:turns"));
        tokio::spawn(async move {
            let (mut taken, mut failed) = (Vec::new(), 0);
            while began.elapsed() < stretch {
                let Some(hold) = locker.acquire(&name).await else {
                    failed += 1;
                    continue;
                };
                let entered = now();
                sleeper.sleep().await;
                taken.push(Turn { who: task, entered, left: now() });
                failed += usize::from(!locker.release(hold).await);
            }
            locker.settle().await;
            (taken, failed)
        })
    };
    let mut turns = Turns::new(tasks);
    for task in (0..tasks).map(spawn).collect::<Vec<_>>() {
        let (taken, failed) = joined(task.await);
        turns.add(taken, failed);
    }
    turns
}

/// Resumes a panic in the caller.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
