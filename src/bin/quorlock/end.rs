//! How the command ended, and how quorlock is to end then.

use rustix::process::{Signal, WaitStatus};

use crate::exit::ended_by;
use crate::signals::{self, Whom};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(u8),
    Signalled(Signal),
}

impl Status {
    /// The exit code as a shell says it: 128 plus the signal that ended the process.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => ended_by(signal.as_raw()),
        }
    }
}

/// Of a process that has ended, not of one that has stopped.
impl From<WaitStatus> for Status {
    fn from(status: WaitStatus) -> Self {
        let exited = |code: Option<i32>| Self::Exited(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
        match status.terminating_signal() {
            // Real-time signals have no name.
            Some(number) => Signal::from_named_raw(number).map_or_else(|| exited(Some(128 + number)), Self::Signalled),
            None => exited(status.exit_status()),
        }
    }
}

/// How quorlock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub code: u8,
    /// To be sent before that.
    pub signal: Option<(Signal, Whom)>,
    /// The signal is to end quorlock.
    pub dies: bool,
}

impl From<u8> for End {
    fn from(code: u8) -> Self {
        Self { code, signal: None, dies: false }
    }
}

impl End {
    /// quorlock itself got a signal that ends it.
    pub fn by(signal: Signal) -> Self {
        Self { code: Status::Signalled(signal).code(), signal: Some((signal, Whom::Self_)), dies: true }
    }

    /// Sends the signal, and gives the code for where that has not ended the process.
    pub fn code(self) -> u8 {
        match self.signal {
            Some((signal, whom)) if self.dies => signals::end_by(signal, whom),
            Some((signal, whom)) => whom.send(signal),
            None => {}
        }
        self.code
    }
}
