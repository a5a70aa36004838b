//! A process in the command's group that reports the signals which reach the whole group.
//!
//! quorlock is not in that group, so it does not see them by itself. It has to know of two kinds: the keys of the terminal
//! (Ctrl-C), which the calling shell is to be told of, and the signal of a supervisor to every process of a service,
//! which the command must not get once more from quorlock.
//!
//! The listener blocks every signal, so that none ends it, and reads them from a descriptor. It writes one byte for each
//! signal, and [`ANSWER`] for each byte that it is sent: what was pending before has been reported then.

/// The first argument of a process that is a listener.
const ROLE: &str = "listen-to-the-group";
/// Not the number of any signal.
const ANSWER: u8 = 0;

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
pub use linux::{Listener, serve};

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{ChildStdin, Command, Stdio};

    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{SigSet, SigmaskHow};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use rustix::process::{
        Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, waitpid,
    };
    use tokio::net::unix::pipe::Receiver;

    use super::{ANSWER, ROLE, Report};
    use crate::signals::REPORTED;

    pub struct Listener {
        pid: Pid,
        questions: ChildStdin,
        reports: Receiver,
    }

    impl Listener {
        /// Starts a listener in this group. `None` where that is not possible (no /proc): signals are passed on then
        /// without knowing whether the group has them.
        pub fn spawn(group: Pid) -> Option<Self> {
            let mut command = Command::new("/proc/self/exe");
            command.arg(ROLE).arg(getpid().as_raw_nonzero().to_string()).env_clear();
            command.process_group(group.as_raw_nonzero().get());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            // It is born with all signals blocked: none can end it before it listens.
            let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok()?;
            let spawned = command.spawn();
            let _ = mask.thread_set_mask(); // It was this thread's mask before.
            let mut process = spawned.ok()?;
            let pid = Pid::from_child(&process); // From here on only the command's `poll` and `end` wait for it.
            let questions = process.stdin.take()?;
            let reports = Receiver::from_owned_fd(process.stdout.take()?.into()).ok()?;
            Some(Self { pid, questions, reports })
        }

        pub fn pid(&self) -> Pid {
            self.pid
        }

        /// Asks for an [`Answer`](Report::Answer).
        pub fn ask(&mut self) {
            let _ = self.questions.write_all(&[ANSWER]); // Where it is gone, the end of its reports says so.
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

        /// Ends the process. It must not have been waited for.
        pub fn end(self) {
            let _ = kill_process(self.pid, Signal::KILL); // It is there until it is waited for.
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
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
        loop {
            let asked = {
                let waits = |fd| PollFd::new(fd, PollFlags::POLLIN);
                let mut ready = [waits(signals.as_fd()), waits(questions.as_fd())];
                match poll(&mut ready, PollTimeout::NONE) {
                    Err(Errno::EINTR) => continue,
                    done => done?,
                };
                ready[1].any().unwrap_or(true)
            };
            // Before the signals are read: the answer is about all that came before the question.
            if asked && questions.read(&mut [0])? == 0 {
                return Ok(());
            }
            let mut report = Vec::new();
            while let Some(signal) = signals.read_signal()? {
                if i64::from(signal.ssi_pid) != i64::from(parent.as_raw_nonzero().get()) {
                    report.extend(u8::try_from(signal.ssi_signo));
                }
            }
            if asked {
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
pub fn serve() {}

#[cfg(not(target_os = "linux"))]
impl Listener {
    pub fn spawn(_: rustix::process::Pid) -> Option<Self> {
        None
    }

    pub fn pid(&self) -> rustix::process::Pid {
        match *self {}
    }

    pub fn ask(&mut self) {}

    pub async fn next(&mut self) -> Report {
        match *self {}
    }

    pub fn end(self) {}
}
