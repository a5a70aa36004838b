//! `quorlock status`: which nodes have a vote.

use std::io::{BufRead as _, BufReader};

use quorlock_testkit::Cluster;
use serde_json::Value;

use crate::sandbox::{Ended, Sandbox, finish};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn states(status: &Value) -> Vec<&str> {
    status["nodes"].as_array().into_iter().flatten().filter_map(|node| node["state"].as_str()).collect()
}

#[test]
fn a_row_for_each_node_and_how_many_more_may_fail() {
    let mut sandbox = Sandbox::new(3);
    assert_eq!(sandbox.end(&["run", "job", "--", "true"]).code, Some(0));
    let ended = sandbox.end(&["status"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].starts_with("NODE"), "{ended:?}");
    assert_eq!(ended.stdout.matches("  voting  ").count(), 3, "{ended:?}");
    assert_eq!(lines.last(), Some(&"OK: 3 of 3 vote, quorum 2, 1 more may fail"));
    assert!(!ended.stdout.contains('\x1b'), "no colours through a pipe: {ended:?}");

    sandbox.cluster.kill(1);
    let ended = sandbox.end(&["status", "--no-headers"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 4, "{ended:?}");
    assert!(ended.stdout.ends_with("OK: 2 of 3 vote, quorum 2, 0 more may fail\n"), "{ended:?}");
    assert_eq!(ended.stdout.matches("  unreachable  ").count(), 1, "{ended:?}");

    sandbox.cluster.kill(2);
    let ended = sandbox.end(&["status", "--json"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert_eq!(states(&json(&ended)), ["voting", "unreachable", "unreachable"]);
    assert!(ended.stderr.contains("NOQUORUM: 1 of 3 votes, quorum 2, 1 node missing"), "{ended:?}");
}

#[test]
fn nothing_is_written_to_a_node_without_a_record() {
    let sandbox = Sandbox::around(Cluster::undeclared(3, &[]));
    let ended = sandbox.end(&["status", "--json"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert_eq!(states(&json(&ended)), ["undeclared"; 3]);
    assert!(ended.stderr.contains("`quorlock nodes declare-new`"), "{}", ended.stderr);
    assert!(ended.stderr.contains("If nodes have lost their data, do not declare them"), "{}", ended.stderr);
    for node in 0..3 {
        let keys: u64 = redis::cmd("DBSIZE").query(&mut sandbox.cluster.redis(node)).expect("a number");
        assert_eq!(keys, 0);
    }
    // With the first client the quarantine begins, on each node that it reaches before it ends.
    let begun = (0..10).find_map(|_| {
        sandbox.end(&["inspect", "job"]);
        let status = json(&sandbox.end(&["status", "--json"]));
        let left = status["nodes"].as_array().into_iter().flatten().filter_map(|node| node["quarantine_ms"].as_u64());
        (left.filter(|left| *left > 0).count() >= 2).then(|| states(&status).join(" "))
    });
    let states = begun.expect("a quorum of the nodes is in quarantine");
    assert_eq!(states.matches("quarantined").count() + states.matches("undeclared").count(), 3, "{states}");
}

#[test]
fn another_list_is_a_wrong_configuration() {
    let sandbox = Sandbox::new(3);
    let two = sandbox.cluster.urls()[..2].join(",");
    let ended = finish(sandbox.quorlock(&["status", "--json"]).env("QUORLOCK_NODES", two).spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert_eq!(states(&json(&ended)), ["another list"; 2]);
}

#[test]
fn locks_are_counted_and_prometheus_gets_gauges() {
    let sandbox = Sandbox::new(3);
    let counted = "$QUORLOCK status --json; $QUORLOCK status -o prometheus >&2";
    let ended = sandbox.end(&["run", "a", "b", "--", "sh", "-c", counted]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(json(&ended)["nodes"][0]["locks"], 2, "{ended:?}");
    assert_eq!(ended.stderr.matches("quorlock_node_up{").count(), 3, "{ended:?}");
    assert!(ended.stderr.contains("quorlock_nodes_voting 3\n"), "{ended:?}");
}

#[test]
fn a_watch_through_a_pipe_writes_an_object_in_each_line_until_the_pipe_closes() {
    let sandbox = Sandbox::new(1);
    let mut child = sandbox.start(&["status", "--watch=100ms"]);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("text");
        let status: Value = serde_json::from_str(&line).expect("an object");
        assert_eq!(status["summary"], "OK: 1 of 1 votes, quorum 1, 0 more may fail");
    }
    drop(lines);
    assert_eq!(finish(child).code, Some(0));
}

/// The others are shown when the node timeout is over, two seconds by default.
#[test]
fn a_node_that_hangs_is_silent_after_the_node_timeout() {
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.pause(1);
    for (options, limit) in [(&[][..], "2s"), (&["--node-timeout", "1500ms"], "1.5s")] {
        let ended = sandbox.end(&[&["status", "--json"], options].concat());
        let status = json(&ended);
        assert_eq!((ended.code, states(&status)), (Some(0), vec!["voting", "silent", "voting"]), "{ended:?}");
        assert_eq!(status["nodes"][1]["error"], format!("no answer within {limit}"), "{ended:?}");
        let listed = sandbox.end(&[&["list"], options].concat());
        assert!(listed.stderr.contains(&format!("no answer within {limit}\n")), "{listed:?}");
        let findings = sandbox.end(&[&["doctor"], options].concat());
        assert!(findings.stdout.contains(&format!("no answer within {limit}")), "{findings:?}");
    }
}
