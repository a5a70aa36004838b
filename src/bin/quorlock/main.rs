//! The `quorlock` command: run another command while holding a lock, or look at a lock.

#![deny(unsafe_code)]
#![warn(clippy::pedantic)]

#[cfg(not(unix))]
compile_error!("the quorlock command needs process groups and signals: build without the feature `cli`");

mod child;
mod descendants;
mod exit;
mod inspect;
#[cfg(feature = "lab")]
mod lab;
mod messages;
mod nodes;
mod options;
mod run;
mod signals;
mod terminal;

use std::process::ExitCode;

use crate::exit::{Exit, Failure};
use crate::options::Task;

fn main() -> ExitCode {
    let code = perform().unwrap_or_else(|failure| {
        messages::error(&failure.message);
        failure.exit.code()
    });
    code.into()
}

fn perform() -> Result<u8, Failure> {
    let Some(task) = options::parse()? else { return Ok(Exit::Success.code()) };
    #[cfg(feature = "lab")]
    let task = match task {
        Task::Lab(flags) => return lab::run(flags),
        task => task,
    };
    terminal::write_from_the_background();
    // This thread must do everything, and live as long as the process: a child's parent, to the kernel, is the thread
    // that made it, and the child gets a signal when that ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot start: {error}")))?;
    let done = runtime.block_on(async {
        match &task {
            Task::Run(options) => run::run(options).await,
            Task::Inspect(options) => inspect::inspect(options).await,
            Task::Nodes(options) => nodes::nodes(options).await,
            #[cfg(feature = "lab")]
            Task::Lab(_) => unreachable!("was run above"),
        }
    });
    // A name lookup may hang in a thread of its own; its answer is of no use any more.
    runtime.shutdown_background();
    done
}
