//! A process in the command's group that reports the signals which reach the whole group.
//!
//! quorlock is not in that group, so it does not see them by itself. It has to know of two kinds: the keys of the terminal
//! (Ctrl-C), which the calling shell is to be told of, and the signal of a supervisor to every process of a service,
//! which the command must not get once more from quorlock.
//!
//! The listener blocks every signal, so that none ends it, and reads them from a descriptor. The command's process lets it
//! join its group before it executes the command. From then on the listener writes one byte for each signal, and
//! [`ANSWER`] when it is asked: what was pending before has been reported then.

/// The first argument of a process that is a listener.
const ROLE: &str = "listen-to-the-group";
/// Not the number of any signal.
const ANSWER: u8 = 0;
/// A question is the number of a group to join, or this.
const ASK: i32 = 0;

/// What a listener says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The number of a signal that the group got, and not from quorlock.
    Signal(i32),
    /// All that was pending when it was asked has been reported.
    Answer,
    /// It is gone.
    End,
}

#[cfg(target_os = "linux")]
pub use linux::{Invitation, Listener, serve};

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::io::{self, PipeReader, Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::process::{ChildStdin, Command, Stdio};

    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{SigSet, SigmaskHow};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use rustix::process::{
        Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, setpgid, waitpid,
    };
    use tokio::net::unix::pipe::Receiver;

    use super::{ANSWER, ASK, ROLE, Report};
    use crate::signals::REPORTED;

    /// How long the command's process waits for the listener, in ms. It has to be started first.
    const LONGEST_JOIN: u16 = 1000;

    pub struct Listener {
        /// `None` when it has been waited for.
        pid: Option<Pid>,
        questions: ChildStdin,
        reports: Receiver,
    }

    /// For the command's process: what lets the listener join its group.
    pub struct Invitation {
        questions: OwnedFd,
        joined: PipeReader,
    }

    impl Listener {
        /// Starts a listener. `None` where that is not possible (no /proc): signals are passed on then without knowing
        /// whether the group has them.
        pub fn start() -> Option<(Self, Invitation)> {
            let (joined, joins) = io::pipe().ok()?;
            let mut command = Command::new("/proc/self/exe");
            command.arg(ROLE).arg(getpid().as_raw_nonzero().to_string()).env_clear();
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(joins);
            // It is born with all signals blocked: none can end it before it listens.
            let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok()?;
            let spawned = command.spawn();
            let _ = mask.thread_set_mask(); // It was this thread's mask before.
            let mut process = spawned.ok()?;
            let pid = Pid::from_child(&process); // From here on only the command's `poll` and `drop` wait for it.
            let questions = process.stdin.take()?;
            let reports = Receiver::from_owned_fd(process.stdout.take()?.into()).ok()?;
            let invitation = Invitation { questions: questions.as_fd().try_clone_to_owned().ok()?, joined };
            Some((Self { pid: Some(pid), questions, reports }, invitation))
        }

        pub fn is(&self, pid: Pid) -> bool {
            self.pid == Some(pid)
        }

        /// Asks for an [`Answer`](Report::Answer).
        pub fn ask(&mut self) {
            let _ = self.questions.write_all(&ASK.to_ne_bytes()); // Where it is gone, the end of its reports says so.
        }

        /// It has been waited for.
        pub fn forget(mut self) {
            self.pid = None;
        }

        /// Cancel safe.
        pub async fn next(&mut self) -> Report {
            let mut byte = [0];
            loop {
                if self.reports.readable().await.is_err() {
                    return Report::End;
                }
                match self.reports.try_read(&mut byte) {
                    Ok(1) if byte[0] == ANSWER => return Report::Answer,
                    Ok(1) => return Report::Signal(byte[0].into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return Report::End,
                }
            }
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            if let Some(pid) = self.pid {
                let _ = kill_process(pid, Signal::KILL); // It is there until it is waited for.
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }

    impl Invitation {
        /// Lets the listener join the group that this process leads. For the time between fork and exec: makes system calls
        /// only. Without an answer it goes on after a second.
        pub fn send(&self) {
            let answers = || PollFd::new(self.joined.as_fd(), PollFlags::POLLIN);
            // A listener that has ended would end the writer by SIGPIPE.
            if poll(&mut [answers()], PollTimeout::ZERO) == Ok(0) {
                let group = getpid().as_raw_nonzero().get();
                let _ = rustix::io::write(&self.questions, &group.to_ne_bytes());
                let _ = poll(&mut [answers()], LONGEST_JOIN);
            }
        }
    }

    /// Is a listener if this process was started as one, and does not return then.
    pub fn serve() {
        let mut args = env::args_os().skip(1);
        if args.next().is_some_and(|role| role == ROLE) {
            let parent = args.next().and_then(|pid| Pid::from_raw(pid.to_str()?.parse().ok()?));
            let _ = parent.map_or(Ok(()), listen); // No parent, no terminal: there is no one to tell of an error.
            std::process::exit(0);
        }
    }

    fn listen(parent: Pid) -> io::Result<()> {
        SigSet::all().thread_block()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Ok(()); // It ended before that.
        }
        let reported: SigSet = REPORTED.iter().filter_map(|signal| signal.as_raw().try_into().ok()).collect();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&reported, flags)?;
        let (mut questions, mut reports) = (io::stdin(), io::stdout());
        let mut has_joined = false;
        loop {
            let is_asked = {
                let waits = |fd| PollFd::new(fd, PollFlags::POLLIN);
                let mut ready = [waits(signals.as_fd()), waits(questions.as_fd())];
                match poll(&mut ready, PollTimeout::NONE) {
                    Err(Errno::EINTR) => continue,
                    done => done?,
                };
                ready[1].any().unwrap_or(true)
            };
            // Before the signals are read: the answer is about all that came before the question.
            let mut question = ASK.to_ne_bytes();
            if is_asked && questions.read_exact(&mut question).is_err() {
                return Ok(());
            }
            let mut report = Vec::new();
            while let Some(signal) = signals.read_signal()? {
                // What came before it joined came to quorlock's group.
                if has_joined && i64::from(signal.ssi_pid) != i64::from(parent.as_raw_nonzero().get()) {
                    report.extend(u8::try_from(signal.ssi_signo));
                }
            }
            if let Some(group) = Pid::from_raw(i32::from_ne_bytes(question)) {
                setpgid(None, Some(group))?;
                has_joined = true;
                io::stderr().write_all(&[ANSWER])?;
            } else if is_asked {
                report.push(ANSWER);
            }
            reports.write_all(&report)?;
            reports.flush()?;
        }
    }
}

/// Elsewhere there is none.
#[cfg(not(target_os = "linux"))]
pub enum Listener {}

#[cfg(not(target_os = "linux"))]
pub enum Invitation {}

#[cfg(not(target_os = "linux"))]
pub fn serve() {}

#[cfg(not(target_os = "linux"))]
impl Listener {
    pub fn start() -> Option<(Self, Invitation)> {
        None
    }

    pub fn is(&self, _: rustix::process::Pid) -> bool {
        match *self {}
    }

    pub fn ask(&mut self) {}

    pub fn forget(self) {}

    pub async fn next(&mut self) -> Report {
        match *self {}
    }
}

#[cfg(not(target_os = "linux"))]
impl Invitation {
    pub fn send(&self) {
        match *self {}
    }
}
