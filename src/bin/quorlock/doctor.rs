//! `quorlock doctor`: what is wrong with the nodes, and what mends it. Changes nothing.

mod checks;
mod finding;
mod rights;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures::future::join_all;
use quorlock::NodeError;
use quorlock::admin::{self, Node};
use tokio::time::sleep;

use self::checks::{Answers, Target};
use self::finding::{Finding, Grade};
use crate::exit::{DOCTOR_CODES, Exit, Failure};
use crate::messages::{self, Verbosity};
use crate::nodes::keeps::Keeps;
use crate::nodes::keys::{endless_lock, read};
use crate::place::{Place, ReadFlags};
use crate::status::reading::{self, Status};

const ABOUT: &str = "\
Check the nodes, and say what mends what is wrong with them. Nothing is changed.

Each line begins with [OK], [WARN] or [FAIL]. A node with a failure has no vote, or is to be mended before it loses it. The \
checks: can each node be reached, have enough nodes a vote, is each a server of its own, a master without replicas, with a \
setting that keeps every write and evicts nothing; do all know the same longest lease; are its clock, its limits and the rights of \
the Redis user in order.";

/// Check the nodes, and say what mends what is wrong with them
#[derive(Args)]
#[command(long_about = ABOUT, after_help = DOCTOR_CODES)]
pub struct Flags {
    #[command(flatten)]
    place: ReadFlags,

    /// How the result is written. `nagios` is one line, with the exit codes of a monitoring plug-in.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Nagios,
}

pub struct Options {
    /// With `--format nagios` also an error is a result.
    place: Result<Place, Failure>,
    format: Format,
}

/// For so long the clocks are watched.
const CLOCK_WATCH: Duration = Duration::from_secs(1);

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        let Self { place, format } = self;
        match place.check() {
            Err(failure) if format != Format::Nagios => Err(failure),
            place => Ok(Options { place, format }),
        }
    }
}

pub async fn doctor(Options { place, format }: &Options) -> Result<u8, Failure> {
    let is_nagios = *format == Format::Nagios;
    let examined = match place {
        Ok(place) => {
            place.announce(if is_nagios { Verbosity::Quiet } else { Verbosity::Normal });
            examine(place).await
        }
        Err(failure) => Err(failure.clone()),
    };
    let (status, findings) = match examined {
        Ok(examined) => examined,
        Err(failure) if is_nagios => {
            messages::print(&format!("QUORLOCK UNKNOWN - {}\n", failure.message));
            return Ok(finding::NAGIOS_UNKNOWN);
        }
        Err(failure) => return Err(failure),
    };
    if is_nagios {
        let (line, code) = finding::nagios(checks::figures(&status.summary()), &findings);
        messages::print(&line);
        return Ok(if messages::unwritten().is_some() { finding::NAGIOS_UNKNOWN } else { code });
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    messages::print(&format!("{}\n", lines.join("\n")));
    Ok(exit(&status, &findings).code())
}

fn exit(status: &Status, findings: &[Finding]) -> Exit {
    if !status.has_quorum() {
        return if status.can_be_waited_for() { Exit::NoQuorum } else { Exit::Configuration };
    }
    let has_failed = findings.iter().any(|finding| finding.grade == Grade::Fail);
    if has_failed { Exit::Configuration } else { Exit::Success }
}

async fn examine(place: &Place) -> Result<(Status, Vec<Finding>), Failure> {
    let status = reading::read(place).await?;
    let mut findings = vec![checks::quorum(&status)];
    findings.extend(checks::longest_leases(&status));
    findings.extend(checks::plain_passwords(place.urls()));
    let nodes = admin::connect(&place.builder()).await?;
    let prefix = place.prefix_bytes();
    let targets = nodes.into_iter().zip(place.urls()).map(|((name, node), url)| {
        let client = place.redis_cli(url, &name);
        (Target { name, client, prefix_flag: place.prefix_flag() }, node)
    });
    let examined = targets.zip(&status.nodes).map(async |((target, node), known)| match node {
        Err(error) => vec![checks::no_vote(&target, &error)],
        Ok(mut node) => {
            let mut found = vec![checks::vote(&target, known)];
            match ask(&mut node, prefix).await {
                Ok(answers) => found.extend(checks::all(&target, &answers)),
                Err(error) => found.push(checks::no_vote(&target, &error)),
            }
            found
        }
    });
    findings.extend(join_all(examined).await.into_iter().flatten());
    Ok((status, findings))
}

/// Asks for all that the checks need.
async fn ask(node: &mut Node, prefix: &[u8]) -> Result<Answers, NodeError> {
    let info: String = read("INFO", node.ask(&redis::cmd("INFO")).await?)?;
    let keeps = Keeps::ask(node).await?;
    let began = Instant::now();
    let (_, first) = reading::round_trip(node).await?;
    let user = rights::user(node).await;
    let missing_rights = rights::missing(node, prefix).await?;
    let endless = endless_lock(node, prefix).await.map_or_else(refusal, |found| Ok(Ok(found)))?;
    sleep(CLOCK_WATCH.saturating_sub(began.elapsed())).await;
    let (_, offset_ms) = reading::round_trip(node).await?;
    let (watched, drift_ms) = (began.elapsed(), offset_ms - first);
    Ok(Answers { info, keeps, offset_ms, drift_ms, watched, user, missing_rights, endless })
}

/// What the server refuses is a result. Any other error ends the examination.
fn refusal<T>(error: NodeError) -> Result<Result<T, NodeError>, NodeError> {
    if matches!(error, NodeError::Redis { .. }) { Ok(Err(error)) } else { Err(error) }
}
