//! The exit codes, and what leads to them.

use quorlock::{AcquireError, Answer, ConfigError, ErrorKind, NodeError};

/// With what `quorlock` ends when it is not the command's own code, or 128 plus the signal that ended the command.
/// Numbers of sysexits.h where it has one that fits, and of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    /// `EX_USAGE`: a wrong flag, or a value that cannot work.
    Usage,
    /// `EX_UNAVAILABLE`: too few nodes answer for a quorum.
    NoQuorum,
    /// `EX_IOERR`: all went well, and the result cannot be written to stdout.
    NotWritten,
    /// `EX_TEMPFAIL`: another owner holds the lock. `run --conflict-exit-code` replaces it.
    Conflict,
    /// `EX_CONFIG`: the nodes are not what this list says they are, or cannot have votes.
    Configuration,
    /// The lock was lost, or in danger, while the command ran.
    Lost,
    /// As in a shell: the command is there but cannot be run.
    NotRunnable,
    /// As in a shell: there is no such command.
    NotFound,
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 64,
            Self::NoQuorum => 69,
            Self::NotWritten => 74,
            Self::Conflict => 75,
            Self::Configuration => 78,
            Self::Lost => 79,
            Self::NotRunnable => 126,
            Self::NotFound => 127,
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
            // The command ran under the lock to its end.
            ErrorKind::Unconfirmed => Self::Success,
            _ => Self::Usage,
        }
    }
}

/// Of a process that this signal ended, as a shell says it.
pub fn ended_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// What `quorlock run --help` says about them.
pub const RUN_CODES: &str = "\
Exit codes of `run`:
  N      the command's own exit code
  128+N  signal N ended the command. When quorlock got that signal, or the
         terminal sent it (Ctrl-C), quorlock dies by it as well: a script
         stops there
  64     wrong usage, or a value that cannot work
  69     no quorum: too few nodes can be reached, or they are too slow
  75     the lock is held by another owner (-E chooses another code)
  78     no quorum, as the deployment is configured wrongly: this list of nodes is
         not the one that the nodes have, or nodes can have no vote
  79     the lock was lost, or about to be, before the command had ended: the
         message says what became of the command; or a nested run was to enter a
         lock that is lost
  126    the command cannot be run
  127    there is no such command";

/// What `quorlock lead --help` says about them.
pub const LEAD_CODES: &str = "\
Exit codes of `lead`:
  N      the command's own exit code: it ended after SIGTERM, SIGINT or SIGQUIT
         to quorlock, or by itself with --once
  128+N  signal N ended the command, in the same cases. SIGTERM, SIGINT, SIGQUIT
         and SIGABRT end quorlock as well, also while it waits for the lock
  64     wrong usage, or a value that cannot work
  69     the nodes refuse the user or the password, or the user lacks a right
         that a request needs. An outage is waited for
  78     the deployment is configured wrongly: this list of nodes is not the one
         that the nodes have, or nodes can have no vote, or the user lacks a
         right that the connection needs
  79     the lock was lost, and quorlock got a signal to end then, or the command
         cannot be killed and goes on; or the lock of an enclosing `run` is lost
  126    the command cannot be run
  127    there is no such command";

/// What `quorlock inspect --help` says about them.
pub const INSPECT_CODES: &str = "\
Exit codes of `inspect`:
  0      free, held, or split (some nodes have an owner, and no majority has
         the same one)
  64     wrong usage, or a value that cannot work
  69     unknown: too few nodes can be reached
  74     the result cannot be written (a full disk)
  78     unknown, as the deployment is configured wrongly: this list of nodes is
         not the one that the nodes have, or nodes can have no vote";

/// What `quorlock list --help` says about them.
pub const LIST_CODES: &str = "\
Exit codes of `list`:
  0      a majority of the nodes has answered
  64     wrong usage, or a value that cannot work
  69     too few nodes have answered to know all locks; what is known is listed
  74     the result cannot be written (a full disk)
  78     the same, as the deployment is configured wrongly";

/// What `quorlock release --help` says about them.
pub const RELEASE_CODES: &str = "\
Exit codes of `release`:
  0      revoked, or there is no such lease (the output says which)
  64     wrong usage, a value that cannot work, or not confirmed
  69     no quorum: too few nodes have answered, or have a vote by now
  74     the result cannot be written (a full disk)
  75     another lease, a key that is not quorlock's, or several leases (split)
         are in its place
  78     no quorum, as the deployment is configured wrongly: this list of nodes is
         not the one that the nodes have, or nodes can have no vote";

/// What `quorlock status --help` says about them.
pub const STATUS_CODES: &str = "\
Exit codes of `status`:
  0      a quorum of the nodes has a vote
  64     wrong usage, or a value that cannot work
  69     no quorum: too few nodes can be reached, or have a vote by now
  74     the result cannot be written (a full disk)
  78     no quorum, as the deployment is configured wrongly: this list of nodes is
         not the one that the nodes have, or nodes can have no vote";

/// What `quorlock top --help` says about them.
#[cfg(feature = "tui")]
pub const TOP_CODES: &str = "\
Exit codes of `top`:
  0      ended by a key
  64     wrong usage, a value that cannot work, or no terminal
  126    the terminal cannot be used
  With --batch those of `status`, for the last figures";

/// What `quorlock doctor --help` says about them.
pub const DOCTOR_CODES: &str = "\
Exit codes of `doctor`:
  0      a quorum has a vote, and nothing failed (there may be warnings)
  64     wrong usage, or a value that cannot work
  69     no quorum: too few nodes can be reached, or have a vote by now
  74     the result cannot be written (a full disk)
  78     something failed that is to be mended
  With --format nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN";

/// Returns what `quorlock --help` says about them.
pub fn all_codes() -> String {
    let tables = [
        RUN_CODES,
        LEAD_CODES,
        INSPECT_CODES,
        LIST_CODES,
        RELEASE_CODES,
        STATUS_CODES,
        DOCTOR_CODES,
        #[cfg(feature = "tui")]
        TOP_CODES,
        "Exit codes of `nodes`: see `quorlock nodes --help`",
    ];
    tables.join("\n\n")
}

/// Why it ends before, or without, the command's own exit code.
#[derive(Clone, Debug)]
pub struct Failure {
    pub exit: Exit,
    /// What went wrong and what to do next.
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::NoNodes => "; see --nodes",
            ConfigError::LeaseTooShort { .. } => "; choose a longer --lease, or --longest-lease where that was given",
            ConfigError::LeaseTooLong { .. } => "; choose a shorter --lease, or --longest-lease where that was given",
            ConfigError::WarningTooEarly { .. } => "; choose a shorter --grace or a longer --lease",
            ConfigError::ReservedName(_) => "; choose another NAME or --prefix",
            _ => "",
        };
        Self::new(Exit::Usage, format!("{error}{hint}"))
    }
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        if let AcquireError::Config(config) = error {
            return config.into();
        }
        let is_too_late = matches!(error, AcquireError::TooLate { .. });
        let hint = match error.kind() {
            ErrorKind::NoQuorum if ends_by_itself(error.nodes().iter().map(|report| &report.answer)) => WAIT,
            kind => hint(kind, error.is_retryable(), is_too_late),
        };
        Self::new(error.kind().into(), format!("{error}. {hint}"))
    }
}

/// Returns whether nothing but quarantines keeps these nodes from a quorum.
fn ends_by_itself<'a>(answers: impl Iterator<Item = &'a Answer>) -> bool {
    let (mut all, mut up, mut quarantined) = (0, 0, 0);
    for answer in answers {
        all += 1;
        match answer {
            Answer::Failed(NodeError::Quarantined { .. }) => quarantined += 1,
            Answer::Failed(_) => {}
            _ => up += 1,
        }
    }
    let quorum = all / 2 + 1;
    up < quorum && up + quarantined >= quorum
}

/// What to do about an error of this kind.
fn hint(kind: ErrorKind, is_retryable: bool, is_too_late: bool) -> &'static str {
    match kind {
        ErrorKind::Held => "Try again later, or wait longer with --wait",
        ErrorKind::Misconfigured => MEND,
        ErrorKind::NoQuorum if !is_retryable => MEND,
        ErrorKind::NoQuorum if is_too_late => "Check the nodes and the network, or choose a longer --lease",
        ErrorKind::NoQuorum => "Check that these nodes are up and that --nodes (or QUORLOCK_NODES) is right",
        ErrorKind::Lost => {
            "The enclosing `quorlock run` no longer holds it: end this work, and start it anew from there"
        }
        _ => "Check the options; `quorlock run --help` explains them",
    }
}

/// What to do while quarantines keep the nodes from a quorum.
const WAIT: &str =
    "The quarantine ends by itself: wait as long as the message says (a longer --wait), or run it again after that";

/// What to do where the deployment is configured wrongly.
pub const MEND: &str = "Do what the message says of each node, or name the right nodes (--nodes, QUORLOCK_NODES)";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The rows of the table in docs/operations.md, and the last cell of each.
    #[test]
    fn the_table_of_errors_has_every_kind_with_its_exit_code() {
        const KINDS: [ErrorKind; 6] = [
            ErrorKind::Usage,
            ErrorKind::Held,
            ErrorKind::NoQuorum,
            ErrorKind::Misconfigured,
            ErrorKind::Lost,
            ErrorKind::Unconfirmed,
        ];
        let text = include_str!("../../../docs/operations.md");
        let table = text.lines().skip_while(|line| !line.starts_with("| `kind()`")).skip(2);
        let rows = table.take_while(|line| line.starts_with('|')).map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].to_owned(), cells[3].starts_with("yes"), cells[5].to_owned())
        });
        let expected =
            KINDS.map(|kind| (format!("`{kind:?}`"), kind.is_retryable(), Exit::from(kind).code().to_string()));
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    /// The table of exit codes and the help text have the codes, too.
    #[test]
    fn every_table_names_every_code() {
        let text = include_str!("../../../docs/operations.md");
        for exit in [Exit::Usage, Exit::NoQuorum, Exit::Conflict, Exit::Configuration, Exit::Lost] {
            let code = exit.code();
            assert!(text.lines().any(|line| line.starts_with(&format!("| {code} |"))), "operations: {code}");
            assert!(all_codes().contains(&format!("\n  {code}  ")), "help: {code}");
        }
    }

    #[test]
    fn a_quarantine_is_to_be_waited_for_when_nothing_else_is_in_the_way() {
        let quarantined = || Answer::Failed(NodeError::Quarantined { left: Duration::from_secs(8) });
        let away = || Answer::Failed(NodeError::Connecting);
        for (answers, expected) in [
            (vec![quarantined(), quarantined(), quarantined()], true),
            (vec![Answer::Up, quarantined(), away()], true),
            (vec![Answer::Agreed, quarantined(), quarantined()], true),
            (vec![quarantined(), away(), away()], false),
            (vec![Answer::Up, Answer::Up, quarantined()], false),
            (vec![Answer::Up, away(), away()], false),
            (vec![], false),
        ] {
            assert_eq!(ends_by_itself(answers.iter()), expected, "{answers:?}");
        }
    }

    #[test]
    fn every_error_says_what_to_do() {
        for (kind, is_retryable, is_too_late, hinted) in [
            (ErrorKind::Held, true, false, "wait longer with --wait"),
            (ErrorKind::NoQuorum, true, false, "Check that these nodes are up"),
            (ErrorKind::NoQuorum, true, true, "choose a longer --lease"),
            (ErrorKind::NoQuorum, false, false, MEND),
            (ErrorKind::Misconfigured, false, false, MEND),
            (ErrorKind::Lost, false, false, "end this work"),
            (ErrorKind::Usage, false, false, "Check the options"),
        ] {
            let hint = hint(kind, is_retryable, is_too_late);
            assert!(hint.contains(hinted), "{kind:?}: {hint}");
        }
    }

    #[test]
    #[cfg(feature = "tui")]
    fn the_help_has_the_codes_of_top() {
        assert!(all_codes().contains(TOP_CODES), "{}", all_codes());
    }
}
