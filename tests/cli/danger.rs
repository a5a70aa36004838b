//! The lock cannot be kept while the command runs.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::sandbox::{Sandbox, finish, signal, within};
use crate::support::{Cluster, monotonic_micros};

const OBEDIENT: &str = r#"trap "echo told; exit 0" TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;
const DEAF: &str = r#"trap "echo told >> \$DIR/told" TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;

fn pause_three(sandbox: &mut Sandbox) {
    for node in 0..3 {
        sandbox.cluster.pause(node);
    }
}

#[test]
fn a_command_that_ends_when_told() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", OBEDIENT]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(79), "told\n"), "{ended:?}");
    assert!(ended.stderr.contains("the lock on job was lost or about to be"), "{}", ended.stderr);
    assert!(ended.stderr.contains("told to end (SIGTERM)"), "{}", ended.stderr);
    sandbox.is_clean();
}

#[test]
fn a_command_that_does_not_listen() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", DEAF]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("killed (SIGKILL)"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("still there"), "{}", ended.stderr);
    assert_eq!(sandbox.processes(), [], "all must be gone before quorlock is");
}

/// With no grace, two thirds into a lease of six seconds: two seconds before what it must not outlive.
#[test]
fn nothing_of_it_outlives_the_lock() {
    let mut sandbox = Sandbox::around(Cluster::quiet(5));
    let beat = "while :; do read up rest < /proc/uptime; echo $up > $DIR/beat.new; mv $DIR/beat.new $DIR/beat; sleep 0.01; done";
    let script = format!("trap '' TERM; ({beat}) & echo > $DIR/ready; wait");
    let run = sandbox.start(&["run", "--lease", "6s", "--grace", "0s", "job", "--", "sh", "-c", &script]);
    sandbox.wait_for("ready");
    sandbox.wait_for("beat");
    pause_three(&mut sandbox);
    // Whatever was confirmed was asked for before this.
    let lease_ends = monotonic_micros() + 6_000_000;
    within("the end of all but quorlock", || sandbox.processes().len() <= 1);
    assert!(monotonic_micros() < lease_ends, "two seconds too late");
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    let beat = sandbox.text("beat");
    // Time for ten more beats: there is nothing to wait for where nothing may happen.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(sandbox.text("beat"), beat, "it must have stopped");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_danger_that_passes_does_not_undo_it() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", DEAF]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    sandbox.wait_for("told");
    for node in 0..3 {
        sandbox.cluster.resume(node);
    }
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    within("the release", || sandbox.lock_keys("job") == 0);
    sandbox.is_clean();
}

#[test]
fn a_majority_that_has_another_owner() {
    let sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "1minute", "job", "--", "sh", "-c", DEAF]);
    sandbox.wait_for("ready");
    for node in 0..3 {
        let mut redis = sandbox.cluster.redis(node);
        redis::cmd("SET").arg(Cluster::lock_key("job")).arg("somebody").query::<()>(&mut redis).expect("a key");
    }
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert_eq!(sandbox.processes(), []);
    assert_eq!(sandbox.lock_keys("job"), 3, "what is somebody's stays");
}

/// The inner lock lasts, the outer one does not: the inner command is in a group of its own, and must not go on.
#[test]
fn a_nested_command_goes_with_the_outer_lock() {
    let mut sandbox = Sandbox::new(5);
    let quorlock = env!("CARGO_BIN_EXE_quorlock");
    let inner = [quorlock, "run", "--lease", "1minute", "inner", "--", "sh", "-c", DEAF];
    let run = sandbox.start(&[&["run", "--lease", "3s", "outer", "--"], &inner[..]].concat());
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert_eq!(sandbox.processes(), [], "all must be gone before quorlock is");
}

#[test]
fn a_command_that_ended_by_itself_after_the_lock_was_lost() {
    let sandbox = Sandbox::new(3);
    let script = "echo $$ > $DIR/ready; until [ -e $DIR/end ]; do sleep 0.01; done";
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", script]);
    let command = sandbox.wait_for("ready").trim().to_owned();
    signal(&run, Signal::STOP); // Nobody extends the lease now.
    let other = sandbox.end(&["run", "job", "--", "true"]);
    assert_eq!(other.code, Some(0), "{other:?}");
    sandbox.touch("end");
    // Not before it can be waited for: a process that is still on its way out is one that can be killed.
    let stat = format!("/proc/{command}/stat");
    within("the command's end", || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")));
    signal(&run, Signal::CONT);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("ended by itself with code 0"), "{}", ended.stderr);
}
