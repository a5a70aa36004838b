//! The exit codes, and what leads to them.

use quorlock::{AcquireError, Answer, ConfigError, NodeError, NodeReport};

/// With what `quorlock` ends when it is not the command's own code, or 128 plus the signal that ended the command.
/// Numbers of sysexits.h where it has one that fits, and of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    /// `EX_USAGE`: a wrong flag, or a value that cannot work.
    Usage,
    /// `EX_UNAVAILABLE`: so many nodes cannot be heard that there is no quorum.
    NoQuorum,
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
            Self::Conflict => 75,
            Self::Configuration => 78,
            Self::Lost => 79,
            Self::NotRunnable => 126,
            Self::NotFound => 127,
        }
    }
}

/// Of a process that this signal ended, as a shell says it.
pub fn ended_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// What `--help` says about all this.
pub const TABLE: &str = "\
Exit codes of `run`:
  N      the command's own exit code
  128+N  signal N ended the command. When quorlock got that signal, or the
         terminal sent it (Ctrl-C), quorlock dies by it as well: a script
         stops there
  64     wrong usage, or a value that cannot work
  69     no quorum: too few nodes can be reached, or they are too slow
  75     the lock is held by another owner (-E chooses another code)
  78     no quorum, as the deployment is configured wrongly: the list of nodes is
         another one than that of the nodes, or nodes can have no vote
  79     the lock was lost, or about to be, while the command ran: the command
         was stopped; or a nested run was to enter a lock that is lost
  126    the command cannot be run
  127    there is no such command

Exit codes of `inspect`:
  0      free, held or split
  64     wrong usage, or a value that cannot work
  69     unknown: too few nodes can be reached
  78     unknown, as the deployment is configured wrongly (as with `run`)

Exit codes of `nodes`: see `quorlock nodes declare-new --help`";

/// Why it ends before, or without, the command's own exit code.
#[derive(Debug)]
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
            ConfigError::LeaseTooShort { .. } => "; choose a longer --lease",
            ConfigError::LeaseTooLong { .. } => "; choose a shorter --lease",
            ConfigError::DangerTooEarly { .. } => "; choose a shorter --grace or a longer --lease",
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
        let (exit, hint) = reason(&error);
        Self::new(exit, format!("{error}. {hint}"))
    }
}

fn reason(error: &AcquireError) -> (Exit, &'static str) {
    match error {
        AcquireError::TimedOut { last, .. } => reason(last),
        AcquireError::Held { .. } | AcquireError::Contended { .. } => {
            (Exit::Conflict, "Try again later, or wait longer with --wait")
        }
        AcquireError::NoQuorum { needed, nodes } if nodes.0.len() - misconfigured(&nodes.0) < *needed => {
            (Exit::Configuration, MEND)
        }
        AcquireError::NoQuorum { .. } => {
            (Exit::NoQuorum, "Check that these nodes are up and that --nodes (or QUORLOCK_NODES) is right")
        }
        AcquireError::TooLate { .. } => (Exit::NoQuorum, "Check the nodes and the network, or choose a longer --lease"),
        AcquireError::Lost { .. } => {
            (Exit::Lost, "The enclosing `quorlock run` no longer holds it: end this work, and start it anew from there")
        }
        _ => (Exit::Usage, "Check the options; `quorlock run --help` explains them"),
    }
}

/// What to do where the deployment is configured wrongly.
pub const MEND: &str = "Waiting does not help: mend what is said of these nodes, or name the right nodes (--nodes, \
                        QUORLOCK_NODES)";

fn misconfigured(nodes: &[NodeReport]) -> usize {
    let is_misconfigured = |report: &&NodeReport| match &report.answer {
        Answer::Failed(error) => is_configuration(error),
        _ => false,
    };
    nodes.iter().filter(is_misconfigured).count()
}

/// Can the node have no vote until the deployment is changed?
pub fn is_configuration(error: &NodeError) -> bool {
    matches!(
        error,
        NodeError::OtherList { .. }
            | NodeError::OtherCluster { .. }
            | NodeError::ListChanging
            | NodeError::SameServer(_)
            | NodeError::ClusterMode
            | NodeError::Replica
            | NodeError::MayEvict { .. }
            | NodeError::NotAllowed { .. }
            | NodeError::TooOld
    )
}
