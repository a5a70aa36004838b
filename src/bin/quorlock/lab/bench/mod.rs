//! `quorlock bench`.

use clap::Args;

use crate::exit::{Exit, Failure};

/// Measure lock and unlock beside the floor
#[derive(Args)]
pub struct Flags {}

pub fn run(_flags: Flags) -> Result<u8, Failure> {
    Err(Failure::new(Exit::NotRunnable, "not there yet"))
}
