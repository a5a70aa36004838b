//! Whether a client can still talk to its nodes: while its runtime lives, in the process that connected.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::error::ClientError;

#[derive(Debug)]
pub(crate) struct Life {
    process: u32,
    has_ended: AtomicBool,
    end: Notify,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self { process: std::process::id(), has_ended: AtomicBool::new(false), end: Notify::new() }
    }

    /// Returns whether this is a copy of the process that connected. It has the same sockets, so it must neither read, write
    /// nor close any.
    pub(crate) fn is_copy(&self) -> bool {
        std::process::id() != self.process
    }

    /// Returns whether the runtime of the client has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Checks that nodes can be asked.
    ///
    /// # Errors
    ///
    /// Why none can be.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.is_copy() {
            return Err(ClientError::Forked { from: self.process });
        }
        if self.has_ended() { Err(ClientError::RuntimeEnded) } else { Ok(()) }
    }

    /// Notes that the runtime of the client has ended.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.end.notify_waiters();
    }

    /// Resolves when the runtime of the client has ended.
    pub(crate) async fn ended(&self) {
        let end = self.end.notified();
        if !self.has_ended() {
            end.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_client_lives_until_its_runtime_ends() {
        let life = Life::new();
        let mut ended = Box::pin(life.ended());
        assert!(!life.has_ended() && !life.is_copy() && life.check().is_ok());
        assert_eq!((&mut ended).now_or_never(), None);
        life.end();
        assert_eq!((life.has_ended(), life.check()), (true, Err(ClientError::RuntimeEnded)));
        assert_eq!((ended.now_or_never(), life.ended().now_or_never()), (Some(()), Some(())));
    }

    #[test]
    fn a_copy_of_the_process_can_ask_no_node() {
        let life = Life { process: 0, ..Life::new() };
        assert_eq!((life.is_copy(), life.check()), (true, Err(ClientError::Forked { from: 0 })));
    }
}
