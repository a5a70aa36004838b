//! `quorlock-lab chaos`: real servers, real processes, faults that a seed decides, and checks of the lock's invariants.

mod check;
mod conductor;
mod controls;
mod effect;
mod fault;
mod history;
mod interrupts;
mod ledger;
mod node;
mod nodes;
mod options;
mod outcome;
mod plan;
mod probe;
mod program;
mod progress;
mod report;
mod run;
mod sight;
mod stalls;
mod worker;
mod workers;

pub use self::options::Flags;
pub use self::worker::{Flags as WorkerFlags, run as run_worker};

use self::options::Options;
use crate::exit::{Exit, Failure};

/// The exit codes of `quorlock-lab chaos`, beside those of all commands.
mod code {
    /// An invariant was violated.
    pub const VIOLATED: u8 = 80;
    /// No invariant was violated, but not all required events occurred.
    pub const NOT_EXERCISED: u8 = 81;
    /// Without fencing, updates were lost: the expected result of the demonstration.
    pub const LOST_UPDATES: u8 = 82;
    /// Nothing was violated, but the program that was tested failed.
    pub const PROGRAM_FAILED: u8 = 83;
    /// Of `--controls`: a broken client was not caught, or the shipped one was.
    pub const NOT_CAUGHT: u8 = 1;
}

pub fn run(flags: Flags) -> Result<u8, Failure> {
    if flags.controls.wanted {
        return controls::run(&flags);
    }
    let options = Options::check(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot start: {error}")))?;
    let done = runtime.block_on(run::run(&options));
    // The servers and the workers have ended, so remaining files do not matter.
    runtime.shutdown_background();
    done
}
