//! `quorlock status`: which nodes have a vote, and whether they are a quorum. Reads only.

pub mod output;
pub mod reading;

use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::sleep;

use self::output::{json, prometheus, table};
use self::reading::{Status, read};
use crate::duration::duration;
use crate::exit::{Exit, Failure, MEND, STATUS_CODES};
use crate::messages::{self, Verbosity};
use crate::output::{Output, OutputFlags};
use crate::place::{Place, ReadFlags};

const ABOUT: &str = "\
Show each node, whether it has a vote, and whether the nodes that have one are a quorum.

Nothing is written to the nodes. STATE is `voting`; `quarantined` for a node that may have forgotten leases; `undeclared` \
for a node without a record, which is new or has lost its data, and whose quarantine begins with the first client; or why \
the node has no vote. CLOCK is by how much the node's clock is ahead of this machine's (+) or behind it (-). LOCKS is the \
number of lock keys under the prefix.";

/// Show which nodes have a vote, and whether they are a quorum
#[derive(Args)]
#[command(long_about = ABOUT, after_help = STATUS_CODES)]
pub struct Flags {
    #[command(flatten)]
    place: ReadFlags,

    #[command(flatten)]
    output: OutputFlags<Format>,

    /// Repeat it: a terminal is redrawn, anything else gets one JSON object in each line [default: 2s].
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    #[arg(value_parser = duration)]
    watch: Option<Duration>,
}

/// How the result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    /// For the textfile collector of an exporter.
    Prometheus,
}

pub struct Options {
    place: Place,
    output: Output<Format>,
    watch: Option<Duration>,
}

/// What to do about nodes without a record. Which of the two cases it is does not show there.
const UNDECLARED: &str = "If no client has ever used these nodes, declare them before the first one connects (`quorlock nodes \
     declare-new`). If nodes have lost their data, do not declare them: a lease may be in force. The first client that connects \
     begins a quarantine";

/// The shortest pause between two looks.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        let output = self.output.check(Format::Json);
        if self.watch.is_some() && output.format == Format::Prometheus {
            let message = "--watch does not go with --output prometheus: let a timer call it again and again";
            return Err(Failure::new(Exit::Usage, message));
        }
        let watch = self.watch.map(|pause| pause.max(SHORTEST_PAUSE));
        Ok(Options { place: self.place.check()?, output, watch })
    }
}

pub async fn status(options: &Options) -> Result<u8, Failure> {
    options.place.announce(Verbosity::Normal);
    let is_terminal = io::stdout().is_terminal();
    let Output { format, heads } = options.output;
    loop {
        let status = read(&options.place).await?;
        let text = match (format, options.watch) {
            (Format::Prometheus, _) => prometheus(&status),
            (Format::Table, Some(_)) if is_terminal => {
                format!("\x1b[H\x1b[2J{}", table(&status, heads, colours()))
            }
            (Format::Table, None) => table(&status, heads, is_terminal && colours()),
            (Format::Json, None) => format!("{:#}\n", json(&status)),
            (Format::Json | Format::Table, Some(_)) => format!("{}\n", json(&status)),
        };
        // A closed pipe (`| head`) ends what would go on for ever.
        let is_open = messages::print_as_is(&text).is_ok();
        match options.watch {
            Some(pause) if is_open => sleep(pause).await,
            _ => return verdict(&status),
        }
    }
}

/// Returns whether the user wants colours: `NO_COLOR` is not set.
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the exit code, or why there is no quorum.
pub fn verdict(status: &Status) -> Result<u8, Failure> {
    if status.has_quorum() {
        return Ok(Exit::Success.code());
    }
    let _ = io::stdout().flush();
    if status.can_be_waited_for() {
        let is_undeclared = |node: &reading::NodeStatus| matches!(node.state, reading::State::Undeclared);
        let next = if status.nodes.iter().any(is_undeclared) { UNDECLARED } else { "Look at the nodes without a vote" };
        return Err(Failure::new(Exit::NoQuorum, format!("{}. {next}", status.summary())));
    }
    Err(Failure::new(Exit::Configuration, format!("{}. {MEND}", status.summary())))
}
