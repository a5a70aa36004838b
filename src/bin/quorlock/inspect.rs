//! `quorlock inspect`: what each node has for a name.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use quorlock::secrets::name_without_credentials;
use quorlock::text::{Printable, printable_json};
use quorlock::{ErrorKind, Holder, Inspection, NodeError, NodeState, NodeView, Verdict};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure, MEND};
use crate::messages;
use crate::options::InspectOptions;
use crate::output::Format;

/// So much of an owner's id tells it from others in a table.
const SHORT_ID: usize = 8;

/// In the place of an owner's id: the lease was revoked.
const NO_OWNER: &str = "-";

pub async fn inspect(options: &InspectOptions) -> Result<u8, Failure> {
    options.place.announce(options.verbosity);
    let locks = options.place.builder().connect().await?;
    let seen = locks.inspect(options.name.as_bytes()).await?;
    messages::print(&match options.output.format {
        Format::Table => as_table(&seen, options.output.heads),
        Format::Json => as_json_text(&seen),
    });
    if seen.verdict != Verdict::Unknown {
        return Ok(Exit::Success.code());
    }
    let exit = exit_if_unknown(&seen);
    if exit == Exit::Configuration {
        return Err(Failure::new(exit, format!("too few nodes can have a vote. {MEND}")));
    }
    Err(Failure::new(
        exit,
        "too few nodes have answered to tell whether the lock is held. The row of each node has the reason; check also \
         that --nodes (or QUORLOCK_NODES) is right",
    ))
}

/// Returns the exit code for a lock of which the nodes that answered do not show whether it is held.
fn exit_if_unknown(seen: &Inspection) -> Exit {
    let errors = seen.nodes.iter().filter_map(|view| view.state.as_ref().err());
    let misconfigured = errors.filter(|error| error.kind() == ErrorKind::Misconfigured).count();
    let can_vote = seen.nodes.len() - misconfigured;
    if can_vote < seen.nodes.len() / 2 + 1 { Exit::Configuration } else { Exit::NoQuorum }
}

/// A URL that was meant for `--nodes` may stand in the place of the name.
fn shown_name(seen: &Inspection) -> String {
    name_without_credentials(&String::from_utf8_lossy(&seen.name))
}

fn verdict(seen: &Inspection) -> &'static str {
    match seen.verdict {
        Verdict::Free => "free",
        Verdict::Held if matches!(seen.holder, Some(Holder::Revoked { .. })) => "revoked",
        Verdict::Held => "held",
        Verdict::Split => "split",
        _ => "unknown",
    }
}

fn state(view: &NodeView) -> &'static str {
    match &view.state {
        Ok(NodeState { holder: None, .. }) => "free",
        Ok(NodeState { holder: Some(Holder::Foreign), .. }) => "foreign",
        Ok(NodeState { holder: Some(Holder::Revoked { .. }), .. }) => "revoked",
        Ok(_) => "held",
        Err(error) => error.state(),
    }
}

/// Owner id, label and token; nothing for a holder that is not quorlock's. A revoked lease has no owner.
fn parts(holder: Option<&Holder>) -> Option<(&str, &str, u64)> {
    match holder {
        Some(Holder::Owner { id, label, token, .. }) => Some((id, label, token.get())),
        Some(Holder::Revoked { label, token }) => Some((NO_OWNER, label, token.get())),
        _ => None,
    }
}

fn as_json_text(seen: &Inspection) -> String {
    printable_json(&format!("{:#}\n", as_json(seen)))
}

/// Why the node cannot be counted on.
fn trouble(view: &NodeView) -> Option<NodeError> {
    match &view.state {
        Ok(state) => state.quarantine.map(|left| NodeError::Quarantined { left }),
        Err(error) => Some(error.clone()),
    }
}

fn as_json(seen: &Inspection) -> Value {
    let owner = parts(seen.holder.as_ref());
    let known = matches!(seen.verdict, Verdict::Free | Verdict::Held) && seen.holder != Some(Holder::Foreign);
    json!({
        "resource": shown_name(seen),
        "verdict": verdict(seen),
        "owner": owner.map(|(id, _, _)| id).filter(|id| *id != NO_OWNER),
        "token": owner.map(|(_, _, token)| token),
        "holds": known.then_some(seen.holds),
        "nodes": seen.nodes.iter().map(node_as_json).collect::<Vec<Value>>(),
    })
}

fn node_as_json(view: &NodeView) -> Value {
    let state_there = view.state.as_ref().ok();
    let owner = parts(state_there.and_then(|state| state.holder.as_ref()));
    let holds = state_there.filter(|state| state.holder != Some(Holder::Foreign)).map(|state| state.holds);
    let ttl = state_there.and_then(|state| state.ttl);
    json!({
        "node": view.node,
        "state": state(view),
        "owner": owner.map(|(id, _, _)| id).filter(|id| *id != NO_OWNER),
        "label": owner.map(|(_, label, _)| label),
        "token": owner.map(|(_, _, token)| token),
        "holds": holds,
        "ttl_ms": ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        "ballot": state_there.and_then(|state| state.ballot),
        "error": trouble(view).map(|error| error.to_string()),
    })
}

/// What it comes to, and a row for each node.
fn as_table(seen: &Inspection, heads: bool) -> String {
    const HEAD: [&str; 8] = ["NODE", "STATE", "OWNER", "LABEL", "TOKEN", "HOLDS", "TTL", "BALLOT"];
    let rows: Vec<[String; 8]> =
        heads.then(|| HEAD.map(str::to_owned)).into_iter().chain(seen.nodes.iter().map(row)).collect();
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = format!("{}: {}\n", Printable(&shown_name(seen)), summary(seen));
    let views = heads.then_some(None).into_iter().chain(seen.nodes.iter().map(Some));
    for (row, view) in rows.iter().zip(views) {
        // An error is longer than any column, and takes the place of all that are not known.
        let known = if view.is_some_and(|view| view.state.is_err()) { 2 } else { HEAD.len() };
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths).take(known) {
            let _ = write!(line, "{cell:width$}  "); // A String takes everything.
        }
        line.extend(view.and_then(trouble).map(|error| error.to_string()));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What the nodes have, in words.
pub fn summary(seen: &Inspection) -> String {
    let nodes = seen.nodes.len();
    match (seen.verdict, parts(seen.holder.as_ref())) {
        (Verdict::Free, _) => "free".to_owned(),
        (Verdict::Held, Some((NO_OWNER, label, token))) => {
            format!("revoked from {label}, whose lease with token {token} runs to its end")
        }
        (Verdict::Held, Some((id, label, token))) => {
            let holds = if seen.holds == 1 { "1 hold".to_owned() } else { format!("{} holds", seen.holds) };
            format!("held by {label} (owner {id}) with token {token}, {holds}")
        }
        (Verdict::Held, None) => "held, by a key that is not quorlock's".to_owned(),
        (Verdict::Split, _) => format!("split: some of {nodes} nodes have an owner, no quorum has the same"),
        _ if nodes == 1 => "unknown: the node did not answer".to_owned(),
        _ => format!("unknown: too few of {nodes} nodes answered"),
    }
}

fn row(view: &NodeView) -> [String; 8] {
    let absent = || "-".to_owned();
    let (owner, label, token, holds, ttl, ballot) = match &view.state {
        Err(_) => Default::default(),
        Ok(there) => {
            let owner = parts(there.holder.as_ref());
            (
                owner.map_or_else(absent, |(id, _, _)| id[..SHORT_ID.min(id.len())].to_owned()),
                owner.map_or_else(absent, |(_, label, _)| label.to_owned()),
                owner.map_or_else(absent, |(_, _, token)| token.to_string()),
                owner.map_or_else(absent, |_| there.holds.to_string()),
                there.ttl.map_or_else(absent, ttl_as_text),
                there.ballot.map_or_else(absent, |ballot| ballot.to_string()),
            )
        }
    };
    [view.node.clone(), state(view).to_owned(), owner, label, token, holds, ttl, ballot]
}

/// Seconds, as far as they matter: leases are extended long before their end.
fn ttl_as_text(ttl: Duration) -> String {
    format!("{:.1}s", ttl.as_secs_f64())
}
