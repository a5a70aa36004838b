use std::time::Duration;

use crate::client::Quorlock;
use crate::error::{Answer, Holder, NodeError, NodeReport, Reports, RevokeError};
use crate::inspect::{NodeView, Verdict};
use crate::node::{self, RevokeReply, parse_revoke};
use crate::protocol::{Ballot, Revocation, RevocationReply, Token};
use crate::text::readable;

/// How often a revocation is sent when messages of the holder overtake it.
const MOST_TRIES: u32 = 8;

/// By how much the ballot of the second try exceeds the highest one that was seen, in µs; each further try doubles it. The holder
/// may send messages meanwhile.
const HEADROOM: u64 = 10_000;

/// A lease that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revoked {
    /// The fencing token of the lease.
    pub token: Token,
    /// The label of the owner from whom it was taken.
    pub label: String,
    /// When the lock is free, by the nodes that answered: at the latest after this time.
    pub free_in: Duration,
    /// Each node's answer, in the order of the node list.
    pub nodes: Reports,
}

impl Quorlock {
    /// Revokes a lease: its holder can no longer extend it, nor enter it again, and learns of the loss by its next message at the
    /// latest. The lock is free when the lease would have ended, and not before: the holder may rely on it until then.
    ///
    /// `token` says which lease. A lease with another token is never touched. Without a token, it is the lease that a majority
    /// holds now.
    ///
    /// # Errors
    ///
    /// [`RevokeError::NotHeld`] when there is no such lease, [`RevokeError::Held`] when another lease, or a key that is not
    /// quorlock's, is in its place, [`RevokeError::NoQuorum`] when too few nodes have answered. Some nodes may refuse the
    /// holder then: repeat it.
    ///
    /// # Cancel safety
    ///
    /// The message may reach some nodes or all of them when the future is dropped. Repeating it is safe.
    pub async fn revoke(&self, name: impl AsRef<[u8]>, token: Option<Token>) -> Result<Revoked, RevokeError> {
        let core = self.core();
        let resource = core.resource(name.as_ref())?;
        let token = match token {
            Some(token) => token,
            None => self.held_token(name.as_ref()).await?,
        };
        let asker = core.anonymous();
        let (mut floor, mut headroom) = (Ballot::ZERO, HEADROOM);
        let (needed, mut tries) = (core.settings.quorum, 0);
        loop {
            let ballot = core.propose_above(&asker, floor);
            let replies = self.ask_all(node::revoke(&resource, token, ballot, core.wall()), parse_revoke).await;
            let counted: Vec<RevocationReply> = replies.iter().map(|(_, reply)| counted(reply.as_ref().ok())).collect();
            let resource = readable(name.as_ref());
            tries += 1;
            return match Revocation::of(ballot, needed, &counted) {
                Revocation::Overtaken(above) if tries < MOST_TRIES => {
                    floor = Ballot::from_wire(above.get().saturating_add(headroom)).unwrap_or(above);
                    headroom *= 2;
                    continue;
                }
                Revocation::Revoked => Ok(revoked(token, replies)),
                Revocation::Absent => Err(RevokeError::NotHeld { resource, nodes: reports(replies) }),
                Revocation::Held => {
                    Err(RevokeError::Held { resource, by: in_the_way(&replies), nodes: reports(replies) })
                }
                Revocation::NoQuorum | Revocation::Overtaken(_) => {
                    Err(RevokeError::NoQuorum { needed, nodes: reports(replies) })
                }
            };
        }
    }

    /// Returns the token of the lease that a majority holds.
    async fn held_token(&self, name: &[u8]) -> Result<Token, RevokeError> {
        let seen = self.inspect(name).await?;
        let resource = readable(name);
        let report = |view: NodeView| NodeReport {
            node: view.node,
            answer: match view.state {
                Ok(state) => state.holder.map_or(Answer::Up, |by| Answer::Held { by, free_in: state.ttl }),
                Err(error) => Answer::Failed(error),
            },
        };
        let nodes = Reports(seen.nodes.into_iter().map(report).collect());
        match (seen.verdict, seen.holder) {
            (Verdict::Held, Some(Holder::Owner { token, .. } | Holder::Revoked { token, .. })) => Ok(token),
            (Verdict::Held, by) => Err(RevokeError::Held { resource, by: by.unwrap_or(Holder::Foreign), nodes }),
            (Verdict::Unknown, _) => Err(RevokeError::NoQuorum { needed: self.core().settings.quorum, nodes }),
            (Verdict::Free | Verdict::Split, _) => Err(RevokeError::NotHeld { resource, nodes }),
        }
    }
}

fn counted(reply: Option<&RevokeReply>) -> RevocationReply {
    match reply {
        Some(RevokeReply::Done { highest, lease }) => {
            RevocationReply::Done { highest: *highest, had_lease: lease.is_some() }
        }
        Some(RevokeReply::Held { .. }) => RevocationReply::Held,
        Some(RevokeReply::Ahead) | None => RevocationReply::Missing,
    }
}

fn answer(reply: Result<RevokeReply, NodeError>) -> Answer {
    match reply {
        Ok(RevokeReply::Done { .. }) => Answer::Agreed,
        Ok(RevokeReply::Held { by, free_in }) => Answer::Held { by, free_in },
        Ok(RevokeReply::Ahead) => Answer::ClockBehind,
        Err(error) => Answer::Failed(error),
    }
}

fn reports(replies: Vec<(String, Result<RevokeReply, NodeError>)>) -> Reports {
    Reports(replies.into_iter().map(|(node, reply)| NodeReport { node, answer: answer(reply) }).collect())
}

fn in_the_way(replies: &[(String, Result<RevokeReply, NodeError>)]) -> Holder {
    let by = replies.iter().find_map(|(_, reply)| match reply {
        Ok(RevokeReply::Held { by, .. }) => Some(by.clone()),
        _ => None,
    });
    by.unwrap_or(Holder::Foreign)
}

fn revoked(token: Token, replies: Vec<(String, Result<RevokeReply, NodeError>)>) -> Revoked {
    let (mut label, mut free_in) = (String::new(), Duration::ZERO);
    for (_, reply) in &replies {
        if let Ok(RevokeReply::Done { lease: Some((theirs, left)), .. }) = reply {
            (label, free_in) = (theirs.clone(), free_in.max(*left));
        }
    }
    Revoked { token, label, free_in, nodes: reports(replies) }
}
