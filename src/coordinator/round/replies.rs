//! What the nodes have answered to a round.

use std::time::Duration;

use super::Round;
use crate::error::{Answer, Reports};
use crate::node::{LastEnd, Refusal, Vote};
use crate::protocol::ROUND_TRIP;
use crate::protocol::{AcceptedBallots, Ballot, Purpose};
use crate::sync::locked;

impl Round {
    /// Returns the first resource whose lease the replies show to be over.
    pub(crate) fn first_over(&self) -> String {
        let replies = locked(&self.replies);
        let over = match self.purpose {
            Purpose::Release => replies.state.first_lost(),
            _ => replies.votes().find_map(|vote| if let Vote::No(no) = vote { no.ends() } else { None }),
        };
        over.and_then(|lease| self.leases.get(lease)).unwrap_or(&self.leases[0]).resource.to_string()
    }

    /// Returns which ballots the nodes that answered would take. A node that granted has shown no clock, so that of the others
    /// is taken for it.
    pub(crate) fn accepted_ballots(&self) -> Vec<AcceptedBallots> {
        let fresh = self.core.accepted_by_fresh_node();
        let accepted = |vote: &Vote| match vote {
            Vote::Yes => Some(fresh),
            Vote::No(Refusal::Ahead { clock }) => Some(AcceptedBallots { clock: *clock, ..fresh }),
            Vote::No(Refusal::Stale { floor, clock }) => {
                Some(AcceptedBallots { floor: *floor, clock: *clock, ..fresh })
            }
            _ => None,
        };
        locked(&self.replies).votes().filter_map(accepted).collect()
    }

    /// Returns the ends of leases that were not released, and how long these leases may be in force.
    pub(crate) fn last_ends(&self) -> Vec<(LastEnd, Duration)> {
        let end = |vote: &Vote| match vote {
            Vote::No(Refusal::Early { last, left, .. }) => Some((*last, *left)),
            _ => None,
        };
        locked(&self.replies).votes().filter_map(end).collect()
    }

    /// Returns the nodes that have agreed so far, one bit for each.
    pub(crate) fn agreed(&self) -> u64 {
        let replies = locked(&self.replies);
        let bits = replies.votes.iter().enumerate().filter(|(_, vote)| matches!(vote, Some(Vote::Yes)));
        bits.fold(0, |bits, (node, _)| bits | 1 << node)
    }

    /// Returns the newest ballot of a node that has no key of the lease, if that is newer than this round's: a request of a client
    /// whose clock is ahead was given up there.
    pub(crate) fn newer_ballot(&self, node: usize) -> Option<Ballot> {
        let newer = |vote: &Vote| match vote {
            Vote::No(Refusal::Gone { floor, .. }) if *floor > self.facts.ballot => Some(*floor),
            _ => None,
        };
        locked(&self.replies).votes[node].as_ref().and_then(newer)
    }

    /// Returns every refusal so far.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        let replies = locked(&self.replies);
        replies.votes().filter_map(|vote| if let Vote::No(no) = vote { Some(no.clone()) } else { None }).collect()
    }

    /// Returns the names of the nodes that have not answered, or failed to.
    pub(crate) fn pending(&self) -> Vec<String> {
        let replies = locked(&self.replies);
        let open = |vote: &Option<Vote>| matches!(vote, None | Some(Vote::NoReply(_)));
        self.core
            .nodes
            .iter()
            .zip(&replies.votes)
            .filter(|(_, vote)| open(vote))
            .map(|(node, _)| node.name.to_string())
            .collect()
    }

    /// Returns what each node answered; for a node without an answer, what is known of it. `waited` is how long all were waited
    /// for, once that is over. If it is shorter than a slow round trip, a missing answer is not reported as one.
    pub(crate) fn reports(&self, waited: Option<Duration>) -> Reports {
        let votes = locked(&self.replies).votes.clone();
        let waited =
            waited.filter(|waited| *waited >= self.core.settings.node_timeout(self.facts.length).min(ROUND_TRIP.1));
        self.core.reports(|node| match (&votes[node], waited) {
            (Some(vote), _) => Some(Answer::from(vote)),
            (None, Some(waited)) => Some(Answer::Failed(self.core.unanswered(node, waited, self.polls))),
            (None, _) => None,
        })
    }
}
