//! The command line of `quorlock-lab chaos`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::exit::{Exit, Failure};
use crate::messages::shown;

/// The shortest lease that a machine with this load can keep.
const SHORTEST_LEASE: Duration = Duration::from_millis(500);
const LONGEST_LEASE: Duration = Duration::from_secs(60);
/// The number of leases in which a fault of every kind fits.
const LEASES_FOR_ALL: u32 = 45;
const SHORTEST_RUN: Duration = Duration::from_secs(1);
const LONGEST_RUN: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_RUN: Duration = Duration::from_secs(90);
/// Of the run's own workers: a short one, so that many faults fit in.
const DEFAULT_LEASE: Duration = Duration::from_secs(2);
const DEFAULT_WORKERS: usize = 5;
const DEFAULT_NODES: usize = 5;
const MOST_NODES: usize = 63;
const MOST_WORKERS: usize = 64;

/// The name of a file in every folder that a run has made: only such a folder is used again.
const MARK: &str = "results.json";

const HELP: &str = "\
Exit codes of `chaos`:
  0      nothing was violated, and all that was wanted was seen; with --controls: every broken client was caught
  1      with --controls: a broken client was not caught, or the unbroken one was
  64     wrong usage, or a value that cannot work
  80     a promise was not kept: the report says which, and how to repeat it
  81     nothing was violated, but something that was wanted was not seen
  82     --no-fencing lost updates, as it should: what tokens are for
  83     nothing was violated, but COMMAND failed: its code is in the message, in results.json and in the report
  126    the run could not be carried out
  129, 130, 143
         interrupted by SIGHUP, SIGINT (Ctrl-C) or SIGTERM; what was done so far is reported";

/// Break real servers on purpose, and check what the lock promises
///
/// Starts its own Redis servers and its own worker processes on this machine, and removes them again. The seed decides the
/// faults; how they fall into what the workers do is up to real time, so the same seed does not give the same history.
///
/// With `-- COMMAND` there are no workers: the faults hit the nodes of COMMAND, which is any program that uses the lock. It finds
/// the nodes in `QUORLOCK_NODES` and runs in a process group of its own. When the time is over it gets SIGTERM, and SIGKILL after
/// 10 s; to end by that SIGTERM is no failure. When it ends earlier, so does the run. The checks read the nodes from
/// outside. The faults are those that the lock tolerates for leases up to --lease: set that to the longest lease of COMMAND.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Flags {
    /// How long there are faults, as in `60s` or `5m`; 90 s have all kinds [default: 90s]. A calm phase comes behind it.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub lasts: Option<Duration>,

    /// Which faults come when [default: a random number, which is printed].
    #[arg(long)]
    pub seed: Option<u64>,

    /// How many servers [default: 5].
    #[arg(long, value_name = "N")]
    pub nodes_count: Option<usize>,

    /// How many worker processes [default: 5].
    #[arg(long, value_name = "N", conflicts_with = "command")]
    workers: Option<usize>,

    /// The longest lease; some workers have shorter ones [default: 2s; with COMMAND the library's default, 10s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,

    /// The key prefix of COMMAND.
    #[arg(long, value_name = "TEXT", default_value = quorlock::DEFAULT_PREFIX, requires = "command")]
    prefix: String,

    /// Where report.html, history.jsonl and results.json go: a new folder, an empty one, or one of an earlier run [default:
    /// quorlock-chaos-SEED here, with a number behind it where that is taken].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The database of the ledger: `postgres://...` [default: a file that goes with the run].
    #[arg(long, value_name = "URL", conflicts_with = "command")]
    ledger: Option<String>,

    /// Let the database ignore tokens: a demonstration of what they are for, which must lose updates.
    #[arg(long, conflicts_with = "command")]
    no_fencing: bool,

    /// Print results.json on stdout.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub controls: ControlFlags,

    /// Print errors only.
    #[arg(long, short)]
    quiet: bool,

    /// A program that uses the lock, and its arguments: it runs in place of the workers.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The flags of the negative controls.
#[derive(Args)]
pub struct ControlFlags {
    /// Break the client in each of many ways in turn, 60 s each on 3 and on 5 nodes, and print what was caught by which check as a
    /// Markdown table. Builds a changed copy of this repository.
    #[arg(id = "controls", long = "controls", conflicts_with_all = ["out", "workers", "lease", "ledger", "no_fencing", "json", "command"])]
    pub wanted: bool,

    /// With --controls: only the ways whose names contain this.
    #[arg(long, value_name = "TEXT", requires = "controls", default_value = "", hide_default_value = true)]
    pub only: String,

    /// With --controls: how many runs at a time [default: four for each processor].
    #[arg(long, value_name = "N", requires = "controls")]
    pub at_a_time: Option<usize>,
}

pub struct Options {
    pub lasts: Duration,
    pub seed: u64,
    pub nodes: usize,
    /// None where a program is tested.
    pub workers: usize,
    pub lease: Duration,
    pub prefix: String,
    /// The program that is tested, and its arguments; empty when there is none.
    pub program: Vec<OsString>,
    pub out: PathBuf,
    /// `None`: `SQLite`.
    pub postgres: Option<String>,
    pub fencing: bool,
    pub json: bool,
    pub quiet: bool,
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn check_range(flag: &str, value: Duration, shortest: Duration, longest: Duration) -> Result<(), Failure> {
    if (shortest..=longest).contains(&value) {
        return Ok(());
    }
    let [value, shortest, longest] = [value, shortest, longest].map(humantime::format_duration);
    Err(wrong(format!("{flag} {value} cannot work: choose from {shortest} to {longest}")))
}

impl Flags {
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }
}

impl Options {
    pub fn check(flags: Flags) -> Result<Self, Failure> {
        let lasts = flags.lasts.unwrap_or(DEFAULT_RUN);
        let nodes = flags.nodes_count.unwrap_or(DEFAULT_NODES);
        check_range("--for", lasts, SHORTEST_RUN, LONGEST_RUN)?;
        let is_program = !flags.command.is_empty();
        let lease = flags.lease.unwrap_or(if is_program { quorlock::DEFAULT_LEASE } else { DEFAULT_LEASE });
        check_range("--lease", lease, SHORTEST_LEASE, LONGEST_LEASE)?;
        let workers = flags.workers.unwrap_or(if is_program { 0 } else { DEFAULT_WORKERS });
        if !(1..=MOST_NODES).contains(&nodes) {
            return Err(wrong(format!("--nodes-count {nodes}: choose from 1 to {MOST_NODES}")));
        }
        if !is_program && !(2..=MOST_WORKERS).contains(&workers) {
            return Err(wrong(format!(
                "--workers {workers}: choose from 2 to {MOST_WORKERS}; a single worker never waits"
            )));
        }
        if let Some(url) = &flags.ledger
            && !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme))
        {
            // It may hold a password, so it is not repeated.
            return Err(wrong("--ledger is no PostgreSQL URL: write user@host/database behind postgres://"));
        }
        let seed = flags.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        Ok(Self {
            lasts,
            seed,
            nodes,
            workers,
            lease,
            prefix: flags.prefix,
            program: flags.command,
            out: folder(flags.out, seed)?,
            postgres: flags.ledger,
            fencing: !flags.no_fencing,
            json: flags.json,
            quiet: flags.quiet,
        })
    }

    /// ms.
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn lasts_ms(&self) -> u64 {
        u64::try_from(self.lasts.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether there is time for a fault of every kind, so that each is required.
    pub fn wants_all(&self) -> bool {
        self.lasts >= self.lease * LEASES_FOR_ALL
    }

    /// Returns which part of a run with all kinds of faults this is, in thousandths.
    pub fn thousandths(&self) -> u64 {
        self.lasts_ms() * 1000 / (self.lease_ms() * u64::from(LEASES_FOR_ALL))
    }

    /// Returns the command that repeats this run.
    pub fn command(&self) -> String {
        let mut words = vec![format!(
            "cluster/chaos --for {} --seed {} --nodes-count {} --lease {}",
            humantime::format_duration(self.lasts).to_string().replace(' ', ""),
            self.seed,
            self.nodes,
            humantime::format_duration(self.lease).to_string().replace(' ', ""),
        )];
        if self.program.is_empty() {
            words.push(format!("--workers {}", self.workers));
        } else if self.prefix != quorlock::DEFAULT_PREFIX {
            words.push(format!("--prefix {}", quoted(&self.prefix)));
        }
        if self.postgres.is_some() {
            words.push("--ledger postgres://...".to_owned());
        }
        if !self.fencing {
            words.push("--no-fencing".to_owned());
        }
        if !self.program.is_empty() {
            words.push("--".to_owned());
            words.extend(self.program.iter().map(|argument| quoted(&shown(argument))));
        }
        words.join(" ")
    }
}

/// Returns the argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Creates a file of this run in the place of an earlier run's. The target of a symlink there is left alone.
pub fn new_file(path: &Path) -> io::Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::File::create_new(path),
    }
}

/// Makes the folder for the files of a run. Only files of earlier runs are overwritten.
fn folder(wanted: Option<PathBuf>, seed: u64) -> Result<PathBuf, Failure> {
    let cannot = |path: &Path, error: &io::Error| {
        Failure::new(Exit::Usage, format!("cannot write to {}: {error}; choose another --out", path.display()))
    };
    if let Some(path) = wanted {
        fs::create_dir_all(&path).map_err(|error| cannot(&path, &error))?;
        let mut entries = fs::read_dir(&path).map_err(|error| cannot(&path, &error))?;
        if entries.next().is_some() && !path.join(MARK).is_file() {
            return Err(wrong(format!(
                "{} holds files that are not of a run: choose a new or an empty folder for --out",
                path.display()
            )));
        }
        return Ok(path);
    }
    for number in 1.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = PathBuf::from(format!("quorlock-chaos-{seed}{suffix}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(&path, &error)),
        }
    }
    unreachable!("there are as many names as numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_earlier_runs_are_reused() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder(Some(dir.path().join(name)), 1);
        assert!(at("new/below").is_ok());
        assert!(at("new/below").is_ok(), "it is empty");
        assert!(at("new").is_err(), "it holds something");
        fs::write(dir.path().join("new").join(MARK), "{}").expect("a file");
        assert!(at("new").is_ok());
    }

    #[test]
    fn an_argument_is_quoted_where_a_shell_would_change_it() {
        let arguments = ["--ttl=2s", "", "a b", "it's"];
        assert_eq!(arguments.map(quoted), ["--ttl=2s", "''", "'a b'", r"'it'\''s'"]);
    }

    #[test]
    fn a_symlink_is_replaced_and_its_target_is_not_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let (own, link) = (dir.path().join("own"), dir.path().join("history.jsonl"));
        fs::write(&own, "mine").expect("a file");
        std::os::unix::fs::symlink(&own, &link).expect("a link");
        for _ in 0..2 {
            new_file(&link).expect("a new file");
        }
        assert_eq!(fs::read_to_string(own).expect("a file"), "mine");
        assert!(link.symlink_metadata().expect("a file").is_file());
    }
}
