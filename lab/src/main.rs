//! The `quorlock-lab` command: break a cluster on purpose, or measure it.

#![forbid(unsafe_code)]
#![warn(clippy::pedantic)]

use std::env;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use quorlock::secrets::without_bare_credentials;
use quorlock_lab::exit::{Exit, Failure};
use quorlock_lab::messages::{self, shown};
use quorlock_lab::{bench, chaos, proxy};

/// Break real clusters of Redis masters on purpose, or measure them.
#[derive(Parser)]
#[command(name = "quorlock-lab", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Flags),
    Chaos(chaos::Flags),
    #[command(hide = true)]
    ChaosWorker(chaos::WorkerFlags),
    Proxy(proxy::Flags),
}

fn main() -> ExitCode {
    let code = run().unwrap_or_else(|failure| {
        messages::error(&failure.message);
        failure.exit.code()
    });
    code.into()
}

fn run() -> Result<u8, Failure> {
    match parse()? {
        None => Ok(Exit::Success.code()),
        Some(Command::Bench(flags)) => bench::run(&flags, &[], &["bench"]),
        Some(Command::Chaos(flags)) => chaos::run(flags),
        Some(Command::ChaosWorker(flags)) => chaos::run_worker(&flags),
        Some(Command::Proxy(flags)) => proxy::run(&flags),
    }
}

/// Returns `None` when help or the version was requested and printed.
fn parse() -> Result<Option<Command>, Failure> {
    let error = match Flags::try_parse() {
        Ok(flags) => return Ok(Some(flags.command)),
        Err(error) => error,
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print(); // A closed pipe (`| head`) is no failure.
        return Ok(None);
    }
    // clap quotes arguments unchanged: its message is the same for the printable form.
    let error = Flags::try_parse_from(env::args_os().map(|arg| shown(&arg))).err().unwrap_or(error);
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    Err(Failure::new(Exit::Usage, without_bare_credentials(text)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Flags;

    #[test]
    fn flags_are_consistent() {
        Flags::command().debug_assert();
    }
}
