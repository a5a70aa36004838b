use std::collections::HashMap;
use std::time::Duration;

use crate::error::{Holder, NodeError};
use crate::node::InspectReply;
use crate::protocol::quorum;

/// What the nodes have for one name, at about one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The name.
    pub name: Vec<u8>,
    /// What the nodes' views come to.
    pub verdict: Verdict,
    /// Who holds it, when a quorum names the same one.
    pub holder: Option<Holder>,
    /// How deep the holder is nested, over all its processes: the most that a node of the quorum has.
    pub holds: u32,
    /// Each node's view, in the order of the node list.
    pub nodes: Vec<NodeView>,
}

/// What the nodes' views of a name come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// No node that counts has a holder.
    Free,
    /// A quorum has the same holder.
    Held,
    /// Some nodes have a holder, but no quorum has the same: a race, leftovers, or an eroded lease.
    Split,
    /// So many nodes could not be asked that it may be held or not.
    Unknown,
}

/// One node's view of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeView {
    /// The node's address, without user and password.
    pub node: String,
    /// What it has, or why that is not known.
    pub state: Result<NodeState, NodeError>,
}

/// What a node has for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeState {
    /// Who holds it there.
    pub holder: Option<Holder>,
    /// How deep, over all processes.
    pub holds: u32,
    /// When that ends; `None` when never, or when there is no holder.
    pub ttl: Option<Duration>,
    /// The highest ballot honoured there, if it remembers one.
    pub ballot: Option<u64>,
    /// For how long the node has no vote yet, as far as this client knows.
    pub quarantine: Option<Duration>,
}

impl Inspection {
    pub(crate) fn new(name: &[u8], replies: Vec<(String, Result<InspectReply, NodeError>)>) -> Self {
        let needed = quorum(replies.len());
        let unanswered = replies.iter().filter(|(_, reply)| reply.is_err()).count();
        let mut counts: HashMap<(Holder, Vec<u8>), (usize, u32)> = HashMap::new();
        for reply in replies.iter().filter_map(|(_, reply)| reply.as_ref().ok()) {
            let Some((holder, holds)) = &reply.held else { continue };
            // Foreign holders are told apart by their values; quorlock's own by owner and token.
            let raw = if *holder == Holder::Foreign { reply.raw.clone() } else { Vec::new() };
            let count = counts.entry((holder.clone(), raw)).or_default();
            count.0 += 1;
            count.1 = count.1.max(*holds);
        }
        let most = counts.into_iter().max_by_key(|(_, (votes, _))| *votes);
        let votes = most.as_ref().map_or(0, |(_, (votes, _))| *votes);
        let verdict = if votes >= needed {
            Verdict::Held
        } else if votes + unanswered >= needed {
            Verdict::Unknown
        } else if votes > 0 {
            Verdict::Split
        } else {
            Verdict::Free
        };
        let (holder, holds) = match most.filter(|_| verdict == Verdict::Held) {
            Some(((holder, _), (_, holds))) => (Some(holder), holds),
            None => (None, 0),
        };
        let view = |(node, reply): (String, Result<InspectReply, NodeError>)| {
            let state = reply.map(|InspectReply { held, ttl, ballot, .. }| {
                let (holder, holds) = held.unzip();
                NodeState { holder, holds: holds.unwrap_or(0), ttl, ballot, quarantine: None }
            });
            NodeView { node, state }
        };
        Self { name: name.to_vec(), verdict, holder, holds, nodes: replies.into_iter().map(view).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(nodes: &[&str]) -> Verdict {
        let reply = |what: &str| match what {
            "down" => Err(NodeError::NoAnswer(Duration::ZERO)),
            "free" => Ok(InspectReply { held: None, raw: Vec::new(), ttl: None, ballot: None, last: None }),
            who => Ok(InspectReply {
                held: Some((Holder::Foreign, 1)),
                raw: who.into(),
                ttl: None,
                ballot: None,
                last: None,
            }),
        };
        let replies = nodes.iter().map(|what| ((*what).to_owned(), reply(what)));
        Inspection::new(b"name", replies.collect()).verdict
    }

    #[test]
    fn truth_table() {
        #[rustfmt::skip]
        let table: [(&[&str], Verdict); 12] = [
            (&["free"], Verdict::Free),
            (&["a"], Verdict::Held),
            (&["down"], Verdict::Unknown),
            (&["a", "a", "a", "free", "free"], Verdict::Held),
            (&["a", "a", "free", "free", "free"], Verdict::Split),
            (&["a", "a", "b", "b", "free"], Verdict::Split),
            (&["a", "a", "down", "free", "free"], Verdict::Unknown),
            (&["a", "down", "down", "free", "free"], Verdict::Unknown),
            (&["a", "down", "free", "free", "free"], Verdict::Split),
            (&["free", "free", "free", "down", "down"], Verdict::Free),
            (&["free", "free", "down", "down", "down"], Verdict::Unknown),
            (&["a", "a", "a", "down", "down"], Verdict::Held),
        ];
        for (nodes, expected) in table {
            assert_eq!(verdict(nodes), expected, "{nodes:?}");
        }
    }
}
