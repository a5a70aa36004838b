//! The wait for the lock, and what is said meanwhile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::time::Duration;

use quorlock::{AcquireError, Answer, Guard, Holder, NodeReport, Owner, Quorlock, Reports};
use rustix::process::Signal;
use tokio::select;
use tokio::time::sleep;

use crate::child;
use crate::enclosing::{self, Relative};
use crate::exit::{Exit, Failure};
use crate::inspect::summary;
use crate::messages::{Verbosity, shown};
use crate::options::{Patience, RunOptions};
use crate::place::NODES_VARIABLE;
use crate::signals::{self, Signals, Whom};

/// A shorter wait is not worth a message.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// So long a wait is said without being asked: a program that only waits looks like one that hangs.
const SILENT_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at what is known of the nodes.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// The state of a node that can be counted on.
const UP: &str = "up";

/// Before the next campaign. What an outage costs is bounded by the client itself.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(300);

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
            Patience::Campaign => loop {
                match request.clone().acquire().await {
                    Err(error) if error.is_retryable() => sleep(CAMPAIGN_PAUSE).await,
                    done => break done,
                }
            },
        }
    });
    let mut telling = pin!(tell_who_is_waited_for(options, locks, owner));
    let mut told = false;
    loop {
        select! {
            biased;
            acquired = &mut acquiring => {
                return acquired.map_err(|error| NotAcquired::Failed(explained(options, owner, error)));
            }
            // What was granted meanwhile is released when `acquiring` is dropped.
            signal = interrupted(signals) => return Err(NotAcquired::Interrupted(signal)),
            () = &mut telling, if !told => told = true,
        }
    }
}

/// Waits for a signal that ends quorlock while there is no command, and does what others ask for.
///
/// Cancel safe.
pub async fn interrupted(signals: &mut Signals) -> Signal {
    loop {
        match signals.next_or_child().await {
            None => child::reap(),
            Some(signal) if signals.ends_a_wait(signal) => return signal,
            Some(Signal::TSTP) => signals::stop(Whom::Self_),
            Some(_) => {}
        }
    }
}

fn explained(options: &RunOptions, owner: Option<&Owner>, mut error: AcquireError) -> Failure {
    let enclosing = enclosing::hint_of(&mut error, owner);
    let named = enclosing.map(|hint| format!("{error}. {hint}"));
    let mut failure = Failure::from(error);
    failure.message = named.unwrap_or(failure.message);
    if options.place.is_default() && failure.exit == Exit::NoQuorum && failure.message.contains(NODES_VARIABLE) {
        failure.message.push_str("; without either, quorlock looks for Redis on this machine");
    }
    failure
}

async fn tell_who_is_waited_for(options: &RunOptions, locks: &Quorlock, owner: Option<&Owner>) {
    sleep(LONG_WAIT).await;
    let mut is_said = false;
    for name in &options.names {
        let Some((told, holder)) = holder_of(locks, name).await else { continue };
        match holder.as_ref().and_then(|holder| enclosing::relative(holder, owner)) {
            Some(around @ Relative::Around) => {
                is_said = true;
                options.verbosity.notice(format_args!("{told}. {}", around.hint()));
            }
            Some(beside) => options.verbosity.detail(format_args!("{told}. {}", beside.hint())),
            None => options.verbosity.detail(told),
        }
    }
    if too_few(locks).is_some() {
        // One of them may have been about to arrive.
        sleep(SECOND_LOOK).await;
    }
    let few = too_few(locks);
    if let Some(nodes) = &few {
        is_said = true;
        options.verbosity.notice(format_args!("waiting: too few nodes can grant the lock now ({nodes})"));
    }
    if options.verbosity == Verbosity::Verbose {
        return tell_of_nodes(options, locks, few).await;
    }
    if is_said || options.verbosity != Verbosity::Normal {
        return;
    }
    sleep(SILENT_WAIT.saturating_sub(LONG_WAIT)).await;
    for name in &options.names {
        if let Some((told, _)) = holder_of(locks, name).await {
            options.verbosity.notice(told);
        }
    }
}

/// Says of each node when it cannot grant the lock any more, why, and when it can again. `said` was said of all nodes before. Does not
/// return.
async fn tell_of_nodes(options: &RunOptions, locks: &Quorlock, said: Option<Reports>) {
    let mut told: Vec<&str> = match &said {
        Some(reports) => reports.0.iter().map(state).collect(),
        None => locks.nodes().map(|_| UP).collect(),
    };
    loop {
        let now = locks.known();
        for (told, report) in told.iter_mut().zip(&now.0) {
            if *told != state(report) {
                *told = state(report);
                options.verbosity.detail(format_args!("waiting: {report}"));
            }
        }
        sleep(LONG_WAIT).await;
    }
}

/// Why the node cannot be counted on, in a word that stays the same while times and numbers change.
fn state(report: &NodeReport) -> &'static str {
    match &report.answer {
        Answer::Failed(error) => error.state(),
        _ => UP,
    }
}

/// Returns who holds the lock, in words. The name was checked when it was asked for.
async fn holder_of(locks: &Quorlock, name: &OsStr) -> Option<(String, Option<Holder>)> {
    let seen = locks.inspect(name.as_bytes()).await.ok()?;
    Some((format!("waiting: {} is {}", shown(name), summary(&seen)), seen.holder))
}

/// What is known of the nodes, when no majority of them is up.
fn too_few(locks: &Quorlock) -> Option<Reports> {
    let nodes = locks.known();
    let up = nodes.0.iter().filter(|report| report.answer == Answer::Up).count();
    (up <= nodes.0.len() / 2).then_some(nodes)
}
