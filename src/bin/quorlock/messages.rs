//! What is said on stderr.

use std::fmt::{self, Display};
use std::io::{self, Write};

/// What must be known, whatever the verbosity.
pub fn error(message: impl Display) {
    say(format_args!("{message}"));
}

/// How much else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

impl Verbosity {
    /// What a user should know, though it is no error.
    pub fn notice(self, message: impl Display) {
        if self >= Self::Normal {
            say(format_args!("{message}"));
        }
    }

    /// What is happening.
    pub fn detail(self, message: impl Display) {
        if self >= Self::Verbose {
            say(format_args!("{message}"));
        }
    }
}

/// One write for one line. Nobody to hear it is no reason to end: the lock matters more than the message.
fn say(message: fmt::Arguments<'_>) {
    let line = format!("quorlock: {message}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
