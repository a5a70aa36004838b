//! What a node is asked, and where its reply goes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::oneshot;

use crate::environment::Moment;
use crate::error::NodeError;
use crate::protocol::Ballot;

/// What a node is asked, and where its reply goes.
pub(crate) struct Request {
    pub(crate) command: Packed,
    pub(crate) reply_to: ReplyTo,
}

/// A command in the bytes of the protocol, packed once for all nodes. Each connection adds the last argument of a hold or a
/// release.
pub(crate) type Packed = Arc<[u8]>;

pub(crate) fn pack(command: &Cmd) -> Packed {
    command.get_packed_command().into()
}

/// Packs a command whose last argument, empty here, is left to each connection.
pub(crate) fn pack_open(command: &Cmd) -> Packed {
    let packed = command.get_packed_command();
    packed.strip_suffix(b"$0\r\n\r\n").unwrap_or(&packed).into()
}

/// What a message says that never changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// When it was made, before the first send.
    pub(crate) started: Moment,
    pub(crate) ballot: Ballot,
    /// The lease that is asked for; zero for a release.
    pub(crate) length: Duration,
    /// At least one resource is to be newly acquired, and not only kept.
    pub(crate) acquires: bool,
}

/// One message to all nodes and the count of their replies, as the connection of one node sees it. `node` is the place of that
/// node in the list.
pub(crate) trait Exchange: Send + Sync {
    fn facts(&self) -> &Facts;

    /// Notes that the message is about to be written to this node, where it may leave something.
    fn mark_sent(&self, node: usize);

    /// Notes that this node may have received the message already and is sent it again. A refusal of the second copy does not say
    /// that the first one was refused.
    fn mark_resent(&self, node: usize);

    /// Returns whether this node may hold something that the message takes away.
    fn may_hold_state(&self, node: usize) -> bool;

    /// Returns whether the outcome is certain, so that no further reply changes it.
    fn is_decided(&self) -> bool;

    /// Returns whether every lease that the message is about is over.
    fn is_moot(&self) -> bool;

    /// Returns whether all that a release takes away has expired by itself.
    fn is_expired(&self, now: Moment) -> bool;

    /// Adds the ids of the leases that the message is about.
    fn add_lease_ids(&self, ids: &mut HashSet<u64>);

    /// Returns whether the message may be about any of these leases.
    fn concerns(&self, leases: &HashSet<u64>) -> bool;

    /// Counts this node as one where there is nothing to release, as nothing was ever sent there.
    fn nothing_sent(&self, node: usize);

    /// Counts the reply of this node, or why there is none.
    fn answered(&self, node: usize, reply: Result<Value, NodeError>);
}

/// Where a reply goes.
pub(crate) enum ReplyTo {
    /// A round that may create or renew keys: not worth sending to a node that is away.
    Hold(Arc<dyn Exchange>),
    /// A round that takes keys away: kept until the node has confirmed it.
    Release(Arc<dyn Exchange>),
    /// A caller that only looks at the node.
    Look(oneshot::Sender<Result<Value, NodeError>>),
    /// A caller that revokes a lease, by the node's record as this connection knows it.
    Revoke(oneshot::Sender<Result<Value, NodeError>>),
    /// Nowhere: a script is being loaded.
    Loading,
}

impl ReplyTo {
    /// Returns whether the request is a hold that is older than the node timeout, and whose leases are all over.
    pub(super) fn is_late(&self, now: Moment, timeout: Duration) -> bool {
        matches!(self, Self::Hold(round) if now.since(round.facts().started) >= timeout && round.is_moot())
    }

    pub(super) fn answer(self, index: usize, result: Result<Value, NodeError>) {
        match self {
            Self::Hold(round) | Self::Release(round) => round.answered(index, result),
            Self::Look(reply_to) | Self::Revoke(reply_to) => drop(reply_to.send(result)),
            Self::Loading => {}
        }
    }
}

pub(super) enum Message {
    Request(Request),
    /// To be called when what was sent before is about to leave.
    Then(Box<dyn FnOnce() + Send>),
    /// The client is gone: see what was sent through, then end.
    Close,
}
