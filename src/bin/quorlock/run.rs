//! `quorlock run`: acquire, run, watch over both, release.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::time::Duration;

use humantime::format_duration;
use quorlock::{AcquireError, ConfigError, Guard, Quorlock, ReleaseError, Verdict};
use rustix::process::Signal;
use tokio::select;
use tokio::time::{Instant, sleep, sleep_until};

use crate::child::{self, Child, Whom};
use crate::exit::{self, Exit, Failure};
use crate::messages;
use crate::options::{
    LEASE_VARIABLE, NAME_VARIABLE, NODES_VARIABLE, PREFIX_VARIABLE, Patience, RunOptions, TOKEN_VARIABLE,
};
use crate::signals::{Signals, is_fatal};

/// A wait shorter than this is not worth a word.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at a lock that is free, and yet not to be had.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// How long the kernel may take to take away a group that was killed.
const LONGEST_DYING: Duration = Duration::from_secs(5);
/// Between two looks at a group whose leader has ended.
const GROUP_LOOK: Duration = Duration::from_millis(5);
/// Between two looks at the validity that is left: timers stand still while the machine sleeps, leases do not.
const VALIDITY_LOOK: Duration = Duration::from_millis(100);

pub async fn run(options: &RunOptions) -> Result<u8, Failure> {
    options.place.announce(options.verbosity);
    let mut signals = Signals::register()
        .map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot handle signals: {error}")))?;
    let locks = connect(options).await?;
    let done = match acquire(options, &locks, &mut signals).await {
        Ok(guard) => hold(options, guard, &mut signals).await,
        Err(NotAcquired::Interrupted(signal)) => Ok(exit::ended_by(signal.as_raw())),
        Err(NotAcquired::Failed(failure)) if failure.exit == Exit::Conflict => {
            messages::error(failure.message);
            Ok(options.conflict_exit_code)
        }
        Err(NotAcquired::Failed(failure)) => Err(failure),
    };
    locks.flush().await;
    done
}

async fn connect(options: &RunOptions) -> Result<Quorlock, ConfigError> {
    let mut builder = options.place.builder().lease(options.lease).label(&options.label);
    if let Some(grace) = options.grace.filter(|grace| *grace > options.lease / 3) {
        // The warning comes with a third of the lease left unless told otherwise.
        builder = builder.danger(grace);
    }
    if let Some(longest) = options.longest_lease {
        builder = builder.longest_lease(longest);
    }
    builder.connect().await
}

enum NotAcquired {
    Failed(Failure),
    Interrupted(Signal),
}

async fn acquire(options: &RunOptions, locks: &Quorlock, signals: &mut Signals) -> Result<Guard, NotAcquired> {
    let mut request = locks.lock_all(options.names.iter().map(|name| name.as_bytes()));
    if let Some(owner) = &options.owner {
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
            acquired = &mut acquiring => return acquired.map_err(|error| NotAcquired::Failed(explained(options, error))),
            signal = signals.next() => match signal {
                // Whatever was granted meanwhile is released when `acquiring` goes.
                signal if is_fatal(signal) => return Err(NotAcquired::Interrupted(signal)),
                Signal::TSTP => child::stop(Whom::Self_),
                _ => {}
            },
            () = &mut telling, if !told => told = true,
        }
    }
}

fn explained(options: &RunOptions, error: AcquireError) -> Failure {
    let mut failure = Failure::from(error);
    if options.place.is_default && failure.exit == Exit::NoQuorum {
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
                "waiting: nobody has the lock, and yet it cannot be had. Probably too few nodes count: one that has just \
                 started has no vote until the longest lease ({}) is over",
                format_duration(options.longest_lease.unwrap_or(options.lease).max(options.lease))
            ));
        }
    }
}

/// Says who has what. True when nobody has it.
async fn look(options: &RunOptions, locks: &Quorlock) -> bool {
    let mut is_free = true;
    for name in &options.names {
        // The name was checked when it was asked for.
        let Ok(seen) = locks.inspect(name.as_bytes()).await else { continue };
        let name = child::shown(name);
        // Split: what this very request has got of nodes that count.
        is_free &= matches!(seen.verdict, Verdict::Free | Verdict::Split);
        match seen.holder {
            Some(holder) => options.verbosity.detail(format_args!("waiting: {name} is held by {holder}")),
            None => options.verbosity.detail(format_args!("waiting: {name} is {:?} now", seen.verdict)),
        }
    }
    is_free
}

/// Runs the command under the guard, and gives the guard back.
async fn hold(options: &RunOptions, guard: Guard, signals: &mut Signals) -> Result<u8, Failure> {
    let names = options.names.join(" ".as_ref());
    let shown = child::shown(&names);
    let tokens = tokens(options, &guard);
    options.verbosity.detail(format_args!("acquired {shown} with token {tokens}"));
    let variables = [
        (NAME_VARIABLE, names),
        (TOKEN_VARIABLE, tokens.into()),
        (LEASE_VARIABLE, guard.export().into()),
        (NODES_VARIABLE, options.place.nodes.join(",").into()),
        (PREFIX_VARIABLE, options.place.prefix.clone()),
    ];
    // Telling so may have taken its time: stderr can be a pipe that nobody reads.
    if guard.is_lost() {
        return Err(Failure::new(
            Exit::Lost,
            format!("the lock on {shown} was lost before the command began; run it again"),
        ));
    }
    let ended = match Child::spawn(&options.command, &variables) {
        Ok(mut child) => Ok(watch(options, &guard, &mut child, signals).await),
        Err(error) => Err(not_started(&options.command[0], &error)),
    };
    // Not a word before this: with the command in the foreground, a terminal may hold up whoever else writes to it.
    let released = guard.release().await;
    let ended = ended?;
    if let Some(stop) = ended.stop {
        let how = if stop.killed { "killed (SIGKILL)" } else { "told to end (SIGTERM), and it did" };
        messages::error(format_args!(
            "the lock on {shown} was lost or about to be, as the nodes did not renew it: the command was {how}. \
             Its work may be half done; check the nodes (`quorlock inspect`) before you run it again"
        ));
        if ended.is_group_left {
            messages::error("some process of the command is still there although it was killed");
        }
        return Ok(Exit::Lost.code());
    }
    match released {
        Ok(_) => options.verbosity.detail(format_args!("released {shown}")),
        Err(ReleaseError::NotHeld { .. }) => {
            messages::error(format_args!(
                "the lock on {shown} was lost while the command ran, and the command ended by itself with code {}: \
                 somebody else may have had the lock meanwhile",
                ended.code
            ));
            return Ok(Exit::Lost.code());
        }
        Err(error) => {
            options.verbosity.notice(format_args!("warning: {error}; what is left of the lock ends with its lease"));
        }
    }
    Ok(ended.code)
}

/// One number, or one for each name where they differ because some were entered again.
fn tokens(options: &RunOptions, guard: &Guard) -> String {
    let tokens = options.names.iter().filter_map(|name| guard.token_of(name.as_bytes()));
    let mut tokens: Vec<String> = tokens.map(|token| token.to_string()).collect();
    if tokens.iter().all(|token| *token == tokens[0]) {
        tokens.truncate(1);
    }
    tokens.join(" ")
}

fn not_started(program: &OsString, error: &io::Error) -> Failure {
    let program = child::shown(program);
    if child::is_not_found(error) {
        let message = format!("there is no command {program}; what runs in a shell only is run by: sh -c '...'");
        return Failure::new(Exit::NotFound, message);
    }
    Failure::new(Exit::NotRunnable, format!("cannot run {program}: {error}"))
}

/// How the command ended.
struct Ended {
    code: u8,
    /// It was made to.
    stop: Option<Stop>,
    /// Not all of its group could be killed.
    is_group_left: bool,
}

/// The lock was in danger, so the command has to end. There is no way back, even if the danger passes: the command has
/// been told.
struct Stop {
    began: Instant,
    /// From then to SIGKILL, at most.
    grace: Duration,
    killed: bool,
}

impl Stop {
    fn begin(options: &RunOptions, guard: &Guard) -> Self {
        let valid = still_valid(options, guard);
        Self { began: Instant::now(), grace: options.grace.map_or(valid, |grace| grace.min(valid)), killed: false }
    }

    /// How long the group still has. An extension that succeeds after all does not make it more; a machine that slept
    /// makes it less.
    fn left(&self, options: &RunOptions, guard: &Guard) -> Duration {
        self.grace.saturating_sub(self.began.elapsed()).min(still_valid(options, guard))
    }
}

/// For how long the lock can be relied on, less what SIGKILL may need to do its work.
fn still_valid(options: &RunOptions, guard: &Guard) -> Duration {
    guard.remaining().saturating_sub((options.lease / 20).min(Duration::from_millis(250)))
}

/// Until the command has ended; and when it had to be stopped, until its whole group has.
async fn watch(options: &RunOptions, guard: &Guard, child: &mut Child, signals: &mut Signals) -> Ended {
    let mut stop: Option<Stop> = None;
    let mut code = None;
    loop {
        code = code.or_else(|| child.poll());
        if let Some(code) = code {
            let (is_group_left, waited) = match &stop {
                None => (false, false),
                Some(stop) if stop.killed => (!child.is_all_gone(), stop.began.elapsed() > LONGEST_DYING),
                Some(_) => (!child.is_group_gone(), false),
            };
            if !is_group_left || waited {
                return Ended { code, stop, is_group_left };
            }
        }
        if stop.is_none() && guard.is_endangered() {
            stop = Some(Stop::begin(options, guard));
            if !guard.is_lost() {
                child.terminate();
            }
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
                Some(now + if code.is_some() { GROUP_LOOK } else { left.min(VALIDITY_LOOK) })
            }
            Some(_) if code.is_some() => Some(now + GROUP_LOOK),
            _ => None,
        };
        // After the look at the lock: what was stopped until its lease was over does not go on.
        if child.resume_at().is_some_and(|at| at <= now) {
            child.resume();
        }
        let wake = look.into_iter().chain(child.resume_at()).min();
        select! {
            biased;
            () = guard.endangered(), if stop.is_none() => {}
            signal = signals.next_or_child() => if let Some(signal) = signal { child.signal(signal) },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
    }
}
