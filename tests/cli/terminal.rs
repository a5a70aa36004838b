//! Keys on a terminal: a script behaves under `quorlock run` as it does without.

use std::os::unix::process::ExitStatusExt;

use rustix::process::Pid;

use crate::pty::{INTERRUPT, Pty, QUIT, SUSPEND, shells};
use crate::sandbox::{Sandbox, is_in_state, within};

/// The observable result of a script.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    signal: Option<i32>,
    said_two: bool,
}

/// Runs a script of two lines, the first under `wrapper`, and presses `keys` when the command has begun.
fn script(sandbox: &Sandbox, shell: &str, wrapper: &str, command: &str, keys: &str) -> Outcome {
    let script = format!("{wrapper} sh -c '{command}'; echo t''wo");
    let mut terminal = Pty::start(sandbox, shell, &["-c", &script]);
    terminal.wait_for("begun");
    terminal.press(keys);
    let outcome = outcome(&mut terminal);
    assert_eq!(sandbox.lock_keys("s"), 0, "released before the script ends: {}", terminal.screen());
    sandbox.is_clean();
    outcome
}

fn outcome(terminal: &mut Pty) -> Outcome {
    let ended = terminal.end();
    Outcome { code: ended.code(), signal: ended.signal(), said_two: terminal.screen().contains("two") }
}

const UNDER_QUORLOCK: &str = "\"$QUORLOCK\" run s --";
const DIES: &str = "echo begun; while :; do sleep 0.01; done";
const CATCHES_AND_SUCCEEDS: &str = "trap \"echo caught; exit 0\" INT QUIT; echo begun; while :; do sleep 0.01; done";

#[test]
fn a_key_that_kills_the_command_ends_the_script() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        let ended = Outcome { code: None, signal: Some(2), said_two: false };
        assert_eq!(script(&sandbox, shell, UNDER_QUORLOCK, DIES, INTERRUPT), ended, "{shell}");
        // A bash script continues after Ctrl-\, and a dash script does not.
        let expected = script(&sandbox, shell, "env", DIES, QUIT);
        assert_eq!(script(&sandbox, shell, UNDER_QUORLOCK, DIES, QUIT), expected, "{shell}");
    }
}

/// bash continues then, and dash does not.
#[test]
fn a_key_handled_by_the_command_acts_as_without_quorlock() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        for keys in [INTERRUPT, QUIT] {
            let expected = script(&sandbox, shell, "env", CATCHES_AND_SUCCEEDS, keys);
            let outcome = script(&sandbox, shell, UNDER_QUORLOCK, CATCHES_AND_SUCCEEDS, keys);
            assert_eq!(outcome, expected, "{shell}, {keys:?}");
        }
    }
}

/// The command's group is in the background there.
#[test]
fn a_key_ends_a_script_whose_command_writes_to_a_pipe() {
    let sandbox = Sandbox::new(3);
    let piped = "echo begun > /dev/tty; while :; do sleep 0.01; done";
    for shell in shells() {
        let script = format!("\"$QUORLOCK\" run s -- sh -c '{piped}' > $DIR/out; echo t''wo");
        let mut terminal = Pty::start(&sandbox, shell, &["-c", &script]);
        terminal.wait_for("begun");
        terminal.press(INTERRUPT);
        assert_eq!(terminal.end().signal(), Some(2), "{shell}: {}", terminal.screen());
        assert!(!terminal.screen().contains("two"), "{shell}");
        sandbox.is_clean();
    }
}

#[test]
fn a_command_that_ends_itself_by_a_signal_does_not_end_the_script() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        for signal in ["INT", "QUIT", "TERM"] {
            let script = format!("\"$QUORLOCK\" run s -- sh -c 'kill -{signal} $$'; echo code=$?");
            let mut terminal = Pty::start(&sandbox, shell, &["-c", &script]);
            assert_eq!(terminal.end().code(), Some(0), "{shell}, {signal}: {}", terminal.screen());
            terminal.wait_for("code=1");
        }
    }
}

#[test]
fn a_key_ends_the_wait_and_the_script() {
    let sandbox = Sandbox::new(3);
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let first = sandbox.start(&["run", "s", "--", "sh", "-c", hold]);
    sandbox.wait_for("held");
    for shell in shells() {
        for keys in [INTERRUPT, QUIT] {
            // It starts no program: during a vfork, dash puts a signal off until the program ends.
            let mut terminal = Pty::start(&sandbox, shell, &["-c", "sh -c 'echo begun; read line'; echo t''wo"]);
            terminal.wait_for("begun");
            terminal.press(keys);
            let expected = outcome(&mut terminal);

            let script = "\"$QUORLOCK\" run s -- touch $DIR/ran; echo t''wo";
            let mut terminal = Pty::start(&sandbox, shell, &["-c", script]);
            within("its place in the queues", || sandbox.cluster.count_waiting("s") >= 2);
            terminal.press(keys);
            assert_eq!(outcome(&mut terminal), expected, "{shell}, {keys:?}: {}", terminal.screen());
            assert!(!sandbox.path("ran").exists(), "{shell}");
            within("the end of its wait", || sandbox.cluster.count_waiting("s") == 0);
        }
    }
    sandbox.touch("end");
    assert_eq!(crate::sandbox::finish(first).code, Some(0));
}

/// The outer run observes only the end of the inner one.
#[test]
fn a_key_ends_nested_runs_and_the_script() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        let nested =
            format!("{UNDER_QUORLOCK} sh -c '\"$QUORLOCK\" run inner -- sh -c \"{DIES}\"; echo t''wo'; echo t''wo");
        let mut terminal = Pty::start(&sandbox, shell, &["-c", &nested]);
        terminal.wait_for("begun");
        terminal.press(INTERRUPT);
        assert_eq!(terminal.end().signal(), Some(2), "{shell}: {}", terminal.screen());
        assert!(!terminal.screen().contains("two"), "{shell}: {}", terminal.screen());
        assert_eq!((sandbox.lock_keys("s"), sandbox.lock_keys("inner")), (0, 0));
        sandbox.is_clean();
    }
}

/// The kernel signals the session's leader and the foreground group, which is the command's. The shell of the script is in
/// neither, and gets the signal as it does without quorlock.
#[test]
fn a_hangup_ends_the_command_and_reaches_the_script() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        for wrapper in ["env", UNDER_QUORLOCK] {
            let script = format!("trap \"echo hup > $DIR/hup; exit\" HUP; {wrapper} sh -c 'echo begun; exec sleep 60'");
            let mut terminal =
                Pty::start_with(&sandbox, "sh", &["-c", &format!("{shell} -c \"$SCRIPT\"; :")], &[("SCRIPT", &script)]);
            terminal.wait_for("begun");
            terminal.hang_up();
            sandbox.wait_for("hup");
            sandbox.is_clean();
            assert_eq!(sandbox.lock_keys("s"), 0, "{shell}, {wrapper}");
            std::fs::remove_file(sandbox.path("hup")).expect("the script's file");
        }
    }
}

/// Prints its process number, and reads lines from the terminal.
const READS: &str = "echo $$ > $DIR/pid; echo begun; while read line; do echo got=$line; done";

#[test]
fn a_job_stops_continues_in_the_background_and_returns() {
    let sandbox = Sandbox::new(3);
    for shell in shells() {
        let mut terminal = Pty::shell(&sandbox, shell);
        terminal.press(&format!("{UNDER_QUORLOCK} sh -c '{READS}'\n"));
        let command = sandbox.wait_for("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        let quorlock = rustix::process::Pid::from_raw(parent_of(command)).expect("a parent");
        let both_are = |state: bool| {
            within("the job's state", || [command, quorlock].iter().all(|pid| is_in_state(*pid, 'T') == state));
        };
        terminal.wait_for("begun\r\n");
        terminal.press("one\n");
        terminal.wait_for("got=one");

        terminal.press_until_prompt(SUSPEND);
        both_are(true);
        terminal.press_until_prompt("echo code=$?\n");
        terminal.wait_for("code=148"); // 128 + SIGTSTP
        terminal.press("fg\n");
        both_are(false);
        terminal.press("two\n");
        terminal.wait_for("got=two");

        terminal.press_until_prompt(SUSPEND);
        both_are(true);
        // In the background it reads, and is stopped for that.
        terminal.press_until_prompt("bg; echo sh''ell\n");
        terminal.wait_for("shell\r\n");
        both_are(true);
        terminal.press("fg\n");
        both_are(false);
        terminal.press("three\n");
        terminal.wait_for("got=three");

        terminal.press_until_prompt(INTERRUPT);
        terminal.press("echo c''ode=$?; exit 7\n");
        terminal.wait_for("code=130");
        assert_eq!(terminal.end().code(), Some(7), "{shell}: {}", terminal.screen());
        sandbox.is_clean();
        assert_eq!(sandbox.lock_keys("s"), 0);
        std::fs::remove_file(sandbox.path("pid")).expect("the command's file");
    }
}

fn parent_of(pid: Pid) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).expect("the command's state");
    let (_, fields) = stat.rsplit_once(") ").expect("a state");
    fields.split(' ').nth(1).and_then(|parent| parent.parse().ok()).expect("a number")
}

/// A job that needs no terminal continues in the background.
#[test]
fn a_stopped_job_continues_in_the_background() {
    let sandbox = Sandbox::new(3);
    // It starts no program: a process that waits for another one's vfork cannot be seen to stop.
    let script = "mkfifo $DIR/line; echo $$ > $DIR/pid; echo begun; read line < $DIR/line; echo > $DIR/done";
    for shell in shells() {
        let mut terminal = Pty::shell(&sandbox, shell);
        terminal.press(&format!("{UNDER_QUORLOCK} sh -c '{script}'\n"));
        let command = sandbox.wait_for("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        terminal.wait_for("begun\r\n");
        terminal.press_until_prompt(SUSPEND);
        within("the command's stop", || is_in_state(command, 'T'));
        terminal.press_until_prompt("bg\n");
        within("the command continues", || !is_in_state(command, 'T'));
        std::fs::write(sandbox.path("line"), "go on\n").expect("the script's fifo");
        sandbox.wait_for("done");
        terminal.press("wait; exit 3\n");
        assert_eq!(terminal.end().code(), Some(3), "{shell}: {}", terminal.screen());
        sandbox.is_clean();
        for file in ["pid", "line", "done"] {
            std::fs::remove_file(sandbox.path(file)).expect("the command's file");
        }
    }
}
