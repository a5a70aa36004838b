//! Loss of the lock while the command runs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use quorlock_testkit::{Cluster, monotonic_micros};
use rustix::process::{Pid, Signal};

use crate::sandbox::{Sandbox, finish, is_in_state, signal, within};

const OBEYS_TERM: &str = r#"trap "echo terminated; exit 0" TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;
const IGNORES_TERM: &str =
    r#"trap "echo terminated >> \$DIR/terminated" TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;

fn pause_three(sandbox: &mut Sandbox) {
    for node in 0..3 {
        sandbox.cluster.pause(node);
    }
}

#[test]
fn a_command_that_obeys_sigterm_is_not_killed() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "9s", "job", "--", "sh", "-c", OBEYS_TERM]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(79), "terminated\n"), "{ended:?}");
    assert!(ended.stderr.contains("the lock on job was lost or about to be"), "{}", ended.stderr);
    assert!(ended.stderr.contains("asked to end (SIGTERM)"), "{}", ended.stderr);
    sandbox.is_clean();
}

#[test]
fn a_command_that_ignores_sigterm_is_killed() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", IGNORES_TERM]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("killed (SIGKILL)"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("still there"), "{}", ended.stderr);
    assert_eq!(sandbox.processes(), [], "all must be gone before quorlock is");
}

/// Without a grace, the command is killed two thirds into a lease of six seconds: two seconds before the end of the lease.
#[test]
fn no_process_of_the_command_outlives_the_lock() {
    let mut sandbox = Sandbox::around(Cluster::quiet(5));
    let beat = "while :; do read up rest < /proc/uptime; echo $up > $DIR/beat.new; mv $DIR/beat.new $DIR/beat; sleep 0.01; done";
    let script = format!("trap '' TERM; ({beat}) & echo > $DIR/ready; wait");
    let run = sandbox.start(&["run", "--lease", "6s", "--grace", "0s", "job", "--", "sh", "-c", &script]);
    sandbox.wait_for("ready");
    sandbox.wait_for("beat");
    pause_three(&mut sandbox);
    // Every confirmed extension was sent before this.
    let lease_ends = monotonic_micros() + 6_000_000;
    within("the end of all but quorlock", || sandbox.processes().len() <= 1);
    assert!(monotonic_micros() < lease_ends, "two seconds too late");
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    let beat = sandbox.text("beat");
    // Time for ten more beats: the absence of an event cannot be awaited.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(sandbox.text("beat"), beat, "it must have stopped");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_recovered_quorum_does_not_stop_the_kill() {
    let mut sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "9s", "job", "--", "sh", "-c", IGNORES_TERM]);
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    sandbox.wait_for("terminated");
    for node in 0..3 {
        sandbox.cluster.resume(node);
    }
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    within("the release", || sandbox.lock_keys("job") == 0);
    sandbox.is_clean();
}

#[test]
fn a_command_is_killed_when_another_owner_has_a_majority() {
    let sandbox = Sandbox::new(5);
    let run = sandbox.start(&["run", "--lease", "1minute", "job", "--", "sh", "-c", IGNORES_TERM]);
    sandbox.wait_for("ready");
    for node in 0..3 {
        let mut redis = sandbox.cluster.redis(node);
        redis::cmd("SET").arg(Cluster::lock_key("job")).arg("another").query::<()>(&mut redis).expect("a key");
    }
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert_eq!(sandbox.processes(), []);
    assert_eq!(sandbox.lock_keys("job"), 3, "the key of another owner stays");
}

/// The outer lock is lost, and the inner one is not. The inner command is in its own process group, and must end too.
#[test]
fn a_nested_command_is_killed_with_the_outer_lock() {
    let mut sandbox = Sandbox::new(5);
    let quorlock = env!("CARGO_BIN_EXE_quorlock");
    let inner = [quorlock, "run", "--lease", "1minute", "inner", "--", "sh", "-c", IGNORES_TERM];
    let run = sandbox.start(&[&["run", "--lease", "3s", "outer", "--"], &inner[..]].concat());
    sandbox.wait_for("ready");
    pause_three(&mut sandbox);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert_eq!(sandbox.processes(), [], "all must be gone before quorlock is");
}

#[test]
fn a_command_that_ends_after_the_loss_reports_the_loss() {
    let sandbox = Sandbox::new(3);
    let script = "echo $$ > $DIR/ready; until [ -e $DIR/end ]; do sleep 0.01; done";
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", script]);
    let command = sandbox.wait_for("ready").trim().to_owned();
    signal(&run, Signal::STOP); // The lease is not extended now.
    let other = sandbox.end(&["run", "job", "--", "true"]);
    assert_eq!(other.code, Some(0), "{other:?}");
    sandbox.touch("end");
    // Wait until it is a zombie: a process that is still exiting can be killed.
    let stat = format!("/proc/{command}/stat");
    within("the command's end", || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")));
    signal(&run, Signal::CONT);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("ended by itself with code 0"), "{}", ended.stderr);
}

/// The nodes are well, so the message does not send its reader to them.
#[test]
fn a_loss_while_quorlock_was_stopped_is_not_blamed_on_the_nodes() {
    let sandbox = Sandbox::new(3);
    let run = sandbox.start(&["run", "--lease", "6s", "job", "--", "sh", "-c", IGNORES_TERM]);
    sandbox.wait_for("ready");
    // An extension has just been granted, and the next one is more than a second away: no answer is under way.
    let life = redis::cmd("PTTL").arg(Cluster::lock_key("job")).to_owned();
    let left = || life.query::<i64>(&mut sandbox.cluster.redis(0)).expect("a number");
    within("time for an extension", || left() < 5_000);
    within("an extension", || left() > 5_500);
    std::thread::sleep(Duration::from_millis(300));
    signal(&run, Signal::STOP);
    within("the end of the lease", || sandbox.lock_keys("job") == 0);
    signal(&run, Signal::CONT);
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("as this process did not renew it in time"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("check the nodes"), "{}", ended.stderr);
    assert!(ended.stderr.contains("killed (SIGKILL)"), "{}", ended.stderr);
}

/// quorlock has no permission to kill a command that has changed its user.
#[test]
fn a_command_that_cannot_be_killed_is_named_twice() {
    let mut sandbox = Sandbox::new(5);
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can start a command as another user");
    }
    fs::set_permissions(sandbox.cluster.dir(), fs::Permissions::from_mode(0o777)).expect("our own folder");
    let quorlock = [env!("CARGO_BIN_EXE_quorlock"), "run", "--lease", "3s", "job", "--"];
    let other = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo $$ > $DIR/ready; exec sleep 600"];
    let weak = ["--bounding-set=-kill", "--inh-caps=-kill"];
    let mut run = sandbox.command("setpriv", &[&weak[..], &quorlock, &other].concat());
    let err = fs::File::create(sandbox.path("err")).expect("a file for stderr");
    let run = run.stdout(Stdio::null()).stderr(err).spawn().expect("setpriv, of util-linux");
    let command = sandbox.wait_for("ready").trim().to_owned();
    // quorlock also reports a signal that does not arrive.
    signal(&run, Signal::TERM);
    within("the message about the signal", || sandbox.text("err").contains("SIGTERM does not reach process"));
    pause_three(&mut sandbox);
    assert_eq!(finish(run).code, Some(79));
    let said = sandbox.text("err");
    let lines: Vec<&str> = said.lines().collect();
    let [_, first, last] = lines.as_slice() else { panic!("{said}") };
    let names_it =
        |line: &str| line.contains(&format!("process {command} of the command")) && line.contains("permission");
    assert!(first.contains("about to be lost, and the command cannot be stopped") && names_it(first), "{said}");
    assert!(last.contains("The command goes on without it") && names_it(last), "{said}");
    assert!(!said.contains("was killed"), "{said}");
    let command = command.parse().ok().and_then(Pid::from_raw).expect("a pid");
    assert!(is_in_state(command, 'S'), "it goes on");
}

/// The leader obeys SIGTERM at once, and a process that it has started ends later.
#[test]
fn the_grace_applies_to_the_whole_process_group() {
    let mut sandbox = Sandbox::new(5);
    let slow = r#"trap "echo > \$DIR/slow; until [ -e \$DIR/go ]; do sleep 0.01; done; echo > \$DIR/done; exit" TERM
                  echo > $DIR/deep; while :; do sleep 0.01; done"#;
    let script = format!("trap exit TERM; sh -c '{slow}' & echo $$ > $DIR/ready; while :; do sleep 0.01; done");
    let grace = ["--lease", "15s", "--grace", "9500ms"];
    let mut run = sandbox.start(&[&["run"], &grace[..], &["job", "--", "sh", "-c", &script]].concat());
    let leader = format!("/proc/{}", sandbox.wait_for("ready").trim());
    sandbox.wait_for("deep");
    pause_three(&mut sandbox);
    sandbox.wait_for("slow");
    within("the leader's end", || !std::path::Path::new(&leader).exists());
    // Longer than quorlock would take to release and to end, and far shorter than the grace.
    std::thread::sleep(Duration::from_secs(2));
    assert!(run.try_wait().expect("the state of a child").is_none(), "the lock must be kept for the rest of the group");
    sandbox.touch("go");
    assert_eq!(finish(run).code, Some(79));
    assert_eq!(sandbox.text("done"), "\n", "it was not killed");
    sandbox.is_clean();
}

/// Of two runs on the same nodes, the command of the run without a grace is killed while the other still has time.
#[test]
fn a_shorter_grace_kills_earlier() {
    let mut sandbox = Sandbox::new(5);
    let start = |name: &str, grace: &[&str]| {
        let script = IGNORES_TERM.replace("ready", &format!("{name}-ready"));
        sandbox.start(&[&["run", "--lease", "12s"], grace, &[name, "--", "sh", "-c", &script]].concat())
    };
    let (long, short) = (start("long", &[]), start("short", &["--grace", "0s"]));
    let mut long = long;
    sandbox.wait_for("long-ready");
    sandbox.wait_for("short-ready");
    pause_three(&mut sandbox);
    assert_eq!(finish(short).code, Some(79));
    assert!(long.try_wait().expect("the state of a child").is_none(), "four seconds of its lock are left");
    assert_eq!(finish(long).code, Some(79));
}

/// The message about the acquired lock blocks until the lock is lost, because stderr is not read.
#[test]
fn a_lock_lost_before_the_start_starts_no_command() {
    let sandbox = Sandbox::new(3);
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // The pipe is full, except for the rest of a page.
    rustix::io::ioctl_fionbio(&writer, true).expect("our own pipe");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("our own pipe");
    let mut command = sandbox.quorlock(&["run", "-v", "--lease", "5s", "job", "--", "touch", "ran"]);
    let run = command.current_dir(sandbox.cluster.dir()).stderr(writer).spawn().expect("quorlock");
    drop(command); // This closes the end of the pipe as well.
    within("the lock", || sandbox.lock_keys("job") >= 2);
    within("the end of the lease", || sandbox.lock_keys("job") == 0);
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        reader.read_to_string(&mut said).map(|_| said).expect("text")
    });
    assert_eq!(finish(run).code, Some(79));
    let said = said.join().expect("the output");
    assert!(said.contains("was lost before the command began"), "{}", said.trim_start_matches('x'));
    assert!(!sandbox.path("ran").exists());
}

/// The kernel cuts the name of a program after 15 bytes, and here within a character.
#[test]
fn a_process_with_a_name_that_is_not_text_is_killed() {
    let sandbox = Sandbox::new(3);
    let script = r#"
        printf '#!/bin/sh\necho $$ > $DIR/deep; while :; do sleep 0.01; done\n' > $DIR/aaaaaaaaaaaaaaé
        chmod +x $DIR/aaaaaaaaaaaaaaé
        setsid $DIR/aaaaaaaaaaaaaaé > $DIR/out 2>&1 &
        wait"#;
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", script]);
    let pid = sandbox.wait_for("deep");
    let name = fs::read(format!("/proc/{}/comm", pid.trim_end())).expect("a process");
    assert!(std::str::from_utf8(&name).is_err(), "{name:?}");
    assert_eq!(sandbox.end(&["release", "job", "--force", "--yes"]).code, Some(0));
    let ended = finish(run);
    assert_eq!((ended.code, sandbox.processes()), (Some(79), vec![]), "{ended:?}");
}
