//! `quorlock-lab proxy`, hidden: a link in front of a node whose state is a file with one line. `cluster/` writes the file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use quorlock_testkit::link::{self, Flow, State};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::exit::{Exit, Failure};
use crate::messages;

/// The interval of reads of the file.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Pass TCP connections on to a node, in the state that a file names
#[derive(Args)]
#[command(hide = true)]
pub struct Flags {
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// Where the node is.
    #[arg(long)]
    to: SocketAddr,
    /// One line: `pass`, `cut`, `cut requests`, `cut answers`, `mute`, or `delay DURATION`.
    #[arg(long)]
    state: PathBuf,
}

pub fn run(flags: &Flags) -> Result<u8, Failure> {
    let failed = |error| Failure::new(Exit::NotRunnable, format!("proxy on {}: {error}", flags.listen));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(flags.listen).await.map_err(failed)?;
        let (sender, receiver) = watch::channel(State::default());
        tokio::select! {
            () = link::serve(listener, flags.to, receiver) => {}
            () = follow(&flags.state, &sender) => {}
        }
        Ok(Exit::Success.code())
    })
}

/// Applies the state in the file, whenever it changes. An invalid line changes nothing.
async fn follow(file: &Path, state: &watch::Sender<State>) {
    let mut last = String::new();
    loop {
        // Between two versions, or when the file is gone, everything stays as it is.
        let line = tokio::fs::read_to_string(file).await.unwrap_or_else(|_| last.clone());
        if line != last {
            match parse(&line) {
                Some(wanted) => drop(state.send_replace(wanted)),
                None => messages::error(format_args!("{}: {:?} is no state of a link", file.display(), line.trim())),
            }
            last = line;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn parse(line: &str) -> Option<State> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let state = State::default();
    Some(match words.as_slice() {
        ["pass"] => state,
        ["cut"] => State { requests: Flow::Hold, answers: Flow::Hold, ..state },
        ["cut", "requests"] => State { requests: Flow::Hold, ..state },
        ["cut", "answers"] => State { answers: Flow::Hold, ..state },
        ["mute"] => State { answers: Flow::Lose, ..state },
        ["delay", time @ ..] => State { delay: humantime::parse_duration(&time.join(" ")).ok()?, ..state },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_states_are_parsed() {
        assert_eq!(parse("pass\n"), Some(State::default()));
        assert_eq!(parse("cut answers"), Some(State { answers: Flow::Hold, ..State::default() }));
        assert_eq!(parse("mute"), Some(State { answers: Flow::Lose, ..State::default() }));
        assert_eq!(parse("delay 1s 50ms").map(|state| state.delay), Some(Duration::from_millis(1050)));
        for nonsense in ["", "cut off", "delay", "delay soon", "pass on"] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }
}
