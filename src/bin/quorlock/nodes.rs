//! `quorlock nodes`: declares which nodes belong together.

mod declare;
pub mod keeps;
pub mod keys;
mod list;

use std::time::Duration;

use clap::{Args, Subcommand};
use quorlock::admin::{self, Node};
use quorlock::{Builder, ErrorKind, NodeError};

use crate::duration::duration;
use crate::exit::{Exit, Failure};
use crate::messages::{self, Verbosity};
use crate::place::{Place, PlaceFlags};

/// Declare which nodes belong together
#[derive(Args)]
#[command(after_help = exit_codes("  75     refused: a lease is in force, or may be (set-list)\n"))]
pub struct Flags {
    #[command(subcommand)]
    verb: VerbFlags,
}

#[derive(Subcommand)]
enum VerbFlags {
    DeclareNew(DeclareFlags),
    SetList(ListFlags),
}

const ABOUT_DECLARE: &str = "\
Declare these nodes to be a new cluster, so that they have a vote at once.

A node without a declaration may have forgotten leases, so it has no vote until the longest lease is over. This call \
says that no lease was ever granted there. It writes a record to every node, and the number of nodes.

Call it for new nodes only. Nodes that have lost their data look like new ones, and a lease that they granted may be in force: a \
second owner would get the same lock. Do nothing about such nodes. The first client that connects begins a quarantine, after which \
they have a vote.

All nodes must answer. A node where a lock was used before is refused: use `quorlock nodes set-list`, or start it with an \
empty data folder when no lease is in force.

A call that failed half way can be repeated. It completes the declaration when all records that are there are of one \
declaration, no node is in quarantine, and no lock was used.";

/// Returns what `--help` says about the exit codes. `refused` is the line of 75, where it can occur.
fn exit_codes(refused: &str) -> String {
    format!(
        "\
Exit codes:
  0      done
  64     wrong usage, or a value that cannot work
  69     a node cannot be reached, or did not answer
  74     done, and the result cannot be written
{refused}  78     refused because of what is declared or stored there, or because a node
         can have no vote: the message says what to do"
    )
}

/// Declare these nodes to be a new cluster
#[derive(Args)]
#[command(long_about = ABOUT_DECLARE, after_help = exit_codes(""))]
struct DeclareFlags {
    #[command(flatten)]
    place: PlaceFlags,

    /// How long a node remembers the last ballot of a name after its release. Half of it is how far the clocks of clients
    /// and nodes may differ.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    ballot_ttl: Duration,

    /// The longest lease that clients will use: how long a node that may have forgotten leases has no vote. Clients that
    /// use a longer lease raise it.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    longest_lease: Duration,

    /// Do not ask for a confirmation. Needed where standard input is no terminal.
    #[arg(long, short)]
    yes: bool,
}

const ABOUT_LIST: &str = "\
Make this list of nodes the list that clients with this prefix must have.

All nodes must answer, and no lease under the prefix may be in force on any of them. While the list is changed, no client \
gets a lock under the prefix. Clients with a list of another length get none afterwards. Where a node was replaced in a list \
of the same length, clients with the old list go on with the nodes that stayed: start them with the new list before a server \
answers at the old address again.

A node that is new gets a record. It has no vote until the longest lease is over, as it may have forgotten leases. The \
settings that decide whether a node keeps every write are read again.

A call that failed half way can be repeated.";

/// Make this list of nodes the list for this prefix
#[derive(Args)]
#[command(long_about = ABOUT_LIST, after_help = exit_codes("  75     refused: a lease is in force, or may be\n"))]
struct ListFlags {
    #[command(flatten)]
    place: PlaceFlags,

    /// Join nodes of several declared clusters into one.
    #[arg(long)]
    adopt: bool,
}

pub enum Options {
    DeclareNew(DeclareOptions),
    SetList(ListOptions),
}

pub struct DeclareOptions {
    place: Place,
    ballot_ttl: Duration,
    longest_lease: Duration,
    yes: bool,
}

pub struct ListOptions {
    place: Place,
    adopt: bool,
}

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        Ok(match self.verb {
            VerbFlags::DeclareNew(DeclareFlags { place, ballot_ttl, longest_lease, yes }) => {
                if ballot_ttl < 2 * longest_lease {
                    let message = "--ballot-ttl must be at least twice --longest-lease: choose a longer --ballot-ttl";
                    return Err(Failure::new(Exit::Usage, message));
                }
                Options::DeclareNew(DeclareOptions { place: place.check()?, ballot_ttl, longest_lease, yes })
            }
            VerbFlags::SetList(ListFlags { place, adopt }) => {
                Options::SetList(ListOptions { place: place.check()?, adopt })
            }
        })
    }
}

pub async fn nodes(options: &Options) -> Result<u8, Failure> {
    let place = match options {
        Options::DeclareNew(options) => &options.place,
        Options::SetList(options) => &options.place,
    };
    place.announce(Verbosity::Normal);
    match options {
        Options::DeclareNew(options) => declare::declare(options).await?,
        Options::SetList(options) => list::set(options).await?,
    }
    Ok(Exit::Success.code())
}

/// Connects to all nodes.
async fn reach(builder: &Builder) -> Result<Vec<Node>, Failure> {
    let (mut nodes, mut missing) = (Vec::new(), Vec::new());
    for (name, found) in admin::connect(builder).await? {
        match found {
            Ok(node) => nodes.push(node),
            Err(error) => missing.push((name, error)),
        }
    }
    if missing.is_empty() {
        return Ok(nodes);
    }
    let can_be_reached = missing.iter().all(|(_, error)| error.kind() == ErrorKind::Misconfigured);
    let exit = if can_be_reached { Exit::Configuration } else { Exit::NoQuorum };
    Err(Failure::new(exit, format!("{}. Nothing was changed: every node of the list is needed", each(&missing))))
}

/// `A: why; B: why`
fn each(errors: &[(String, NodeError)]) -> String {
    errors.iter().map(|(name, error)| format!("{name}: {error}")).collect::<Vec<_>>().join("; ")
}

fn unanswered(node: &Node, error: &NodeError) -> Failure {
    Failure::new(Exit::NoQuorum, format!("{}: {error}. Nothing was changed", node.name))
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Configuration, message)
}

/// Prints rows under a head, in columns. The last column is not padded.
fn print_table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let widths: Vec<usize> = (0..N).map(|i| all.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    messages::print(&all.iter().map(line).collect::<String>());
}
