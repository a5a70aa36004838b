//! The names that programs read: docs/operations.md has a table of each, and the command prints no others.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::sandbox::{Sandbox, finish, signal};
use rustix::process::Signal;

const DOCUMENT: &str = include_str!("../../docs/operations.md");

/// Returns the words in backquotes in the first column of the table with this head.
fn documented(head: &str) -> BTreeSet<String> {
    let table = DOCUMENT.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = table.take_while(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    let names =
        rows.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(|name| name.split('{').next().unwrap_or(name)));
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(!names.is_empty(), "no table {head}");
    names
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flat_map(|object| object.keys().cloned()).collect()
}

#[test]
fn the_tables_have_the_names_that_the_command_prints() {
    let sandbox = Sandbox::new(3);
    let run = sandbox.start(&["run", "job", "--", "sh", "-c", "echo > $DIR/ready; exec sleep 60"]);
    sandbox.wait_for("ready");
    let json = |args: &[&str]| -> Value {
        let ended = sandbox.end(args);
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    };
    let status = json(&["status", "--json"]);
    assert_eq!(keys(&status), documented("| JSON field of `status` |"));
    assert_eq!(keys(&status["nodes"][0]), documented("| JSON field of a node |"));
    let list = json(&["list", "--json"]);
    assert_eq!(keys(&list), documented("| JSON field of `list` |"));
    assert_eq!(keys(&list["locks"][0]), documented("| JSON field of a lock |"));
    let inspection = json(&["inspect", "job", "--json"]);
    let mut both = keys(&inspection);
    both.extend(keys(&inspection["nodes"][0]));
    assert_eq!(both, documented("| JSON field of `inspect` |"));
    let revoked = json(&["release", "job", "--force", "--yes", "--json"]);
    let mut both = keys(&revoked);
    both.extend(keys(&revoked["nodes"][0]));
    assert_eq!(both, documented("| JSON field of `release` |"));

    let gauges = sandbox.end(&["status", "-o", "prometheus"]).stdout;
    let gauges = gauges.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next());
    assert_eq!(gauges.map(str::to_owned).collect::<BTreeSet<_>>(), documented("| Gauge |"));
    signal(&run, Signal::TERM);
    finish(run);
}
