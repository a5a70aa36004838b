//! The shipped client (coordinator, watchdog, guards, waiting, and the codec of redis-rs) against nodes in memory, for
//! thousands of simulated hours: time is tokio's paused clock, and a seed decides every event.
//!
//! `cargo test` runs a short fixed range of seeds and the tests of the simulation itself; `cluster/simulate` passes arguments.
//!
//! What it proves: the invariants of `invariant.rs`, on every seed, as judged by `oracle.rs` (each command on each node),
//! `ledger.rs` and `readings.rs` (each guard), `linear.rs` and `porcupine.rs` (each resource's history) and `recovery.rs` (when all works again). What
//! makes that worth something: `histories.rs`, `controls.rs` and the testkit's `breaks.rs`, which break things on purpose, and
//! `tests/conformance`, which shows that the nodes (`node` in the testkit) and a real server do the same.

mod arguments;
mod controls;
mod faults;
mod figures;
mod histories;
mod history;
mod holds;
mod invariant;
mod ledger;
mod linear;
mod links;
mod machine;
mod mutexes;
mod oracle;
mod outage;
mod plan;
mod porcupine;
mod queue;
mod readings;
mod recovery;
mod reference;
mod requests;
mod run;
mod selftest;
mod servers;
mod simulate;
mod time;
mod trace;
mod user;
mod variant;
mod world;

use std::process::ExitCode;

use arguments::Wanted;

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Wanted::Tests(filter)) => selftest::run(filter.as_deref()),
        Ok(Wanted::List) => ExitCode::SUCCESS,
        Ok(Wanted::Help) => {
            println!("{}", arguments::HELP);
            ExitCode::SUCCESS
        }
        Ok(Wanted::Simulation(arguments)) => simulate::run(&arguments),
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::from(2)
        }
    }
}
