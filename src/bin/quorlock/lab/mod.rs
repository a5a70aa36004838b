//! Real clusters, broken on purpose (`quorlock chaos`) and measured (`quorlock bench`).

mod bench;
mod chaos;
mod clock;
mod link;
mod proxy;
mod rng;
mod server;

use clap::Subcommand;

use crate::exit::Failure;

#[derive(Subcommand)]
pub enum Flags {
    Bench(bench::Flags),
    Chaos(chaos::Flags),
    ChaosWorker(chaos::WorkerFlags),
    Proxy(proxy::Flags),
}

pub fn run(flags: Flags) -> Result<u8, Failure> {
    match flags {
        Flags::Bench(flags) => bench::run(&flags, &[], &["bench"]),
        Flags::Chaos(flags) => chaos::run(flags),
        Flags::ChaosWorker(flags) => chaos::run_worker(&flags),
        Flags::Proxy(flags) => proxy::run(&flags),
    }
}
