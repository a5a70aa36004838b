//! The command line: flags as clap parses them, and the options that come of them once they are checked.

use std::env;
use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use quorlock::secrets::without_bare_credentials;

use crate::duration::duration;
use crate::exit::{self, Exit, Failure};
use crate::messages::{self, Log, Verbosity, shown};
use crate::output::{Format, Output, OutputFlags};
use crate::place::{Place, PlaceFlags};

/// Run a command while holding a lock that a majority of independent Redis masters has granted.
#[derive(Parser)]
#[command(name = "quorlock", version, after_help = exit::all_codes())]
struct Flags {
    #[command(subcommand)]
    command: CommandFlags,
}

#[derive(Subcommand)]
enum CommandFlags {
    Run(RunFlags),
    Lead(LeadFlags),
    Inspect(InspectFlags),
    List(crate::list::Flags),
    Release(crate::release::Flags),
    Status(crate::status::Flags),
    Doctor(crate::doctor::Flags),
    #[cfg(feature = "tui")]
    Top(crate::top::Flags),
    Nodes(crate::nodes::Flags),
    Completions(CompletionsFlags),
    /// Print the manual page, in the format of man(7)
    Man,
}

/// Print what completes the command line in a shell
#[derive(Args)]
struct CompletionsFlags {
    shell: Shell,
}

const ABOUT_RUN: &str = "\
Run COMMAND while holding the lock on every NAME.

COMMAND is run directly, not by a shell, in a process group of its own. The lock is extended in the background while \
COMMAND runs, and released when it ends. A process that COMMAND leaves behind (a daemon) runs on without the lock.

A signal that quorlock gets is passed on to COMMAND's process group, except where the same signal has reached that group \
by itself. When COMMAND then dies by it, quorlock releases the lock and dies by the same signal; so it does when Ctrl-C \
or Ctrl-\\ on the terminal ended COMMAND.

If the lock is about to be lost, the group gets SIGTERM and then SIGKILL while the lock is still valid. If quorlock is \
killed, COMMAND gets SIGTERM (on Linux, and unless COMMAND is set-user-ID or changed its user). While quorlock is \
stopped (Ctrl-Z), the lock is not extended: a COMMAND that stays stopped until the lock is lost is killed when it is to \
go on.

COMMAND finds in its environment:
  QUORLOCK_NAME     the NAMEs, with a space between
  QUORLOCK_TOKEN    the fencing token, a number that grows with every acquisition: let what the lock protects refuse \
an older one. Where NAMEs have different tokens, because some were entered again: one for each, with a space between
  QUORLOCK_LEASE    the lease: `quorlock run` inside COMMAND enters it again instead of waiting for it
  QUORLOCK_LEASE_NODES, QUORLOCK_LEASE_PREFIX
                    where that lease is: a `quorlock run` on other nodes, or with another prefix, does not enter it
  QUORLOCK_NODES    the nodes, for a nested run (QUORLOCK_NODES_FILE if they came from a file, or if a URL holds a password)
  QUORLOCK_PREFIX   the prefix, for a nested run
  QUORLOCK_CACERT, QUORLOCK_CERT, QUORLOCK_KEY, QUORLOCK_SNI
                    the settings for TLS, for a nested run";

/// Run a command while holding a lock
#[derive(Args)]
#[command(long_about = ABOUT_RUN, after_help = exit::RUN_CODES)]
struct RunFlags {
    /// What to lock; several names are acquired together, all or none.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<OsString>,

    /// The command to run, and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    hold: HoldFlags,

    /// How long to wait while another owner holds the lock [default: for ever].
    #[arg(long, short, value_name = "DURATION", value_parser = duration, conflicts_with = "try")]
    wait: Option<Duration>,

    /// Do not wait at all.
    #[arg(long)]
    r#try: bool,

    /// The exit code when another owner holds the lock.
    #[arg(long, short = 'E', value_name = "N", default_value_t = Exit::Conflict.code())]
    conflict_exit_code: u8,

    /// Keep the lock for at least this long after it was acquired, also when COMMAND ends sooner: a job that is started on several
    /// machines at about the same time then runs once. Ctrl-C or SIGTERM ends that wait, also one that
    /// came while COMMAND ran.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    at_least: Option<Duration>,
}

const ABOUT_LEAD: &str = "\
Run COMMAND on one of several machines: where this candidate holds the lock on NAME, and so is the leader.

Start it on each machine, by a supervisor that starts it again when it ends. A candidate waits until it gets the lock, also \
while too few nodes answer, and starts COMMAND as `quorlock run` does, with the same variables; QUORLOCK_TOKEN is the \
number of its term. When the lock is about to be lost, COMMAND gets SIGTERM and then SIGKILL while the lock is still valid, \
so it has ended before another leader can begin. Then this candidate waits for the lock again.

When COMMAND ends by itself, what it has left in its process group is ended as well. A COMMAND that puts itself into the \
background leaves that group, and runs on without the lock. Then the lock is released, and the next candidate leads. This \
one asks for the lock again after a second; the pause doubles each time, up to 30 s, and is a second again when COMMAND \
has run for longer than that. With --once quorlock ends instead, with the exit code of COMMAND.

SIGTERM, SIGINT or SIGQUIT to quorlock is passed on to COMMAND. When COMMAND has ended, the lock is released and quorlock \
ends, as COMMAND did. While quorlock ends what COMMAND has left in its process group, it passes such a signal on to that. A \
second one kills it (SIGKILL). Then quorlock ends by the first signal.

Other signals are passed on as `quorlock run` does. SIGHUP, SIGUSR1 and others that are no order to end do not end a \
candidate that waits under a supervisor, as they are for COMMAND. They end a candidate that has a controlling terminal; SIGHUP means \
that it has hung up.";

/// Run a command as the leader: on one of several machines, and on the next one when that fails
#[derive(Args)]
#[command(long_about = ABOUT_LEAD, after_help = exit::LEAD_CODES)]
struct LeadFlags {
    /// The election. Its leader holds the lock of this name.
    name: OsString,

    /// The command to run, and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    hold: HoldFlags,

    /// End when COMMAND has ended by itself, with its exit code. After a loss of the lock quorlock goes on.
    #[arg(long)]
    once: bool,
}

/// How a lock is held, and a command run under it.
#[derive(Args)]
struct HoldFlags {
    #[command(flatten)]
    place: PlaceFlags,

    /// How long the lock outlives a holder that dies, as in `10s` or `1m 30s`.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    lease: Duration,

    /// The longest lease that any client of these nodes uses, where that is not this one: how long a node that may have
    /// forgotten leases has no vote.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    longest_lease: Option<Duration>,

    /// How long to wait for nodes when no majority has answered. For distant nodes, some round trips [default: a quarter of
    /// the lease, at most 500ms].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    node_timeout: Option<Duration>,

    /// How long COMMAND may take to end after SIGTERM when the lock is in danger [default: while the lock is valid].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    grace: Option<Duration>,

    /// Give COMMAND neither the lease nor the nodes. A `quorlock run` inside COMMAND cannot
    /// enter the lock again.
    #[arg(long)]
    no_export: bool,

    /// A name for people, shown to others who find the lock held (a nested run keeps that of the outermost).
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,

    /// How messages are written to stderr. `json` is one object in each line, with time, level and message.
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,

    /// Only say errors.
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,

    /// Say who holds a lock that is waited for, which nodes cannot grant it and why, and what was acquired and released.
    #[arg(long, short)]
    verbose: bool,
}

/// Show what each node has for NAME, and whether it is held. Takes and changes no lock.
#[derive(Args)]
#[command(after_help = exit::INSPECT_CODES)]
struct InspectFlags {
    /// The lock to look at.
    name: OsString,

    #[command(flatten)]
    place: PlaceFlags,

    /// How long to wait for nodes. For distant nodes, some round trips [default: 500ms].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    node_timeout: Option<Duration>,

    #[command(flatten)]
    output: OutputFlags<Format>,

    /// Only say errors.
    #[arg(long, short)]
    quiet: bool,
}

/// What is to be done.
pub enum Task {
    Run(RunOptions),
    Lead(LeadOptions),
    Inspect(InspectOptions),
    List(crate::list::Options),
    Release(crate::release::Options),
    Status(crate::status::Options),
    Doctor(crate::doctor::Options),
    #[cfg(feature = "tui")]
    Top(crate::top::Options),
    Nodes(crate::nodes::Options),
}

pub struct RunOptions {
    pub names: Vec<OsString>,
    pub command: Vec<OsString>,
    pub place: Place,
    pub lease: Duration,
    pub longest_lease: Option<Duration>,
    pub node_timeout: Option<Duration>,
    pub patience: Patience,
    pub conflict_exit_code: u8,
    pub grace: Option<Duration>,
    pub at_least: Duration,
    pub label: String,
    pub verbosity: Verbosity,
    /// The command gets the lease and the nodes.
    pub exports: bool,
}

pub struct LeadOptions {
    pub run: RunOptions,
    /// Ends when the command has ended by itself.
    pub once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    For(Duration),
    /// Not through an outage.
    Endless,
    /// Also through outages, until an error that no retry mends.
    Campaign,
}

pub struct InspectOptions {
    pub name: OsString,
    pub place: Place,
    pub output: Output<Format>,
    pub verbosity: Verbosity,
}

/// Reads the command line and the environment. `None` when help or the version was asked for, and printed.
pub fn parse() -> Result<Option<Task>, Failure> {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = messages::printed(error.print()); // A closed pipe (`| head`) is no failure.
            return Ok(None);
        }
        Err(error) => {
            if asks_for_json(env::args_os()) {
                messages::log_as(Log::Json);
            }
            // clap quotes arguments as they are: what it has to say of printable ones is the same.
            let printable = env::args_os().map(|arg| shown(&arg));
            return Err(usage(&Flags::try_parse_from(printable).err().unwrap_or(error)));
        }
    };
    match flags.command {
        CommandFlags::Run(flags) => flags.check().map(Task::Run),
        CommandFlags::Lead(flags) => flags.check().map(Task::Lead),
        CommandFlags::Inspect(flags) => flags.check().map(Task::Inspect),
        CommandFlags::List(flags) => flags.check().map(Task::List),
        CommandFlags::Release(flags) => flags.check().map(Task::Release),
        CommandFlags::Status(flags) => flags.check().map(Task::Status),
        CommandFlags::Doctor(flags) => flags.check().map(Task::Doctor),
        #[cfg(feature = "tui")]
        CommandFlags::Top(flags) => flags.check().map(Task::Top),
        CommandFlags::Nodes(flags) => flags.check().map(Task::Nodes),
        CommandFlags::Completions(CompletionsFlags { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Flags::command(), "quorlock", &mut script);
            messages::print(&String::from_utf8_lossy(&script));
            return Ok(None);
        }
        CommandFlags::Man => return manual().map(|()| None),
    }
    .map(Some)
}

/// Returns whether these arguments ask for messages as JSON, also where they fit no command. What stands behind two dashes is another
/// command's.
fn asks_for_json(args: impl Iterator<Item = OsString>) -> bool {
    let own: Vec<OsString> = args.take_while(|arg| arg != "--").collect();
    own.iter().any(|arg| arg == "--log=json") || own.windows(2).any(|pair| pair[0] == "--log" && pair[1] == "json")
}

/// Prints the manual page: that of the command, and behind it one for each subcommand, and for each of those.
fn manual() -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::NotRunnable, format!("cannot write the manual page: {error}"));
    let mut command = Flags::command();
    command.build();
    let mut page = Vec::new();
    let mut left = vec![("quorlock".to_owned(), &command)];
    while let Some((title, command)) = left.pop() {
        clap_mangen::Man::new(command.clone()).title(&title).render(&mut page).map_err(failed)?;
        let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
        let titled = subcommands.map(|subcommand| (format!("{title}-{}", subcommand.get_name()), subcommand));
        left.extend(titled.collect::<Vec<_>>().into_iter().rev());
    }
    messages::print(&String::from_utf8_lossy(&page));
    Ok(())
}

/// An empty name is valid, and almost always a shell variable that is not set.
pub fn check_name(name: &OsString) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::new(Exit::Usage, "a NAME is empty: is a shell variable not set?"));
    }
    Ok(())
}

impl RunFlags {
    fn check(self) -> Result<RunOptions, Failure> {
        let patience = match self.wait {
            _ if self.r#try => Patience::None,
            Some(Duration::ZERO) => Patience::None,
            Some(limit) => Patience::For(limit),
            None => Patience::Endless,
        };
        let mut options = self.hold.check(self.names, self.command, patience)?;
        options.conflict_exit_code = self.conflict_exit_code;
        options.at_least = self.at_least.unwrap_or_default();
        Ok(options)
    }
}

impl LeadFlags {
    fn check(self) -> Result<LeadOptions, Failure> {
        let run = self.hold.check(vec![self.name], self.command, Patience::Campaign)?;
        Ok(LeadOptions { run, once: self.once })
    }
}

impl HoldFlags {
    fn check(self, names: Vec<OsString>, command: Vec<OsString>, patience: Patience) -> Result<RunOptions, Failure> {
        messages::log_as(self.log);
        names.iter().try_for_each(check_name)?;
        let place = self.place.check()?;
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        Ok(RunOptions {
            names,
            command,
            place,
            lease: self.lease,
            longest_lease: self.longest_lease,
            node_timeout: self.node_timeout,
            patience,
            conflict_exit_code: Exit::Conflict.code(),
            grace: self.grace,
            at_least: Duration::ZERO,
            label: self.label,
            verbosity,
            exports: !self.no_export,
        })
    }
}

impl InspectFlags {
    fn check(self) -> Result<InspectOptions, Failure> {
        check_name(&self.name)?;
        let verbosity = if self.quiet { Verbosity::Quiet } else { Verbosity::Normal };
        let mut place = self.place.check()?;
        place.node_timeout = self.node_timeout;
        let output = self.output.check(Format::Json);
        Ok(InspectOptions { name: self.name, place, output, verbosity })
    }
}

#[cfg(not(feature = "tui"))]
const NO_TOP: &str =
    "this quorlock was built without `quorlock top`: build it with `--features tui`, which includes `cli`";

/// clap's message in our words.
fn usage(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let declare =
            "declare which nodes belong together with `quorlock nodes declare-new` or `quorlock nodes set-list`";
        let message = if error.render().to_string().contains("Usage: quorlock nodes ") {
            format!("{declare}; `quorlock nodes --help` has more")
        } else {
            format!(
                "run a command under a lock with `quorlock run NAME -- COMMAND`, or as the leader of several machines with \
                 `quorlock lead NAME -- COMMAND`, look at the locks with `quorlock list` and `quorlock inspect NAME`, take one from its holder with `quorlock release NAME --force`, look at the nodes \
                 with `quorlock status` and `quorlock doctor`, or {declare}; `quorlock --help` has more"
            )
        };
        return Failure::new(Exit::Usage, message);
    }
    let text = error.render().to_string();
    #[cfg(not(feature = "tui"))]
    if text.starts_with("error: unrecognized subcommand 'top'\n") && text.contains("Usage: quorlock <COMMAND>") {
        return Failure::new(Exit::Usage, NO_TOP);
    }
    let text = &with_whole_usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    let mut message = without_bare_credentials(text);
    if error.kind() == ErrorKind::MissingRequiredArgument && text.contains("\n  <COMMAND>...") {
        message.push_str("\n\nThe command stands behind two dashes, as in: quorlock run NAME -- COMMAND");
    }
    Failure::new(Exit::Usage, message)
}

/// Replaces the usage of a subcommand in clap's message, which names flags as needed whose variables are set.
fn with_whole_usage(text: &str) -> String {
    let mut command = Flags::command();
    command.build();
    let mut whole = |line: &str| {
        let name = line.strip_prefix("Usage: quorlock ")?.split(' ').next()?;
        let subcommand = command.find_subcommand_mut(name).filter(|subcommand| !subcommand.has_subcommands())?;
        Some(subcommand.render_usage().to_string())
    };
    let lines: Vec<String> = text.lines().map(|line| whole(line).unwrap_or_else(|| line.to_owned())).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_names_no_flag_as_needed() {
        let text = "wrong\n\nUsage: quorlock inspect --prefix <PREFIX> --cacert <FILE> <NAME>\n\nmore";
        assert_eq!(with_whole_usage(text), "wrong\n\nUsage: quorlock inspect [OPTIONS] <NAME>\n\nmore");
        for other in
            ["Usage: quorlock <COMMAND>", "Usage: quorlock nodes <COMMAND>", "Usage: quorlock nodes declare-new x"]
        {
            assert_eq!(with_whole_usage(other), other);
        }
    }

    #[test]
    fn json_is_asked_for_before_the_two_dashes() {
        for (line, expected) in [
            ("run --log json --lese 3s job -- true", true),
            ("run --log=json", true),
            ("run job --log json", true),
            ("run --log text --label json job", false),
            ("run --log -- json", false),
            ("run --lese 3s job -- echo --log=json --log json", false),
            ("run --log", false),
        ] {
            assert_eq!(asks_for_json(line.split(' ').map(OsString::from)), expected, "{line}");
        }
    }

    #[test]
    #[cfg(not(feature = "tui"))]
    fn top_names_the_feature_that_it_needs() {
        let message = |line: &str| Flags::try_parse_from(line.split(' ')).err().map(|error| usage(&error).message);
        assert_eq!(message("quorlock top -b").as_deref(), Some(NO_TOP));
        assert!(message("quorlock tops").is_some_and(|text| text.starts_with("unrecognized subcommand 'tops'")));
        assert!(message("quorlock nodes top").is_some_and(|text| text.starts_with("unrecognized subcommand 'top'")));
    }

    #[test]
    fn the_flags_fit_together() {
        Flags::command().debug_assert();
    }
}
