//! `quorlock run --at-least`: the lock is kept when the command ends soon.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::pty::{INTERRUPT, Pty};
use crate::sandbox::{Sandbox, finish, signal, within};

#[test]
fn the_lock_is_kept_for_at_least_as_long_as_asked_for() {
    let sandbox = Sandbox::new(3);
    let began = Instant::now();
    let first = sandbox.start(&["run", "--at-least", "2s", "job", "--", "sh", "-c", "echo > $DIR/done; exit 7"]);
    sandbox.wait_for("done");
    let second = sandbox.end(&["run", "job", "--", "true"]);
    assert_eq!(second.code, Some(0), "{second:?}");
    assert!(began.elapsed() >= Duration::from_secs(2), "it was free after {:?}", began.elapsed());
    let first = finish(first);
    assert_eq!((first.code, first.stderr.as_str()), (Some(7), ""), "{first:?}");
    sandbox.is_clean();
}

#[test]
fn a_signal_ends_the_rest_and_a_loss_is_said() {
    let mut sandbox = Sandbox::new(3);
    let run = sandbox.start(&["run", "--at-least", "1h", "job", "--", "sh", "-c", "echo > $DIR/done; exit 7"]);
    sandbox.wait_for("done");
    // A command that has not ended yet would get the signal.
    let is_shell = |pid: &Pid| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
        name.trim() == "sh"
    };
    within("the command is gone", || !sandbox.processes().iter().any(is_shell));
    signal(&run, Signal::TERM);
    assert_eq!(finish(run).code, Some(7));
    assert_eq!(sandbox.lock_keys("job"), 0);

    std::fs::remove_file(sandbox.path("done")).expect("a file");
    let run = sandbox.start(&[
        "run",
        "--lease",
        "2s",
        "--at-least",
        "1h",
        "job",
        "--",
        "sh",
        "-c",
        "echo > $DIR/done; exit 7",
    ]);
    sandbox.wait_for("done");
    for node in 0..2 {
        sandbox.cluster.pause(node);
    }
    let ended = finish(run);
    // Had the nodes been paused before the command ended, it would be 79.
    assert!(
        ended.code == Some(7) && ended.stderr.contains("before --at-least was over") || ended.code == Some(79),
        "{ended:?}"
    );
}

#[test]
fn a_signal_that_ends_the_command_ends_the_rest() {
    let sandbox = Sandbox::new(3);
    let script = "echo > $DIR/ready; while :; do sleep 0.01; done";
    let run = sandbox.start(&["run", "--at-least", "1h", "job", "--", "sh", "-c", script]);
    sandbox.wait_for("ready");
    signal(&run, Signal::TERM);
    let ended = finish(run);
    assert_eq!(ended.signal, Some(Signal::TERM.as_raw()), "{ended:?}");
    within("the release", || sandbox.lock_keys("job") == 0);
    sandbox.is_clean();
}

#[test]
fn a_key_ends_the_rest() {
    let sandbox = Sandbox::new(3);
    let script = r#""$QUORLOCK" run --at-least 1h job -- sh -c 'echo $$ > $DIR/pid'"#;
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", &format!("{script}; echo code=$?")]);
    let command = format!("/proc/{}", sandbox.wait_for("pid").trim_end());
    within("the end of the command", || !std::path::Path::new(&command).exists());
    // The command's group has the terminal until quorlock takes it back, a moment after the end of the command.
    within("the end by a key", || {
        terminal.press(INTERRUPT);
        std::thread::sleep(Duration::from_millis(20));
        sandbox.processes().is_empty()
    });
    terminal.end();
    assert_eq!(sandbox.lock_keys("job"), 0, "{}", terminal.screen());
}
