//! Where the lock is: the nodes and the prefix, and where quorlock has them from.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use clap::Args;
use quorlock::{Builder, DEFAULT_LEASE, DEFAULT_PREFIX, Quorlock};

use crate::child::Variables;
use crate::duration::duration;
use crate::exit::{Exit, Failure};
use crate::handover;
use crate::messages::{Verbosity, quoted, shown};
use crate::tls::{TlsFiles, TlsFlags};

pub const NODES_VARIABLE: &str = "QUORLOCK_NODES";
const FILE_VARIABLE: &str = "QUORLOCK_NODES_FILE";
const PREFIX_VARIABLE: &str = "QUORLOCK_PREFIX";
/// The nodes and the prefix of the lease that stands in `QUORLOCK_LEASE`.
const LEASE_NODES_VARIABLE: &str = "QUORLOCK_LEASE_NODES";
const LEASE_PREFIX_VARIABLE: &str = "QUORLOCK_LEASE_PREFIX";

const DAY: Duration = Duration::from_secs(24 * 3600);

const LOCAL_NODE: &str = "redis://127.0.0.1:6379";

#[derive(Args)]
pub struct PlaceFlags {
    /// The Redis masters, as URLs with commas between.
    #[arg(long, short, value_name = "URL,...", help = SHORT_HELP_NODES, long_help = HELP_NODES)]
    nodes: Option<OsString>,

    /// A file with the URLs of the Redis masters.
    #[arg(long, value_name = "FILE", conflicts_with = "nodes", help = SHORT_HELP_FILE, long_help = HELP_FILE)]
    nodes_file: Option<PathBuf>,

    /// Use the one Redis on this machine, 127.0.0.1:6379. The lock then holds among the programs of this machine only.
    #[arg(long, conflicts_with_all = ["nodes", "nodes_file"])]
    local: bool,

    /// What stands before a NAME in its key; may be empty. The same wherever the lock is used.
    #[arg(long, env = PREFIX_VARIABLE, default_value = DEFAULT_PREFIX)]
    prefix: OsString,

    #[command(flatten)]
    tls: TlsFlags,
}

const SHORT_HELP_NODES: &str = "The Redis masters, as URLs with commas between [env: QUORLOCK_NODES]";
const SHORT_HELP_FILE: &str = "A file with the URLs of the Redis masters, one a line [env: QUORLOCK_NODES_FILE]";

const HELP_NODES: &str = "\
The Redis masters, as URLs with commas between (a comma in a password is written %2C) [env: QUORLOCK_NODES]

Independent servers, an odd number, the same list wherever the lock is used. An empty part between two commas, or a comma at \
the end, is refused: it may be a variable that is not set. A URL with a password is better put into \
the variable or a file: every user of the machine can see a command line.

Without any nodes, quorlock uses 127.0.0.1:6379 when it runs on a terminal, and says so; elsewhere it ends with 64, \
unless --local is given. Two machines would otherwise lock on two servers, and both get the lock.";

const HELP_FILE: &str = "\
A file with the URLs of the Redis masters, one a line; empty lines are skipped, and so is what follows a # at the start of a \
line or behind a space [env: QUORLOCK_NODES_FILE]

QUORLOCK_NODES takes precedence over QUORLOCK_NODES_FILE. With `run`, COMMAND finds the name of the file in its \
environment, and no URL. What is no regular file, such as a pipe, is read once: COMMAND finds the list then.";

/// The place of a command that only reads what the nodes have.
#[derive(Args)]
pub struct ReadFlags {
    #[command(flatten)]
    place: PlaceFlags,

    /// How long to wait for the connection to a node, and for each of its answers. Then the result is shown without that node. For
    /// distant nodes, set five round trips.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    node_timeout: Duration,
}

impl ReadFlags {
    pub fn check(self) -> Result<Place, Failure> {
        Ok(Place { node_timeout: Some(self.node_timeout), ..self.place.check()? })
    }
}

/// Where the lock is. No `Debug`: the URLs may hold passwords.
pub struct Place {
    nodes: Vec<String>,
    pub prefix: OsString,
    source: Source,
    tls: TlsFiles,
    /// How long to wait for nodes, where that is not by the lease.
    pub node_timeout: Option<Duration>,
}

enum Source {
    /// The list itself, or a file that another process cannot read.
    Urls,
    /// The absolute path of a file that another process can read again.
    File(PathBuf),
    Local {
        asked_for: bool,
    },
}

impl PlaceFlags {
    /// The flags go before the variables.
    pub fn check(self) -> Result<Place, Failure> {
        let (nodes, source) = if let Some(nodes) = self.nodes {
            (urls(nodes)?, Source::Urls)
        } else if let Some(file) = self.nodes_file {
            listed(&file)?
        } else if self.local {
            (vec![LOCAL_NODE.to_owned()], Source::Local { asked_for: true })
        } else if let Some(nodes) = env::var_os(NODES_VARIABLE) {
            (urls(nodes)?, Source::Urls)
        } else if let Some(file) = env::var_os(FILE_VARIABLE) {
            listed(Path::new(&file))?
        } else if io::stderr().is_terminal() || io::stdin().is_terminal() {
            (vec![LOCAL_NODE.to_owned()], Source::Local { asked_for: false })
        } else {
            let message = format!(
                "no nodes are named. Set {NODES_VARIABLE} to the URLs of the Redis masters, or use --nodes or \
                 --nodes-file. If the one Redis on this machine is meant, say so with --local: every machine has its \
                 own, so programs on two machines would both get the lock"
            );
            return Err(Failure::new(Exit::Usage, message));
        };
        Ok(Place { nodes, prefix: self.prefix, source, tls: self.tls.check()?, node_timeout: None })
    }
}

fn urls(nodes: OsString) -> Result<Vec<String>, Failure> {
    let nodes = nodes.into_string();
    let nodes = nodes.map_err(|_| Failure::new(Exit::Usage, "the node URLs are not UTF-8; see --nodes"))?;
    split(&nodes)
}

/// An empty part may be a variable that is not set. Without it the lock would be one of fewer nodes than were meant, and the quorum
/// smaller.
fn split(nodes: &str) -> Result<Vec<String>, Failure> {
    if nodes.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<String> = nodes.split(',').map(|url| url.trim().to_owned()).collect();
    match parts.iter().position(String::is_empty) {
        None => Ok(parts),
        Some(at) => Err(Failure::new(
            Exit::Usage,
            format!(
                "part {} of {} in the list of nodes is empty (--nodes, {NODES_VARIABLE}): is a shell variable not set? Write each \
                 URL, with one comma between two and none at the end",
                at + 1,
                parts.len()
            ),
        )),
    }
}

fn listed(file: &Path) -> Result<(Vec<String>, Source), Failure> {
    let failure = |what: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, format!("cannot take the nodes from the file {}: {what}", shown(file.as_os_str())))
    };
    let mut text = String::new();
    let mut opened = File::open(file).map_err(|error| failure(&error))?;
    opened.read_to_string(&mut text).map_err(|error| failure(&error))?;
    let nodes = lines(&text);
    if nodes.is_empty() {
        return Err(failure(&"it names none; write the URL of one Redis master on each line"));
    }
    let file = path::absolute(file).map_err(|error| failure(&error))?;
    // What was read from a pipe is gone.
    let is_regular = opened.metadata().is_ok_and(|file| file.is_file());
    Ok((nodes, if is_regular && !is_of_this_process(&file) { Source::File(file) } else { Source::Urls }))
}

/// Returns whether this path may mean another file in another process.
fn is_of_this_process(path: &Path) -> bool {
    ["/dev/stdin", "/dev/fd", "/proc/self", "/proc/thread-self"].iter().any(|own| path.starts_with(own))
}

/// A comment begins at the start of a line or behind a space: `#insecure` is part of a URL.
fn lines(text: &str) -> Vec<String> {
    let url = |line: &str| {
        let line = line.trim();
        let comment =
            line.match_indices('#').map(|(at, _)| at).find(|at| !line[..*at].ends_with(|c: char| !c.is_whitespace()));
        line[..comment.unwrap_or(line.len())].trim_end().to_owned()
    };
    text.lines().map(url).filter(|url| !url.is_empty()).collect()
}

impl Place {
    pub fn builder(&self) -> Builder {
        let builder = self.tls.apply(Quorlock::builder().nodes(&self.nodes).prefix(self.prefix.as_bytes()));
        match self.node_timeout {
            // Nothing is held, so the lease is only to be long enough for a timeout that can work.
            Some(timeout) => builder.lease(timeout.saturating_mul(2).clamp(DEFAULT_LEASE, DAY)).node_timeout(timeout),
            None => builder,
        }
    }

    pub fn prefix_bytes(&self) -> &[u8] {
        self.prefix.as_bytes()
    }

    /// Returns the flag that names the prefix in a command to copy, with a space before it, and nothing for the default prefix.
    pub fn prefix_flag(&self) -> String {
        if self.prefix == DEFAULT_PREFIX {
            return String::new();
        }
        format!(" --prefix {}", quoted(&self.prefix.to_string_lossy()))
    }

    /// The URLs of the nodes, which may hold passwords.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(String::as_str)
    }

    /// Returns how `redis-cli` reaches the node with this URL and name, without user and password.
    pub fn redis_cli(&self, url: &str, name: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        match scheme {
            "rediss" | "valkeys" => {
                let insecure = if rest.ends_with("#insecure") { " --insecure" } else { "" };
                format!("redis-cli{}{insecure} -u rediss://{name}", self.tls.for_redis_cli())
            }
            "redis+unix" | "valkey+unix" | "unix" => {
                format!("redis-cli -s {}", quoted(rest.split('?').next().unwrap_or(rest)))
            }
            _ => format!("redis-cli -u redis://{name}"),
        }
    }

    /// The local node was neither named nor asked for.
    pub fn is_default(&self) -> bool {
        matches!(self.source, Source::Local { asked_for: false })
    }

    pub fn announce(&self, verbosity: Verbosity) {
        if self.is_default() {
            verbosity.notice(format_args!(
                "no --nodes and no {NODES_VARIABLE}: using {LOCAL_NODE} alone, as with --local. Programs on other \
                 machines do not see this lock"
            ));
        }
    }

    /// Returns whether this is where the enclosing `quorlock run` has its lock. Only then does its lease mean anything here. A lease
    /// that was passed on without its place is taken to be from here.
    pub fn is_of_the_enclosing(&self, locks: &Quorlock) -> bool {
        let prefix = env::var_os(LEASE_PREFIX_VARIABLE).is_none_or(|prefix| prefix == self.prefix);
        prefix && env::var_os(LEASE_NODES_VARIABLE).is_none_or(|nodes| nodes == OsStr::new(&names(locks)))
    }

    /// What a `quorlock run` inside the command needs, beside the lease.
    pub fn variables(&self, locks: &Quorlock) -> Variables {
        let (urls, file) = match &self.source {
            Source::File(file) => (None, Some(file.into())),
            Source::Urls | Source::Local { .. } => match handover::private_file(&self.nodes) {
                Some(file) => (None, Some(file.into())),
                None => (Some(self.nodes.join(",").into()), None),
            },
        };
        let mut variables = vec![
            (NODES_VARIABLE, urls),
            (FILE_VARIABLE, file),
            (PREFIX_VARIABLE, Some(self.prefix.clone())),
            (LEASE_NODES_VARIABLE, Some(names(locks).into())),
            (LEASE_PREFIX_VARIABLE, Some(self.prefix.clone())),
        ];
        variables.extend(self.tls.variables());
        variables
    }

    /// Takes all that away from the command.
    pub fn no_variables() -> Variables {
        let names = [NODES_VARIABLE, FILE_VARIABLE, LEASE_NODES_VARIABLE, LEASE_PREFIX_VARIABLE];
        names.map(|name| (name, None)).into_iter().chain(TlsFiles::no_variables()).collect()
    }
}

/// The nodes without users and passwords, in an order that does not depend on the list's.
fn names(locks: &Quorlock) -> String {
    let mut names: Vec<&str> = locks.nodes().collect();
    names.sort_unstable();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_may_have_spaces_and_no_empty_part() {
        let said = |nodes| split(nodes).map_err(|failure| failure.message);
        assert_eq!(said(" redis://a , redis://b"), Ok(vec!["redis://a".to_owned(), "redis://b".to_owned()]));
        assert_eq!(said(" "), Ok(Vec::new()));
        for (nodes, part) in
            [("redis://a,,redis://b", "part 2 of 3"), ("redis://a,", "part 2 of 2"), (",", "part 1 of 2")]
        {
            assert!(said(nodes).is_err_and(|message| message.starts_with(part)), "{nodes}");
        }
    }

    #[test]
    fn files_may_have_comments_and_empty_lines() {
        let text =
            "# the three\n\n redis://a:p,w@h \r\n#redis://old\nredis://b#c\nredis://d#e # rack 4\nredis://f\t#g #h\n";
        assert_eq!(lines(text), ["redis://a:p,w@h", "redis://b#c", "redis://d#e", "redis://f"]);
    }

    #[test]
    fn redis_cli_reaches_the_node_as_the_client_does() {
        let tls = TlsFiles {
            authority: Some("/a b/ca.pem".into()),
            certificate: Some("/c".into()),
            key: Some("/k".into()),
            name: None,
        };
        let place = Place { nodes: Vec::new(), prefix: OsString::new(), source: Source::Urls, tls, node_timeout: None };
        for (url, name, expected) in [
            ("redis://me:secret@h:1", "h:1", "redis-cli -u redis://h:1"),
            (
                "rediss://me:secret@h:1/2",
                "h:1/2",
                "redis-cli --cacert '/a b/ca.pem' --cert /c --key /k -u rediss://h:1/2",
            ),
            (
                "rediss://h:1#insecure",
                "h:1",
                "redis-cli --cacert '/a b/ca.pem' --cert /c --key /k --insecure -u rediss://h:1",
            ),
            ("redis+unix:///run/r.sock?db=1", "/run/r.sock/1", "redis-cli -s /run/r.sock"),
        ] {
            assert_eq!(place.redis_cli(url, name), expected);
        }
    }
}
