//! The wait for the lock, and what is said meanwhile.

use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::time::Duration;

use humantime::format_duration;
use quorlock::{AcquireError, Guard, Owner, Quorlock, Verdict};
use rustix::process::Signal;
use tokio::select;
use tokio::time::sleep;

use crate::child;
use crate::exit::{Exit, Failure};
use crate::options::{Patience, RunOptions};
use crate::signals::{self, Signals, Whom, is_fatal};

/// A shorter wait is not worth a message.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at a lock that is free, and yet is not granted.
const SECOND_LOOK: Duration = Duration::from_millis(300);

pub enum NotAcquired {
    Failed(Failure),
    Interrupted(Signal),
}

/// Acquires, also while signals come.
pub async fn acquire(
    options: &RunOptions,
    locks: &Quorlock,
    owner: Option<&Owner>,
    signals: &mut Signals,
) -> Result<Guard, NotAcquired> {
    let mut request = locks.lock_all(options.names.iter().map(|name| name.as_bytes()));
    if let Some(owner) = owner {
        request = request.owner(owner);
    }
    let mut acquiring = pin!(async {
        match options.patience {
            Patience::None => request.try_acquire().await,
            Patience::For(limit) => request.wait(limit).acquire().await,
            Patience::Endless => request.acquire().await,
        }
    });
    let mut telling = pin!(tell_who_is_waited_for(options, locks));
    let mut told = false;
    loop {
        select! {
            biased;
            acquired = &mut acquiring => {
                return acquired.map_err(|error| NotAcquired::Failed(explained(options, error)));
            }
            signal = signals.next_or_child() => match signal {
                None => child::reap(),
                // What was granted meanwhile is released when `acquiring` is dropped.
                Some(signal) if is_fatal(signal) => return Err(NotAcquired::Interrupted(signal)),
                Some(Signal::TSTP) => signals::stop(Whom::Self_),
                Some(_) => {}
            },
            () = &mut telling, if !told => told = true,
        }
    }
}

fn explained(options: &RunOptions, error: AcquireError) -> Failure {
    let mut failure = Failure::from(error);
    if options.place.is_default() && failure.exit == Exit::NoQuorum {
        failure.message.push_str("; without either, quorlock looks for Redis on this machine");
    }
    failure
}

async fn tell_who_is_waited_for(options: &RunOptions, locks: &Quorlock) {
    sleep(LONG_WAIT).await;
    if look(options, locks).await {
        // It might have been free for a moment.
        sleep(SECOND_LOOK).await;
        if look(options, locks).await {
            options.verbosity.notice(format_args!(
                "waiting: the lock is free, but no majority grants it. Probably too few nodes count: one that has just \
                 started has no vote until the longest lease ({}) is over",
                format_duration(options.longest_lease.unwrap_or(options.lease).max(options.lease))
            ));
        }
    }
}

/// Says who holds which name. True when all are free.
async fn look(options: &RunOptions, locks: &Quorlock) -> bool {
    let mut is_free = true;
    for name in &options.names {
        // The name was checked when it was asked for.
        let Ok(seen) = locks.inspect(name.as_bytes()).await else { continue };
        let name = name.to_string_lossy();
        // Split: what this very request has got of nodes that count.
        is_free &= matches!(seen.verdict, Verdict::Free | Verdict::Split);
        match seen.holder {
            Some(holder) => options.verbosity.detail(format_args!("waiting: {name} is held by {holder}")),
            None => options.verbosity.detail(format_args!("waiting: {name} is {:?} now", seen.verdict)),
        }
    }
    is_free
}
