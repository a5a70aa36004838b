//! One Redis master: a connection that mends itself, and an ordered, bounded queue in front of it.

#[cfg(feature = "cli")]
pub mod admin;
mod attempt;
mod backlog;
mod claims;
mod clocks;
mod common;
mod condition;
mod connection;
mod driver;
mod health;
mod introduce;
mod known;
mod line;
mod pace;
mod pause;
#[cfg(test)]
mod properties;
mod reply;
mod scan;
mod script;
mod wire;

use std::fmt;
use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, oneshot};

use crate::address::NodeAddress;
use crate::environment::{Environment, Moment};
use crate::error::{ClientError, NodeError};
use crate::round::Round;

pub(crate) use common::Common;
use condition::Condition;
pub(crate) use driver::Driver;
pub(crate) use reply::{Refusal, Sighting, Vote, parse_hold, parse_release, parse_sighting};
pub(crate) use script::{Entry, LastEnd, Round as Words, Share, hold, inspect, leave, millis, release};

/// What a node is asked, and who wants to know.
pub(crate) struct Request {
    pub(crate) command: Packed,
    pub(crate) asker: Asker,
}

/// A command as it goes over the wire, packed once for all nodes. To a hold and to a release each connection adds the last
/// argument.
pub(crate) type Packed = Arc<[u8]>;

pub(crate) fn pack(command: &Cmd) -> Packed {
    command.get_packed_command().into()
}

/// Packs a command whose last argument, empty here, is left to each connection.
pub(crate) fn pack_open(command: &Cmd) -> Packed {
    let packed = command.get_packed_command();
    packed.strip_suffix(b"$0\r\n\r\n").unwrap_or(&packed).into()
}

/// Where an answer goes.
pub(crate) enum Asker {
    /// A round that may create or renew keys: not worth sending to a node that is away.
    Hold(Arc<Round>),
    /// A round that takes keys away: kept until the node has said that it did.
    Release(Arc<Round>),
    /// A look at the node.
    Look(oneshot::Sender<Result<Value, NodeError>>),
    /// Nowhere: a script is being loaded.
    Loading,
}

impl Asker {
    fn is_late(&self, now: Moment) -> bool {
        matches!(self, Self::Hold(round) if round.is_late(now))
    }

    fn answer(self, index: usize, result: Result<Value, NodeError>) {
        match self {
            Self::Hold(round) | Self::Release(round) => round.answered(index, result),
            Self::Look(asker) => drop(asker.send(result)),
            Self::Loading => {}
        }
    }
}

enum Message {
    Request(Request),
    /// To be called.
    Then(Box<dyn FnOnce() + Send>),
    /// The client is gone: see what was sent through, then end.
    Close,
}

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
    /// A node, and the future that keeps its connection until the client is gone.
    pub(crate) fn new(
        index: usize,
        address: NodeAddress,
        environment: Arc<dyn Environment>,
        common: Arc<Common>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::unbounded_channel();
        let name: Arc<str> = address.name.as_str().into();
        let condition = Arc::new(Condition::new());
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

    /// What keeps it from being counted, as far as is known without asking it; `None` when it is up.
    pub(crate) fn trouble(&self, now: Moment) -> Option<NodeError> {
        self.condition.trouble(now)
    }

    /// Never waits. When the connection has ended, it did so with the runtime.
    pub(crate) fn send(&self, request: Request) {
        if let Err(SendError(Message::Request(request))) = self.queue.send(Message::Request(request)) {
            request.asker.answer(self.index, Err(ClientError::RuntimeEnded.into()));
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
