//! A status as a table, as JSON and for Prometheus.

use std::fmt::Write as _;
use std::time::Duration;

use humantime::format_duration;
use quorlock::text::printable_json;
use serde_json::{Value, json as object};

use super::reading::{NodeStatus, State, Status};

pub const HEAD: [&str; 9] = ["NODE", "STATE", "SERVER", "VERSION", "RTT", "CLOCK", "UPTIME", "AOF", "LOCKS"];
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// A row for each node and the summary. What is not known of a node is a dash; why it has no vote stands behind its row.
pub fn table(status: &Status, heads: bool, colours: bool) -> String {
    let rows: Vec<[String; 9]> =
        heads.then(|| HEAD.map(str::to_owned)).into_iter().chain(status.nodes.iter().map(row)).collect();
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    let nodes = heads.then_some(None).into_iter().chain(status.nodes.iter().map(Some));
    for (row, node) in rows.iter().zip(nodes) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let colour = if i == 1 && colours { node.map(colour) } else { None };
            let (before, after) = colour.map_or(("", ""), |colour| (colour, PLAIN));
            let _ = write!(line, "{before}{cell:width$}{after}  "); // A String takes everything.
        }
        if let Some(NodeStatus { state: State::Not(error), .. }) = node {
            let _ = write!(line, "{error}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let colour = if status.has_quorum() { GREEN } else { RED };
    let (before, after) = if colours { (colour, PLAIN) } else { ("", "") };
    let _ = writeln!(text, "{before}{}{after}", status.summary());
    text
}

fn colour(node: &NodeStatus) -> &'static str {
    match node.state {
        State::Voting => GREEN,
        State::Quarantined(_) | State::Undeclared => YELLOW,
        State::Not(_) => RED,
    }
}

/// The cells of a node's row. What is not known is a dash.
pub fn row(node: &NodeStatus) -> [String; 9] {
    let dash = || "-".to_owned();
    let state = match &node.state {
        State::Quarantined(left) => format!("quarantined {}", seconds(*left)),
        state => state.word().to_owned(),
    };
    let Some(facts) = &node.facts else {
        return [node.name.clone(), state, dash(), dash(), dash(), dash(), dash(), dash(), dash()];
    };
    [
        node.name.clone(),
        state,
        facts.server.clone(),
        facts.version.clone(),
        format!("{:.1}ms", facts.round_trip.as_secs_f64() * 1000.0),
        format!("{:+}ms", facts.clock_ms),
        format_duration(facts.uptime).to_string(),
        if facts.aof { "on".to_owned() } else { "off".to_owned() },
        facts.locks.map_or_else(dash, |locks| locks.to_string()),
    ]
}

/// Rounded up, so that what is left is never nothing.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_millis().div_ceil(1000))
}

pub fn json(status: &Status) -> Value {
    let value = object!({
        "quorum": status.quorum(),
        "voting": status.voting(),
        "has_quorum": status.has_quorum(),
        "summary": status.summary(),
        "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
    });
    // What a node says reaches a terminal.
    serde_json::from_str(&printable_json(&value.to_string())).unwrap_or(value)
}

fn node_json(node: &NodeStatus) -> Value {
    let facts = node.facts.as_ref();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let quarantine = if let State::Quarantined(left) = &node.state { Some(millis(*left)) } else { None };
    let error = if let State::Not(error) = &node.state { Some(error.to_string()) } else { None };
    object!({
        "node": node.name,
        "state": node.state.word(),
        "error": error,
        "quarantine_ms": quarantine,
        "server": facts.map(|facts| &facts.server),
        "version": facts.map(|facts| &facts.version),
        "rtt_us": facts.map(|facts| u64::try_from(facts.round_trip.as_micros()).unwrap_or(u64::MAX)),
        "clock_ms": facts.map(|facts| facts.clock_ms),
        "uptime_s": facts.map(|facts| facts.uptime.as_secs()),
        "aof": facts.map(|facts| facts.aof),
        "locks": facts.and_then(|facts| facts.locks),
    })
}

/// The text format of Prometheus.
pub fn prometheus(status: &Status) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, values: Vec<(Option<&str>, f64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge"); // A String takes everything.
        for (node, value) in values {
            let label = node.map(|node| format!("{{node=\"{}\"}}", escaped(node))).unwrap_or_default();
            let _ = writeln!(text, "{name}{label} {value}");
        }
    };
    let each = |value: fn(&NodeStatus) -> Option<f64>| {
        status.nodes.iter().filter_map(|node| Some((Some(node.name.as_str()), value(node)?))).collect()
    };
    gauge("quorlock_quorum", "The number of votes that a lock needs.", vec![(None, as_f64(status.quorum()))]);
    gauge("quorlock_nodes_voting", "The number of nodes that have a vote.", vec![(None, as_f64(status.voting()))]);
    gauge(
        "quorlock_node_up",
        "Whether the node has a vote.",
        each(|node| Some(flag(matches!(node.state, State::Voting)))),
    );
    gauge(
        "quorlock_node_quarantined",
        "Whether the node may have forgotten leases and has no vote for that reason.",
        each(|node| Some(flag(matches!(node.state, State::Quarantined(_))))),
    );
    gauge(
        "quorlock_node_rtt_seconds",
        "The round trip to the node.",
        each(|node| Some(node.facts.as_ref()?.round_trip.as_secs_f64())),
    );
    gauge(
        "quorlock_node_clock_offset_seconds",
        "By how much the node's clock is ahead of this machine's.",
        each(|node| Some(as_seconds(node.facts.as_ref()?.clock_ms))),
    );
    gauge(
        "quorlock_node_locks",
        "The number of lock keys under the prefix.",
        each(|node| Some(as_f64(node.facts.as_ref()?.locks?))),
    );
    let _ = writeln!(
        text,
        "# HELP quorlock_node_state 1 for the state of the node, in words.\n# TYPE quorlock_node_state gauge"
    );
    for node in &status.nodes {
        let (name, state) = (escaped(&node.name), node.state.word());
        let _ = writeln!(text, "quorlock_node_state{{node=\"{name}\",state=\"{state}\"}} 1");
    }
    text
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(clippy::cast_precision_loss, reason = "a count of nodes or keys")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "a difference of clocks")]
fn as_seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

/// As the text format wants a label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use quorlock::NodeError;

    use super::*;
    use crate::status::reading::Facts;

    fn status() -> Status {
        let facts = Facts {
            server: "Valkey".to_owned(),
            version: "8.1.1".to_owned(),
            round_trip: Duration::from_micros(420),
            clock_ms: -12,
            uptime: Duration::from_secs(3700),
            aof: true,
            locks: Some(4),
            longest_lease: Some(Duration::from_secs(30)),
        };
        let node = |name: &str, state, facts| NodeStatus { name: name.to_owned(), state, facts };
        Status {
            nodes: vec![
                node("10.0.0.1:6379", State::Voting, Some(facts)),
                node("10.0.0.2:6379", State::Quarantined(Duration::from_millis(6400)), Some(Facts::default())),
                node("10.0.0.3:6379", State::Not(NodeError::Replica), None),
            ],
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_node_and_the_summary() {
        let text = table(&status(), true, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "NODE           STATE           SERVER  VERSION  RTT    CLOCK  UPTIME     AOF  LOCKS");
        assert_eq!(lines[1], "10.0.0.1:6379  voting          Valkey  8.1.1    0.4ms  -12ms  1h 1m 40s  on   4");
        assert!(lines[2].starts_with("10.0.0.2:6379  quarantined 7s "), "{text}");
        assert!(lines[3].starts_with("10.0.0.3:6379  replica         -       -"), "{text}");
        assert!(lines[3].ends_with(&NodeError::Replica.to_string()), "{text}");
        assert_eq!(lines[4], "NOQUORUM: 1 of 3 votes, quorum 2, 1 node missing");
        assert_eq!(table(&status(), false, false).lines().count(), 4);
    }

    #[test]
    fn colours_change_no_column() {
        let coloured = table(&status(), true, true);
        assert!(coloured.contains("\x1b[32mvoting"), "{coloured:?}");
        let plain = [GREEN, YELLOW, RED, PLAIN].iter().fold(coloured, |text, colour| text.replace(colour, ""));
        assert_eq!(plain, table(&status(), true, false));
    }

    #[test]
    fn json_has_every_field_of_every_node() {
        let value = json(&status());
        assert_eq!((value["voting"].as_u64(), value["quorum"].as_u64()), (Some(1), Some(2)));
        assert_eq!(value["nodes"][0]["clock_ms"], -12);
        assert_eq!(value["nodes"][1]["quarantine_ms"], 6400);
        assert_eq!(value["nodes"][2]["state"], "replica");
        let keys: Vec<Vec<String>> = value["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| Some(node.as_object()?.keys().cloned().collect()))
            .collect();
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
    }

    #[test]
    fn prometheus_gets_a_value_for_what_is_known() {
        let text = prometheus(&status());
        for line in [
            "quorlock_quorum 2",
            "quorlock_nodes_voting 1",
            "quorlock_node_up{node=\"10.0.0.1:6379\"} 1",
            "quorlock_node_up{node=\"10.0.0.3:6379\"} 0",
            "quorlock_node_state{node=\"10.0.0.1:6379\",state=\"voting\"} 1",
            "quorlock_node_state{node=\"10.0.0.3:6379\",state=\"replica\"} 1",
            "quorlock_node_quarantined{node=\"10.0.0.2:6379\"} 1",
            "quorlock_node_rtt_seconds{node=\"10.0.0.1:6379\"} 0.00042",
            "quorlock_node_clock_offset_seconds{node=\"10.0.0.1:6379\"} -0.012",
            "quorlock_node_locks{node=\"10.0.0.1:6379\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("rtt_seconds{node=\"10.0.0.3"), "{text}");
    }
}
