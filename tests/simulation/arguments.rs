//! The command line.

use std::time::Duration;

pub const HELP: &str = "\
cluster/simulate: the lock under simulated faults, as decided by seeds.

  --seeds A..B   run these seeds (B is not run)
  --for TIME     run seeds for so long, such as 90s, 10m or 2h; from 0, or from A with --seeds A..
  --seed N       run this seed alone
  --trace        with --seed: print everything that happened
  --json         print the figures as one JSON object
  --threads N    use so many threads (default: all cores)
  --controls     only try the negative controls: copies of the client and the nodes, each broken in one place
  --soon         with --controls: without those that take many seeds
  --only TEXT    with --controls: those whose name contains the text
  --no-controls  leave them out
  --clock-steps  step the clocks of nodes, of any number of them, also while locks are held there, in every run
  --forgetting   let nodes forget what they knew, in every run
  --help         this text

Exit status: 0 when every invariant held and every control was caught, 1 otherwise, 2 for a wrong argument.
Without arguments, as cargo test runs it: a short fixed range, and tests of the simulation itself.";

#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub from: u64,
    pub to: Option<u64>,
    pub time: Option<Duration>,
    pub trace: bool,
    pub json: bool,
    pub threads: Option<usize>,
    pub controls: bool,
    pub only_controls: bool,
    /// Run only the controls that are caught within a few seeds.
    pub soon: bool,
    /// Run only the controls whose name contains this.
    pub only: String,
    pub clock_steps: bool,
    pub forgetting: bool,
}

pub enum Wanted {
    /// The mode of `cargo test`, optionally with a filter of test names.
    Tests(Option<String>),
    List,
    Help,
    Simulation(Arguments),
}

pub fn parse(args: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut parsed = Arguments { controls: true, ..Arguments::default() };
    let (mut simulates, mut filter) = (false, None);
    let mut args = args;
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg.clone(), None),
        };
        let mut value = || inline.clone().or_else(|| args.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(Wanted::Help),
            "--list" => return Ok(Wanted::List),
            "--seeds" => (parsed.from, parsed.to) = range(&value()?)?,
            "--seed" => {
                let seed = number(&value()?)?;
                (parsed.from, parsed.to, parsed.controls) = (seed, Some(seed + 1), false);
            }
            "--for" => {
                let text = value()?;
                parsed.time = Some(humantime::parse_duration(&text).map_err(|error| format!("--for {text}: {error}"))?);
            }
            "--threads" => {
                parsed.threads = Some(usize::try_from(number(&value()?)?.max(1)).map_err(|e| e.to_string())?)
            }
            "--trace" => parsed.trace = true,
            "--json" => parsed.json = true,
            "--controls" => parsed.only_controls = true,
            "--soon" => parsed.soon = true,
            "--only" => parsed.only = value()?,
            "--no-controls" => parsed.controls = false,
            "--clock-steps" => parsed.clock_steps = true,
            "--forgetting" => parsed.forgetting = true,
            // The flags that cargo test passes to every test program.
            "--nocapture" | "--exact" | "--quiet" | "-q" | "--ignored" | "--include-ignored" | "--show-output" => {
                continue;
            }
            "--test-threads" | "--format" | "--color" | "-Z" | "--skip" => {
                value()?;
                continue;
            }
            other if other.starts_with('-') => return Err(format!("unknown argument {other}; see --help")),
            other => {
                filter = Some(other.to_owned());
                continue;
            }
        }
        simulates = true;
    }
    if !simulates {
        return Ok(Wanted::Tests(filter));
    }
    if parsed.to.is_none() && parsed.time.is_none() && !parsed.only_controls {
        return Err("say how much: --seeds A..B, --for TIME, --seed N or --controls".to_owned());
    }
    Ok(Wanted::Simulation(parsed))
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|error| format!("{text}: {error}"))
}

fn range(text: &str) -> Result<(u64, Option<u64>), String> {
    let (from, to) = text.split_once("..").ok_or(format!("{text}: seeds are written A..B"))?;
    let to = if to.is_empty() { None } else { Some(number(to)?) };
    Ok((number(from)?, to))
}
