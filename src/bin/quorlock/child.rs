//! The command as a process: its group, its end, and its part in the shell's job control.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, getppid, kill_process_group, test_kill_process_group, wait};
use tokio::time::{Instant, timeout};

use crate::delivery::{Delivery, is_of_terminal};
use crate::descendants::{self, Left};
use crate::end::{End, Status};
use crate::listener::{Invitation, Listener, Report};
use crate::messages;
use crate::signals::{self, Inherited, REPORTED, Whom};
use crate::terminal::{self, Terminal};

/// After stopping itself, quorlock goes on no later than this: by its own clock it was never stopped. That is also how it
/// goes on where there is no shell to wake it, and the kernel therefore does not stop it at all.
const STOPPED_FOR: Duration = Duration::from_millis(50);

/// How long the listener may take to answer when the command has ended.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// What the command finds in its environment: variables to set, and with `None` to remove.
pub type Variables = Vec<(&'static str, Option<OsString>)>;

/// The command, which leads a process group of its own.
pub struct Child {
    leader: Pid,
    status: Option<Status>,
    terminal: Option<Terminal>,
    /// The group had the terminal when it was taken back from what the command has left.
    had_terminal: bool,
    listener: Option<Listener>,
    /// A listener would have reported a key that ended the command.
    was_heard: bool,
    delivery: Delivery,
    /// SIGTSTP came to quorlock and was passed on.
    told_to_stop: bool,
    /// Stopped together with quorlock, and to go on then.
    resume_at: Option<Instant>,
}

impl Child {
    /// Must be called in the thread that lives longest. Waits until the command's program has been loaded.
    pub fn spawn(command: &[OsString], variables: &Variables, inherited: Inherited) -> io::Result<Self> {
        let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).process_group(0);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut terminal = Terminal::open();
        let (listener, invitation) = Listener::start().unzip();
        before_exec(&mut command, invitation, terminal.as_mut(), inherited);
        let process = command.spawn()?;
        let leader = Pid::from_child(&process); // From here on only `poll` waits for it.
        Ok(Self {
            leader,
            status: None,
            terminal,
            had_terminal: false,
            was_heard: listener.is_some(),
            listener,
            delivery: Delivery::default(),
            told_to_stop: false,
            resume_at: None,
        })
    }

    /// How the command ended, once it has. Follows it when it was stopped, and waits for all other children: orphans, where
    /// quorlock is the first process of a container.
    pub fn poll(&mut self) -> Option<Status> {
        while self.status.is_none() {
            let (pid, status) = match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some(changed)) => changed,
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => continue,
                // The child is waited for here only, so it cannot be gone; if it is, its code is not known.
                Err(_) => {
                    self.status = Some(Status::Exited(u8::MAX));
                    break;
                }
            };
            if pid == self.leader {
                match status.stopping_signal() {
                    Some(signal) => self.stopped(signal),
                    None => self.status = Some(status.into()),
                }
            } else if !status.stopped()
                && let Some(listener) = self.listener.take_if(|listener| listener.is(pid))
            {
                listener.forget();
                self.was_heard = false;
            }
        }
        self.status
    }

    /// A signal came to quorlock: passes it on to the whole group, unless that has it already.
    pub fn signal(&mut self, signal: Signal) {
        match signal {
            // Not at once: there may be reasons not to let it go on.
            Signal::CONT => self.resume_at = Some(Instant::now()),
            Signal::TSTP => {
                self.told_to_stop = true;
                self.pass(signal);
            }
            _ => {
                self.delivery.received(signal, Instant::now());
                if self.listener.is_none() || !REPORTED.contains(&signal) {
                    let held = self.delivery.give_up();
                    self.pass_all(held);
                }
            }
        }
    }

    /// Waits for what the listener says; for ever where there is none.
    ///
    /// Cancel safe.
    pub async fn report(&mut self) -> Report {
        match &mut self.listener {
            Some(listener) => listener.next().await,
            None => pending().await,
        }
    }

    pub fn take_report(&mut self, report: Report) {
        let pass = match report {
            Report::Signal(number) => {
                let in_front = self.terminal.as_ref().is_some_and(Terminal::is_handed);
                if let Some(signal) = REPORTED.iter().find(|signal| signal.as_raw() == number) {
                    self.delivery.reported(*signal, in_front, Instant::now());
                }
                Vec::new()
            }
            Report::Answer => self.delivery.answered(),
            Report::End => {
                (self.listener, self.was_heard) = (None, false);
                self.delivery.give_up()
            }
        };
        self.pass_all(pass);
    }

    /// When to call [`on_time`](Self::on_time).
    pub fn wake_at(&self) -> Option<Instant> {
        self.resume_at.into_iter().chain(self.delivery.next()).min()
    }

    /// Does what is due: lets the group go on, passes on what was held back.
    pub fn on_time(&mut self, now: Instant) {
        if self.resume_at.is_some_and(|at| at <= now) {
            self.resume();
        }
        let due = self.delivery.due(now);
        if due.ask
            && let Some(listener) = &mut self.listener
        {
            listener.ask();
        }
        self.pass_all(due.pass);
    }

    /// Tells the whole group to end, also what is stopped in it.
    pub fn terminate(&self) {
        descendants::adopt();
        self.send(Signal::TERM);
        self.send(Signal::CONT);
    }

    /// Kills the whole group, and what else the command has started.
    pub fn kill(&mut self) {
        descendants::adopt();
        self.listener = None;
        self.send(Signal::KILL);
        descendants::kill(self.leader);
    }

    fn send(&self, signal: Signal) {
        let _ = kill_process_group(self.leader, signal); // It fails when all are gone.
    }

    fn pass_all(&self, signals: Vec<Signal>) {
        for signal in signals {
            self.pass(signal);
        }
    }

    /// Sends what came to quorlock, and says so where that is not allowed.
    fn pass(&self, signal: Signal) {
        self.send(signal);
        if REPORTED.contains(&signal) {
            let refusing = self.refusing();
            if !refusing.is_empty() {
                let name = signals::name(signal);
                messages::error_meanwhile(format!("{name} does not reach {}", descendants::shown(&refusing)));
            }
        }
    }

    /// The processes of the command that quorlock has no permission to signal.
    pub fn refusing(&self) -> Vec<Pid> {
        descendants::refusing(self.leader)
    }

    /// Returns whether no process of the group is left, once the leader has ended.
    pub fn is_group_gone(&mut self) -> bool {
        self.listener = None;
        reap(); // What has ended is in the group until it is waited for.
        test_kill_process_group(self.leader) == Err(rustix::io::Errno::SRCH)
    }

    /// What is left of what was [killed](Self::kill). Kills that again: it may have started more.
    pub fn left(&mut self) -> Left {
        let status = self.poll();
        if status.is_some() {
            reap(); // The adopted dead.
        }
        let mut left = descendants::kill(self.leader);
        left.killable |= if status.is_some() {
            test_kill_process_group(self.leader).is_ok()
        } else {
            !left.refusing.contains(&self.leader)
        };
        left
    }

    /// Takes the terminal back from what the command has left: a key is for quorlock from now on.
    pub fn take_terminal_back(&mut self) {
        self.had_terminal = self.is_in_front();
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back();
        }
    }

    fn is_in_front(&self) -> bool {
        self.had_terminal || self.terminal.as_ref().is_some_and(Terminal::is_handed)
    }

    /// Lets the group go on, in the foreground if it belongs there.
    fn resume(&mut self) {
        self.resume_at = None;
        self.told_to_stop = false;
        if let Some(terminal) = &mut self.terminal {
            terminal.hand_to(self.leader);
        }
        self.send(Signal::CONT);
    }

    /// The leader has stopped. If that is because its job was stopped, quorlock stops too, as the shell that waits for
    /// the job expects. A command that was stopped by its process number is only waited for, and the lock stays.
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
            signals::stop(Whom::Self_);
        } else if handed || (asks && self.terminal.is_some()) {
            signals::stop(Whom::Job);
        } else {
            return;
        }
        self.resume_at = Some(Instant::now() + STOPPED_FOR);
    }

    /// Returns whether quorlock got a signal to end, or the command got one from the terminal.
    pub fn was_told_to_end(&self) -> bool {
        let ends = [Signal::TERM, Signal::INT, Signal::QUIT];
        ends.iter().any(|signal| self.delivery.was_received(*signal)) || self.delivery.key().is_some()
    }

    /// Hears what the listener still has to say when the command has ended. Bounded in time.
    pub async fn hear_the_last(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.ask();
        }
        let _ = timeout(LAST_ANSWER, async {
            while self.listener.is_some() {
                match self.report().await {
                    Report::Answer => break,
                    report => self.take_report(report),
                }
            }
        })
        .await; // Without an answer it is as if no key had been pressed.
    }

    /// How quorlock is to end as the command has ended like this: as the command would have ended in its place.
    pub fn end(&self, status: Status) -> End {
        let in_front = self.is_in_front();
        let key = self.delivery.key().filter(|key| !self.delivery.was_received(*key));
        match status {
            Status::Signalled(signal) if self.delivery.was_received(signal) => {
                End { code: status.code(), signal: Some((signal, Whom::Self_)), dies: true }
            }
            Status::Signalled(signal) if in_front && is_of_terminal(signal) && (key.is_some() || !self.was_heard) => {
                End { code: status.code(), signal: Some((signal, Whom::Job)), dies: true }
            }
            // The command lives on after the key. The shell decides what that means to it.
            _ => End { code: status.code(), signal: key.map(|key| (key, Whom::Job)), dies: false },
        }
    }
}

/// Waits for children that have ended: orphans that were adopted, or where quorlock is the first process of a container.
pub fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// What the child does between fork and exec: only system calls, as nothing else is safe there.
fn before_exec(
    command: &mut Command,
    invitation: Option<Invitation>,
    terminal: Option<&mut Terminal>,
    inherited: Inherited,
) {
    let parent = getpid();
    let tty = terminal.and_then(Terminal::for_child);
    let prepare = move || {
        end_with(parent)?;
        // Before it has the terminal, so that the listener gets every key.
        invitation.as_ref().inspect(|invitation| invitation.send());
        tty.as_ref().inspect(|tty| terminal::take(tty));
        inherited.restore();
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

/// Returns whether there is no such program, rather than one that cannot be run.
pub fn is_not_found(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
