//! The command as a process: its group, its end, and its part in the shell's job control.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_current_process_group, kill_process, kill_process_group,
    test_kill_process_group, wait, waitpid,
};
use tokio::time::Instant;

use crate::descendants;
use crate::exit;
use crate::terminal::{Terminal, prepare_command};

/// After stopping itself, quorlock goes on no later than this: by its own clock it was never stopped. That is also how it
/// goes on where there is no shell to wake it, and the kernel therefore does not stop it at all.
const STOPPED_FOR: Duration = Duration::from_millis(50);

/// The command, which leads a process group of its own.
pub struct Child {
    leader: Pid,
    terminal: Option<Terminal>,
    /// SIGTSTP came to quorlock and was passed on.
    told_to_stop: bool,
    /// Stopped together with quorlock, and to go on then.
    resume_at: Option<Instant>,
}

impl Child {
    /// Must be called in the thread that lives longest. Waits until the command's program has been loaded.
    pub fn spawn(command: &[OsString], variables: &[(&str, OsString)]) -> io::Result<Self> {
        let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).envs(variables.iter().map(|(name, value)| (name, value))).process_group(0);
        let mut terminal = Terminal::open();
        before_exec(&mut command, terminal.as_mut());
        let process = command.spawn()?;
        let leader = Pid::from_child(&process); // From here on only `poll` waits for it.
        Ok(Self { leader, terminal, told_to_stop: false, resume_at: None })
    }

    /// The command's exit code, or 128 plus the signal that ended it, once it has ended. Follows it when it was stopped.
    pub fn poll(&mut self) -> Option<u8> {
        loop {
            match waitpid(Some(self.leader), WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((_, status))) => match (status.stopping_signal(), status.terminating_signal()) {
                    (Some(signal), _) => self.stopped(signal),
                    (None, Some(signal)) => return Some(exit::ended_by(signal)),
                    (None, None) => {
                        return Some(status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
                    }
                },
                Ok(None) => return None,
                Err(rustix::io::Errno::INTR) => {}
                // Nobody else waits for this child, so it cannot be gone; if it is, its code is not known.
                Err(_) => return Some(u8::MAX),
            }
        }
    }

    /// Passes a signal on to the whole group.
    pub fn signal(&mut self, signal: Signal) {
        match signal {
            // Not at once: there may be reasons not to let it go on.
            Signal::CONT => return self.resume_at = Some(Instant::now()),
            Signal::TSTP => self.told_to_stop = true,
            _ => {}
        }
        self.send(signal);
    }

    /// Tells the whole group to end, also what is stopped in it.
    pub fn terminate(&self) {
        self.send(Signal::TERM);
        self.send(Signal::CONT);
    }

    /// Kills the whole group, and whatever else the command has started.
    pub fn kill(&self) {
        descendants::adopt();
        self.send(Signal::KILL);
        descendants::kill();
    }

    fn send(&self, signal: Signal) {
        let _ = kill_process_group(self.leader, signal); // It fails when all are gone.
    }

    /// Is no process of the group left? To be asked when the leader has ended.
    pub fn is_group_gone(&self) -> bool {
        test_kill_process_group(self.leader) == Err(rustix::io::Errno::SRCH)
    }

    /// Is nothing left of what was killed? To be asked when the leader has ended.
    pub fn is_all_gone(&self) -> bool {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {} // The adopted dead.
        descendants::kill() && self.is_group_gone()
    }

    /// When to call [`resume`](Self::resume).
    pub fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }

    /// Lets the group go on, in the foreground if it belongs there.
    pub fn resume(&mut self) {
        self.resume_at = None;
        self.told_to_stop = false;
        if let Some(terminal) = &mut self.terminal {
            terminal.hand_to(self.leader);
        }
        self.send(Signal::CONT);
    }

    /// The leader has stopped. If that is because its job was stopped, quorlock stops too, as the shell that waits for
    /// the job expects. A command that somebody stopped by its process number is only waited for, and the lock stays.
    fn stopped(&mut self, signal: i32) {
        let asks = [Signal::TTIN, Signal::TTOU].map(Signal::as_raw).contains(&signal);
        let handed = self.terminal.as_ref().is_some_and(Terminal::is_handed);
        let told = self.told_to_stop;
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back();
            if asks {
                terminal.want();
                if !handed && terminal.is_ours() {
                    return self.resume();
                }
            }
        }
        if told {
            stop(Whom::Self_);
        } else if handed || (asks && self.terminal.is_some()) {
            stop(Whom::Job);
        } else {
            return;
        }
        self.resume_at = Some(Instant::now() + STOPPED_FOR);
    }
}

/// Whom a stop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// This process: everybody else has been told.
    Self_,
    /// All that the shell started together with this process.
    Job,
}

/// Stops this process until somebody continues it. By SIGTTIN, as SIGTSTP is handled and SIGSTOP would stop also a process
/// that nobody will ever continue, which the kernel spares with SIGTTIN.
pub fn stop(whom: Whom) {
    let _ = match whom {
        Whom::Self_ => kill_process(getpid(), Signal::TTIN),
        Whom::Job => kill_current_process_group(Signal::TTIN),
    };
}

/// What the child does between fork and exec: only system calls, as nothing else is safe there.
fn before_exec(command: &mut Command, terminal: Option<&mut Terminal>) {
    let parent = getpid();
    let tty = terminal.and_then(Terminal::for_child);
    let prepare = move || {
        end_with(parent)?;
        prepare_command(tty.as_ref());
        Ok(())
    };
    // SAFETY: the closure neither allocates nor takes a lock, also where it fails (its errors are plain numbers).
    #[expect(unsafe_code, reason = "the only way to act in the child before it becomes the command")]
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Asks the kernel for SIGTERM when the parent ends, however it ends.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn end_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH.into()); // It had ended before that.
    }
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn end_with(_: Pid) -> io::Result<()> {
    Ok(())
}

/// Is there no such program, rather than one that cannot be run?
pub fn is_not_found(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// As it may be shown.
pub fn shown(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}
