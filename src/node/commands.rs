//! The scripts, and the commands that run them.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Script};

use super::health::RECORD;
use crate::owner::Owner;
use crate::protocol::{Ballot, Change, LeaseState, Share, Token};
use crate::resource::Resource;
use crate::waiting::Ticket;

const HOLD_CODE: &str = concat!(include_str!("lua/resource_state.lua"), include_str!("lua/hold.lua"));
const RELEASE_CODE: &str = concat!(include_str!("lua/resource_state.lua"), include_str!("lua/release.lua"));
const INSPECT_CODE: &str = include_str!("lua/inspect.lua");
const REVOKE_CODE: &str = concat!(include_str!("lua/resource_state.lua"), include_str!("lua/revoke.lua"));
const RECORD_CODE: &str = include_str!("lua/record.lua");

/// Returns the texts of the scripts: `hold`, `release`, `inspect`, `record`, `revoke`. A node in memory knows them by their hashes.
#[must_use]
pub const fn scripts() -> [&'static str; 5] {
    [HOLD_CODE, RELEASE_CODE, INSPECT_CODE, RECORD_CODE, REVOKE_CODE]
}

static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(HOLD_CODE));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(RELEASE_CODE));
static INSPECT: LazyLock<Script> = LazyLock::new(|| Script::new(INSPECT_CODE));
static RECORD_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(RECORD_CODE));

fn load_one(code: &str) -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(code);
    command
}

/// Returns the commands that load the scripts into a node.
pub(super) fn load() -> [Cmd; 3] {
    [HOLD_CODE, RELEASE_CODE, INSPECT_CODE].map(load_one)
}

/// One resource's part in a command.
pub(crate) struct Entry<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) lease: &'a LeaseState,
    pub(crate) share: Share,
    /// Of a join: the share that was exported to it.
    pub(crate) exporter: Option<Share>,
    /// This is a new acquisition, and not the continuation of a lease.
    pub(crate) fresh: bool,
    /// The ticket that the request has left in the nodes' wait queues, or may leave.
    pub(crate) ticket: Option<&'a Ticket>,
}

/// Until when a lease that was not released may be in force, as a node says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastEnd {
    /// Of its holder's wall clock, or the node's time when it said so, in ms.
    pub(crate) end: u64,
    pub(crate) of: LastOf,
}

/// Which lease that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastOf {
    /// The one with this token.
    Token(Token),
    /// One that the node with this record may have forgotten.
    Word(u64),
}

/// In place of a token, a ticket or an owner: there is none.
const NONE: &str = "0";

/// An empty last argument, which each connection replaces by the one for its node.
const TAIL: &str = "";

fn evalsha<'a>(script: &Script, resources: impl ExactSizeIterator<Item = &'a Resource>) -> Cmd {
    let count = resources.len();
    let mut command = Cmd::with_capacity(8 + 3 * count, 256 + 160 * count); // Enough as a rule.
    command.arg("EVALSHA").arg(script.get_hash()).arg(2 * count);
    for resource in resources {
        command.arg(resource.lock_key()).arg(resource.ballot_key());
    }
    command
}

/// The arguments of a round that hold for all its resources.
pub(crate) struct RoundArgs<'a> {
    pub(crate) owner: &'a Owner,
    /// The round's ballot; in a release, the largest that was sent.
    pub(crate) ballot: Ballot,
    /// When the lease ends, by this machine's wall clock, in ms.
    pub(crate) end: u64,
    /// How much later that is than this machine's clock and the lease of this round give, in ms.
    pub(crate) raised: u64,
}

impl RoundArgs<'_> {
    /// Returns what the ballot key is after this round if no other share holds the resource: `BALLOT END VALUE`, where VALUE is a
    /// copy of the lock key.
    fn ballot_value(&self, token: u64, share: Share, holds: u32) -> String {
        let Self { owner, ballot, end, .. } = self;
        let (id, label) = (owner.number(), owner.label());
        format!("{:016} {end:013} ql1 {token:016} {id:032x} {label} {share}:{holds}", ballot.get())
    }
}

/// Makes the command that gives these shares these holds (`hold.lua`). The record of the node is left to each connection.
pub(crate) fn hold(entries: &[Entry<'_>], round: &RoundArgs<'_>, lease: Duration, waited_for: &[LastEnd]) -> Cmd {
    let mut command = evalsha(&HOLD, entries.iter().map(|entry| entry.resource));
    let no_share = Share { client: 0, lease: 0 };
    let ballot_value = match entries.first() {
        Some(Entry { fresh: false, share, lease, .. }) => round.ballot_value(lease.token.get(), *share, lease.holds),
        first => round.ballot_value(round.ballot.get(), first.map_or(no_share, |entry| entry.share), 1),
    };
    command.arg(ballot_value).arg(millis(lease));
    let ticket = entries.iter().filter(|entry| entry.fresh).find_map(|entry| entry.ticket);
    let mut waits = ticket.map_or_else(|| NONE.to_owned(), Ticket::text);
    for LastEnd { end, of } in waited_for {
        let written = match of {
            LastOf::Token(token) => write!(waits, " {end:013}:{:016}", token.get()),
            LastOf::Word(word) => write!(waits, " {end:013}:{word:016x}"),
        };
        debug_assert!(written.is_ok(), "a string takes everything");
    }
    if round.raised > 0 {
        waits.push_str(" +");
        waits.push_str(&round.raised.to_string());
    }
    let is_usual = matches!(entries, [Entry { lease: LeaseState { holds: 1, .. }, fresh: true, .. }]);
    if !is_usual || waits != NONE {
        command.arg(waits);
    }
    if !is_usual {
        for Entry { lease, fresh, share, exporter, .. } in entries {
            let token = if *fresh { NONE.to_owned() } else { format!("{:016}", lease.token.get()) };
            let known = match exporter.filter(|_| lease.known == Ballot::ZERO) {
                Some(exporter) => exporter.to_string(),
                None => format!("{:016}", if *fresh { 0 } else { lease.known.get() }),
            };
            command.arg(format!("{token} {known} {} {share}", lease.holds));
        }
    }
    command.arg(TAIL);
    command
}

/// Makes the command that takes these shares away, so that no late message restores them (`release.lua`). How long ballots are
/// kept is left to each connection.
pub(crate) fn release(entries: &[Entry<'_>], round: &RoundArgs<'_>) -> Cmd {
    let mut command = evalsha(&RELEASE, entries.iter().map(|entry| entry.resource));
    let (token, share) =
        entries.first().map_or((0, Share { client: 0, lease: 0 }), |entry| (entry.lease.token.get(), entry.share));
    // What was not granted is asked for again: the request keeps its place until it gives up.
    let keeps_place =
        |entry: &Entry<'_>| entry.fresh && entry.ticket.is_some_and(|ticket| ticket.waits_for(entry.resource));
    // No ballot key has the end 0. With it no node takes the usual case, which knows no tickets.
    let end = if entries.iter().any(keeps_place) { 0 } else { round.end };
    command.arg(RoundArgs { end, ..*round }.ballot_value(token, share, 1));
    if let [Entry { lease, fresh: false, ticket, .. }] = entries
        && lease.known == round.ballot
    {
        ticket.map(|ticket| command.arg(ticket.text()));
    } else {
        for entry in entries {
            let Entry { lease, ticket, share, .. } = entry;
            let (ticket, place) = (ticket.map_or_else(|| NONE.to_owned(), Ticket::text), u8::from(keeps_place(entry)));
            command.arg(format!("{:016} {} {share} {ticket} {place}", lease.token.get(), lease.known.get()));
        }
    }
    command.arg(TAIL);
    command
}

/// Makes the command that takes a ticket from the wait queues of these resources (`release.lua`).
pub(crate) fn leave(resources: &[Resource], ticket: &Ticket) -> Cmd {
    let mut command = evalsha(&RELEASE, resources.iter());
    command.arg(format!("{:016} {:013} ql1 0 {NONE} {NONE} {NONE}/{NONE}:1", 0, 0));
    for _ in resources {
        command.arg(format!("0 0 {NONE} {} 0", ticket.text()));
    }
    command.arg(TAIL);
    command
}

/// Makes the command that reads the keys of a resource (`inspect.lua`).
pub(crate) fn inspect(resource: &Resource) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(INSPECT.get_hash()).arg(2).arg(resource.lock_key()).arg(resource.ballot_key());
    command
}

/// Makes the command that takes the lease with this token from its holder (`revoke.lua`). It is sent with its code: it is rare, and no
/// connection loads it. `wall` is this machine's wall clock, in µs. The record of the node is left to each connection.
pub(crate) fn revoke(resource: &Resource, token: Token, ballot: Ballot, wall: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(REVOKE_CODE).arg(2).arg(resource.lock_key()).arg(resource.ballot_key());
    command.arg(format!("{:016} {:016} {:013}", token.get(), ballot.get(), wall / 1000)).arg(TAIL);
    command
}

/// Makes the commands that load `record.lua`, which is seldom needed, and write what is due in a node's record.
pub(super) fn record(list: &[u8], seen: Option<&str>, change: Option<&Change>, nodes: Option<usize>) -> [Cmd; 2] {
    let mut command = redis::cmd("EVALSHA");
    command.arg(RECORD_SCRIPT.get_hash()).arg(2).arg(RECORD).arg(list);
    match change {
        Some(Change { head, wait, ends, wall, rest }) => {
            let wait = wait.map(|wait| wait.to_string()).unwrap_or_default();
            command.arg(seen.unwrap_or_default()).arg(head).arg(wait).arg(ends).arg(*wall).arg(rest);
        }
        // A record that was seen is never this.
        None => drop(command.arg("nothing is due").arg("").arg("").arg("").arg(0).arg("")),
    }
    command.arg(nodes.map(|nodes| nodes.to_string()).unwrap_or_default());
    [load_one(RECORD_CODE), command]
}

/// Returns whole milliseconds, rounded up: a key may live longer than the client believes, never shorter.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
