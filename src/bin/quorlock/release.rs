//! `quorlock release NAME --force`: takes a lock from its holder.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Args;
use quorlock::secrets::name_without_credentials;
use quorlock::text::{Printable, printable_json};
use quorlock::{Answer, Quorlock, RevokeError, Revoked, Token};
use serde_json::json;

use crate::duration::duration;
use crate::exit::{Exit, Failure, RELEASE_CODES};
use crate::inspect;
use crate::messages::{Verbosity, print, shown};
use crate::options::check_name;
use crate::place::{Place, PlaceFlags};

const ABOUT: &str = "\
Take the lock on NAME from its holder, who is alive and does not give it back: revoke the lease.

A majority of the nodes refuses the holder from then on. The holder learns that the lock is lost when it next extends the \
lease, which it does at least every third of the lease (`quorlock run` then kills its command), and the lock is free when the lease would have ended: until then the \
holder may rely on it, so no other owner gets it. Deleting the key instead would let two hold the lock.

With --token only the lease with this fencing token is revoked, never that of a newer holder: use it in scripts. The token is \
in the output of `quorlock inspect`.

It is safe to repeat. The holder of a lock that is lost by itself, as its process has died, needs no revocation: its lease \
ends.";

/// Take a lock from its holder: the lease is revoked, and the lock is free when the lease would have ended
#[derive(Args)]
#[command(long_about = ABOUT, after_help = RELEASE_CODES)]
pub struct Flags {
    /// The lock.
    name: OsString,

    /// Yes, take it from a holder that may be at work. The holder itself releases the lock by ending.
    #[arg(long, required = true)]
    force: bool,

    /// Only the lease with this fencing token.
    #[arg(long, value_name = "TOKEN")]
    token: Option<Token>,

    /// Do not ask. Needed where standard input is no terminal.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    place: PlaceFlags,

    /// How long to wait for nodes. For distant nodes, some round trips [default: 500ms].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    node_timeout: Option<Duration>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub struct Options {
    name: OsString,
    token: Option<Token>,
    yes: bool,
    place: Place,
    json: bool,
}

impl Flags {
    pub fn check(self) -> Result<Options, Failure> {
        check_name(&self.name)?;
        let Self { name, token, yes, json, .. } = self;
        let mut place = self.place.check()?;
        place.node_timeout = self.node_timeout;
        Ok(Options { name, token, yes, place, json })
    }
}

pub async fn release(options: &Options) -> Result<u8, Failure> {
    if !options.yes && !io::stdin().is_terminal() {
        let message = "release asks for a confirmation, and standard input is no terminal: give --yes";
        return Err(Failure::new(Exit::Usage, message));
    }
    options.place.announce(Verbosity::Normal);
    let locks = options.place.builder().connect().await?;
    let mut token = options.token;
    if !options.yes {
        // What was shown is what is revoked, also when another owner has it by the time of the answer.
        let Some(agreed) = confirm(&locks, options).await? else { return Ok(nothing_to_revoke(options)) };
        token = Some(agreed);
    }
    match locks.revoke(options.name.as_bytes(), token).await {
        Ok(revoked) => {
            print(&if options.json { as_json_text(options, Some(&revoked)) } else { as_text(options, &revoked) });
            Ok(Exit::Success.code())
        }
        Err(error) => not_revoked(options, error),
    }
}

fn not_revoked(options: &Options, error: RevokeError) -> Result<u8, Failure> {
    match error {
        RevokeError::NotHeld { .. } => Ok(nothing_to_revoke(options)),
        RevokeError::Config(error) => Err(error.into()),
        RevokeError::NoQuorum { .. } => Err(Failure::new(
            error.kind().into(),
            format!("{error}. The holder may or may not be refused now: check the nodes, and repeat this"),
        )),
        error => Err(Failure::new(error.kind().into(), error.to_string())),
    }
}

/// Prints that there is no such lease. A lease that is over is what was asked for.
fn nothing_to_revoke(options: &Options) -> u8 {
    let name = shown_name(options);
    let text = match options.token {
        Some(token) => format!("{name}: no node of a majority has the lease with token {token}\n"),
        None => format!("{name}: not held, so there is nothing to revoke\n"),
    };
    print(&if options.json { as_json_text(options, None) } else { text });
    Exit::Success.code()
}

/// A URL that was meant for `--nodes` may stand in the place of the name.
fn shown_name(options: &Options) -> String {
    Printable(&name_without_credentials(&options.name.to_string_lossy())).to_string()
}

/// Returns the token of the lease that the user agreed to revoke; `None` when there is no lease.
async fn confirm(locks: &Quorlock, options: &Options) -> Result<Option<Token>, Failure> {
    let token = match options.token {
        Some(token) => token,
        None => match locks.token_to_revoke(options.name.as_bytes()).await {
            Ok(token) => token,
            Err(RevokeError::NotHeld { .. }) => return Ok(None),
            Err(error) => {
                let next = match error {
                    RevokeError::NoQuorum { .. } => ": check the nodes, and repeat this",
                    _ => "",
                };
                let message = format!("{error}. Nothing was changed{next}");
                return Err(Failure::new(error.kind().into(), message));
            }
        },
    };
    let seen = locks.inspect(options.name.as_bytes()).await?;
    let mut answer = String::new();
    let _ = write!(
        io::stderr().lock(),
        "{}: {}. Revoke {}? [y/N] ",
        shown(&options.name),
        inspect::summary(&seen),
        format_args!("the lease with token {token}"),
    );
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(Some(token));
    }
    Err(Failure::new(Exit::Usage, "not confirmed: nothing was changed"))
}

fn as_text(options: &Options, revoked: &Revoked) -> String {
    let agreed = revoked.nodes.0.iter().filter(|report| report.answer == Answer::Agreed).count();
    let all = revoked.nodes.0.len();
    let mut text = format!(
        "{}: revoked from {}, token {}, at {agreed} of {all} nodes; free in {:.1}s\n",
        shown_name(options),
        Printable(&revoked.label),
        revoked.token,
        revoked.free_in.as_secs_f64(),
    );
    for report in revoked.nodes.0.iter().filter(|report| report.answer != Answer::Agreed) {
        let _ = writeln!(text, "  {report}"); // A String takes everything.
    }
    text
}

fn as_json_text(options: &Options, revoked: Option<&Revoked>) -> String {
    let value = json!({
        "resource": name_without_credentials(&options.name.to_string_lossy()),
        "revoked": revoked.is_some(),
        "token": revoked.map(|revoked| revoked.token.get()).or(options.token.map(Token::get)),
        "label": revoked.map(|revoked| revoked.label.as_str()),
        "free_in_ms": revoked.map(|revoked| u64::try_from(revoked.free_in.as_millis()).unwrap_or(u64::MAX)),
        "nodes": revoked.map(|revoked| {
            let nodes = revoked.nodes.0.iter();
            nodes.map(|report| json!({"node": report.node, "answer": report.answer.to_string()})).collect::<Vec<_>>()
        }),
    });
    printable_json(&format!("{value:#}\n"))
}
