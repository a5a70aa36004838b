use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::Quorlock;
use crate::error::{Answer, Holder, NodeError, NodeReport, Reports, RevokeError};
use crate::node::{self, InspectReply, ReplyTo, RevokeReply, parse_inspect, parse_revoke};
use crate::protocol::{Ballot, Revocation, RevocationReply, Token};
use crate::resource::Resource;
use crate::text::readable;

/// How often a revocation is sent when messages of the holder overtake it.
const MOST_TRIES: u32 = 8;

/// By how much the ballot of the second try exceeds the highest one that was seen, in µs; each further try doubles it. The holder
/// may send messages meanwhile.
const HEADROOM: u64 = 10_000;

/// A quarantine that lasts longer is reported, and not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const WAIT_MARGIN: Duration = Duration::from_millis(5);

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
    /// `token` says which lease. A lease with another token is never touched. Without a token, it is the one lease that the nodes
    /// have now.
    ///
    /// It waits for every node, for at most the node timeout, and for a quarantine of at most 15 s if a majority needs that node.
    ///
    /// # Errors
    ///
    /// [`RevokeError::NotHeld`] when there is no such lease, [`RevokeError::Held`] when another lease, or a key that is not
    /// quorlock's, is in its place, [`RevokeError::Several`] when no token is given and the nodes have several leases,
    /// [`RevokeError::NoQuorum`] when too few nodes have answered: some nodes may refuse the holder then, so repeat it.
    /// [`RevokeError::Config`] for a name that cannot work.
    ///
    /// # Cancel safety
    ///
    /// The message may reach some nodes or all of them when the future is dropped. Repeating it is safe.
    pub async fn revoke(&self, name: impl AsRef<[u8]>, token: Option<Token>) -> Result<Revoked, RevokeError> {
        let core = self.core();
        let resource = core.resource(name.as_ref())?;
        let token = match token {
            Some(token) => token,
            None => self.held_token(&resource).await?,
        };
        let asker = core.anonymous();
        // With a smaller ballot a node could still honour a late message of the lease after it has answered that it has none.
        let (mut floor, mut headroom) = (Ballot::from_wire(token.get()).unwrap_or(Ballot::ZERO), HEADROOM);
        let (needed, mut tries) = (core.settings.quorum, 0);
        loop {
            let ballot = core.propose_above(&asker, floor);
            let command = node::pack_open(&node::revoke(&resource, token, ballot, core.wall()));
            let replies = self.send_all(&command, ReplyTo::Revoke, parse_revoke).await;
            let counted: Vec<RevocationReply> = replies.iter().map(|(_, reply)| counted(reply.as_ref().ok())).collect();
            let resource = readable(name.as_ref());
            tries += 1;
            return match Revocation::of(ballot, needed, &counted) {
                Revocation::Overtaken(above) if tries < MOST_TRIES => {
                    floor = Ballot::from_wire(above.get().saturating_add(headroom)).unwrap_or(above);
                    headroom *= 2;
                    continue;
                }
                Revocation::Ahead if tries < MOST_TRIES => {
                    // A majority takes no message of a lease with this token either.
                    floor = Ballot::ZERO;
                    core.set_back(&asker, median_clock(&replies));
                    continue;
                }
                Revocation::NoQuorum if tries < MOST_TRIES && quarantine(&replies, needed).is_some() => {
                    core.sleep(quarantine(&replies, needed).unwrap_or_default()).await;
                    continue;
                }
                Revocation::Revoked => Ok(revoked(token, replies)),
                Revocation::Absent => Err(RevokeError::NotHeld { resource, nodes: reports(replies) }),
                Revocation::Held => {
                    Err(RevokeError::Held { resource, by: in_the_way(&replies), nodes: reports(replies) })
                }
                Revocation::NoQuorum | Revocation::Overtaken(_) | Revocation::Ahead => {
                    Err(RevokeError::NoQuorum { needed, nodes: reports(replies) })
                }
            };
        }
    }

    /// Returns the token of the lease that [`revoke`](Self::revoke) would revoke without a token.
    #[doc(hidden)]
    pub async fn token_to_revoke(&self, name: impl AsRef<[u8]>) -> Result<Token, RevokeError> {
        self.held_token(&self.core().resource(name.as_ref())?).await
    }

    /// Returns the token of the lease that the nodes have, if it is one: in its key, or as the last lease that was honoured and
    /// may be in force.
    async fn held_token(&self, resource: &Resource) -> Result<Token, RevokeError> {
        let core = self.core();
        let (needed, wall) = (core.settings.quorum, core.wall() / 1000);
        let replies = self.ask_all(&node::inspect(resource), parse_inspect).await;
        let answered = replies.iter().filter(|(_, reply)| reply.is_ok()).count();
        let mut tokens: BTreeMap<Token, usize> = BTreeMap::new();
        let mut foreign = 0;
        for reply in replies.iter().filter_map(|(_, reply)| reply.as_ref().ok()) {
            let token = match &reply.held {
                Some((Holder::Owner { token, .. } | Holder::Revoked { token, .. }, _)) => Some(*token),
                Some(_) => {
                    foreign += 1;
                    None
                }
                None => reply.last.filter(|(end, _)| *end > wall).map(|(_, token)| token),
            };
            if let Some(token) = token {
                *tokens.entry(token).or_default() += 1;
            }
        }
        let report = |(node, reply): (String, Result<InspectReply, NodeError>)| NodeReport {
            node,
            answer: match reply {
                Ok(InspectReply { held: Some((by, _)), ttl, .. }) => Answer::Held { by, free_in: ttl },
                Ok(_) => Answer::Up,
                Err(error) => Answer::Failed(error),
            },
        };
        let nodes = Reports(replies.into_iter().map(report).collect());
        let of_a_majority = tokens.iter().find(|(_, votes)| **votes >= needed).map(|(token, _)| *token);
        let only = tokens.keys().next().copied().filter(|_| tokens.len() == 1);
        let name = readable(resource.name());
        match of_a_majority.or(only) {
            _ if answered < needed => Err(RevokeError::NoQuorum { needed, nodes }),
            _ if foreign >= needed => Err(RevokeError::Held { resource: name, by: Holder::Foreign, nodes }),
            Some(token) => Ok(token),
            None if !tokens.is_empty() => {
                Err(RevokeError::Several { resource: name, tokens: tokens.into_keys().collect(), nodes })
            }
            None if foreign > 0 => Err(RevokeError::Held { resource: name, by: Holder::Foreign, nodes }),
            None => Err(RevokeError::NotHeld { resource: name, nodes }),
        }
    }
}

type Replies = [(String, Result<RevokeReply, NodeError>)];

/// Returns the median clock of the nodes for which the ballot was too far ahead, in µs.
fn median_clock(replies: &Replies) -> u64 {
    let clock = |reply: &(String, Result<RevokeReply, NodeError>)| match reply.1 {
        Ok(RevokeReply::Ahead { clock }) => Some(clock),
        _ => None,
    };
    let mut clocks: Vec<u64> = replies.iter().filter_map(clock).collect();
    clocks.sort_unstable();
    clocks.get(clocks.len() / 2).copied().unwrap_or_default()
}

/// Returns how long to wait until nodes in quarantine make a majority with the others, if that is soon. By this machine's clock it
/// is over when the client has waited.
fn quarantine(replies: &Replies, needed: usize) -> Option<Duration> {
    let left = replies.iter().filter_map(|(_, reply)| match reply {
        Err(NodeError::Quarantined { left }) => Some(*left),
        _ => None,
    });
    let mut left: Vec<Duration> = left.collect();
    left.sort_unstable();
    let done = replies.iter().filter(|(_, reply)| matches!(reply, Ok(RevokeReply::Done { .. }))).count();
    let last = left.get(needed.checked_sub(done + 1)?)?;
    (*last <= LONGEST_WAIT).then(|| *last + WAIT_MARGIN)
}

fn counted(reply: Option<&RevokeReply>) -> RevocationReply {
    match reply {
        Some(RevokeReply::Done { highest, lease }) => {
            RevocationReply::Done { highest: *highest, had_lease: lease.is_some() }
        }
        Some(RevokeReply::Held { .. }) => RevocationReply::Held,
        Some(RevokeReply::Ahead { .. }) => RevocationReply::Ahead,
        None => RevocationReply::Missing,
    }
}

fn answer(reply: Result<RevokeReply, NodeError>) -> Answer {
    match reply {
        Ok(RevokeReply::Done { .. }) => Answer::Agreed,
        Ok(RevokeReply::Held { by, free_in }) => Answer::Held { by, free_in },
        Ok(RevokeReply::Ahead { .. }) => Answer::ClockBehind,
        Err(error) => Answer::Failed(error),
    }
}

fn reports(replies: Vec<(String, Result<RevokeReply, NodeError>)>) -> Reports {
    Reports(replies.into_iter().map(|(node, reply)| NodeReport { node, answer: answer(reply) }).collect())
}

/// Returns the holder that most nodes have.
fn in_the_way(replies: &Replies) -> Holder {
    let by = |reply: &(String, Result<RevokeReply, NodeError>)| match &reply.1 {
        Ok(RevokeReply::Held { by, .. }) => Some(by.clone()),
        _ => None,
    };
    let all: Vec<Holder> = replies.iter().filter_map(by).collect();
    all.iter().max_by_key(|by| all.iter().filter(|other| other == by).count()).cloned().unwrap_or(Holder::Foreign)
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
