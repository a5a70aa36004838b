//! The locks as a table and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use quorlock::Holder;
use quorlock::secrets::name_without_credentials;
use quorlock::text::{Printable, printable_json};
use serde_json::{Value, json as object};

use super::reading::{Lock, Locks};

pub const HEAD: [&str; 9] = ["NAME", "HOLDER", "TOKEN", "HELD FOR", "TTL", "HOLDS", "WAITERS", "OLDEST", "VOTES"];

/// A row for each lock. What is not known is a dash.
pub fn table(found: &Locks, heads: bool) -> String {
    let rows = found.locks.iter().map(|lock| row(found, lock));
    let rows: Vec<[String; 9]> = heads.then(|| HEAD.map(str::to_owned)).into_iter().chain(rows).collect();
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  "); // A String takes everything.
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A name that looks like the URL of a node may hold a password.
fn name(lock: &Lock) -> String {
    Printable(&name_without_credentials(&String::from_utf8_lossy(&lock.name))).to_string()
}

fn holder(lock: &Lock) -> String {
    match &lock.holder {
        None => "-".to_owned(),
        Some(Holder::Owner { label, .. }) => Printable(label).to_string(),
        Some(Holder::Revoked { label, .. }) => format!("{} (revoked)", Printable(label)),
        Some(_) => "(not quorlock's)".to_owned(),
    }
}

/// The cells of a lock's row.
pub fn row(found: &Locks, lock: &Lock) -> [String; 9] {
    let dash = || "-".to_owned();
    [
        name(lock),
        holder(lock),
        lock.token().map_or_else(dash, |token| token.to_string()),
        lock.held_for(found.now).map_or_else(dash, seconds),
        lock.ttl.map_or_else(dash, |ttl| format!("{:.1}s", ttl.as_secs_f64())),
        if lock.token().is_some() { lock.holds.to_string() } else { dash() },
        lock.waiters.to_string(),
        lock.oldest.map_or_else(dash, seconds),
        format!("{}/{}", lock.votes, found.nodes),
    ]
}

/// Whole seconds, in the units that people read.
fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

pub fn json(found: &Locks) -> String {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lock = |lock: &Lock| -> Value {
        object!({
            "name": name_without_credentials(&String::from_utf8_lossy(&lock.name)),
            "label": lock.label(),
            "revoked": matches!(lock.holder, Some(Holder::Revoked { .. })),
            "foreign": matches!(lock.holder, Some(Holder::Foreign)),
            "token": lock.token(),
            "held_for_ms": lock.held_for(found.now).map(millis),
            "ttl_ms": lock.ttl.map(millis),
            "holds": lock.token().map(|_| lock.holds),
            "waiters": lock.waiters,
            "oldest_ms": lock.oldest.map(millis),
            "votes": lock.votes,
        })
    };
    let failed = |(node, error): &(String, quorlock::NodeError)| object!({"node": node, "error": error.to_string()});
    let value = object!({
        "nodes": found.nodes,
        "quorum": found.quorum(),
        "locks": found.locks.iter().map(lock).collect::<Vec<_>>(),
        "failed": found.failed.iter().map(failed).collect::<Vec<_>>(),
    });
    printable_json(&format!("{value:#}\n"))
}
