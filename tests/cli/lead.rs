//! `quorlock lead`: a command that runs on one of several machines.

use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use quorlock_testkit::Cluster;
use rustix::process::{Pid, Signal, kill_process};

use crate::pty::{INTERRUPT, Pty};
use crate::sandbox::{Sandbox, finish, signal, within};

/// Notes its term and its process number, unless the process of the term before is still there. Ends with 7 at SIGTERM, and notes a
/// SIGHUP.
const DAEMON: &str = r#"
trap 'echo terminated >> $DIR/terminated; exit 7' TERM
trap 'echo reloaded >> $DIR/reloaded' HUP
if [ -e $DIR/pid ] && kill -0 "$(cat $DIR/pid)" 2> /dev/null; then echo > $DIR/both; fi
echo $$ > $DIR/pid
echo $1 $QUORLOCK_TOKEN >> $DIR/terms
while :; do sleep 0.01; done"#;

/// Starts a candidate of this name with a short lease.
fn candidate(sandbox: &Sandbox, name: &str, options: &[&str]) -> Child {
    candidate_for(sandbox, "3s", name, options)
}

fn candidate_for(sandbox: &Sandbox, lease: &str, name: &str, options: &[&str]) -> Child {
    sandbox.start(&[&["lead", "--lease", lease], options, &["job", "--", "sh", "-c", DAEMON, "sh", name]].concat())
}

/// Waits for so many terms, and returns who led in them. One has ended before the next began, with a larger token.
fn terms(sandbox: &Sandbox, count: usize) -> Vec<String> {
    within("the next term", || sandbox.text("terms").lines().count() >= count && sandbox.text("terms").ends_with('\n'));
    let text = sandbox.text("terms");
    let (names, tokens): (Vec<String>, Vec<u64>) = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, token)| (name.to_owned(), token.parse::<u64>().expect("a token")))
        .unzip();
    assert!(tokens.is_sorted_by(|before, token| before < token), "{text}");
    assert!(!sandbox.path("both").exists(), "two led at once: {text}");
    names
}

/// Two candidates, of which the first leads.
fn two(sandbox: &Sandbox) -> [Child; 2] {
    let first = candidate(sandbox, "first", &[]);
    assert_eq!(terms(sandbox, 1), ["first"]);
    let second = candidate(sandbox, "second", &[]);
    within("the second waits", || sandbox.cluster.count_waiting("job") > 1);
    [first, second]
}

fn kill_daemon(sandbox: &Sandbox) {
    signal_daemon(sandbox, Signal::KILL);
}

fn signal_daemon(sandbox: &Sandbox, signal: Signal) {
    let pid = sandbox.wait_for("pid").trim_end().parse().ok().and_then(Pid::from_raw).expect("a process number");
    kill_process(pid, signal).expect("a signal to the daemon");
}

#[test]
fn the_next_candidate_leads_when_the_daemon_dies() {
    let sandbox = Sandbox::new(3);
    let [first, second] = two(&sandbox);
    kill_daemon(&sandbox);
    assert_eq!(terms(&sandbox, 2), ["first", "second"]);
    kill_daemon(&sandbox);
    assert_eq!(terms(&sandbox, 3), ["first", "second", "first"], "it campaigns again after a pause");
    for (candidate, code, killed) in [(second, None, "code 137"), (first, Some(7), "code 137")] {
        signal(&candidate, Signal::TERM);
        let ended = finish(candidate);
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.stderr.contains(killed), "{ended:?}");
    }
    sandbox.is_clean();
}

#[test]
fn sigterm_ends_the_daemon_and_then_quorlock_and_hands_over() {
    let sandbox = Sandbox::new(3);
    let [first, second] = two(&sandbox);
    signal(&first, Signal::TERM);
    let ended = finish(first);
    assert_eq!((ended.code, sandbox.text("terminated").as_str()), (Some(7), "terminated\n"), "{ended:?}");
    assert_eq!(terms(&sandbox, 2), ["first", "second"]);
    signal(&second, Signal::TERM);
    assert_eq!(finish(second).code, Some(7));
    within("the release", || sandbox.lock_keys("job") == 0);
    sandbox.is_clean();
}

#[test]
fn sigterm_ends_a_candidate_that_waits() {
    let sandbox = Sandbox::new(3);
    let [first, second] = two(&sandbox);
    signal(&second, Signal::TERM);
    assert_eq!(finish(second).signal, Some(Signal::TERM.as_raw()));
    signal(&first, Signal::TERM);
    finish(first);
    sandbox.is_clean();
}

/// Without a terminal, as under a supervisor.
#[test]
fn sighup_reaches_the_daemon_and_does_not_end_a_candidate_that_waits() {
    let sandbox = Sandbox::new(3);
    let first = candidate(&sandbox, "first", &[]);
    terms(&sandbox, 1);
    let lead =
        [env!("CARGO_BIN_EXE_quorlock"), "lead", "--lease", "3s", "job", "--", "sh", "-c", DAEMON, "sh", "second"];
    let second = sandbox.command("setsid", &lead).spawn().expect("setsid, of util-linux");
    within("the second waits", || sandbox.cluster.count_waiting("job") > 1);
    signal(&second, Signal::HUP);
    signal(&first, Signal::HUP);
    within("the daemon reloads", || sandbox.text("reloaded") == "reloaded\n");
    kill_daemon(&sandbox);
    assert_eq!(terms(&sandbox, 2), ["first", "second"]);
    signal(&second, Signal::HUP);
    within("the second daemon reloads", || sandbox.text("reloaded") == "reloaded\nreloaded\n");
    for candidate in [second, first] {
        signal(&candidate, Signal::TERM);
        finish(candidate);
    }
    sandbox.is_clean();
}

#[test]
fn a_hangup_of_its_terminal_ends_a_candidate_that_waits() {
    let sandbox = Sandbox::new(3);
    let first = candidate(&sandbox, "first", &[]);
    terms(&sandbox, 1);
    let mut terminal =
        Pty::start(&sandbox, env!("CARGO_BIN_EXE_quorlock"), &["lead", "job", "--", "touch", "/nowhere"]);
    within("it waits", || sandbox.cluster.count_waiting("job") > 1);
    terminal.hang_up();
    terminal.end();
    signal(&first, Signal::TERM);
    finish(first);
    sandbox.is_clean();
}

#[test]
fn the_daemon_of_a_revoked_leader_has_ended_before_the_next_one_begins() {
    let sandbox = Sandbox::new(3);
    let candidates = two(&sandbox);
    assert_eq!(sandbox.end(&["release", "job", "--force", "--yes"]).code, Some(0));
    terms(&sandbox, 2);
    for candidate in candidates {
        signal(&candidate, Signal::TERM);
        finish(candidate);
    }
    sandbox.is_clean();
}

#[test]
fn a_candidate_leads_again_after_an_outage() {
    let mut sandbox = Sandbox::new(5);
    // A third of it, from SIGTERM to SIGKILL, is enough for the trap on a busy machine.
    let run = candidate_for(&sandbox, "9s", "first", &["--once"]);
    terms(&sandbox, 1);
    (0..3).for_each(|node| sandbox.cluster.pause(node));
    sandbox.wait_for("terminated");
    // Longer than half a lease, when a request that does not wait for the end of an outage fails: that nothing happens cannot be awaited.
    std::thread::sleep(Duration::from_secs(6));
    (0..3).for_each(|node| sandbox.cluster.resume(node));
    terms(&sandbox, 2);
    kill_daemon(&sandbox);
    let ended = finish(run);
    assert_eq!(ended.code, Some(137), "a loss is no end, with --once: {ended:?}");
    assert!(ended.stderr.contains("was lost or about to be"), "{ended:?}");
}

#[test]
fn a_candidate_that_is_told_to_end_at_a_loss_campaigns_no_more() {
    let mut sandbox = Sandbox::new(5);
    let script = r#"trap 'echo >> $DIR/terminated' TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;
    let run = sandbox.start(&["lead", "--lease", "9s", "job", "--", "sh", "-c", script]);
    sandbox.wait_for("ready");
    (0..3).for_each(|node| sandbox.cluster.pause(node));
    sandbox.wait_for("terminated");
    signal(&run, Signal::TERM);
    let ended = finish(run);
    assert_eq!((ended.code, sandbox.processes()), (Some(79), vec![]), "{ended:?}");
}

#[test]
fn once_ends_with_the_code_of_the_daemon() {
    let sandbox = Sandbox::new(3);
    let ended = sandbox.end(&["lead", "--once", "job", "--", "sh", "-c", "exit 3"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("acquired job with token "), "{ended:?}");
    within("the release", || sandbox.lock_keys("job") == 0);
}

#[test]
fn what_the_daemon_leaves_in_its_group_ends_before_the_next_leader_begins() {
    let sandbox = Sandbox::new(3);
    let script = "(trap '' TERM; echo > $DIR/ready; while :; do sleep 0.01; done) & \
                  while [ ! -e $DIR/ready ]; do sleep 0.01; done; exit 3";
    let ended = sandbox.end(&["lead", "--once", "--grace", "100ms", "job", "--", "sh", "-c", script]);
    assert_eq!((ended.code, sandbox.processes()), (Some(3), vec![]), "{ended:?}");
}

/// Ends by itself, and leaves a process in its group that notes each SIGTERM and goes on.
const LEAVES_ONE: &str = r#"
(trap 'echo term >> $DIR/signals' TERM; echo > $DIR/ready; while :; do sleep 0.01; done) &
while [ ! -e $DIR/ready ]; do sleep 0.01; done
exit 3"#;

/// The lease is so long that only the second signal can end the wait for that process.
#[test]
fn a_signal_during_the_end_of_what_is_left_is_passed_on_and_the_second_kills() {
    let sandbox = Sandbox::new(3);
    let run = sandbox.start(&["lead", "--lease", "10m", "job", "--", "sh", "-c", LEAVES_ONE]);
    within("the first SIGTERM", || sandbox.text("signals") == "term\n");
    signal(&run, Signal::TERM);
    within("the signal is passed on", || sandbox.text("signals") == "term\nterm\n");
    signal(&run, Signal::INT);
    let ended = finish(run);
    assert_eq!((ended.signal, sandbox.processes()), (Some(Signal::TERM.as_raw()), vec![]), "{ended:?}");
    within("the release", || sandbox.lock_keys("job") == 0);
}

#[test]
fn a_key_during_the_end_of_what_is_left_reaches_quorlock() {
    let sandbox = Sandbox::new(3);
    let script = r#"trap '' TERM; (echo > $DIR/ready; while :; do sleep 0.01; done) & while [ ! -e $DIR/ready ]; do sleep 0.01; done"#;
    let lead = format!(r#""$QUORLOCK" lead --lease 10m job -- sh -c '{}'; echo t''wo"#, script.replace('\'', r"'\''"));
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", &lead]);
    terminal.wait_for("has left processes");
    terminal.press(INTERRUPT);
    terminal.wait_for("a second signal kills");
    terminal.press(INTERRUPT);
    assert_eq!(terminal.end().signal(), Some(2), "{}", terminal.screen());
    assert!(!terminal.screen().contains("two"), "{}", terminal.screen());
    sandbox.is_clean();
}

#[test]
fn what_the_daemon_orphans_is_waited_for() {
    let sandbox = Sandbox::new(3);
    let script = "(sh -c 'echo $$ > $DIR/orphan; while [ ! -e $DIR/go ]; do sleep 0.01; done' &); \
                  trap 'exit 7' TERM; while :; do sleep 0.01; done";
    let run = sandbox.start(&["lead", "job", "--", "sh", "-c", script]);
    let status = format!("/proc/{}/status", sandbox.wait_for("orphan").trim_end());
    let parent = format!("PPid:\t{}\n", run.id());
    within("the adoption", || std::fs::read_to_string(&status).is_ok_and(|status| status.contains(&parent)));
    sandbox.touch("go");
    within("the orphan is waited for", || !std::path::Path::new(&status).exists());
    signal(&run, Signal::TERM);
    assert_eq!(finish(run).code, Some(7));
    sandbox.is_clean();
}

#[test]
fn a_signal_to_the_daemon_alone_is_no_key_of_the_terminal() {
    let sandbox = Sandbox::new(3);
    let lead = r#""$QUORLOCK" lead job -- sh -c 'echo $$ > $DIR/pid; while :; do sleep 0.01; done'; echo code=$?"#;
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", lead]);
    signal_daemon(&sandbox, Signal::INT);
    terminal.wait_for("the command has ended by itself with code 130");
    terminal.press("\x03");
    terminal.end();
}

#[test]
fn what_no_retry_mends_ends_it() {
    let sandbox = Sandbox::new(3);
    assert_eq!(sandbox.end(&["lead", "job", "--", "no-such-command"]).code, Some(127));
    assert_eq!(sandbox.end(&["lead", "--lease", "1ms", "job", "--", "true"]).code, Some(64));
    let ended = sandbox.end(&["lead", "--nodes", &Cluster::urls(&sandbox.cluster)[0], "job", "--", "true"]);
    assert_eq!(ended.code, Some(78), "another list: {ended:?}");
}

/// A supervisor asks all candidates for a new log file, or the like. Only the one that leads has a command for it.
#[test]
fn a_request_to_the_daemon_does_not_end_a_candidate_that_waits() {
    let sandbox = Sandbox::new(3);
    let first = candidate(&sandbox, "first", &[]);
    terms(&sandbox, 1);
    // Where the machine is busy, quorlock may lead when it takes the signals, and passes them on.
    let daemon = format!("trap '' USR1 USR2 ALRM; {DAEMON}");
    let lead =
        [env!("CARGO_BIN_EXE_quorlock"), "lead", "--lease", "3s", "job", "--", "sh", "-c", &daemon, "sh", "second"];
    let second = sandbox.command("setsid", &lead).spawn().expect("setsid, of util-linux");
    within("the second waits", || sandbox.cluster.count_waiting("job") > 1);
    for request in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        signal(&second, request);
    }
    kill_daemon(&sandbox);
    assert_eq!(terms(&sandbox, 2), ["first", "second"]);
    for candidate in [second, first] {
        signal(&candidate, Signal::TERM);
        finish(candidate);
    }
    sandbox.is_clean();
}
