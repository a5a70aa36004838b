//! The `quorlock` command: run another command while holding a lock or as a leader, or look at a lock and its nodes.

#![deny(unsafe_code)]
#![warn(clippy::pedantic)]

#[cfg(not(unix))]
compile_error!("the quorlock command needs process groups and signals: build without the feature `cli`");

mod acquire;
mod child;
mod delivery;
mod descendants;
mod doctor;
mod duration;
mod enclosing;
mod end;
mod exit;
mod handover;
mod inspect;
mod lead;
mod list;
mod listener;
mod messages;
mod nodes;
mod options;
mod output;
mod place;
mod release;
mod run;
mod signals;
mod status;
mod terminal;
mod tls;
#[cfg(feature = "tui")]
mod top;
mod variables;
mod watch;

use std::process::ExitCode;

use crate::end::End;
use crate::exit::{Exit, Failure};
use crate::options::Task;
use crate::signals::Inherited;

fn main() -> ExitCode {
    listener::serve();
    let end = perform().unwrap_or_else(|failure| {
        messages::error(&failure.message);
        failure.exit.code().into()
    });
    let is_success = end == Exit::Success.code().into();
    let end = match messages::unwritten() {
        None => end,
        Some(error) => {
            messages::error(format_args!("cannot write the result: {error}"));
            if is_success { Exit::NotWritten.code().into() } else { end }
        }
    };
    end.code().into()
}

fn perform() -> Result<End, Failure> {
    let Some(task) = options::parse()? else { return Ok(Exit::Success.code().into()) };
    let inherited = Inherited::replace();
    // This thread must do everything, and live as long as the process: a child's parent, to the kernel, is the thread
    // that made it, and the child gets a signal when that ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::NotRunnable, format!("cannot start: {error}")))?;
    let done = runtime.block_on(async {
        match &task {
            Task::Run(options) => run::run(options, inherited).await,
            Task::Lead(options) => lead::lead(options, inherited).await,
            Task::Inspect(options) => inspect::inspect(options).await.map(End::from),
            Task::List(options) => list::list(options).await.map(End::from),
            Task::Release(options) => release::release(options).await.map(End::from),
            Task::Status(options) => status::status(options).await.map(End::from),
            Task::Doctor(options) => doctor::doctor(options).await.map(End::from),
            #[cfg(feature = "tui")]
            Task::Top(options) => top::top(options).await,
            Task::Nodes(options) => nodes::nodes(options).await.map(End::from),
        }
    });
    // A name lookup may hang in a thread of its own; its answer is of no use any more.
    runtime.shutdown_background();
    done
}
