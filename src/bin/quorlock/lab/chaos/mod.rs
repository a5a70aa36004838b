//! `quorlock chaos`.

use clap::Args;

use crate::exit::{Exit, Failure};

/// Break a real cluster on purpose and check what the lock promised
#[derive(Args)]
pub struct Flags {}

pub fn run(_flags: Flags) -> Result<u8, Failure> {
    Err(Failure::new(Exit::NotRunnable, "not there yet"))
}
