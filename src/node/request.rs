//! What a node is asked, and where its reply goes.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::sync::oneshot;

use crate::environment::Moment;
use crate::error::NodeError;
use crate::round::Round;

/// What a node is asked, and who wants to know.
pub(crate) struct Request {
    pub(crate) command: Packed,
    pub(crate) reply_to: ReplyTo,
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
pub(crate) enum ReplyTo {
    /// A round that may create or renew keys: not worth sending to a node that is away.
    Hold(Arc<Round>),
    /// A round that takes keys away: kept until the node has said that it did.
    Release(Arc<Round>),
    /// A look at the node.
    Look(oneshot::Sender<Result<Value, NodeError>>),
    /// Nowhere: a script is being loaded.
    Loading,
}

impl ReplyTo {
    pub(super) fn is_late(&self, now: Moment) -> bool {
        matches!(self, Self::Hold(round) if round.is_late(now))
    }

    pub(super) fn answer(self, index: usize, result: Result<Value, NodeError>) {
        match self {
            Self::Hold(round) | Self::Release(round) => round.answered(index, result),
            Self::Look(reply_to) => drop(reply_to.send(result)),
            Self::Loading => {}
        }
    }
}

pub(super) enum Message {
    Request(Request),
    /// To be called.
    Then(Box<dyn FnOnce() + Send>),
    /// The client is gone: see what was sent through, then end.
    Close,
}
