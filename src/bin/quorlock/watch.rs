//! The watch over the lock and the command at once.

use std::time::Duration;

use quorlock::{Guard, Reports};
use rustix::process::Signal;
use tokio::select;
use tokio::time::{Instant, sleep, sleep_until};

use crate::acquire::interrupted;
use crate::child::Child;
use crate::descendants::{self, Left};
use crate::end::Status;
use crate::messages;
use crate::options::RunOptions;
use crate::signals::{self, Signals};

/// How long the kernel may take to take away a group that was killed.
const LONGEST_DYING: Duration = Duration::from_secs(5);
/// Between two looks at a group whose leader has ended.
const GROUP_LOOK: Duration = Duration::from_millis(5);
/// Between two looks at the validity that is left: timers stand still while the machine sleeps, leases do not.
const VALIDITY_LOOK: Duration = Duration::from_millis(100);
/// What SIGKILL may need to do its work, at most.
const LONGEST_MARGIN: Duration = Duration::from_millis(250);

/// How the command ended.
pub struct Ended {
    /// `None` when it goes on, as quorlock has no permission to kill it.
    pub status: Option<Status>,
    /// It was made to end.
    pub stop: Option<Stop>,
    /// What could not be killed.
    pub left: Left,
}

/// The lock was in danger, so the command has to end. There is no way back, even if the danger passes: the command has
/// been told.
pub struct Stop {
    began: Instant,
    /// From then to SIGKILL, at most.
    grace: Duration,
    pub killed: bool,
    /// What the nodes had said of the lock then.
    pub reports: Reports,
}

impl Stop {
    fn begin(options: &RunOptions, guard: &Guard) -> Self {
        let grace = grace(options.grace, reliable(guard.remaining(), options.lease));
        Self { began: Instant::now(), grace, killed: false, reports: guard.reports() }
    }

    /// How long the group still has. An extension that succeeds after all does not make it more; a machine that slept
    /// makes it less.
    fn left(&self, options: &RunOptions, guard: &Guard) -> Duration {
        self.grace.saturating_sub(self.began.elapsed()).min(reliable(guard.remaining(), options.lease))
    }
}

/// From the warning to SIGKILL: what was asked for, as far as the lock is valid.
fn grace(asked: Option<Duration>, reliable: Duration) -> Duration {
    asked.map_or(reliable, |grace| grace.min(reliable))
}

/// For how long the lock can be relied on, less what SIGKILL may need to do its work.
fn reliable(remaining: Duration, lease: Duration) -> Duration {
    remaining.saturating_sub((lease / 20).min(LONGEST_MARGIN))
}

/// Until the command has ended; and when it had to be stopped, until its whole group has.
pub async fn watch(options: &RunOptions, guard: &Guard, child: &mut Child, signals: &mut Signals) -> Ended {
    let mut stop: Option<Stop> = None;
    loop {
        let status = child.poll();
        if let Some(left) = is_over(child, status, stop.as_ref()) {
            return Ended { status, stop, left };
        }
        if stop.is_none() && guard.is_endangered() {
            stop = Some(Stop::begin(options, guard));
            if !guard.is_lost() {
                child.terminate();
            }
            say_what_refuses(child);
        }
        let now = Instant::now();
        let look = match &mut stop {
            Some(stop) if !stop.killed => {
                let left = stop.left(options, guard);
                if left.is_zero() {
                    // From here on only its end counts.
                    (stop.began, stop.killed) = (now, true);
                    child.kill();
                    continue;
                }
                Some(now + if status.is_some() { GROUP_LOOK } else { left.min(VALIDITY_LOOK) })
            }
            Some(_) => Some(now + GROUP_LOOK),
            None => None,
        };
        // After the look at the lock: what was stopped until its lease was over does not go on.
        child.on_time(now);
        let wake = look.into_iter().chain(child.wake_at()).min();
        select! {
            biased;
            () = guard.endangered(), if stop.is_none() => {}
            report = child.report() => child.take_report(report),
            signal = signals.next_or_child() => if let Some(signal) = signal { child.signal(signal) },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
    }
}

/// What became of the processes that a command has left behind.
#[derive(Default)]
pub struct Cleared {
    /// What could not be killed.
    pub left: Left,
    /// The signal to end that quorlock got meanwhile.
    pub told: Option<Signal>,
}

/// Ends what a command that has ended has left behind in its group: it must not go on beside the command of the next leader. A signal
/// that ends quorlock is passed on, and the second one kills what is left at once.
pub async fn clear(options: &RunOptions, guard: &Guard, child: &mut Child, signals: &mut Signals) -> Cleared {
    let mut cleared = Cleared::default();
    if child.is_group_gone() {
        return cleared;
    }
    child.take_terminal_back();
    let stop = Stop::begin(options, guard);
    child.terminate();
    let said = "the command has ended and has left processes in its group, which were asked to end (SIGTERM)";
    options.verbosity.notice_meanwhile(said.to_owned());
    while !stop.left(options, guard).is_zero() {
        select! {
            biased;
            signal = interrupted(signals) => {
                if child.was_told_to_end() || cleared.told.is_some() {
                    break;
                }
                cleared.told = Some(signal);
                child.signal(signal);
                let said = format!("{} was passed on to them; a second signal kills them", signals::name(signal));
                options.verbosity.notice_meanwhile(said);
            }
            () = sleep(GROUP_LOOK) => {}
        }
        if child.is_group_gone() {
            return cleared;
        }
    }
    child.kill();
    let killed = Instant::now();
    loop {
        cleared.left = child.left();
        if !cleared.left.killable || killed.elapsed() > LONGEST_DYING {
            return cleared;
        }
        sleep(GROUP_LOOK).await;
    }
}

/// What is left of the command, when there is no more to wait for.
fn is_over(child: &mut Child, status: Option<Status>, stop: Option<&Stop>) -> Option<Left> {
    match stop {
        None => status.map(|_| Left::default()),
        Some(stop) if stop.killed => {
            let left = child.left();
            (!left.killable || stop.began.elapsed() > LONGEST_DYING).then_some(left)
        }
        Some(_) => (status.is_some() && child.is_group_gone()).then(Left::default),
    }
}

fn say_what_refuses(child: &Child) {
    let refusing = child.refusing();
    if !refusing.is_empty() {
        messages::error_meanwhile(format!(
            "the lock is about to be lost, and the command cannot be stopped: SIGTERM does not reach {}",
            descendants::shown(&refusing)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_grace_is_what_was_asked_for_but_never_more_than_the_lock_is_valid() {
        assert_eq!(grace(None, 3 * SECOND), 3 * SECOND);
        assert_eq!(grace(Some(SECOND), 3 * SECOND), SECOND);
        assert_eq!(grace(Some(4 * SECOND), 3 * SECOND), 3 * SECOND);
        assert_eq!(grace(Some(Duration::ZERO), 3 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_twentieth_of_the_lease_is_left_for_the_kill() {
        assert_eq!(reliable(SECOND, SECOND), Duration::from_millis(950));
        assert_eq!(reliable(20 * SECOND, 60 * SECOND) + LONGEST_MARGIN, 20 * SECOND);
        assert_eq!(reliable(Duration::from_millis(10), SECOND), Duration::ZERO);
    }
}
