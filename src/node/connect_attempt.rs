//! One attempt to connect.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;

use super::address::NodeAddress;
use super::common::Common;
use super::handshake::handshake;
use super::known::Known;
use super::stream::RespStream;
use crate::environment::Environment;
use crate::error::NodeError;

/// The least limit of an attempt: some eight round trips of half a second, for stream, TLS and handshake.
const LEAST_LIMIT: Duration = Duration::from_secs(4);

/// A connection after its handshake.
pub(super) struct Made {
    pub(super) stream: RespStream,
    pub(super) known: Known,
    /// How long the attempt took.
    pub(super) took: Duration,
    /// It takes the place of one that is silent.
    pub(super) replaces: bool,
}

/// An attempt under way. Dropping it ends it.
pub(super) struct ConnectAttempt(Pin<Box<dyn Future<Output = Result<Made, NodeError>> + Send>>);

impl ConnectAttempt {
    /// Begins an attempt, which does nothing before it is polled.
    pub(super) fn begin(
        index: usize,
        name: &Arc<str>,
        address: &NodeAddress,
        environment: &Arc<dyn Environment>,
        common: &Arc<Common>,
    ) -> Self {
        let (name, address) = (Arc::clone(name), address.clone());
        let (environment, common) = (Arc::clone(environment), Arc::clone(common));
        let limit = LEAST_LIMIT.max(2 * common.timeout);
        Self(Box::pin(async move {
            let began = environment.now();
            let connecting = handshake(environment.as_ref(), &address, &common, index, &name, limit);
            match AssertUnwindSafe(connecting).catch_unwind().await {
                Ok(made) => made.map(|(stream, known)| Made {
                    stream,
                    known,
                    took: environment.now().since(began),
                    replaces: false,
                }),
                Err(panic) => Err(NodeError::Connect(panicked(panic.as_ref()))),
            }
        }))
    }
}

impl Future for ConnectAttempt {
    type Output = Result<Made, NodeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// Returns the words for a panic.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic in the client: {}", text.unwrap_or("without words"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_panic_are_kept() {
        let words = [&"static" as &(dyn Any + Send), &"owned".to_owned(), &7].map(panicked);
        assert_eq!(words, ["static", "owned", "without words"].map(|word| format!("panic in the client: {word}")));
    }
}
