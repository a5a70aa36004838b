//! `quorlock lead`: what `quorlock run` does, again and again: a command that runs on one of several machines.

use std::time::Duration;

use tokio::select;
use tokio::time::sleep;

use crate::acquire::{NotAcquired, interrupted};
use crate::descendants;
use crate::end::End;
use crate::exit::Failure;
use crate::messages::{self, shown};
use crate::options::LeadOptions;
use crate::run::Session;
use crate::signals::Inherited;
use crate::terminal::Terminal;

/// Before the next campaign, when the command has ended by itself. Another candidate leads meanwhile.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The pause doubles each time, up to this. A command that ran for longer has worked.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub async fn lead(options: &LeadOptions, inherited: Inherited) -> Result<End, Failure> {
    let mut session = Session::start(&options.run, inherited).await?;
    if Terminal::open().is_none() {
        session.signals.spare_requests(); // SIGHUP comes from a supervisor then, and not from a terminal that hangs up.
    }
    // The next term waits for the process group of the command. The first process of a container may wait for no orphan, and then what
    // has ended would never leave the group.
    descendants::adopt();
    let end = match campaign(options, &mut session).await {
        Ok(end) => end,
        Err(NotAcquired::Interrupted(signal)) => End::by(signal),
        Err(NotAcquired::Failed(failure)) => {
            messages::error(&failure.message);
            failure.exit.code().into()
        }
    };
    // What is to be said has been said: this may take as long as the node timeout.
    session.locks.flush_majority().await;
    Ok(end)
}

async fn campaign(options: &LeadOptions, session: &mut Session<'_>) -> Result<End, NotAcquired> {
    let name = shown(&options.run.names[0]);
    let mut pause = FIRST_PAUSE;
    loop {
        let held = session.hold().await?;
        if held.is_last || (options.once && !held.is_lost) {
            return Ok(held.end);
        }
        if held.is_lost {
            options.run.verbosity.notice(format_args!("waiting for the lock on {name} again"));
            continue;
        }
        if held.ran > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        options.run.verbosity.notice(format_args!(
            "the command has ended by itself with code {}; the lock on {name} is released, and asked for again in {}",
            held.end.code,
            humantime::format_duration(pause)
        ));
        select! {
            signal = interrupted(&mut session.signals) => return Err(NotAcquired::Interrupted(signal)),
            () = sleep(pause) => {}
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}
