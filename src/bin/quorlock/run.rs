//! `quorlock run`: acquire, run, watch over both, release. What `quorlock lead` does for each term, too.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use quorlock::{Answer, ConfigError, Guard, Holder, NodeReport, Owner, Quorlock, ReleaseError, Released};
use tokio::select;
use tokio::time::{Instant, sleep_until};

use crate::acquire::{NotAcquired, acquire};
use crate::child::{self, Child};
use crate::descendants;
use crate::end::{End, Status};
use crate::exit::{Exit, Failure};
use crate::messages::{self, shown};
use crate::options::{Patience, RunOptions};
use crate::signals::{Inherited, Signals, is_fatal};
use crate::variables::{check_room, enclosing_owner, variables};
use crate::watch::{Ended, Stop, clear, watch};

pub async fn run(options: &RunOptions, inherited: Inherited) -> Result<End, Failure> {
    let mut session = Session::start(options, inherited).await?;
    let end = match session.hold().await {
        Ok(held) => held.end,
        Err(NotAcquired::Interrupted(signal)) => End::by(signal),
        Err(NotAcquired::Failed(failure)) => {
            messages::error(failure.message);
            match failure.exit {
                Exit::Conflict => options.conflict_exit_code.into(),
                exit => exit.code().into(),
            }
        }
    };
    // What is to be said has been said: this may take as long as the node timeout.
    session.locks.flush_majority().await;
    Ok(end)
}

async fn connect(options: &RunOptions) -> Result<Quorlock, ConfigError> {
    let mut builder = options.place.builder().lease(options.lease).label(&options.label);
    if let Some(grace) = options.grace.filter(|grace| *grace > options.lease / 3) {
        // The warning comes with a third of the lease left unless told otherwise.
        builder = builder.warn_before_expiry(grace);
    }
    if let Some(longest) = options.longest_lease {
        builder = builder.longest_lease(longest);
    }
    if let Some(timeout) = options.node_timeout {
        builder = builder.node_timeout(timeout);
    }
    builder.connect().await
}

/// A client, and what it needs to hold the lock once or again and again.
pub struct Session<'a> {
    options: &'a RunOptions,
    pub locks: Quorlock,
    owner: Option<Owner>,
    pub signals: Signals,
    inherited: Inherited,
}

/// How a hold of the lock ended.
pub struct Held {
    /// How quorlock is to end, if it ends now.
    pub end: End,
    /// The lock was lost.
    pub is_lost: bool,
    /// quorlock got a signal to end meanwhile, or the command goes on without the lock.
    pub is_last: bool,
    /// How long the command ran.
    pub ran: Duration,
}

impl Held {
    fn lost(is_last: bool, acquired: Instant) -> Self {
        Self { end: Exit::Lost.code().into(), is_lost: true, is_last, ran: acquired.elapsed() }
    }
}

impl<'a> Session<'a> {
    pub async fn start(options: &'a RunOptions, inherited: Inherited) -> Result<Self, Failure> {
        options.place.announce(options.verbosity);
        descendants::note_inherited();
        let signals = Signals::register()
            .map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot handle signals: {error}")))?;
        let locks = connect(options).await?;
        let owner = enclosing_owner(options, &locks)?;
        check_room(options, &locks, owner.as_ref())?;
        Ok(Self { options, locks, owner, signals, inherited })
    }

    /// Acquires the lock, runs the command under it, and releases it.
    pub async fn hold(&mut self) -> Result<Held, NotAcquired> {
        let guard = acquire(self.options, &self.locks, self.owner.as_ref(), &mut self.signals).await?;
        self.run(guard).await.map_err(NotAcquired::Failed)
    }

    /// Runs the command under the guard, and gives the guard back.
    async fn run(&mut self, guard: Guard) -> Result<Held, Failure> {
        let Self { options, locks, signals, .. } = self;
        let acquired = Instant::now();
        let shown = shown(&options.names.join(" ".as_ref()));
        let tokens = tokens(options, &guard);
        let said = format!("acquired {shown} with token {tokens}");
        match options.patience {
            Patience::Campaign => options.verbosity.notice(said),
            _ => options.verbosity.detail(said),
        }
        // Telling so may have taken its time: stderr can be a pipe that is not read.
        if guard.is_lost() {
            messages::error(format_args!(
                "the lock on {shown} was lost before the command began ({}); run it again",
                guard.reports()
            ));
            return Ok(Held::lost(false, acquired));
        }
        let mut child =
            match Child::spawn(&options.command, &variables(options, locks, &guard, &tokens), self.inherited) {
                Ok(child) => child,
                Err(error) => {
                    let _ = guard.release().await; // The failure is what matters.
                    return Err(not_started(&options.command[0], &error));
                }
            };
        let mut ended = watch(options, &guard, &mut child, signals).await;
        let mut told = None;
        if options.patience == Patience::Campaign && ended.stop.is_none() {
            child.hear_the_last().await;
            let cleared = clear(options, &guard, &mut child, signals).await;
            (ended.left, told) = (cleared.left, cleared.told);
        }
        if ended.stop.is_none() && !rest(options, &guard, acquired, &mut child, ended.status, signals).await {
            messages::error(format_args!(
                "the lock on {shown} was lost before --at-least was over, when the command had ended"
            ));
            let end = ended.status.map_or_else(|| Exit::Lost.code().into(), |status| child.end(status));
            return Ok(Held { end, ..Held::lost(true, acquired) });
        }
        // Not a word before this: with the command in the foreground, a terminal may hold up other processes that write to it.
        let (released, ()) = tokio::join!(guard.release(), child.hear_the_last());
        let is_last = child.was_told_to_end() || ended.left.killable || !ended.left.refusing.is_empty();
        match (&ended.stop, ended.status) {
            (None, Some(status)) if after_release(options, &shown, status, released) => {
                // The command had ended by itself before that signal came.
                let end = told.map_or_else(|| child.end(status), End::by);
                Ok(Held { end, is_lost: false, is_last: is_last || end.signal.is_some(), ran: acquired.elapsed() })
            }
            (stop, _) => {
                if let Some(stop) = stop {
                    say_how_it_was_stopped(&shown, &ended, stop);
                }
                Ok(Held::lost(is_last, acquired))
            }
        }
    }
}

/// Keeps the lock for as long as was asked for, or until a signal comes. A signal that ended the command, or was to end
/// it, counts, too. Returns whether the lock was held until then.
async fn rest(
    options: &RunOptions,
    guard: &Guard,
    acquired: Instant,
    child: &mut Child,
    status: Option<Status>,
    signals: &mut Signals,
) -> bool {
    let end = acquired + options.at_least;
    if end <= Instant::now() {
        return true;
    }
    child.hear_the_last().await;
    child.take_terminal_back();
    if child.was_told_to_end() || status.is_some_and(|status| child.end(status).dies) {
        return true;
    }
    while Instant::now() < end {
        select! {
            biased;
            () = guard.lost() => return false,
            signal = signals.next_or_child() => match signal {
                None => child::reap(),
                Some(signal) if is_fatal(signal) => break,
                Some(_) => {}
            },
            () = sleep_until(end) => {}
        }
    }
    true
}

fn say_how_it_was_stopped(shown: &str, ended: &Ended, stop: &Stop) {
    let is_revoked = |report: &NodeReport| matches!(report.answer, Answer::Held { by: Holder::Revoked { .. }, .. });
    let is_well = |report: &NodeReport| matches!(report.answer, Answer::Up | Answer::Agreed);
    let (why, check) = if stop.reports.0.iter().any(is_revoked) {
        ("was revoked", "find out who ran `quorlock release --force`, and why,")
    } else if stop.reports.0.iter().all(is_well) {
        (
            "was lost or about to be, as this process did not renew it in time (it was stopped, or the machine slept or was \
             overloaded), or the answers of the nodes are late",
            "find out what delayed this process or the nodes",
        )
    } else {
        ("was lost or about to be, as the nodes did not renew it", "check the nodes (`quorlock inspect`)")
    };
    let lost = format!("the lock on {shown} {why} ({})", stop.reports);
    if !ended.left.refusing.is_empty() {
        return messages::error(format_args!(
            "{lost}. The command goes on without it: it was not possible to kill {}. End it, and check its work, before \
             you run it again",
            descendants::shown(&ended.left.refusing)
        ));
    }
    let how = if stop.killed { "killed (SIGKILL)" } else { "asked to end (SIGTERM), and it did" };
    messages::error(format_args!(
        "{lost}: the command was {how}. Its work may be half done; {check} before you run it again"
    ));
    if ended.left.killable {
        messages::error("some process of the command is still there although it was killed");
    }
}

/// Says what is to be said of the release. False when the lock was lost while the command ran.
fn after_release(options: &RunOptions, shown: &str, status: Status, released: Result<Released, ReleaseError>) -> bool {
    match released {
        Ok(_) => options.verbosity.detail(format_args!("released {shown}")),
        Err(ReleaseError::NotHeld { nodes, .. }) => {
            messages::error(format_args!(
                "the lock on {shown} was lost while the command ran ({nodes}), and the command ended by itself with code \
                 {}: another owner may have had the lock meanwhile",
                status.code()
            ));
            return false;
        }
        Err(error) => {
            options.verbosity.notice(format_args!("warning: {error}; what is left of the lock ends with its lease"));
        }
    }
    true
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
    let program = shown(program);
    if child::is_not_found(error) {
        let message = format!("there is no command {program}; a command line of the shell needs: sh -c '...'");
        return Failure::new(Exit::NotFound, message);
    }
    Failure::new(Exit::NotRunnable, format!("cannot run {program}: {error}"))
}
