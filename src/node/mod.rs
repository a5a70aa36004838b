//! One Redis master: a connection that is made again when it breaks, and an ordered, bounded queue in front of it.

mod address;
#[cfg(feature = "cli")]
pub(crate) mod admin;
mod backlog;
mod clocks;
mod commands;
mod common;
mod condition;
mod config;
mod connect_attempt;
mod connection;
mod driver;
#[cfg(test)]
pub(crate) mod fake;
mod handshake;
mod health;
mod inflight;
mod known;
mod life;
mod pace;
mod password;
mod pause;
mod places;
#[cfg(test)]
mod properties;
mod replies;
mod request;
mod scan;
mod server_error;
mod stream;

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use crate::environment::{Environment, Moment};
use crate::error::{ClientError, NodeError};

pub(crate) use address::NodeAddress;
pub use commands::scripts;
pub(crate) use commands::{Entry, LastEnd, LastOf, RoundArgs, hold, inspect, leave, millis, release, revoke};
pub(crate) use common::Common;
use condition::Condition;
pub use config::NodeConfig;
pub(crate) use driver::Driver;
pub(crate) use replies::{
    InspectReply, Refusal, RevokeReply, Vote, parse_hold, parse_inspect, parse_release, parse_revoke,
};
use request::Message;
pub(crate) use request::{Exchange, Facts, Packed, ReplyTo, Request, pack, pack_open};

/// The sending end of a node's queue. Messages reach the node in the order of the calls, or not at all.
pub(crate) struct Node {
    index: usize,
    pub(crate) name: Arc<str>,
    queue: mpsc::UnboundedSender<Message>,
    condition: Arc<Condition>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Node {
    /// Makes a node, and the future that keeps its connection until the client is gone.
    pub(crate) fn new(
        index: usize,
        address: NodeAddress,
        environment: Arc<dyn Environment>,
        common: Arc<Common>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::unbounded_channel();
        let name = Arc::clone(common.telemetry.node(index));
        let condition = Arc::new(Condition::new(index, Arc::clone(&common.telemetry)));
        let connection = connection::Connection::new(
            index,
            Arc::clone(&name),
            address,
            environment,
            common,
            requests,
            Arc::clone(&condition),
        );
        (Self { index, name, queue, condition }, connection.run())
    }

    /// Returns what keeps it from being counted, as far as is known without asking it; `None` when it is up.
    pub(crate) fn trouble(&self, now: Moment) -> Option<NodeError> {
        self.condition.trouble(now)
    }

    /// Returns why it does not answer now: there is no connection, or it is silent.
    pub(crate) fn absence(&self, now: Moment) -> Option<NodeError> {
        self.condition.absence(now)
    }

    /// Puts a request into its queue. Never waits. If the connection has ended, the runtime has.
    pub(crate) fn send(&self, request: Request) {
        if let Err(SendError(Message::Request(request))) = self.queue.send(Message::Request(request)) {
            request.reply_to.answer(self.index, Err(ClientError::RuntimeEnded.into()));
        }
    }

    /// Calls `next` when what was sent before is about to leave, in the task of the connections.
    pub(crate) fn then(&self, next: Box<dyn FnOnce() + Send>) {
        if let Err(SendError(Message::Then(next))) = self.queue.send(Message::Then(next)) {
            next();
        }
    }

    pub(crate) fn close(&self) {
        drop(self.queue.send(Message::Close));
    }
}
