//! Signals, the end of quorlock itself, and the terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal};

use crate::sandbox::{Ended, Sandbox, finish, is_in_state, signal, within};

#[test]
fn signals_reach_the_whole_group() {
    let sandbox = Sandbox::new(3);
    // The grandchild gets the signal directly: the child does not pass it on.
    let grandchild = r#"trap : USR1; trap "echo grandchild >> \$DIR/received; exit" TERM; echo > $DIR/deep; while :; do sleep 0.01; done"#;
    let script = format!(
        r#"trap "echo usr1 >> \$DIR/received" USR1; trap "echo child >> \$DIR/received; until grep -q grandchild \$DIR/received; do sleep 0.01; done; exit 4" TERM
           sh -c '{grandchild}' & echo > $DIR/ready; while :; do sleep 0.01; done"#
    );
    let run = sandbox.start(&["run", "job", "--", "sh", "-c", &script]);
    sandbox.wait_for("ready");
    sandbox.wait_for("deep");
    signal(&run, Signal::USR1);
    within("USR1", || sandbox.text("received") == "usr1\n");
    signal(&run, Signal::TERM);
    assert_eq!(finish(run).code, Some(4));
    let received = sandbox.text("received");
    assert!(received.contains("child\n") && received.contains("grandchild\n"), "{received}");
    assert_eq!(sandbox.lock_keys("job"), 0);
    sandbox.is_clean();
}

#[test]
fn the_command_inherits_signal_masks_and_ignored_signals() {
    let sandbox = Sandbox::new(1);
    let own = sandbox.end(&[
        "run",
        "job",
        "--",
        "sh",
        "-c",
        "ps -o pgid= -p $$ | tr -d ' '; echo $$; exec cat /proc/self/status",
    ]);
    let lines: Vec<&str> = own.stdout.lines().collect();
    assert_eq!(lines[0], lines[1], "a process group of its own");
    let field = |status: &str, name: &str| {
        let field = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = u64::from_str_radix(field.expect("the field").trim(), 16).expect("a mask");
        mask & !(0b11 << 31) // 32 and 33 are the C library's own.
    };
    assert_eq!(field(&own.stdout, "SigBlk:"), 0);
    // Only signals that the caller ignores on purpose stay ignored: Rust programs, such as this one, ignore SIGPIPE.
    let here = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let ignored = field(&here, "SigIgn:") & !bit(Signal::PIPE);
    assert_eq!(field(&own.stdout, "SigIgn:"), ignored);
    let nohup = [env!("CARGO_BIN_EXE_quorlock"), "run", "job", "--", "cat", "/proc/self/status"];
    let kept = finish(sandbox.command("nohup", &nohup).spawn().expect("nohup"));
    assert_eq!(field(&kept.stdout, "SigIgn:"), ignored | bit(Signal::HUP));
}

/// quorlock receives signals that the caller blocks or ignores, and the command inherits the caller's settings.
#[test]
fn blocked_and_ignored_signals_are_received_and_inherited() {
    let sandbox = Sandbox::new(1);
    for set in [&["--block-signal"][..], &["--block-signal=CHLD"], &["--ignore-signal=CHLD"]] {
        let status = ["cat", "/proc/self/status"];
        let direct = finish(sandbox.command("env", &[set, &status].concat()).spawn().expect("env"));
        let run = [set, &[env!("CARGO_BIN_EXE_quorlock"), "run", "job", "--"], &status].concat();
        let under = finish(sandbox.command("env", &run).spawn().expect("env"));
        assert_eq!(under.code, Some(0), "{set:?}: {under:?}");
        let masks = |ended: &Ended| {
            let masks = ended.stdout.lines().filter(|line| line.starts_with("SigBlk:") || line.starts_with("SigIgn:"));
            masks.map(str::to_owned).collect::<Vec<_>>()
        };
        // Rust programs, such as quorlock, ignore SIGPIPE, and their children have the default again.
        assert_eq!(masks(&under), masks(&direct), "{set:?}");
    }
    let run = ["--block-signal", env!("CARGO_BIN_EXE_quorlock"), "run", "job", "--", "sh", "-c"];
    let script = "echo > $DIR/ready; until [ -e $DIR/end ]; do sleep 0.01; done";
    let holder = sandbox.command("env", &[&run, &[script][..]].concat()).spawn().expect("env");
    sandbox.wait_for("ready");
    let waiting = sandbox.command("env", &[&run, &["exit 9"][..]].concat()).spawn().expect("env");
    within("its ticket in the queue", || sandbox.cluster.count_waiting("job") == 1);
    signal(&waiting, Signal::TERM);
    assert_eq!(finish(waiting).signal, Some(Signal::TERM.as_raw()));
    sandbox.touch("end");
    assert_eq!(finish(holder).code, Some(0));
}

/// Reads lines for ever, and records each signal that interrupts this.
const NOTES: &str = r#"trap "echo term >> \$DIR/received" TERM; trap "echo last >> \$DIR/received; exit 5" VTALRM
                       mkfifo $DIR/line; exec 3<>$DIR/line; echo > $DIR/ready; while :; do read line <&3; done"#;

/// As systemd does with `KillMode=control-group`: in a process namespace, `kill -1` is for all but the first process.
/// quorlock is stopped meanwhile, so that a second signal would come when the first has been handled.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_to_all_processes_reaches_the_command_once() {
    let sandbox = Sandbox::new(1);
    let script = r#""$QUORLOCK" run job -- sh -c "$NOTES" & run=$!; until [ -s $DIR/ready ]; do sleep 0.01; done
                    kill -STOP $run; kill -TERM -1; until [ -s $DIR/received ]; do sleep 0.01; done
                    kill -CONT $run; kill -VTALRM $run; wait $run"#;
    let Some(mut command) = in_a_namespace(&sandbox, &["sh", "-c", script]) else { return };
    assert_eq!(finish(command.env("NOTES", NOTES).spawn().expect("unshare")).code, Some(5));
    // quorlock passed the second signal on, so it had handled every earlier one by then.
    assert_eq!(sandbox.text("received"), "term\nlast\n");
}

/// As systemd does with `KillMode=mixed`, and `kill` by hand.
#[test]
fn a_signal_to_quorlock_alone_reaches_the_command_once() {
    let sandbox = Sandbox::new(1);
    let mut run = sandbox.quorlock(&["run", "job", "--", "sh", "-c", NOTES]);
    let run = run.spawn().expect("quorlock");
    sandbox.wait_for("ready");
    signal(&run, Signal::TERM);
    sandbox.wait_for("received");
    signal(&run, Signal::VTALARM); // Behind SIGTERM, where both are passed on.
    assert_eq!(finish(run).code, Some(5));
    assert_eq!(sandbox.text("received"), "term\nlast\n");
}

#[test]
fn quorlock_ends_by_the_signal_that_killed_its_command() {
    let sandbox = Sandbox::new(1);
    for sent in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        let run = sandbox.start(&["run", "job", "--", "sh", "-c", "echo > $DIR/ready; exec sleep 60"]);
        sandbox.wait_for("ready");
        signal(&run, sent);
        assert_eq!(finish(run).signal, Some(sent.as_raw()));
        assert_eq!(sandbox.lock_keys("job"), 0, "released before");
        std::fs::remove_file(sandbox.path("ready")).expect("the command's file");
    }
    sandbox.is_clean();
}

/// Returns a command in its own namespaces of users, processes and /proc, or `None` with a message where that is not allowed.
#[cfg(target_os = "linux")]
fn in_a_namespace(sandbox: &Sandbox, args: &[&str]) -> Option<std::process::Command> {
    let unshare = ["-U", "-r", "-p", "-f", "--mount-proc"];
    let tried = finish(sandbox.command("unshare", &[&unshare, &["true"][..]].concat()).spawn().ok()?);
    if tried.code != Some(0) {
        println!("skipped: no process namespace can be made here: {}", tried.stderr);
        return None;
    }
    Some(sandbox.command("unshare", &[&unshare, args].concat()))
}

#[test]
#[cfg(target_os = "linux")]
fn the_first_process_of_a_container_waits_for_orphans() {
    let sandbox = Sandbox::new(1);
    // The inner shell ends at once, so that the process it has started is an orphan.
    let script = "sh -c 'sleep 0.05 & echo $! > $DIR/orphan'; orphan=$(cat $DIR/orphan)
                  for _ in $(seq 1000); do [ -e /proc/$orphan ] || exit 4; sleep 0.01; done; exit 9";
    let run = [env!("CARGO_BIN_EXE_quorlock"), "run", "job", "--", "sh", "-c", script];
    let Some(mut command) = in_a_namespace(&sandbox, &run) else { return };
    assert_eq!(finish(command.spawn().expect("unshare")).code, Some(4));
}

/// quorlock inherits a child from the shell that it replaced with `exec`, and reaps it as it does orphans.
#[test]
fn inherited_children_are_reaped_before_the_lock_is_acquired() {
    let sandbox = Sandbox::new(1);
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let holder = sandbox.start(&["run", "job", "--", "sh", "-c", hold]);
    sandbox.wait_for("held");
    let script =
        "sh -c 'until [ -e $DIR/go ]; do sleep 0.01; done' & echo $! > $DIR/orphan; exec \"$QUORLOCK\" run job -- true";
    let run = sandbox.command("sh", &["-c", script]).spawn().expect("sh");
    let orphan = format!("/proc/{}", sandbox.wait_for("orphan").trim());
    within("its ticket in the queue", || sandbox.cluster.count_waiting("job") == 1);
    sandbox.touch("go");
    within("the orphan's end", || !std::path::Path::new(&orphan).exists());
    sandbox.touch("end");
    assert_eq!((finish(holder).code, finish(run).code), (Some(0), Some(0)));
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

#[test]
fn a_killed_quorlock_ends_its_command_and_its_lease() {
    let sandbox = Sandbox::new(5);
    let script = r#"trap "echo > \$DIR/terminated; exit" TERM; echo > $DIR/ready; while :; do sleep 0.01; done"#;
    let mut run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", script]);
    sandbox.wait_for("ready");
    run.kill().expect("SIGKILL");
    run.wait().expect("its end");
    sandbox.wait_for("terminated");
    sandbox.is_clean();
    // The lease is no longer extended.
    let next = sandbox.end(&["run", "job", "--", "echo", "mine"]);
    assert_eq!((next.code, next.stdout.as_str()), (Some(0), "mine\n"));
}

/// Prints its process number, and waits for a line. It starts no program meanwhile: the stop of a process that waits for a
/// vfork is not visible.
const WAIT: &str = "mkfifo $DIR/line; echo $$ > $DIR/pid; read line < $DIR/line";

/// The line that [`WAIT`] waits for, as long as this is open.
fn go_on(sandbox: &Sandbox) -> File {
    // Opened both ways, so that it does not wait for a reader that is stopped.
    let mut line = File::options().read(true).write(true).open(sandbox.path("line")).expect("the script's fifo");
    line.write_all(b"go on\n").expect("a line");
    line
}

/// Starts a process in its own group, as a shell does for its jobs: there the kernel allows a stop.
#[test]
fn a_job_stops_and_continues_with_its_command() {
    let sandbox = Sandbox::new(3);
    let script = format!("{WAIT}; exit 6");
    let mut run = sandbox.quorlock(&["run", "--lease", "1minute", "job", "--", "sh", "-c", &script]);
    let run = run.process_group(0).spawn().expect("quorlock");
    let command = sandbox.wait_for("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
    signal(&run, Signal::TSTP);
    within("the command's stop", || is_in_state(command, 'T'));
    within("quorlock's stop", || is_in_state(Pid::from_child(&run), 'T'));
    signal(&run, Signal::CONT);
    within("the command continues", || !is_in_state(command, 'T'));
    let _go = go_on(&sandbox);
    assert_eq!(finish(run).code, Some(6));
}

#[test]
fn a_job_stopped_past_its_lease_does_not_continue() {
    let sandbox = Sandbox::new(3);
    let script = format!("{WAIT}; echo went on > $DIR/on");
    let mut run = sandbox.quorlock(&["run", "--lease", "3s", "job", "--", "sh", "-c", &script]);
    let run = run.process_group(0).spawn().expect("quorlock");
    let command = sandbox.wait_for("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
    signal(&run, Signal::TSTP);
    within("the command's stop", || is_in_state(command, 'T'));
    within("quorlock's stop", || is_in_state(Pid::from_child(&run), 'T'));
    within("the end of the lease", || sandbox.lock_keys("job") == 0);
    let _go = go_on(&sandbox);
    signal(&run, Signal::CONT);
    assert_eq!(finish(run).code, Some(79));
    assert_eq!(sandbox.text("on"), "");
    sandbox.is_clean();
}

/// `script` gives it a terminal. A command that is not in the foreground would be stopped when it reads, and one that
/// keeps the foreground would stop the shell that reads after it.
#[test]
fn the_command_gets_the_terminal_and_returns_it() {
    let sandbox = Sandbox::new(3);
    let line = "\"$QUORLOCK\" run job -- sh -c 'read x < /dev/tty; echo got=$x'; read y < /dev/tty; echo after=$y; \
                \"$QUORLOCK\" run job -- sh -c 'read x < /dev/tty; echo piped=$x' | cat";
    let mut command = sandbox.command("script", &["-qec", line, "/dev/null"]);
    let mut terminal = command.stdin(Stdio::piped()).env("SHELL", "/bin/sh").spawn().expect("script, of bsdutils");
    let mut keys = terminal.stdin.take().expect("it is piped");
    let mut screen = terminal.stdout.take().expect("it is piped");
    keys.write_all(b"one\ntwo\nthree\n").expect("keys are typed");
    let reader = std::thread::spawn(move || {
        let mut seen = String::new();
        screen.read_to_string(&mut seen).expect("text");
        seen
    });
    let ended = finish(terminal);
    drop(keys);
    let seen = reader.join().expect("the screen");
    assert_eq!(ended.code, Some(0), "{seen}");
    for words in ["got=one", "after=two", "piped=three"] {
        assert!(seen.contains(words), "{seen}");
    }
    sandbox.is_clean();
}
