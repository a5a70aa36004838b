//! The three scripts and how a command for each is put together.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Script};

use crate::owner::Owner;
use crate::protocol::{Ballot, Lease};
use crate::resource::Resource;
use crate::ticket::Ticket;

const HOLD_CODE: &str = concat!(include_str!("lua/mark.lua"), include_str!("lua/hold.lua"));
const RELEASE_CODE: &str = concat!(include_str!("lua/mark.lua"), include_str!("lua/release.lua"));
const INSPECT_CODE: &str = include_str!("lua/inspect.lua");

static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(HOLD_CODE));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(RELEASE_CODE));
static INSPECT: LazyLock<Script> = LazyLock::new(|| Script::new(INSPECT_CODE));

/// The commands that make a node know the scripts.
pub(super) fn load() -> [Cmd; 3] {
    [HOLD_CODE, RELEASE_CODE, INSPECT_CODE].map(|code| {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(code);
        command
    })
}

/// One resource's part in a command.
pub(crate) struct Entry<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) lease: &'a Lease,
    /// Is this a new acquisition, and not the continuation of a lease?
    pub(crate) fresh: bool,
    /// What a request that waits has left in the nodes' lines, or may leave.
    pub(crate) ticket: Option<&'a Ticket>,
}

/// In place of a token, a ticket or an owner: there is none.
const NONE: &str = "0";

fn evalsha<'a>(script: &Script, resources: impl ExactSizeIterator<Item = &'a Resource>) -> Cmd {
    let count = resources.len();
    let mut command = Cmd::with_capacity(8 + 3 * count, 256 + 160 * count); // Enough as a rule.
    command.arg("EVALSHA").arg(script.get_hash()).arg(2 * count);
    for resource in resources {
        command.arg(resource.lock_key()).arg(resource.ballot_key());
    }
    command
}

/// "Make it so that this session has these holds."
pub(crate) fn hold(
    entries: &[Entry<'_>],
    next: Ballot,
    lease: Duration,
    memory: Duration,
    owner: &Owner,
    session: u64,
) -> Cmd {
    let mut command = evalsha(&HOLD, entries.iter().map(|entry| entry.resource));
    command.arg(held_once(next.get(), owner, session)).arg(millis(lease)).arg(next.get()).arg(millis(memory));
    let ticket = entries.iter().filter(|entry| entry.fresh).find_map(|entry| entry.ticket);
    command.arg(ticket.map_or_else(|| NONE.to_owned(), Ticket::text));
    if let [Entry { lease: Lease { holds: 1, .. }, fresh: true, .. }] = entries {
        return command;
    }
    for Entry { lease, fresh, .. } in entries {
        let (token, known) = if *fresh { (0, 0) } else { (lease.token.get(), lease.known.get()) };
        command.arg(format!("{token} {known} {}", lease.holds));
    }
    command
}

/// "Make it so that this session has no holds, and that nothing late brings them back": `sent` is the largest ballot that was
/// sent for any of them.
pub(crate) fn release(entries: &[Entry<'_>], sent: Ballot, memory: Duration, owner: &Owner, session: u64) -> Cmd {
    let mut command = evalsha(&RELEASE, entries.iter().map(|entry| entry.resource));
    let first = entries.first().map_or(0, |entry| entry.lease.token.get());
    command.arg(held_once(first, owner, session)).arg(sent.get()).arg(millis(memory));
    for Entry { lease, fresh, ticket, .. } in entries {
        // What was not granted is asked for again: the request keeps its place until it gives up.
        let keeps_place = u8::from(*fresh && ticket.is_some());
        let ticket = ticket.map_or_else(|| NONE.to_owned(), Ticket::text);
        command.arg(format!("{} {} {ticket} {keeps_place}", lease.token.get(), lease.known.get()));
    }
    command
}

/// "I have stopped waiting."
pub(crate) fn leave(resources: &[Resource], ticket: &Ticket, next: Ballot, memory: Duration, session: u64) -> Cmd {
    let mut command = evalsha(&RELEASE, resources.iter());
    command.arg(format!("ql1 0 {NONE} {NONE} {session:016x}:1")).arg(next.get()).arg(millis(memory));
    for _ in resources {
        command.arg(format!("0 0 {} 0", ticket.text()));
    }
    command
}

/// "What is there?"
pub(crate) fn inspect(resource: &Resource) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(INSPECT.get_hash()).arg(2).arg(resource.lock_key()).arg(resource.ballot_key());
    command
}

/// A lock key while this session holds it once, and no other does.
fn held_once(token: u64, owner: &Owner, session: u64) -> String {
    format!("ql1 {token} {:032x} {} {session:016x}:1", owner.number(), owner.label())
}

/// Whole milliseconds, rounded up: a key may live longer than the client believes, never shorter.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::CLOCK_WINDOW;

    #[test]
    fn scripts_and_client_mean_the_same_window() {
        let window = format!("\nlocal WINDOW = {} --", CLOCK_WINDOW.as_micros());
        assert!(HOLD_CODE.contains(&window) && RELEASE_CODE.contains(&window), "{window}");
    }
}
