//! `quorlock-lab chaos`: real servers, real processes, faults that a seed decides, and what the lock made of it.

mod check;
mod conductor;
mod crew;
mod effect;
mod fault;
mod history;
mod ledger;
mod node;
mod nodes;
mod options;
mod outcome;
mod plan;
mod progress;
mod report;
mod run;
mod worker;

pub use self::options::Flags;
pub use self::worker::{Flags as WorkerFlags, run as run_worker};

use self::options::Options;
use crate::exit::{Exit, Failure};

/// With what `quorlock-lab chaos` ends, beside the codes of all commands.
mod code {
    /// A promise was not kept.
    pub const VIOLATED: u8 = 80;
    /// Nothing was violated, but not all that was wanted was seen.
    pub const NOT_EXERCISED: u8 = 81;
    /// Without fencing, updates were lost: what the demonstration is for.
    pub const LOST_UPDATES: u8 = 82;
}

pub fn run(flags: Flags) -> Result<u8, Failure> {
    let options = Options::check(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot start: {error}")))?;
    let done = runtime.block_on(run::run(&options));
    // Nothing that is left there matters: the servers and the workers are gone.
    runtime.shutdown_background();
    done
}
