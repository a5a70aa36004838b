//! Why a try failed, and what may help.

use std::sync::Arc;
use std::time::Duration;

use super::super::core::Core;
use super::super::holds::Holds;
use super::super::lease::Lease;
use super::super::round::Round;
use super::{Attempt, Failed, lost};
use crate::error::{AcquireError, Holder};
use crate::node::Refusal;
use crate::protocol::{Diagnosis, FailedRound, MostNamed, Phase, VoteResult};

impl Attempt {
    /// Returns why the round did not give the lock, and what may help.
    pub(super) fn explain(
        &self,
        core: &Core,
        holds: &Holds,
        round: &Round,
        verdict: VoteResult,
        limit: Duration,
    ) -> Failed {
        let quorum = core.settings.quorum;
        let refusals = round.refusals();
        let nodes = round.reports((verdict == VoteResult::Pending).then_some(limit));
        let over = |(i, lease): &(usize, &Arc<Lease>)| {
            let refused = refusals.iter().filter(|refusal| refusal.ends() == Some(*i)).count();
            let is_new = lease.state().lease.token == round.facts().ballot.into();
            !is_new && (lease.phase() == Phase::Lost || refused >= quorum)
        };
        if let Some((_, lease)) = holds.leases().iter().enumerate().find(over) {
            return lost(&lease.resource, nodes);
        }
        let kept = refusals.iter().filter_map(|no| if let Refusal::Kept { left } = no { Some(*left) } else { None });
        let holder = nodes.most_frequent_holder();
        let took = core.now().since(round.facts().started);
        let is_stale = refusals.iter().any(|refusal| matches!(refusal, Refusal::Stale { .. }));
        let (diagnosis, advice) = FailedRound {
            nodes: core.nodes.len(),
            quorum,
            verdict,
            tally: round.tally(),
            took,
            ballot: round.facts().ballot,
            refusals: refusals.len(),
            ahead: refusals.iter().filter(|refusal| matches!(refusal, Refusal::Ahead { .. })).count(),
            is_stale,
            accepted: &if is_stale { round.accepted_ballots() } else { Vec::new() },
            accepted_by_fresh_node: core.accepted_by_fresh_node(),
            kept: kept.max(),
            holder: holder.as_ref().map(|(by, free_in, votes)| MostNamed {
                votes: *votes,
                free_in: *free_in,
                is_foreign: *by == Holder::Foreign,
            }),
        }
        .diagnose();
        let held = |by: &Holder| {
            let named = refusals.iter().filter_map(Refusal::holder).find(|(_, holder)| *holder == by);
            named.and_then(|(resource, _)| holds.leases().get(resource)).map_or(&self.first, |lease| &lease.resource)
        };
        let error = match (diagnosis, holder) {
            (Diagnosis::TooLate, _) => AcquireError::TooLate { took, lease: self.lease, nodes },
            (Diagnosis::Held, Some((by, free_in, _))) => {
                let (resource, own) = (held(&by).to_string(), self.own_hold(&by));
                AcquireError::Held { resource, by, free_in, own, nodes }
            }
            (Diagnosis::Contended, _) => AcquireError::Contended { resource: self.first.to_string(), nodes },
            (Diagnosis::NoQuorum | Diagnosis::Held, _) => AcquireError::NoQuorum { needed: quorum, nodes },
        };
        (error, advice)
    }
}
