//! One step of a history.

use std::fmt;

use crate::node::Ballot;
use crate::state::{ShareId, State};

/// The number of a proposal. Only its place among the others matters, and every place is possible: clocks may show
/// anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    EqualTo(Ballot),
    JustAbove(Ballot),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An acquisition or a join.
    First,
    Extend(usize),
    Release,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Acquire { owner: usize, ballot: Pick },
    Join { owner: usize, exporter: usize, ballot: Pick },
    Extend { share: ShareId, known: Ballot, ballot: Pick },
    Release { share: ShareId, ballot: Pick },
    Revoke { ballot: Pick },
    Expire { node: usize },
    ArriveRevocation { node: usize },
    Arrive { message: Message, of: ShareId, node: usize },
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = |owner: usize| ["A", "B"][owner];
        let name = |share: ShareId| format!("{}{}", owner(share.owner()), share.index() + 1);
        match self {
            Self::Acquire { owner: by, ballot } => write!(f, "{} acquires with {ballot:?}", owner(*by)),
            Self::Join { owner: by, exporter, ballot } => {
                write!(f, "{} joins through {} with {ballot:?}", owner(*by), name(ShareId::new(*by, *exporter)))
            }
            Self::Extend { share, known, ballot } => {
                write!(f, "{} extends, knowing {known:?}, with {ballot:?}", name(*share))
            }
            Self::Release { share, ballot } => write!(f, "{} releases with {ballot:?}", name(*share)),
            Self::Revoke { ballot } => write!(f, "the first lease of A is revoked with {ballot:?}"),
            Self::ArriveRevocation { node } => write!(f, "the revocation at node {node}"),
            Self::Expire { node } => write!(f, "expiry at node {node}"),
            Self::Arrive { message: Message::Extend(index), of, node } => {
                write!(f, "extension {} of {} at node {node}", index + 1, name(*of))
            }
            Self::Arrive { message, of, node } => write!(f, "{message:?} of {} at node {node}", name(*of)),
        }
    }
}

/// Makes room for the ballot, and returns its number there.
pub fn make_room(state: &mut State, pick: Pick) -> Ballot {
    state.spread_ballots();
    match pick {
        Pick::EqualTo(Ballot(number)) => Ballot(number * 2),
        Pick::JustAbove(Ballot(number)) => Ballot(number * 2 + 1),
    }
}
