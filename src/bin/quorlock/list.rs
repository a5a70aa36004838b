//! `quorlock list`: the locks that are held, and how many requests wait for them. Reads only.

pub mod output;
pub mod reading;

use std::io::{self, Write as _};

use clap::Args;

use self::output::{json, table};
use self::reading::{Lock, Locks, read};
use crate::exit::{Exit, Failure, LIST_CODES, MEND};
use crate::messages::{self, Verbosity};
use crate::output::{Format, Output, OutputFlags};
use crate::place::{Place, ReadFlags};

const ABOUT: &str = "\
List the locks under the prefix that any node has, and the requests that wait for them.

Nothing is written to the nodes. VOTES says at how many of the nodes the same lease stands: a lock is held when these are a \
majority. HELD FOR counts from the time in the fencing token, by the holder's clock. WAITERS is the most that a node knows, and \
OLDEST how long the one that has waited longest does.

Keys are searched on every node, which the Redis user needs the right `scan` for.";

/// List the locks that are held, and how many requests wait for them
#[derive(Args)]
#[command(long_about = ABOUT, after_help = LIST_CODES)]
pub struct Flags {
    #[command(flatten)]
    place: ReadFlags,

    /// Only locks whose holder's label contains this.
    #[arg(long, value_name = "TEXT")]
    holder: Option<String>,

    /// Only locks for which requests wait.
    #[arg(long)]
    waiting: bool,

    /// The most locks that are listed: those with the most waiters, then those that are held longest.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,

    #[command(flatten)]
    output: OutputFlags<Format>,
}

pub struct Options {
    place: Place,
    holder: Option<String>,
    waiting: bool,
    limit: usize,
    output: Output<Format>,
}

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        let Self { holder, waiting, limit, .. } = self;
        Ok(Options { place: self.place.check()?, holder, waiting, limit, output: self.output.check(Format::Json) })
    }
}

pub async fn list(options: &Options) -> Result<u8, Failure> {
    options.place.announce(Verbosity::Normal);
    let mut found = read(&options.place).await?;
    found.locks.retain(|lock| is_wanted(options, lock));
    let left_out = found.locks.len().saturating_sub(options.limit);
    found.locks.truncate(options.limit);
    messages::print(&match options.output.format {
        Format::Table => table(&found, options.output.heads),
        Format::Json => json(&found),
    });
    let _ = io::stdout().flush();
    for (node, error) in &found.failed {
        Verbosity::Normal.notice(format_args!("{node}: {error}"));
    }
    if left_out > 0 {
        Verbosity::Normal.notice(format_args!("{left_out} more are not listed: see --limit"));
    }
    verdict(&found)
}

fn is_wanted(options: &Options, lock: &Lock) -> bool {
    let is_theirs = |text: &String| lock.label().is_some_and(|label| label.contains(text.as_str()));
    options.holder.as_ref().is_none_or(is_theirs) && (!options.waiting || lock.waiters > 0)
}

/// What a majority does not say is not known.
fn verdict(found: &Locks) -> Result<u8, Failure> {
    if found.answered() >= found.quorum() {
        return Ok(Exit::Success.code());
    }
    if found.can_be_waited_for() {
        let message = "too few nodes have answered to know all locks. Look at them with `quorlock status`";
        return Err(Failure::new(Exit::NoQuorum, message));
    }
    Err(Failure::new(Exit::Configuration, format!("too few nodes can have a vote. {MEND}")))
}
