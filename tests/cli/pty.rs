//! A terminal for a shell, and keys for it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use quorlock_testkit::Cluster;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::sandbox::{PATIENCE, Sandbox, finish, within};

pub const INTERRUPT: &str = "\x03";
pub const QUIT: &str = "\x1c";
pub const SUSPEND: &str = "\x1a";
const PROMPT: &str = "ready> ";

/// Returns the installed shells, of those that scripts use.
pub fn shells() -> Vec<&'static str> {
    let mut shells = vec!["bash", "dash"];
    shells.retain(|shell| {
        let found = Command::new(shell).args(["-c", ":"]).status().is_ok_and(|status| status.success());
        if !found {
            println!("skipped with {shell}: it is not installed");
        }
        found
    });
    shells
}

/// Opens a terminal: the end for the keys and the screen, and the end for programs.
fn terminal() -> (File, File) {
    let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&keys, size).expect("the size of a terminal");
    grantpt(&keys).and_then(|()| unlockpt(&keys)).expect("a terminal of our own");
    let path = OsString::from_vec(ptsname(&keys, Vec::new()).expect("its name").into_bytes());
    let end = File::options().read(true).write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(path);
    (keys.into(), end.expect("its other end"))
}

/// A program that leads a session on a terminal.
pub struct Pty {
    keys: Option<File>,
    reader: Option<JoinHandle<()>>,
    closed: Arc<AtomicBool>,
    screen: Arc<Mutex<String>>,
    program: Child,
}

impl Pty {
    pub fn start(sandbox: &Sandbox, program: &str, args: &[&str]) -> Self {
        Self::start_with(sandbox, program, args, &[])
    }

    /// Starts a shell, and waits for its prompt.
    pub fn shell(sandbox: &Sandbox, shell: &str) -> Self {
        let args: &[&str] = if shell == "bash" { &["--norc", "-i"] } else { &["-i"] };
        let terminal = Self::start(sandbox, shell, args);
        terminal.wait_for(PROMPT);
        terminal
    }

    /// Presses keys, and waits for the next prompt.
    pub fn press_until_prompt(&mut self, keys: &str) {
        let before = self.screen().matches(PROMPT).count();
        self.press(keys);
        self.wait(PROMPT, |screen| screen.matches(PROMPT).count() > before);
    }

    /// Starts a program with these variables.
    pub fn start_with(sandbox: &Sandbox, program: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let (keys, end) = terminal();
        let same = || Stdio::from(end.try_clone().expect("a descriptor"));
        let mut command = sandbox.command("setsid", &[&["--ctty", program], args].concat());
        command
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .env("HOME", sandbox.cluster.dir())
            .env_remove("ENV")
            .env_remove("BASH_ENV")
            .envs(variables.iter().copied());
        let program = command.stdin(same()).stdout(same()).stderr(same()).spawn().expect("setsid, of util-linux");
        drop((command, end));
        let mut output = keys.try_clone().expect("a descriptor");
        let screen = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&screen);
        let closed = Arc::new(AtomicBool::new(false));
        let closing = Arc::clone(&closed);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !closing.load(Ordering::SeqCst) {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, 10_u8) == Ok(0) {
                    continue;
                }
                // The end of a terminal is an error (EIO).
                let Ok(count @ 1..) = output.read(&mut bytes) else { return };
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                seen.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { keys: Some(keys), reader: Some(reader), closed, screen, program }
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.as_mut().expect("the connection is open").write_all(keys.as_bytes()).expect("keys are pressed");
    }

    pub fn screen(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for these words on the screen. The screen also shows typed lines, so write `wo''rds` in those.
    pub fn wait_for(&self, words: &str) {
        self.wait(words, |screen| screen.contains(words));
    }

    fn wait(&self, words: &str, is_there: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !is_there(&self.screen()) {
            assert!(start.elapsed() < PATIENCE, "no {words:?} on the screen: {:?}", self.screen());
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Hangs up, as a closed window does.
    pub fn hang_up(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        self.reader.take().map(JoinHandle::join);
        self.keys = None;
    }

    /// Waits for the end of the program, and of all processes that it has left on the terminal.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        within("the end on the terminal", || {
            status = self.program.try_wait().expect("the state of a child");
            status.is_some()
        });
        // Wait until all output is read: until all programs there have ended.
        within("the end of the terminal", || self.reader.as_ref().is_none_or(JoinHandle::is_finished));
        status.expect("it has ended")
    }
}

#[test]
fn release_ends_with_the_code_of_what_the_nodes_have_before_it_asks() {
    let mut sandbox = Sandbox::new(3);
    let release = "\"$QUORLOCK\" release job --force; echo code=$?";
    let ends_with = |sandbox: &Sandbox, words: &[&str]| {
        let mut terminal = Pty::start(sandbox, "sh", &["-c", release]);
        words.iter().for_each(|words| terminal.wait_for(words));
        terminal.end();
        assert!(!terminal.screen().contains("[y/N]"), "{}", terminal.screen());
    };
    ends_with(&sandbox, &["job: not held, so there is nothing to revoke", "code=0"]);
    let foreign = redis::cmd("SET").arg(Cluster::lock_key("job")).arg("x").to_owned();
    foreign.query::<()>(&mut sandbox.cluster.redis(0)).expect("a key");
    ends_with(&sandbox, &["not quorlock's", "code=75"]);
    sandbox.cluster.kill(1);
    sandbox.cluster.kill(2);
    ends_with(&sandbox, &["no quorum", "cannot connect", "code=69"]);
}

/// The keys were deleted by hand, and the nodes remember the lease.
#[test]
fn release_asks_about_a_lease_without_keys() {
    let sandbox = Sandbox::new(3);
    let holder = sandbox.start(&["run", "--lease", "60s", "job", "--", "sh", "-c", "echo > $DIR/ready; exec sleep 50"]);
    sandbox.wait_for("ready");
    let _: Vec<u64> = sandbox.cluster.each(redis::cmd("DEL").arg(Cluster::lock_key("job")));
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", "\"$QUORLOCK\" release job --force; echo code=$?"]);
    terminal.wait_for("Revoke the lease with token");
    terminal.press("y\r");
    terminal.wait_for("code=0");
    assert!(terminal.screen().contains("revoked from"), "{}", terminal.screen());
    terminal.end();
    assert_eq!(finish(holder).code, Some(79));
    sandbox.is_clean();
}
