//! Signals that are meant for the command, and what this process does by them itself.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal as NixSignal, sigaction};
use rustix::process::{
    Resource, Rlimit, Signal, getpid, getrlimit, kill_current_process_group, kill_process, setrlimit,
};
use tokio::signal::unix::{self, SignalKind};

/// All that can be caught, except those that the kernel sends a process about itself (SIGSEGV, SIGPIPE, SIGXCPU and the
/// like), SIGCHLD, and SIGTTIN and SIGTTOU, by which quorlock stops itself or must not be stopped.
const FORWARDED: &[Signal] = &[
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::ABORT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::CONT,
    Signal::TSTP,
    Signal::URG,
    Signal::VTALARM,
    Signal::PROF,
    Signal::WINCH,
    Signal::IO,
    #[cfg(target_os = "linux")]
    Signal::POWER,
];

/// Those of them that a supervisor may send to all processes of a service: they end a process, or mean what the program
/// decides.
#[cfg(target_os = "linux")]
pub const REPORTED: &[Signal] = &[
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::ABORT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
    Signal::POWER,
];

#[cfg(not(target_os = "linux"))]
pub const REPORTED: &[Signal] = &[];

/// Those that mean the end to any program. The others may ask a daemon for something: to read its settings again, to open its log anew.
const ORDERS_TO_END: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::ABORT];

/// What the caller has set for the signals, and the command inherits.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    mask: SigSet,
    ignores_child: bool,
}

impl Inherited {
    /// Takes note of it, and lets all signals through to this process from now on, but for one: a process in the background
    /// that writes to the terminal (under `stty tostop`), or takes it back, is stopped by SIGTTOU, and that must not happen
    /// to a process that extends a lock. To be called before there is any other thread.
    pub fn replace() -> Self {
        let ignores_child = ignored() & mask(Signal::CHILD) != 0;
        // Neither call can fail: the signal exists, and so does the thread.
        let mask = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
        let _ = SigSet::from(NixSignal::SIGTTOU).thread_set_mask();
        Self { mask, ignores_child }
    }

    /// Sets it again, for the time between fork and exec: makes system calls only.
    pub fn restore(&self) {
        if self.ignores_child {
            set(NixSignal::SIGCHLD, &SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty()));
        }
        let _ = self.mask.thread_set_mask(); // It was this process's mask before.
    }
}

/// Gives the action before. What is set may be no handler but one that was set before.
fn set(signal: NixSignal, action: &SigAction) -> Option<SigAction> {
    // SAFETY: the action is the default, to ignore, or one that was in force.
    #[expect(unsafe_code, reason = "the only way to change what a signal does")]
    unsafe {
        sigaction(signal, action).ok()
    }
}

fn set_default(signal: NixSignal) -> Option<SigAction> {
    set(signal, &SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty()))
}

/// Whom a signal of quorlock's own is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// This process: all others have got it.
    Self_,
    /// All that the shell started together with this process.
    Job,
}

impl Whom {
    pub fn send(self, signal: Signal) {
        let _ = match self {
            Self::Self_ => kill_process(getpid(), signal),
            Self::Job => kill_current_process_group(signal),
        };
    }
}

/// Ends this process by the signal, so that the caller sees that: a shell stops its script then. Returns where the signal
/// does not end the process: the first one of a system, or a container.
pub fn end_by(signal: Signal, whom: Whom) {
    // The dump of the command is what people look for, not that of quorlock.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..getrlimit(Resource::Core) });
    if let Ok(known) = NixSignal::try_from(signal.as_raw()) {
        set_default(known);
        let _ = SigSet::from(known).thread_unblock();
    }
    whom.send(signal);
}

/// Stops this process as SIGTSTP does by default, until it is continued. It goes on at once where the kernel spares it, as
/// no shell would ever continue it. One that ignored the signal from the start goes on, too.
pub fn stop(whom: Whom) {
    let before = if ignored() & mask(Signal::TSTP) == 0 { set_default(NixSignal::SIGTSTP) } else { None };
    whom.send(Signal::TSTP);
    if let Some(before) = before {
        set(NixSignal::SIGTSTP, &before);
    }
}

/// Lets the terminal stop this process again while it is in the background, which a process that holds no lock may be.
#[cfg(feature = "tui")]
pub fn unblock_terminal_output() {
    let _ = SigSet::from(NixSignal::SIGTTOU).thread_unblock(); // It cannot fail: the signal exists.
}

/// From when this exists, these signals no longer do to the process what they do by default. A child that is executed
/// has the defaults again.
pub struct Signals {
    forwarded: Vec<(Signal, unix::Signal)>,
    child: unix::Signal,
    /// Only the orders to end are for quorlock. The others are for the command alone, and end nothing while there is none.
    spares_requests: bool,
}

impl Signals {
    /// Signals that were ignored when quorlock started (`nohup`, a job in the background of a script) stay ignored, for
    /// quorlock and for the command.
    pub fn register() -> io::Result<Self> {
        let ignored = ignored();
        let wanted = FORWARDED.iter().filter(|signal| ignored & mask(**signal) == 0);
        let forwarded = wanted.map(|signal| Ok((*signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?)));
        let forwarded = forwarded.collect::<io::Result<_>>()?;
        Ok(Self { forwarded, child: unix::signal(SignalKind::child())?, spares_requests: false })
    }

    /// A signal from now on that is no order to end is a request to the command. While there is no command, nothing answers it.
    pub fn spare_requests(&mut self) {
        self.spares_requests = true;
    }

    /// Returns whether this signal ends quorlock while there is no command.
    pub fn ends_a_wait(&self, signal: Signal) -> bool {
        if self.spares_requests { ORDERS_TO_END.contains(&signal) } else { is_fatal(signal) }
    }

    /// The next signal to pass on, or `None` when something has happened to a child.
    ///
    /// Cancel safe.
    pub async fn next_or_child(&mut self) -> Option<Signal> {
        poll_fn(|cx| if self.child.poll_recv(cx).is_ready() { Poll::Ready(None) } else { self.poll_next(cx).map(Some) })
            .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (signal, stream) in &mut self.forwarded {
            if stream.poll_recv(cx).is_ready() {
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    }
}

/// Returns whether this signal ends a process that does not handle it.
pub fn is_fatal(signal: Signal) -> bool {
    ![Signal::CONT, Signal::TSTP, Signal::URG, Signal::WINCH].contains(&signal)
}

fn mask(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

/// The signals that this process ignores, a bit for each. Where the kernel does not tell: none.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    field.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// `SIGTERM` and the like.
pub fn name(signal: Signal) -> String {
    NixSignal::try_from(signal.as_raw())
        .map_or_else(|_| format!("signal {}", signal.as_raw()), |known| known.to_string())
}
