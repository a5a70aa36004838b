//! What is said on stderr, and printed on stdout.

use std::env;
use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::sync::OnceLock;
use std::thread;
use std::time::SystemTime;

use clap::ValueEnum;
use quorlock::secrets::redacted;
use quorlock::text::{Printable, printable_json, printable_lines};
use serde_json::json;

/// How diagnoses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// For people: `quorlock: MESSAGE`.
    Text,
    /// For programs: one JSON object in each line, with `time`, `level` and `message`.
    Json,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Sets how diagnoses are written from now on.
pub fn log_as(log: Log) {
    let _ = LOG.set(log); // The first setting counts: there is one command line.
}

/// Says what must be known at any verbosity.
pub fn error(message: impl Display) {
    say("error", format_args!("{message}"));
}

/// The same from a thread of its own, for a time when this one must not wait for stderr to be read.
pub fn error_meanwhile(message: String) {
    meanwhile(move || error(message));
}

fn meanwhile(say: impl FnOnce() + Send + 'static) {
    let _ = thread::Builder::new().spawn(say); // Without a thread it is not said.
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
            say("notice", format_args!("{message}"));
        }
    }

    /// The same from a thread of its own, while the lock is to be watched.
    pub fn notice_meanwhile(self, message: String) {
        meanwhile(move || self.notice(message));
    }

    /// What is happening.
    pub fn detail(self, message: impl Display) {
        if self >= Self::Verbose {
            say("detail", format_args!("{message}"));
        }
    }
}

/// A name, an argument or a path of the user's, on one line.
pub fn shown(text: &OsStr) -> String {
    Printable(&text.to_string_lossy()).to_string()
}

/// A word of a command line that people may copy into a shell.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+-_./:,=@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The first error of a write to stdout, but for a closed pipe.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Prints a result. A closed pipe (`| head`) is no failure. [`unwritten`] has any other error.
pub fn print(text: &str) {
    let _ = print_as_is(&printable_lines(text));
}

/// Prints a result with control sequences of this program's own. What comes from elsewhere is escaped in it. A closed pipe is an error
/// here, by which a repetition ends.
pub fn print_as_is(text: &str) -> io::Result<()> {
    printed(io::stdout().lock().write_all(text.as_bytes()))
}

/// Completes what has been written to stdout, and keeps an error for [`unwritten`].
pub fn printed(written: io::Result<()>) -> io::Result<()> {
    let written = written.and_then(|()| io::stdout().flush());
    if let Err(error) = &written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error.to_string()); // The first error has the cause.
    }
    written
}

/// Returns why a result could not be written.
pub fn unwritten() -> Option<&'static str> {
    UNWRITTEN.get().map(String::as_str)
}

/// One write for one line, without what may be a password. A message that cannot be written is no reason to end: the lock
/// matters more.
fn say(level: &'static str, message: fmt::Arguments<'_>) {
    let args = env::args_os().skip(1).map(|arg| shown(&arg));
    let text = redacted(&printable_lines(&message.to_string()), args);
    let line = match LOG.get() {
        Some(Log::Json) => {
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            printable_json(&format!("{}\n", json!({"time": time, "level": level, "message": text})))
        }
        _ => format!("quorlock: {text}\n"),
    };
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
