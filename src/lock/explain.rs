//! Why a try failed, and what may help.

use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, Failed, lost};
use crate::client::Core;
use crate::error::{AcquireError, Holder, Reports};
use crate::guard::Guard;
use crate::lease::Lease;
use crate::node::{Exchange as _, Refusal};
use crate::patience::Again;
use crate::protocol::{Ballot, Phase, Verdict, floor_for_a_quorum};
use crate::round::Round;

impl Attempt {
    /// Why the round did not give the lock.
    pub(super) fn explain(
        &self,
        core: &Core,
        guard: &Guard,
        round: &Round,
        verdict: Verdict,
        limit: Duration,
    ) -> Failed {
        let quorum = core.settings.quorum;
        let tally = round.tally();
        let refusals = round.refusals();
        let nodes = round.reports((verdict == Verdict::Pending).then_some(limit));

        let over = |(i, lease): &(usize, &Arc<Lease>)| {
            let refused = refusals.iter().filter(|refusal| refusal.ends() == Some(*i)).count();
            let is_new = lease.state().lease.token == round.facts().ballot.into();
            !is_new && (lease.phase() == Phase::Lost || refused >= quorum)
        };
        if let Some((_, lease)) = guard.leases().iter().enumerate().find(over) {
            return lost(&lease.resource, nodes);
        }
        if verdict == Verdict::Won {
            let took = core.now().since(round.facts().started);
            return (AcquireError::TooLate { took, lease: self.lease, nodes }, Again::AfterRace(took));
        }
        // When the round was decided early, who has not answered yet is not unheard: an answer "held" counts as one even
        // if the nodes that are away made it the last that was needed.
        let unheard = match verdict {
            Verdict::Pending => core.nodes.len() - tally.votes() - refusals.len(),
            Verdict::Won | Verdict::Lost => tally.unheard_votes(),
        };
        if unheard > core.nodes.len() - quorum {
            return (AcquireError::NoQuorum { needed: quorum, nodes }, Again::WhenHeard);
        }
        if let Some(again) = other_ballot(core, round, verdict, &refusals) {
            return (AcquireError::Contended { resource: self.first.to_string(), nodes }, again);
        }
        self.in_the_way(core, round, &refusals, nodes)
    }

    /// Who has the lock, or is about to have it.
    fn in_the_way(&self, core: &Core, round: &Round, refusals: &[Refusal], nodes: Reports) -> Failed {
        let quorum = core.settings.quorum;
        let resource = self.first.to_string();
        let raced = || Again::AfterRace(core.now().since(round.facts().started));
        let kept = refusals.iter().filter_map(|no| if let Refusal::Kept { left } = no { Some(*left) } else { None });
        match (nodes.most_frequent_holder(), kept.max()) {
            // Another request has been called and is about to take it.
            (holder, Some(left)) if holder.as_ref().is_none_or(|(_, _, votes)| *votes < quorum) => {
                (AcquireError::Contended { resource, nodes }, Again::WhenCalled(left))
            }
            // No owner has a majority, but some nodes are claimed: a race without a winner, or an eroded lease.
            (Some((_, _, votes)), _) if votes < quorum && round.tally().votes() > 0 => {
                (AcquireError::Contended { resource, nodes }, raced())
            }
            (Some((by, free_in, _)), _) => {
                let again = Again::WhenFree { free_in, calls: by != Holder::Foreign };
                let own = self.own_hold(&by);
                (AcquireError::Held { resource, by, free_in, own, nodes }, again)
            }
            // Some are stale, and no ballot suits a majority of those that answered: perhaps others will.
            (None, _) if refusals.iter().any(is_stale) => (AcquireError::Contended { resource, nodes }, raced()),
            (None, _) => (AcquireError::NoQuorum { needed: quorum, nodes }, Again::WhenHeard),
        }
    }
}

/// Whether another ballot may be taken by a majority.
fn other_ballot(core: &Core, round: &Round, verdict: Verdict, refusals: &[Refusal]) -> Option<Again> {
    let (quorum, tally) = (core.settings.quorum, round.tally());
    let ahead = refusals.iter().filter(|refusal| matches!(refusal, Refusal::Ahead { .. })).count();
    if ahead >= quorum {
        // From now on ballots go by the nodes' clocks.
        return Some(Again::Above(Ballot::ZERO));
    }
    if !refusals.iter().any(is_stale) {
        return None;
    }
    // A node that has not answered a round that was decided early may yet agree to another ballot.
    let unanswered = match verdict {
        Verdict::Lost => core.nodes.len() - tally.votes() - refusals.len() - tally.unheard_votes(),
        Verdict::Pending | Verdict::Won => 0,
    };
    floor_for_a_quorum(&round.rooms(), unanswered, core.room(), round.facts().ballot, quorum).map(Again::Above)
}

fn is_stale(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Stale { .. })
}
