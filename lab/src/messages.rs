//! Messages on stderr.

use std::env;
use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::io::{self, Write as _};

use quorlock::secrets::redacted;
use quorlock::text::{Printable, printable_lines};

/// Writes a message that is shown at any verbosity.
pub fn error(message: impl Display) {
    say(format_args!("{message}"));
}

/// Which messages are shown beside errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    Quiet,
    Normal,
}

impl Verbosity {
    /// Writes a message that is no error, unless quiet.
    pub(crate) fn notice(self, message: impl Display) {
        if self >= Self::Normal {
            say(format_args!("{message}"));
        }
    }
}

/// Returns an argument or a path as printable text on one line.
#[must_use]
pub fn shown(text: &OsStr) -> String {
    Printable(&text.to_string_lossy()).to_string()
}

/// Writes a line at once, without what may be a password.
fn say(message: fmt::Arguments<'_>) {
    let args = env::args_os().skip(1).map(|arg| shown(&arg));
    let line = format!("quorlock-lab: {}\n", redacted(&printable_lines(&message.to_string()), args));
    let _ = io::stderr().lock().write_all(line.as_bytes()); // A closed stderr does not end the run.
}
