//! The exit codes that the subcommands share, and the failures that lead to them.

use quorlock::{AcquireError, ConfigError, ErrorKind};

/// The exit code of a subcommand that was not carried out. The `quorlock` command ends with the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Success,
    /// `EX_USAGE`: a wrong flag, or a value that cannot work.
    Usage,
    /// `EX_UNAVAILABLE`: nodes, servers or processes that are needed are not there.
    NoQuorum,
    /// `EX_TEMPFAIL`: another owner holds the lock.
    Conflict,
    /// `EX_CONFIG`: the nodes are not what the list says they are.
    Configuration,
    /// The lock was lost.
    Lost,
    /// As in a shell: the run could not be carried out.
    NotRunnable,
}

impl Exit {
    /// Returns the number that the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 64,
            Self::NoQuorum => 69,
            Self::Conflict => 75,
            Self::Configuration => 78,
            Self::Lost => 79,
            Self::NotRunnable => 126,
        }
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Held => Self::Conflict,
            ErrorKind::NoQuorum => Self::NoQuorum,
            ErrorKind::Misconfigured => Self::Configuration,
            ErrorKind::Lost => Self::Lost,
            ErrorKind::Unconfirmed => Self::Success,
            _ => Self::Usage,
        }
    }
}

/// Returns the exit code of a process that this signal ended, as a shell reports it.
pub(crate) fn ended_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The reason why a subcommand ends early.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong and what to do next.
    pub message: String,
}

impl Failure {
    /// Pairs an exit code with its message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        let hint = match error.kind() {
            ErrorKind::NoQuorum | ErrorKind::Misconfigured => {
                ". Check that these nodes are up and that --nodes is right"
            }
            _ => "",
        };
        Self::new(error.kind().into(), format!("{error}{hint}"))
    }
}
