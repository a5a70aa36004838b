//! The controlling terminal: whose process group is in its foreground.
//!
//! The command has a process group of its own, and only the foreground group may read the terminal and gets the signals
//! of its keys. So the command's group is put there as a shell would do it: at once when quorlock has the terminal to
//! itself, and only when the command asks for it where the terminal may be another's too, as in `quorlock run ... | less`.

use std::fs::{self, File};
use std::io::{self, IsTerminal};

use rustix::process::{Pid, getpgrp, getpid};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// For the time between fork and exec, as it only makes system calls: puts the calling process's own group, which it
/// leads, into the foreground of `tty`. SIGTTOU must be blocked.
pub fn take(tty: &File) {
    // If this fails the command starts in the background, and is brought forward when it asks.
    let _ = tcsetpgrp(tty, getpid());
}

pub struct Terminal {
    tty: File,
    /// The command's group belongs into the foreground whenever quorlock's own is there.
    wanted: bool,
    handed: bool,
}

impl Terminal {
    /// `None` for a process without a controlling terminal.
    pub fn open() -> Option<Self> {
        let tty = fs::OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        // With a pipe on either side, others of quorlock's group may need the terminal.
        let wanted = io::stdin().is_terminal() && io::stdout().is_terminal();
        Some(Self { tty, wanted, handed: false })
    }

    /// Returns whether quorlock's own group is in the foreground.
    pub fn is_ours(&self) -> bool {
        tcgetpgrp(&self.tty).is_ok_and(|group| group == getpgrp())
    }

    pub fn is_handed(&self) -> bool {
        self.handed
    }

    /// The command has asked for it.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// The terminal for a child that is to take it before it begins, lest it asks for input first; `None` when it must
    /// not. The terminal counts as handed then.
    pub fn for_child(&mut self) -> Option<File> {
        if !self.wanted || !self.is_ours() {
            return None;
        }
        let tty = self.tty.try_clone().ok()?;
        self.handed = true;
        Some(tty)
    }

    /// Puts the command's group into the foreground if it belongs there and quorlock's own group is there now.
    pub fn hand_to(&mut self, group: Pid) {
        if self.wanted && !self.handed && self.is_ours() {
            self.handed = tcsetpgrp(&self.tty, group).is_ok();
        }
    }

    pub fn take_back(&mut self) {
        if self.handed {
            self.handed = false;
            let _ = tcsetpgrp(&self.tty, getpgrp()); // It fails when the terminal is gone (a hangup).
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take_back();
    }
}
