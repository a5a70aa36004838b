//! `quorlock nodes`: what its two commands have in common.

use quorlock_testkit::Cluster;

use crate::sandbox::{Ended, Sandbox, finish};

pub const RECORD: &str = "quorlock:node";
pub const LIST: &str = "quorlock:list:quorlock:lock:";
pub const DECLARE: [&str; 3] = ["nodes", "declare-new", "--yes"];
pub const SET: [&str; 2] = ["nodes", "set-list"];
/// A first connection takes more than the default node timeout on a busy machine.
pub const TRY: [&str; 7] = ["run", "--try", "--node-timeout", "5s", "job", "--", "true"];

pub fn undeclared(nodes: usize) -> Sandbox {
    Sandbox::around(Cluster::undeclared(nodes, &[]))
}

/// Runs `quorlock` with the nodes of these indices as its list.
pub fn with_nodes(sandbox: &Sandbox, places: &[usize], args: &[&str]) -> Ended {
    let urls = sandbox.cluster.urls();
    let list: Vec<&str> = places.iter().map(|place| urls[*place].as_str()).collect();
    finish(sandbox.quorlock(args).env("QUORLOCK_NODES", list.join(",")).spawn().expect("quorlock"))
}

pub fn get(sandbox: &Sandbox, node: usize, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(&mut sandbox.cluster.redis(node)).expect("a string or none")
}

pub fn set(sandbox: &Sandbox, node: usize, key: &str, value: &str) {
    redis::cmd("SET").arg(key).arg(value).query::<()>(&mut sandbox.cluster.redis(node)).expect("a key");
}

pub fn delete(sandbox: &Sandbox, node: usize, key: &str) {
    redis::cmd("DEL").arg(key).query::<()>(&mut sandbox.cluster.redis(node)).expect("a key less");
}

/// Returns one field of the record, counted from 0: word, longest, end, wall, window, cluster, keeps, run id.
pub fn field(sandbox: &Sandbox, node: usize, index: usize) -> String {
    let record = get(sandbox, node, RECORD).expect("a record");
    record.split(' ').nth(index).expect("eight fields").to_owned()
}

pub fn lists(sandbox: &Sandbox) -> Vec<Option<String>> {
    (0..sandbox.cluster.len()).map(|node| get(sandbox, node, LIST)).collect()
}

#[test]
fn wrong_usage_of_nodes_is_refused() {
    let sandbox = undeclared(1);
    let cases: &[(&[&str], &str)] = &[
        (&["nodes"], "nodes declare-new"),
        (&["nodes", "forget"], "unrecognized subcommand"),
        (&["nodes", "declare-new"], "give --yes"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "soon"], "--ballot-ttl"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "1s", "--longest-lease", "400ms"], "ballots cannot be kept"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "1m", "--longest-lease", "40s"], "at least twice"),
        (&["nodes", "declare-new", "-y", "--longest-lease", "1ms"], "too short"),
        (&["nodes", "set-list", "--yes"], "'--yes'"),
        (&["nodes", "set-list", "--nodes", "redis://me:hunter2@host:x"], "cannot be used"),
    ];
    for (args, said) in cases {
        let ended = sandbox.end(args);
        assert_eq!(ended.code, Some(64), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
    }
    assert_eq!(sandbox.cluster.count_keys(RECORD), 0);
}

#[test]
fn no_nodes_command_shows_a_password() {
    let sandbox = undeclared(1);
    let allow = redis::cmd("ACL").arg(&["SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all"]).to_owned();
    sandbox.cluster.each::<()>(&allow);
    let port = sandbox.cluster.ports()[0];
    for (user, code) in [("you", 69), ("me", 0)] {
        let url = format!("redis://{user}:hunter2@127.0.0.1:{port}");
        for args in [&DECLARE[..], &SET] {
            let ended = finish(sandbox.quorlock(args).env("QUORLOCK_NODES", &url).spawn().expect("quorlock"));
            assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
            assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
        }
    }
}
