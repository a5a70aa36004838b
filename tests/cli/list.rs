//! `quorlock list`: the locks that are held, and their waiters.

use serde_json::Value;

use crate::sandbox::{Ended, Sandbox, finish, signal, within};
use rustix::process::Signal;

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[test]
fn holders_and_waiters_of_all_nodes() {
    let mut sandbox = Sandbox::new(3);
    let ended = sandbox.end(&["list"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 1), "{ended:?}");

    let work = "echo > $DIR/ready; while :; do sleep 0.01; done";
    let holder = sandbox.start(&["run", "--label", "first", "job", "--", "sh", "-c", work]);
    sandbox.wait_for("ready");
    let waiter = sandbox.start(&["run", "--label", "second", "job", "--", "true"]);
    let listed = |args: &[&str]| json(&sandbox.end(&[&["list", "--json"], args].concat()));
    within("the request waits", || listed(&[])["locks"][0]["waiters"] == 1);
    let seen = listed(&[]);
    let lock = &seen["locks"][0];
    assert_eq!((&lock["name"], &lock["votes"], &lock["holds"]), (&"job".into(), &3.into(), &1.into()), "{seen}");
    assert!(lock["label"].as_str().is_some_and(|label| label.ends_with(":first")), "{seen}");
    assert!(lock["token"].is_u64() && lock["ttl_ms"].is_u64() && lock["oldest_ms"].is_u64(), "{seen}");
    assert_eq!(seen["failed"], Value::Array(Vec::new()), "{seen}");

    assert_eq!(listed(&["--holder", "first", "--waiting"])["locks"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed(&["--holder", "second"])["locks"].as_array().map(Vec::len), Some(0));
    assert_eq!(listed(&["--prefix", "other:"])["locks"].as_array().map(Vec::len), Some(0));
    let none = sandbox.end(&["list", "--limit", "0", "--no-headers"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:?}");
    assert!(none.stderr.contains("1 more are not listed"), "{none:?}");
    let table = sandbox.end(&["list"]);
    assert!(table.stdout.starts_with("NAME ") && table.stdout.contains("3/3"), "{table:?}");

    // A node that fails hides no other.
    sandbox.cluster.kill(2);
    let ended = sandbox.end(&["list", "--json"]);
    let seen = json(&ended);
    assert_eq!((ended.code, &seen["locks"][0]["votes"]), (Some(0), &2.into()), "{ended:?}");
    assert_eq!(seen["failed"].as_array().map(Vec::len), Some(1), "{seen}");
    sandbox.cluster.kill(1);
    let ended = sandbox.end(&["list", "--json"]);
    assert_eq!((ended.code, &json(&ended)["locks"][0]["votes"]), (Some(69), &1.into()), "{ended:?}");
    for run in [waiter, holder] {
        signal(&run, Signal::TERM);
        finish(run);
    }
}
