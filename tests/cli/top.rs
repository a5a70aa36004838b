//! `quorlock top`: the screen, its keys and signals, and `--batch`.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;

use rustix::process::{Pid, Signal, kill_process};

use crate::pty::{INTERRUPT, Pty, SUSPEND};
use crate::sandbox::{Sandbox, finish, within};

const ESCAPE: &str = "\x1b";
const ALTERNATE_SCREEN: &str = "\x1b[?1049h";
const NORMAL_SCREEN: &str = "\x1b[?1049l";

/// Runs the command between two looks at the modes of the terminal. The exit code stands in a file.
const BETWEEN_MODES: &str = "stty -g > $DIR/before; sh -c 'echo $$ > $DIR/pid; exec \"$QUORLOCK\" top --interval 100ms'; \
                             echo $? > $DIR/code; stty -g > $DIR/after";

/// Returns what was written to the screen, without control sequences and spaces: words are moved to instead of written out.
fn words(terminal: &Pty) -> String {
    let screen = terminal.screen();
    let mut parts = screen.split("\x1b[");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |end| end + 1);
        words.push_str(&part[end..]);
    }
    words.retain(|c| c != ' ');
    words
}

fn wait_for(terminal: &Pty, wanted: &str) {
    within(wanted, || words(terminal).contains(wanted));
}

/// Checks that the command ended with this code and left the terminal as it was.
fn assert_restored(sandbox: &Sandbox, terminal: &mut Pty, code: i32) {
    terminal.end();
    let screen = terminal.screen();
    assert_eq!(sandbox.text("code").trim(), code.to_string(), "{screen:?}");
    assert_eq!(sandbox.text("after"), sandbox.text("before"), "{screen:?}");
    assert!(screen.rfind(NORMAL_SCREEN) > screen.rfind(ALTERNATE_SCREEN), "{screen:?}");
    assert!(screen.rfind("\x1b[?25h") > screen.rfind("\x1b[?25l"), "the cursor: {screen:?}");
    sandbox.is_clean();
}

#[test]
fn a_batch_prints_nodes_and_locks_and_ends_as_status_does() {
    let mut sandbox = Sandbox::new(3);
    let work = "$QUORLOCK top -b -n 2 --interval 100ms";
    let ended = sandbox.end(&["run", "--label", "first", "job", "--", "sh", "-c", work]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    for shown in ["NODE ", "OK: 3 of 3 vote, quorum 2, 1 more may fail", "1 lock, most waiters first", "NAME ", "job "]
    {
        assert_eq!(lines.iter().filter(|line| line.starts_with(shown)).count(), 2, "{shown}: {ended:?}");
    }
    assert!(!ended.stdout.contains('\x1b'), "{ended:?}");

    sandbox.cluster.kill(1);
    let ended = sandbox.end(&["top", "--batch", "-n", "1", "--limit", "0"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("0 locks, most waiters first; 2 of 3 nodes have answered\nNAME "), "{ended:?}");
    sandbox.cluster.kill(2);
    let ended = sandbox.end(&["top", "--batch", "--count", "1"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(ended.stdout.contains("1 of 3 nodes have answered, too few to know all locks\n"), "{ended:?}");
    assert!(ended.stderr.contains("NOQUORUM: 1 of 3 votes"), "{ended:?}");
}

#[test]
fn a_batch_without_a_count_ends_with_its_pipe() {
    let sandbox = Sandbox::new(1);
    let mut child = sandbox.start(&["top", "-b", "--interval", "100ms"]);
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let verdicts = lines.map(|line| line.expect("text")).filter(|line| line.starts_with("OK: "));
    assert_eq!(verdicts.take(2).count(), 2);
    assert_eq!(finish(child).code, Some(0));
}

#[test]
fn without_a_terminal_it_names_the_batch() {
    let sandbox = Sandbox::new(1);
    let ended = sandbox.end(&["top"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{ended:?}");
    assert!(ended.stderr.contains("`quorlock top -b -n 1`"), "{ended:?}");
    for args in [&["top", "-n", "2"][..], &["top", "-b", "-n", "0"], &["top", "-b", "-n", "redis://me:hunter2@a"]] {
        let ended = sandbox.end(args);
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
    }
}

#[test]
fn keys_end_it_and_the_terminal_is_restored() {
    let sandbox = Sandbox::new(3);
    for keys in ["q", ESCAPE, INTERRUPT] {
        let mut terminal = Pty::start(&sandbox, "sh", &["-c", BETWEEN_MODES]);
        wait_for(&terminal, "OK:3of3vote,quorum2,1moremayfail");
        terminal.press("p");
        wait_for(&terminal, ",PAUSED");
        terminal.press(keys);
        assert_restored(&sandbox, &mut terminal, 0);
    }
}

#[test]
fn signals_end_it_and_the_terminal_is_restored() {
    let sandbox = Sandbox::new(1);
    for (fatal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut terminal = Pty::start(&sandbox, "sh", &["-c", BETWEEN_MODES]);
        wait_for(&terminal, "OK:1of1votes");
        let pid = sandbox.text("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, fatal).expect("a signal");
        assert_restored(&sandbox, &mut terminal, code);
    }
}

#[test]
fn a_suspended_screen_gives_the_terminal_back() {
    let sandbox = Sandbox::new(1);
    let mut terminal = Pty::shell(&sandbox, "bash");
    terminal.press("stty -g > $DIR/before; \"$QUORLOCK\" top\n");
    wait_for(&terminal, "OK:1of1votes");
    terminal.press_until_prompt(SUSPEND);
    terminal.press_until_prompt("echo c''ode=$?; stty -g > $DIR/after\n");
    terminal.wait_for("code=148"); // 128 + SIGTSTP
    assert_eq!(sandbox.text("after"), sandbox.text("before"));
    terminal.press("fg\n");
    within("the screen again", || terminal.screen().matches(ALTERNATE_SCREEN).count() == 2);
    terminal.press_until_prompt("q");
    terminal.press("echo c''ode=$?; exit 7\n");
    terminal.wait_for("code=0");
    assert_eq!(terminal.end().code(), Some(7), "{}", terminal.screen());
    sandbox.is_clean();
}

#[test]
fn a_silent_node_stops_neither_the_screen_nor_the_keys() {
    let sandbox = Sandbox::new(1);
    // It accepts connections, and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let nodes = format!("redis://{}", silent.local_addr().expect("its address"));
    let mut terminal = Pty::start_with(&sandbox, "sh", &["-c", BETWEEN_MODES], &[("QUORLOCK_NODES", &nodes)]);
    wait_for(&terminal, "askingthenodes");
    terminal.press("p");
    wait_for(&terminal, ",PAUSED");
    terminal.press("q");
    assert_restored(&sandbox, &mut terminal, 0);
    assert!(!terminal.screen().contains("silent"), "the keys came first: {:?}", terminal.screen());
}

#[test]
fn a_hangup_ends_it() {
    let sandbox = Sandbox::new(1);
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", BETWEEN_MODES]);
    wait_for(&terminal, "OK:1of1votes");
    terminal.hang_up();
    sandbox.is_clean();
}
