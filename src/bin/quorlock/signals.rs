//! Signals that are meant for the command.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use rustix::process::Signal;
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

/// From when this exists, these signals no longer do to the process what they do by default. A child that is executed
/// has the defaults again.
pub struct Signals {
    forwarded: Vec<(Signal, unix::Signal)>,
    child: unix::Signal,
}

impl Signals {
    /// Signals that were ignored when quorlock started (`nohup`, a job in the background of a script) stay ignored, for
    /// quorlock and for the command.
    pub fn register() -> io::Result<Self> {
        let ignored = ignored();
        let wanted = FORWARDED.iter().filter(|signal| ignored & mask(**signal) == 0);
        let forwarded = wanted.map(|signal| Ok((*signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?)));
        Ok(Self { forwarded: forwarded.collect::<io::Result<_>>()?, child: unix::signal(SignalKind::child())? })
    }

    /// The next signal to pass on.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|cx| self.poll_next(cx)).await
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

/// Would this end a process that does not handle it?
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
