//! Another owner holds the lock.

use std::fs;

use rustix::process::Signal;

use crate::sandbox::{Sandbox, finish, signal, within};

const HOLD: &str =
    "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done; echo first $QUORLOCK_TOKEN >> $DIR/log";

#[test]
fn a_second_run_is_refused_or_waits() {
    let sandbox = Sandbox::new(5);
    let first = sandbox.start(&["run", "--label", "nightly", "job", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("held");

    let refused = sandbox.end(&["run", "--try", "--node-timeout", "5s", "job", "--", "touch", "/nowhere"]);
    assert_eq!(refused.code, Some(75), "{refused:?}");
    assert!(refused.stderr.contains("job is held by") && refused.stderr.contains(":nightly"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("around this one"), "{}", refused.stderr);
    assert!(refused.stderr.contains("Try again later, or wait longer with --wait"), "{}", refused.stderr);
    assert_eq!(sandbox.end(&["run", "--wait", "0s", "job", "--", "true"]).code, Some(75));
    assert_eq!(sandbox.end(&["run", "--try", "--node-timeout", "5s", "-E", "9", "job", "--", "true"]).code, Some(9));
    assert_eq!(
        sandbox.end(&["run", "--try", "--node-timeout", "5s", "-E", "0", "job", "other", "--", "false"]).code,
        Some(0),
        "all or none"
    );
    let late = sandbox.end(&["run", "--wait", "3s", "job", "--", "true"]);
    assert_eq!(late.code, Some(75), "{late:?}");
    // It says how long it has waited, which is longer where the machine is busy.
    let waited = late.stderr.split_once("not acquired within ").and_then(|(_, rest)| rest.split(['.', 's']).next());
    let waited = waited.and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(waited.is_some_and(|seconds| (3..30).contains(&seconds)), "{}", late.stderr);

    let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
    let mut second =
        sandbox.quorlock(&["run", "-v", "job", "--", "sh", "-c", "echo second $QUORLOCK_TOKEN >> $DIR/log"]);
    let second = second.stderr(err).spawn().expect("quorlock");
    within("the message about the holder", || sandbox.text("err").contains("quorlock: waiting: job is held by"));
    assert!(sandbox.text("err").contains(":nightly"));
    sandbox.touch("end");
    assert_eq!((finish(first).code, finish(second).code), (Some(0), Some(0)));

    let log = sandbox.text("log");
    let words: Vec<&str> = log.split_whitespace().collect();
    let ["first", old, "second", new] = words.as_slice() else { panic!("{log}") };
    assert!(old.parse::<u64>().expect("a token") < new.parse().expect("a token"), "tokens must grow: {log}");
    assert_eq!(sandbox.lock_keys("job"), 0);
    sandbox.is_clean();
}

/// The end of a wait cuts its last try short. That must not be reported as nodes without an answer.
#[test]
fn a_timed_out_wait_is_always_a_conflict() {
    let sandbox = Sandbox::new(5);
    let first = sandbox.start(&["run", "job", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("held");
    let waits: Vec<String> = (0..12).map(|i| format!("{}ms", 5000 + 7 * i)).collect();
    let waiting = waits.iter().map(|wait| sandbox.start(&["run", "--wait", wait, "job", "--", "true"]));
    for (run, wait) in waiting.collect::<Vec<_>>().into_iter().zip(&waits) {
        let ended = finish(run);
        assert_eq!(ended.code, Some(75), "{wait}: {ended:?}");
    }
    sandbox.touch("end");
    assert_eq!(finish(first).code, Some(0));
}

#[test]
fn an_interrupted_wait_leaves_nothing() {
    let sandbox = Sandbox::new(3);
    let first = sandbox.start(&["run", "job", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("held");
    for sent in [Signal::INT, Signal::TERM, Signal::HUP] {
        let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
        let mut second = sandbox.quorlock(&["run", "-v", "job", "other", "--", "touch", "/nowhere"]);
        let second = second.stderr(err).spawn().expect("quorlock");
        within("its waiting", || sandbox.text("err").contains("waiting: other is free"));
        signal(&second, Signal::WINCH); // Ends no process.
        signal(&second, sent);
        assert_eq!(finish(second).signal, Some(sent.as_raw()));
        assert!(!sandbox.text("err").contains("too few nodes"), "one of the two is held: {}", sandbox.text("err"));
        assert_eq!(sandbox.lock_keys("other"), 0);
    }
    sandbox.touch("end");
    assert_eq!(finish(first).code, Some(0));
    assert_eq!(sandbox.end(&["run", "--try", "--node-timeout", "5s", "job", "other", "--", "true"]).code, Some(0));
}

/// The lock is free, but cannot be granted yet. A message explains the wait.
#[test]
fn a_wait_for_nodes_that_have_just_started_is_explained() {
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.restart(0, true);
    sandbox.cluster.restart(1, true);
    let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
    let mut run = sandbox.quorlock(&["run", "--lease", "5m", "job", "--", "true"]);
    let run = run.stderr(err).spawn().expect("quorlock");
    within("the message about the nodes", || sandbox.text("err").contains("too few nodes can grant the lock now"));
    assert_eq!(sandbox.text("err").matches("quarantined for ").count(), 2, "{}", sandbox.text("err"));
    assert!(sandbox.text("err").contains(": up"), "{}", sandbox.text("err"));
    signal(&run, Signal::TERM);
    assert_eq!(finish(run).signal, Some(Signal::TERM.as_raw()));
}

/// These nodes are up, and get their votes back by themselves.
#[test]
fn a_wait_that_ends_within_a_quarantine_is_told_to_be_longer() {
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.restart(0, true);
    sandbox.cluster.restart(1, true);
    let ended =
        sandbox.end(&["run", "-q", "--lease", "5m", "--node-timeout", "10s", "--wait", "5s", "job", "--", "true"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert_eq!(ended.stderr.matches("quarantined for ").count(), 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("wait as long as the message says (a longer --wait)"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("Check that these nodes are up"), "{}", ended.stderr);
}

/// Each node that cannot grant the lock is named with its reason when that begins, and when it ends, also where a quorum is left.
#[test]
fn a_verbose_wait_names_each_node_that_cannot_grant_and_why() {
    let mut sandbox = Sandbox::new(3);
    let first = sandbox.start(&["run", "job", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("held");
    let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
    let second = sandbox.quorlock(&["run", "-v", "job", "--", "true"]).stderr(err).spawn().expect("quorlock");
    within("the message about the holder", || sandbox.text("err").contains("waiting: job is held by"));
    let node = format!("waiting: 127.0.0.1:{}: ", sandbox.cluster.ports()[2]);
    assert!(!sandbox.text("err").contains(&node), "{}", sandbox.text("err"));
    sandbox.cluster.kill(2);
    within("the reason", || sandbox.text("err").contains(&format!("{node}cannot connect")));
    sandbox.cluster.restart(2, false);
    within("the end of it", || sandbox.text("err").contains(&format!("{node}up")));
    sandbox.touch("end");
    assert_eq!((finish(first).code, finish(second).code), (Some(0), Some(0)));
}

/// An outage that begins late in the wait is said, too.
#[test]
fn a_verbose_candidate_names_the_nodes_of_an_outage() {
    let mut sandbox = Sandbox::new(3);
    let first = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", HOLD]);
    sandbox.wait_for("held");
    let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
    let mut second = sandbox.quorlock(&["lead", "-v", "--lease", "3s", "job", "--", "true"]);
    let second = second.stderr(err).spawn().expect("quorlock");
    within("the message about the holder", || sandbox.text("err").contains("waiting: job is held by"));
    for node in [0, 1] {
        sandbox.cluster.kill(node);
    }
    for node in [0, 1] {
        let reason = format!("waiting: 127.0.0.1:{}: cannot connect", sandbox.cluster.ports()[node]);
        within(&reason, || sandbox.text("err").contains(&reason));
    }
    signal(&second, Signal::TERM);
    assert_eq!(finish(second).signal, Some(Signal::TERM.as_raw()));
    assert_eq!(finish(first).code, Some(79));
}
