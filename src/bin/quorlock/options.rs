//! The command line: flags as clap parses them, and the options that come of them once they are checked.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use quorlock::{Builder, Owner, Quorlock};

use crate::exit::{self, Exit, Failure};
use crate::messages::Verbosity;

/// The variables that a command finds, and that a `quorlock` inside it reads.
pub const NAME_VARIABLE: &str = "QUORLOCK_NAME";
pub const TOKEN_VARIABLE: &str = "QUORLOCK_TOKEN";
pub const LEASE_VARIABLE: &str = "QUORLOCK_LEASE";
pub const NODES_VARIABLE: &str = "QUORLOCK_NODES";
pub const PREFIX_VARIABLE: &str = "QUORLOCK_PREFIX";

const DEFAULT_NODES: &str = "redis://127.0.0.1:6379";

/// Run a command while holding a lock that a majority of independent Redis masters has granted.
#[derive(Parser)]
#[command(name = "quorlock", version, after_help = exit::TABLE)]
struct Flags {
    #[command(subcommand)]
    command: CommandFlags,
}

#[derive(Subcommand)]
enum CommandFlags {
    Run(RunFlags),
    Inspect(InspectFlags),
    Nodes(crate::nodes::Flags),
    #[cfg(feature = "lab")]
    #[command(flatten)]
    Lab(crate::lab::Flags),
}

/// Where the lock is.
#[derive(Args)]
pub struct PlaceFlags {
    /// The Redis masters, as URLs with commas between
    #[arg(long, short, value_name = "URL,...", env = NODES_VARIABLE, hide_env_values = true, long_help = HELP_NODES)]
    nodes: Option<OsString>,

    /// What stands before a NAME in its key; may be empty. The same wherever the lock is used.
    #[arg(long, env = PREFIX_VARIABLE, default_value = quorlock::DEFAULT_PREFIX)]
    prefix: OsString,
}

const ABOUT_RUN: &str = "\
Run COMMAND while holding the lock on every NAME.

COMMAND is run directly, not by a shell, in a process group of its own. The lock is extended in the background while \
COMMAND runs, and released when it ends. Signals are passed on to COMMAND's process group.

If the lock is about to be lost, the group gets SIGTERM and then SIGKILL while the lock is still valid. If quorlock is \
killed, COMMAND gets SIGTERM (on Linux, and unless COMMAND is set-user-ID or changed its user). While quorlock is \
stopped (Ctrl-Z), the lock is not extended: a COMMAND that stays stopped until the lock is lost is killed when it is to \
go on.

COMMAND finds in its environment:
  QUORLOCK_NAME     the NAMEs, with a space between
  QUORLOCK_TOKEN    the fencing token, a number that grows with every acquisition: let what the lock protects refuse \
an older one. Where NAMEs have different tokens, because some were entered again: one for each, with a space between
  QUORLOCK_LEASE    the lease: `quorlock run` inside COMMAND enters it again instead of waiting for it
  QUORLOCK_NODES    the nodes, for that
  QUORLOCK_PREFIX   the prefix, for that";

const HELP_NODES: &str = "\
The Redis masters, as URLs with commas between (a comma in a password is written %2C)

Independent servers, an odd number, the same list wherever the lock is used. A URL with a password is better put into \
the variable: everybody on the machine can see a command line.

[default: redis://127.0.0.1:6379, a quorum of one]";

/// Run a command while holding a lock
#[derive(Args)]
#[command(long_about = ABOUT_RUN, after_help = exit::TABLE)]
struct RunFlags {
    /// What to lock; several names are acquired together, all or none.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<OsString>,

    /// The command to run, and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    place: PlaceFlags,

    /// How long the lock outlives a holder that dies, as in `10s` or `1m 30s`.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    lease: Duration,

    /// The longest lease of anybody who uses these nodes, where that is not this one: for so long, a node that restarted
    /// without its log is not counted.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    longest_lease: Option<Duration>,

    /// How long to wait while another owner holds the lock [default: for ever].
    #[arg(long, short, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "try")]
    wait: Option<Duration>,

    /// Do not wait at all.
    #[arg(long)]
    r#try: bool,

    /// The exit code when another owner holds the lock.
    #[arg(long, short = 'E', value_name = "N", default_value_t = Exit::Conflict.code())]
    conflict_exit_code: u8,

    /// How long COMMAND may take to end after SIGTERM when the lock is in danger [default: while the lock is valid].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,

    /// A name for people, shown to whoever finds the lock held (a nested run keeps that of the outermost).
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,

    /// Only say errors.
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,

    /// Say who is waited for, and what was acquired and released.
    #[arg(long, short)]
    verbose: bool,
}

/// Show what each node has for NAME, and what that comes to. Changes nothing.
#[derive(Args)]
#[command(after_help = exit::TABLE)]
struct InspectFlags {
    /// The lock to look at.
    name: OsString,

    #[command(flatten)]
    place: PlaceFlags,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    /// Only say errors.
    #[arg(long, short)]
    quiet: bool,
}

/// What is to be done.
pub enum Task {
    Run(RunOptions),
    Inspect(InspectOptions),
    Nodes(crate::nodes::Options),
    #[cfg(feature = "lab")]
    Lab(crate::lab::Flags),
}

/// Where the lock is. No `Debug`: the URLs may hold passwords.
pub struct Place {
    pub nodes: Vec<String>,
    pub prefix: OsString,
    /// Neither flag nor variable said which nodes.
    pub is_default: bool,
}

pub struct RunOptions {
    pub names: Vec<OsString>,
    pub command: Vec<OsString>,
    pub place: Place,
    pub lease: Duration,
    pub longest_lease: Option<Duration>,
    pub patience: Patience,
    pub conflict_exit_code: u8,
    pub grace: Option<Duration>,
    pub label: String,
    pub verbosity: Verbosity,
    /// The owner of the enclosing `quorlock run`, when that locks on the same nodes.
    pub owner: Option<Owner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    For(Duration),
    Endless,
}

pub struct InspectOptions {
    pub name: OsString,
    pub place: Place,
    pub json: bool,
    pub verbosity: Verbosity,
}

/// Reads the command line and the environment. `None` when help or the version was asked for, and printed.
pub fn parse() -> Result<Option<Task>, Failure> {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = error.print(); // A closed pipe (`| head`) is no failure.
            return Ok(None);
        }
        Err(error) => return Err(usage(&error)),
    };
    match flags.command {
        CommandFlags::Run(flags) => flags.check().map(Task::Run),
        CommandFlags::Inspect(flags) => flags.check().map(Task::Inspect),
        CommandFlags::Nodes(flags) => flags.check().map(Task::Nodes),
        #[cfg(feature = "lab")]
        CommandFlags::Lab(flags) => Ok(Task::Lab(flags)),
    }
    .map(Some)
}

impl Place {
    pub fn builder(&self) -> Builder {
        Quorlock::builder().nodes(&self.nodes).prefix(self.prefix.as_bytes())
    }

    pub fn announce(&self, verbosity: Verbosity) {
        if self.is_default {
            verbosity.notice(format_args!(
                "no --nodes and no {NODES_VARIABLE}: using {DEFAULT_NODES} alone, a quorum of one that bears no failure"
            ));
        }
    }

    /// Is this where the enclosing `quorlock run` has its lock? Only then do a lease of its mean anything here.
    fn is_inherited(&self) -> bool {
        let Some(nodes) = env::var_os(NODES_VARIABLE) else { return false };
        let prefix = env::var_os(PREFIX_VARIABLE).unwrap_or_else(|| quorlock::DEFAULT_PREFIX.into());
        let sorted = |mut nodes: Vec<String>| {
            nodes.sort_unstable();
            nodes
        };
        let inherited = nodes.into_string().map(|nodes| sorted(split(&nodes)));
        self.prefix == prefix && inherited.is_ok_and(|inherited| inherited == sorted(self.nodes.clone()))
    }
}

fn split(nodes: &str) -> Vec<String> {
    nodes.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

impl PlaceFlags {
    pub fn check(self) -> Result<Place, Failure> {
        let is_default = self.nodes.is_none();
        let nodes = self.nodes.unwrap_or_else(|| DEFAULT_NODES.into()).into_string();
        let nodes = nodes.map_err(|_| Failure::new(Exit::Usage, "the node URLs are not UTF-8; see --nodes"))?;
        Ok(Place { nodes: split(&nodes), prefix: self.prefix, is_default })
    }
}

/// An empty name is valid, and almost always a shell variable that is not set.
fn check_name(name: &OsString) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::new(Exit::Usage, "a NAME is empty: is a shell variable not set?"));
    }
    Ok(())
}

impl RunFlags {
    fn check(self) -> Result<RunOptions, Failure> {
        self.names.iter().try_for_each(check_name)?;
        let place = self.place.check()?;
        let owner = match env::var_os(LEASE_VARIABLE) {
            Some(lease) if place.is_inherited() => Some(import(lease)?),
            _ => None,
        };
        let patience = match self.wait {
            _ if self.r#try => Patience::None,
            Some(Duration::ZERO) => Patience::None,
            Some(limit) => Patience::For(limit),
            None => Patience::Endless,
        };
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        Ok(RunOptions {
            names: self.names,
            command: self.command,
            place,
            lease: self.lease,
            longest_lease: self.longest_lease,
            patience,
            conflict_exit_code: self.conflict_exit_code,
            grace: self.grace,
            label: self.label,
            verbosity,
            owner,
        })
    }
}

fn import(lease: OsString) -> Result<Owner, Failure> {
    let owner = lease.into_string().ok().and_then(|lease| Owner::import(&lease).ok());
    owner.ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!(
                "{LEASE_VARIABLE} is not what an enclosing `quorlock run` has set: pass it on unchanged, or unset it"
            ),
        )
    })
}

impl InspectFlags {
    fn check(self) -> Result<InspectOptions, Failure> {
        check_name(&self.name)?;
        let verbosity = if self.quiet { Verbosity::Quiet } else { Verbosity::Normal };
        Ok(InspectOptions { name: self.name, place: self.place.check()?, json: self.json, verbosity })
    }
}

/// clap's message in our words.
fn usage(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let message = "run a command under a lock with `quorlock run NAME -- COMMAND`, look at a lock with `quorlock \
                       inspect NAME`, or declare nodes with `quorlock nodes declare-new`; more with `quorlock --help`";
        return Failure::new(Exit::Usage, message);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    let mut message = without_credentials(text);
    if error.kind() == ErrorKind::MissingRequiredArgument && text.contains("\n  <COMMAND>...") {
        message.push_str("\n\nThe command stands behind two dashes, as in: quorlock run NAME -- COMMAND");
    }
    Failure::new(Exit::Usage, message)
}

/// clap repeats arguments that it does not understand, and one of them may be a URL.
fn without_credentials(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        match (word.find("://"), word.rfind('@')) {
            (Some(scheme), Some(at)) if scheme < at => {
                shown.push_str(&word[..scheme + 3]);
                shown.push_str(&word[at + 1..]);
            }
            _ => shown.push_str(word),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }

    #[test]
    fn lists_may_have_spaces_and_a_comma_too_many() {
        assert_eq!(split(" redis://a , redis://b,"), ["redis://a", "redis://b"]);
        assert!(split("").is_empty());
    }

    #[test]
    fn usage_messages_show_no_password() {
        let text = "unexpected argument 'redis://me:p@ss@host:1,redis://:x@b' found\n\nFor more, see a@b";
        assert_eq!(without_credentials(text), "unexpected argument 'redis://b' found\n\nFor more, see a@b");
    }
}
