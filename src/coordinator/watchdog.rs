//! The watchdog: one task for all leases of a client. It wakes for what is due next and for nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::environment::{Environment, Moment, within};
use crate::sync::locked;

/// The runtime's timers stand still while the machine sleeps, the leases do not. So while there are leases, no nap is
/// longer than this, and a lease that ended during a suspend is noticed this long after it at the latest.
pub(super) const LONGEST_NAP: Duration = Duration::from_millis(250);

/// How many leases are looked at before the task yields.
const MOST_AT_ONCE: u32 = 256;

/// What the watchdog wakes for.
pub(super) trait Tick: Send + Sync {
    /// Does what time has made due.
    fn tick(self: Arc<Self>);
}

pub(crate) struct Watchdog {
    calendar: Mutex<Calendar>,
    earlier: Notify,
}

struct Calendar {
    due: BTreeMap<(Moment, u64), Arc<dyn Tick>>,
    /// When the task wakes by itself; `None` when only [`Watchdog::earlier`] wakes it.
    alarm: Option<Moment>,
    closed: bool,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        let calendar = Calendar { due: BTreeMap::new(), alarm: None, closed: false };
        Self { calendar: Mutex::new(calendar), earlier: Notify::new() }
    }

    /// Moves the entry with this id from one moment to another. Never waits.
    pub(super) fn move_to<T: Tick + 'static>(&self, id: u64, due: &Arc<T>, from: Option<Moment>, to: Option<Moment>) {
        let mut calendar = locked(&self.calendar);
        if let Some(from) = from {
            calendar.due.remove(&(from, id));
        }
        let Some(to) = to else { return };
        calendar.due.insert((to, id), Arc::<T>::clone(due));
        if calendar.alarm.is_none_or(|alarm| to < alarm) {
            calendar.alarm = Some(to);
            drop(calendar);
            self.earlier.notify_one();
        }
    }

    /// Ends the task.
    pub(crate) fn close(&self) {
        let forgotten = {
            let mut calendar = locked(&self.calendar);
            calendar.closed = true;
            std::mem::take(&mut calendar.due)
        };
        drop(forgotten); // Outside the lock: the last reference to a lease may go with it.
        self.earlier.notify_one();
    }

    pub(crate) async fn run(&self, environment: &dyn Environment) {
        loop {
            let now = environment.now();
            let mut ticks = 0;
            while let Some(due) = self.pop(now) {
                due.tick();
                ticks += 1;
                if ticks % MOST_AT_ONCE == 0 {
                    // What is due goes out before more is added to it.
                    tokio::task::yield_now().await;
                }
            }
            let nap = {
                let mut calendar = locked(&self.calendar);
                if calendar.closed {
                    return;
                }
                let nap = calendar.due.first_key_value().map(|((at, _), _)| at.since(now).min(LONGEST_NAP));
                calendar.alarm = nap.map(|nap| now + nap);
                nap
            };
            match nap {
                Some(nap) => drop(within(environment, nap, self.earlier.notified()).await),
                None => self.earlier.notified().await,
            }
        }
    }

    fn pop(&self, now: Moment) -> Option<Arc<dyn Tick>> {
        let mut calendar = locked(&self.calendar);
        let entry = calendar.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::environment::Fake;

    const MS: Duration = Duration::from_millis(1);

    struct Entry(UnboundedSender<Instant>);

    impl Tick for Entry {
        fn tick(self: Arc<Self>) {
            self.0.send(Instant::now()).expect("the test waits for it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_due_earlier_is_done_earlier() {
        let (environment, _) = Fake::new();
        let (environment, watchdog) = (Arc::new(environment), Arc::new(Watchdog::new()));
        let (ticked, mut ticks) = unbounded_channel();
        let (now, began) = (environment.now(), Instant::now());
        let entry = Arc::new(Entry(ticked));
        let running = Arc::clone(&watchdog);
        let task = tokio::spawn(async move { running.run(environment.as_ref()).await });
        watchdog.move_to(1, &entry, None, Some(now + 200 * MS));
        sleep(MS).await;
        watchdog.move_to(2, &entry, None, Some(now + 100 * MS));
        sleep(MS).await;
        watchdog.move_to(1, &entry, Some(now + 200 * MS), Some(now + 50 * MS));
        let mut took = Vec::new();
        for _ in 0..2 {
            took.push(ticks.recv().await.expect("the watchdog runs").duration_since(began));
        }
        assert!(took[0] < 60 * MS && 100 * MS <= took[1] && took[1] < 110 * MS, "{took:?}");
        sleep(200 * MS).await;
        assert!(ticks.try_recv().is_err(), "the entry was moved and not added");
        watchdog.close();
        timeout(MS, task).await.expect("it ends").expect("no panic");
    }
}
