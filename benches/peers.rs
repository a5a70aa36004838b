//! `cargo bench`: the cases of `quorlock bench` with another crate beside it, [rslock](https://docs.rs/rslock).
//!
//! The same program, options and cases, so `cargo bench -- --help` tells about them. rslock is used as its documentation
//! does: one `LockManager`, whose multiplexed connections are warm, with its defaults, which are three tries with a pause
//! of up to 200 ms between. It has no call for several locks, so it takes them one after the other.

#[allow(dead_code, unused_imports, reason = "the quorlock command uses the rest, and runs its unit tests")]
#[path = "../src/bin/quorlock/exit.rs"]
mod exit;
#[allow(unused_imports, reason = "its unit tests are run with the quorlock command")]
#[path = "../src/bin/quorlock/lab/bench/mod.rs"]
mod lab_bench;
#[allow(dead_code, reason = "the quorlock command uses the rest")]
#[path = "../src/bin/quorlock/messages.rs"]
mod messages;
#[path = "../src/bin/quorlock/lab/server.rs"]
mod server;

use std::process::ExitCode;

use clap::Parser;
use rslock::{Lock, LockManager};
use tokio::runtime::Handle;

use lab_bench::lockers::{InRuntime, LEASE, Locker};
use lab_bench::{Connected, Peer};

#[derive(Parser)]
#[command(name = "cargo bench --")]
struct Command {
    #[command(flatten)]
    flags: lab_bench::Flags,

    /// What `cargo bench` says to every benchmark.
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
    let code = lab_bench::run(&flags, &peers, &[]).unwrap_or_else(|failure| {
        messages::error(&failure.message);
        failure.exit.code()
    });
    code.into()
}

fn connect(runtime: &Handle, urls: &[String]) -> Connected {
    let locker = Rslock(LockManager::new(urls.to_vec()));
    Ok(Box::new(InRuntime { name: "rslock", locker, runtime: runtime.clone(), waits: true }))
}

#[derive(Clone)]
struct Rslock(LockManager);

impl Locker for Rslock {
    type Hold = Lock;

    async fn acquire(&mut self, name: &str) -> Option<Lock> {
        self.0.lock(name, LEASE).await.ok()
    }

    /// It does not say whether the lock was still held.
    async fn release(&mut self, hold: Lock) -> bool {
        hold.release().await;
        true
    }
}
