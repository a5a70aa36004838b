//! `cargo bench -p quorlock-lab`: the cases of `quorlock-lab bench` with another crate beside it, [rslock](https://docs.rs/rslock).
//!
//! The same program, options and cases, so `cargo bench -p quorlock-lab -- --help` describes them. rslock is used as its documentation
//! does: one `LockManager`, whose multiplexed connections are warm, with its defaults, which are three tries with a pause
//! of up to 200 ms between. It has no call for several locks, so it takes them one after the other.

use std::process::ExitCode;

use clap::Parser;
use quorlock_lab::bench::lockers::{InRuntime, LEASE, Locker, Place};
use quorlock_lab::bench::{self, Connected, Peer};
use quorlock_lab::{exit, messages};
use rslock::{Lock, LockManager};

#[derive(Parser)]
#[command(name = "cargo bench -p quorlock-lab --")]
struct Command {
    #[command(flatten)]
    flags: bench::Flags,

    /// The flag that `cargo bench` passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let Command { flags, .. } = Command::try_parse().unwrap_or_else(|error| {
        let _ = error.print(); // A closed pipe is no failure.
        let code = if error.use_stderr() { exit::Exit::Usage } else { exit::Exit::Success };
        std::process::exit(code.code().into());
    });
    let peers = [Peer { name: "rslock", connect }];
    let code = bench::run(&flags, &peers, &[]).unwrap_or_else(|failure| {
        messages::error(&failure.message);
        failure.exit.code()
    });
    code.into()
}

fn connect(place: Place, urls: &[String]) -> Connected {
    let locker = Rslock(LockManager::new(urls.to_vec()));
    Ok(Box::new(InRuntime { name: "rslock", locker, place, waits: true }))
}

#[derive(Clone)]
struct Rslock(LockManager);

impl Locker for Rslock {
    type Hold = Lock;

    async fn acquire(&mut self, name: &str) -> Option<Lock> {
        self.0.lock(name, LEASE).await.ok()
    }

    /// The release does not show whether the lock was still held.
    async fn release(&mut self, hold: Lock) -> bool {
        hold.release().await;
        true
    }
}
