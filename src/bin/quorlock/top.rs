//! `quorlock top`: the nodes and the locks, again and again. Reads only.

mod columns;
mod picture;
mod screen;
mod session;
mod view;

use std::io::{self, IsTerminal as _};
use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use self::picture::Picture;
use crate::duration::duration;
use crate::end::End;
use crate::exit::{Exit, Failure, TOP_CODES};
use crate::messages::{self, Verbosity};
use crate::place::{Place, ReadFlags};
use crate::status::verdict;

const ABOUT: &str = "\
Show the nodes as `status` does, and below them the locks as `list` does, again and again.

Nothing is written to the nodes. The figures are read in the background: a node that hangs makes them older, and the first line \
says how old they are. A narrow terminal has fewer columns.

Keys: q, Esc and Ctrl-C end it, j and k or the arrows move through the locks, s changes their order, p stops the figures and lets \
them go on, Ctrl-Z suspends it.

Here -n is the number of repetitions, as in other programs of this name: the nodes are named by --nodes, or by QUORLOCK_NODES.";

/// Show the nodes and the locks on one screen, again and again
#[derive(Args)]
#[command(long_about = ABOUT, after_help = TOP_CODES, mut_arg("nodes", |nodes| nodes.short(None)))]
pub struct Flags {
    #[command(flatten)]
    place: ReadFlags,

    /// The pause between two readings, as in `2s`.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    interval: Duration,

    /// The most locks that are shown: the first in their order.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,

    /// Print the figures one after the other, without a terminal and without keys.
    #[arg(long, short)]
    batch: bool,

    /// With --batch: how many times they are printed [default: until it is stopped, or the pipe is closed].
    #[arg(long, short = 'n', value_name = "N", requires = "batch")]
    count: Option<NonZeroU64>,
}

pub struct Options {
    place: Place,
    interval: Duration,
    limit: usize,
    batch: bool,
    count: Option<NonZeroU64>,
}

/// The shortest pause between two readings.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !self.batch && !is_terminal {
            let message =
                "`quorlock top` needs a terminal for its screen and its keys. Without one use `quorlock top -b -n 1`";
            return Err(Failure::new(Exit::Usage, message));
        }
        let Self { limit, batch, count, .. } = self;
        Ok(Options { place: self.place.check()?, interval: self.interval.max(SHORTEST_PAUSE), limit, batch, count })
    }
}

pub async fn top(options: &Options) -> Result<End, Failure> {
    options.place.announce(Verbosity::Normal);
    if options.batch { print(options).await.map(End::from) } else { session::run(options).await }
}

async fn print(options: &Options) -> Result<u8, Failure> {
    let mut printed = 0;
    loop {
        let mut picture = Picture::read(&options.place).await?;
        // A closed pipe (`| head`) ends what would go on for ever.
        let is_open = messages::print_as_is(&picture.text(options.limit)).is_ok();
        printed += 1;
        if !is_open || options.count.is_some_and(|count| printed >= count.get()) {
            return verdict(&picture.status);
        }
        sleep(options.interval).await;
    }
}
