//! `quorlock inspect`.

use quorlock_testkit::Cluster;
use serde_json::Value;

use crate::sandbox::{Sandbox, finish, within};

const HOLD: &str = "echo $QUORLOCK_TOKEN > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";

fn json(sandbox: &Sandbox, name: &str, code: i32) -> Value {
    let ended = sandbox.end(&["inspect", "--json", name]);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("one JSON object")
}

fn states(seen: &Value) -> Vec<&str> {
    seen["nodes"].as_array().expect("nodes").iter().filter_map(|node| node["state"].as_str()).collect()
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().expect("an object").keys().collect()
}

#[test]
fn inspect_prints_every_verdict_as_json() {
    let mut sandbox = Sandbox::new(3);
    let free = json(&sandbox, "job", 0);
    assert_eq!((&free["resource"], &free["verdict"], &free["holds"]), (&"job".into(), &"free".into(), &0.into()));
    assert!(free["owner"].is_null() && free["token"].is_null(), "{free}");
    assert_eq!(states(&free), ["free"; 3]);
    assert_eq!(keys(&free), ["holds", "nodes", "owner", "resource", "token", "verdict"]);
    let fields = ["ballot", "error", "holds", "label", "node", "owner", "state", "token", "ttl_ms"];
    assert_eq!(keys(&free["nodes"][0]), fields);
    assert_eq!(sandbox.cluster.count_keys("quorlock:lock:job"), 0, "inspect changes nothing");
    let ballots: Vec<Vec<String>> = sandbox.cluster.each(redis::cmd("KEYS").arg("quorlock:ballot:*"));
    assert!(ballots.iter().all(Vec::is_empty), "inspect changes nothing");

    let run = sandbox.start(&["run", "--label", "nightly", "job", "--", "sh", "-c", HOLD]);
    let token: u64 = sandbox.wait_for("held").trim().parse().expect("a token");
    let held = json(&sandbox, "job", 0);
    assert_eq!((&held["verdict"], &held["token"], &held["holds"]), (&"held".into(), &token.into(), &1.into()));
    let node = held["nodes"].as_array().expect("nodes").iter().find(|node| node["state"] == "held").expect("a holder");
    assert_eq!(node["owner"], held["owner"]);
    assert_eq!(node["owner"].as_str().map(str::len), Some(32));
    assert!(node["label"].as_str().is_some_and(|label| label.ends_with(":nightly")), "{node}");
    assert!(node["ttl_ms"].as_u64().is_some_and(|ttl| (1..=10_000).contains(&ttl)), "{node}");
    assert_eq!(node["ballot"].as_u64(), Some(token));
    assert!(node["error"].is_null());

    sandbox.cluster.kill(2);
    let degraded = json(&sandbox, "job", 0);
    assert_eq!((&degraded["verdict"], states(&degraded)[2]), (&"held".into(), "unreachable"));
    assert!(degraded["nodes"][2]["error"].as_str().is_some_and(|error| error.contains("cannot connect")));
    assert!(degraded["nodes"][2]["holds"].is_null());
    sandbox.touch("end");
    assert_eq!(finish(run).code, Some(0));

    let foreign = redis::cmd("SET").arg(Cluster::lock_key("job")).arg("x").to_owned();
    foreign.query::<()>(&mut sandbox.cluster.redis(0)).expect("a key");
    let unknown = json(&sandbox, "job", 69);
    assert_eq!((&unknown["verdict"], states(&unknown)), (&"unknown".into(), vec!["foreign", "free", "unreachable"]));
    assert!(unknown["holds"].is_null());
    sandbox.cluster.restart(2, true);
    // A look that meets this node before another one has answered does not know yet how many nodes there are.
    let is_split = || sandbox.end(&["inspect", "job"]).stdout.starts_with("job: split: some of 3 nodes");
    within("the node is listed again", is_split);
    let split = json(&sandbox, "job", 0);
    assert_eq!((&split["verdict"], states(&split)), (&"split".into(), vec!["foreign", "free", "free"]));
    sandbox.cluster.each::<()>(&foreign);
    let held = json(&sandbox, "job", 0);
    assert_eq!((&held["verdict"], &held["owner"], &held["token"]), (&"held".into(), &Value::Null, &Value::Null));
    assert_eq!(held["nodes"][0]["ttl_ms"], Value::Null, "a key without an end");
    assert!(sandbox.end(&["inspect", "job"]).stdout.starts_with("job: held, by a key that is not quorlock's"));
}

#[test]
fn inspect_prints_a_table_by_default() {
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.kill(1);
    let run = sandbox.start(&["run", "--label", "nightly", "job", "--", "sh", "-c", HOLD]);
    let token = sandbox.wait_for("held");
    let ended = sandbox.end(&["inspect", "job"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [summary, head, nodes @ ..] = lines.as_slice() else { panic!("{ended:?}") };
    assert!(summary.starts_with("job: held by ") && summary.contains(":nightly"), "{summary}");
    assert!(summary.ends_with(&format!("with token {}, 1 hold", token.trim())), "{summary}");
    assert_eq!(nodes.len(), 3);
    let state = head.find("STATE").expect("a column");
    let column = |line: &str| line[state..].split_whitespace().next().map(str::to_owned);
    let states: Vec<_> = nodes.iter().filter_map(|line| column(line)).collect();
    assert_eq!(states, ["held", "unreachable", "held"], "{}", ended.stdout);
    for (line, port) in nodes.iter().zip(sandbox.cluster.ports()) {
        assert!(line.starts_with(&format!("127.0.0.1:{port} ")), "{line}");
    }
    assert!(nodes[1].contains("cannot connect"), "{}", nodes[1]);
    // The lease of the run, 10 s, is extended with two thirds of it left.
    let ttl = head.find("TTL").expect("a column");
    let seconds = nodes[0][ttl..].split_whitespace().next().and_then(|cell| cell.strip_suffix('s'));
    let seconds = seconds.and_then(|seconds| seconds.parse::<f64>().ok());
    assert!(seconds.is_some_and(|seconds| (0.0..=10.0).contains(&seconds)), "{}", ended.stdout);
    sandbox.touch("end");
    assert_eq!(finish(run).code, Some(0));

    sandbox.cluster.kill(0);
    let unknown = sandbox.end(&["inspect", "job"]);
    assert_eq!(unknown.code, Some(69));
    assert!(unknown.stdout.starts_with("job: unknown"), "{}", unknown.stdout);
    assert!(unknown.stderr.contains("--nodes"), "{}", unknown.stderr);
}

#[test]
fn inspect_has_the_output_options_of_status_and_list() {
    let sandbox = Sandbox::new(1);
    for options in [&["-o", "json"][..], &["--output", "json"], &["--json", "--no-headers"]] {
        let ended = sandbox.end(&[&["inspect", "job"], options].concat());
        let seen: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        assert_eq!(seen["verdict"], "free");
    }
    let table = sandbox.end(&["inspect", "job", "-o", "table"]);
    assert_eq!((table.code, table.stdout.lines().count()), (Some(0), 3), "{table:?}");
    assert!(table.stdout.contains("\nNODE "), "{table:?}");
    let plain = sandbox.end(&["inspect", "job", "--no-headers"]);
    assert_eq!((plain.code, plain.stdout.lines().count()), (Some(0), 2), "{plain:?}");
    assert!(plain.stdout.starts_with("job: free\n") && !plain.stdout.contains("NODE"), "{plain:?}");
    for wrong in [&["-o", "prometheus"][..], &["--json", "-o", "table"]] {
        assert_eq!(sandbox.end(&[&["inspect", "job"], wrong].concat()).code, Some(64), "{wrong:?}");
    }
}
