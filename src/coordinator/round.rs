//! One message to all nodes at once, and the count of their replies.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use redis::Cmd;

use super::core::Core;
use super::lease::{Lease, Message};
use crate::environment::Moment;
use crate::error::{ClientError, Holder, Reports};
use crate::node::{Exchange as _, Facts, Refusal, ReplyTo, Request, Vote, pack_open};
use crate::protocol::{Effect, Purpose, Reply, RoundState, Tally, VoteResult};
use crate::resource::Resource;
use crate::sync::locked;
use crate::telemetry::Extension;
use crate::waiting::Ticket;

mod replies;

/// A round that has been sent. It completes in the task of the connections, also when no caller waits for it: the deciding
/// reply changes its leases.
pub(crate) struct Round {
    pub(super) core: Arc<Core>,
    pub(super) purpose: Purpose,
    pub(super) facts: Facts,
    pub(super) leases: Vec<Arc<Lease>>,
    /// One bit for each node that may have been sent it twice.
    pub(super) repeated: AtomicU64,
    /// The ticket that it may leave in a node's wait queue, or takes from there.
    pub(super) ticket: Option<Arc<Ticket>>,
    /// How often the connections had been polled before it was made.
    polls: u64,
    /// One bit for each node that it has been sent to, or that has been counted.
    pub(super) reached: AtomicU64,
    replies: Mutex<Replies>,
}

struct Replies {
    /// By node.
    votes: Vec<Option<Vote>>,
    state: RoundState,
    /// The leases of a round that was won have been confirmed. Only then does the waiting caller get the result.
    is_confirmed: bool,
    waiting: Option<Waker>,
}

impl Replies {
    fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.votes.iter().flatten()
    }
}

/// What the caller has to do after it has counted a reply.
#[derive(Default)]
#[must_use]
pub(super) struct Follows {
    /// A majority says that this lease is over.
    pub(super) over: Option<Arc<Lease>>,
    /// One bit for each node that has no key of the lease, which the round has confirmed just now.
    pub(super) repairable: u64,
    /// The task that waits for the round, to be woken last.
    pub(super) waker: Option<Waker>,
}

impl Round {
    pub(crate) fn new(
        core: &Arc<Core>,
        purpose: Purpose,
        facts: Facts,
        leases: Vec<Arc<Lease>>,
        ticket: Option<Arc<Ticket>>,
    ) -> Arc<Self> {
        let (nodes, count) = (core.nodes.len(), leases.len());
        Arc::new(Self {
            core: Arc::clone(core),
            purpose,
            facts,
            leases,
            repeated: AtomicU64::new(0),
            ticket,
            polls: core.driver.polls(),
            reached: AtomicU64::new(0),
            replies: Mutex::new(Replies {
                votes: vec![None; nodes],
                state: RoundState::new(purpose, nodes, count),
                is_confirmed: false,
                waiting: None,
            }),
        })
    }

    /// Puts the command into one node's queue only.
    pub(crate) fn send_to(self: &Arc<Self>, node: usize, command: &Cmd) {
        let reply_to = ReplyTo::Hold(Arc::<Self>::clone(self));
        self.core.nodes[node].send(Request { command: pack_open(command), reply_to });
    }

    /// Puts the command into every node's queue. Never waits.
    pub(crate) fn send(self: &Arc<Self>, command: &Cmd) {
        if let Err(why @ ClientError::Forked { .. }) = self.core.check() {
            return (0..self.core.nodes.len()).for_each(|node| self.answered(node, Err(why.into())));
        }
        let command = pack_open(command);
        for node in &self.core.nodes {
            let reply_to = match self.purpose {
                Purpose::Hold => ReplyTo::Hold(Arc::<Self>::clone(self)),
                Purpose::Release | Purpose::Leave => ReplyTo::Release(Arc::<Self>::clone(self)),
            };
            node.send(Request { command: Arc::clone(&command), reply_to });
        }
    }

    /// Notes what a reply says beside its vote. Returns the resources whose wait queues the request is to leave.
    ///
    /// One resource of several is in the way. If the request has been called for others, the nodes keep these for it. Unless the
    /// resource that is in the way is likely to be free soon, the request leaves their queues, so the next request is called.
    pub(super) fn note(&self, node: usize, vote: &Vote) -> Option<Vec<Resource>> {
        let Vote::No(refusal) = vote else { return None };
        if self.purpose == Purpose::Hold && !self.is_resent_to(node) {
            for lease in &self.leases {
                lease.left_nothing_on(node);
            }
        }
        if let (Refusal::Held { .. } | Refusal::Kept { .. } | Refusal::Early { .. }, Some(ticket)) =
            (refusal, &self.ticket)
        {
            ticket.wait_on(node);
        }
        match refusal {
            Refusal::Stale { .. } => self.core.has_met_a_clock(),
            Refusal::Held { resource, by, .. } => return self.queues_to_leave(*resource, by),
            _ => {}
        }
        None
    }

    fn queues_to_leave(&self, refused: usize, by: &Holder) -> Option<Vec<Resource>> {
        let (Some(ticket), Some(in_the_way), 2..) = (&self.ticket, self.leases.get(refused), self.leases.len()) else {
            return None;
        };
        let token = match by {
            Holder::Owner { token, .. } | Holder::Revoked { token, .. } => Some(*token),
            _ => None,
        };
        ticket.meets(&in_the_way.resource, token).then(|| {
            let others = self.leases.iter().filter(|lease| !Arc::ptr_eq(lease, in_the_way));
            others.map(|lease| lease.resource.clone()).collect()
        })
    }

    pub(super) fn is_resent_to(&self, node: usize) -> bool {
        self.repeated.load(Ordering::Relaxed) & (1 << node) != 0
    }

    /// Counts the vote of a node, and changes the leases by what it decides. `None` when the node was counted before.
    pub(super) fn count(&self, node: usize, vote: Vote) -> Option<Follows> {
        let (counted, mut waker) = {
            let mut replies = locked(&self.replies);
            let counted = replies.state.count(node, reply(&vote))?;
            replies.votes[node] = Some(vote);
            self.look_for_clocks_behind(&replies);
            let waker = if counted.is_settled { replies.waiting.take() } else { None };
            (counted, waker)
        };
        let mut follows = Follows::default();
        match counted.effect {
            Effect::Nothing => {}
            Effect::Honoured { is_new, votes, awaited, is_contested, repairable } => {
                for lease in &self.leases {
                    lease.voted(self.facts.ballot, votes, awaited);
                    if is_new {
                        lease.confirmed(&self.facts);
                    }
                    // Requests that lost the race are about to release the nodes that refused. An early extension wins these nodes
                    // before another one fails, which would cost the lease.
                    if is_contested {
                        lease.extend_soon();
                    }
                }
                if is_new {
                    let mut replies = locked(&self.replies);
                    replies.is_confirmed = true;
                    waker = replies.waiting.take().or(waker);
                }
                // These nodes have met a ballot since the last confirmation, perhaps of a request that was not granted. The ballot
                // that was confirmed just now is newer, unless that client's clock is ahead: with it they can be repaired, before
                // another node fails.
                if self.leases.len() == 1 && !self.facts.acquires {
                    follows.repairable = repairable;
                }
            }
            Effect::Over(lease) => follows.over = Some(Arc::clone(&self.leases[lease])),
            Effect::Failed => {
                for lease in &self.leases {
                    let reports = self.reports(None);
                    if !self.facts.acquires {
                        lease.report_extension(&Extension::NoQuorum(&reports));
                    }
                    lease.failed(self.facts.started, reports);
                }
            }
        }
        follows.waker = waker;
        Some(follows)
    }

    /// Reports how a node answered.
    pub(super) fn report(&self, node: usize, vote: &Vote) {
        let message = match self.purpose {
            Purpose::Hold => "hold",
            Purpose::Release => "release",
            Purpose::Leave => "leave",
        };
        let answer = match vote {
            Vote::Yes => "agreed",
            Vote::Partly(_) => "partly",
            Vote::No(_) => "refused",
            Vote::Untouched => "not sent",
            Vote::NoReply(_) => "no answer",
        };
        self.core.common.telemetry.answered(node, message, answer);
    }

    pub(super) fn is_decided(&self) -> bool {
        locked(&self.replies).state.verdict() != VoteResult::Pending
    }

    /// Makes ballots go by the nodes' clocks when a majority takes no ballot of this machine's clock.
    fn look_for_clocks_behind(&self, replies: &Replies) {
        // A clock that is not behind the ballot makes no sense of such an answer.
        let clock = |vote: &Vote| match vote {
            Vote::No(Refusal::Ahead { clock }) if *clock < self.facts.ballot.get() => Some(*clock),
            _ => None,
        };
        let mut clocks: Vec<u64> = replies.votes().filter_map(clock).collect();
        clocks.sort_unstable();
        if let (Some(lease), Some(clock)) = (self.leases.first(), clocks.get(self.core.settings.quorum - 1)) {
            self.core.set_back(&lease.owner, *clock);
        }
    }

    /// Waits for the result, for at most `limit`. A node that has not answered by then counts as one that did not answer, in the reports too. A
    /// release has done its part when a majority has answered.
    pub(crate) async fn decided_within(&self, limit: Duration) -> VoteResult {
        let decided = poll_fn(|cx| {
            let mut replies = locked(&self.replies);
            match replies.state.outcome(replies.is_confirmed) {
                None => {
                    replies.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(verdict) => Poll::Ready(verdict),
            }
        });
        match self.core.within(limit, decided).await {
            Some(verdict) => verdict,
            None => locked(&self.replies).state.outcome_at_timeout(),
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn tally(&self) -> Tally {
        locked(&self.replies).state.tally()
    }
}

impl Message for Round {
    fn is_under_way(&self, now: Moment) -> bool {
        let is_queued = (self.reached.load(Ordering::Relaxed).count_ones() as usize) < self.core.settings.quorum;
        is_queued || (now.since(self.facts.started) < self.core.common.timeout && !self.is_decided())
    }

    fn reports(&self) -> Reports {
        Round::reports(self, None)
    }
}

/// Returns a vote as far as it counts.
fn reply(vote: &Vote) -> Reply<'_> {
    match vote {
        Vote::Yes => Reply::Yes,
        Vote::Partly(honoured) => Reply::Partly(honoured),
        Vote::No(refusal) => Reply::No { ends: refusal.ends(), is_gone: matches!(refusal, Refusal::Gone { .. }) },
        Vote::Untouched => Reply::Untouched,
        Vote::NoReply(_) => Reply::Missing,
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;
    use tokio::time::advance;

    use super::super::fake::{LEASE, confirm, core, lease, resource};
    use super::*;
    use crate::error::Answer;
    use crate::node::fake::Server;
    use crate::owner::Owner;
    use crate::protocol::Ballot;

    fn leases<const N: usize>(core: &Arc<Core>) -> [Arc<Lease>; N] {
        let owner = Owner::new();
        std::array::from_fn(|number| lease(core, &resource(&number.to_string()), &owner))
    }

    fn round(core: &Arc<Core>, purpose: Purpose, leases: &[Arc<Lease>], ticket: Option<&Arc<Ticket>>) -> Arc<Round> {
        let facts = Facts { started: core.now(), ballot: Ballot::ZERO, length: LEASE, acquires: true };
        Round::new(core, purpose, facts, leases.to_vec(), ticket.cloned())
    }

    fn held(resource: usize) -> Vote {
        Vote::No(Refusal::Held { resource, by: Holder::Foreign, free_in: None })
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_refused_the_only_copy_of_an_acquisition_has_nothing_of_it() {
        let (core, _streams) = core(3);
        for (purpose, resent, leaves) in
            [(Purpose::Hold, false, false), (Purpose::Hold, true, true), (Purpose::Release, false, true)]
        {
            let leases: [_; 1] = leases(&core);
            let round = round(&core, purpose, &leases, None);
            leases[0].mark_sent(1);
            if resent {
                round.mark_resent(1);
            }
            assert!(round.note(1, &held(0)).is_none());
            assert_eq!(leases[0].may_hold_state(1), leaves);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_shows_a_clock_ends_the_time_by_the_nodes_clocks_when_most_of_them_agree() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let hold = round(&core, Purpose::Hold, &[Arc::clone(&lease)], None);
        let propose = || core.propose_above(&Owner::new(), Ballot::ZERO).get();
        let wall = core.wall();
        core.set_back(&lease.owner, wall - 600_000_000);
        assert!(propose() < wall);
        for (node, has_ended) in [(0, false), (1, true)] {
            core.common.sees_clock(2 - node, Some(wall - 600_000_000));
            core.common.sees_clock(node, Some(wall));
            hold.note(node, &Vote::No(Refusal::Stale { floor: Ballot::ZERO, clock: wall }));
            assert_eq!(propose() >= wall, has_ended);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_for_several_leaves_the_queues_of_the_others_once() {
        let (core, _streams) = core(3);
        let leases: [_; 3] = leases(&core);
        let ticket = core.ticket_since(None);
        let set = round(&core, Purpose::Hold, &leases, Some(&ticket));
        let left = set.note(0, &held(1)).expect("they are left");
        assert_eq!(left, [0, 2].map(|number| leases[number].resource.clone()));
        assert!(set.note(1, &held(1)).is_none(), "another node says the same");
        assert!(round(&core, Purpose::Hold, &leases, None).note(0, &held(1)).is_none(), "it waits nowhere");
        let one = round(&core, Purpose::Hold, &leases[..1], Some(&core.ticket_since(None)));
        assert!(one.note(0, &held(0)).is_none(), "there are no others");
    }

    #[tokio::test(start_paused = true)]
    async fn ballots_go_by_the_nodes_clocks_when_a_majority_is_behind() {
        let (core, _streams) = core(3);
        let leases: [_; 1] = leases(&core);
        let (wall, window) = (core.wall(), 300_000_000);
        let propose = || core.propose_above(&Owner::new(), Ballot::ZERO);
        let facts = Facts { started: core.now(), ballot: propose(), length: LEASE, acquires: true };
        let hold = Round::new(&core, Purpose::Hold, facts, leases.to_vec(), None);
        let ahead = |node: usize, clock: u64| {
            let clock = Value::Int(clock.cast_signed());
            hold.answered(node, Ok(Value::Array(vec![Value::Int(4), clock, Value::Int(1)])));
        };
        ahead(0, wall - 2 * window);
        assert!(propose().get() >= wall, "one is no majority");
        ahead(2, 1 << 62);
        assert!(propose().get() >= wall, "nor is one with a clock that the ballot is not ahead of");
        ahead(1, wall - 3 * window);
        assert_eq!(propose().get(), wall - 2 * window + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_under_way_while_answers_to_it_may_come() {
        let (core, _streams) = core(3);
        let leases: [_; 1] = leases(&core);
        let timeout = core.common.timeout;
        let queued = round(&core, Purpose::Hold, &leases, None);
        let [sent, decided] = [(); 2].map(|()| {
            let round = round(&core, Purpose::Hold, &leases, None);
            for node in [0, 2] {
                round.mark_sent(node);
            }
            round
        });
        let is_under_way = |round: &Arc<Round>| round.is_under_way(core.now());
        assert!(is_under_way(&queued) && is_under_way(&sent) && is_under_way(&decided));
        for node in [0, 2] {
            decided.answered(node, Ok(Value::Int(1)));
        }
        assert!(!is_under_way(&decided));
        advance(timeout.saturating_sub(Duration::from_millis(1))).await;
        assert!(is_under_way(&sent));
        advance(Duration::from_millis(1)).await;
        assert!(!is_under_way(&sent) && is_under_way(&queued), "it waits in the queues of this client");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_lease_that_goes_on_is_repaired_where_its_key_is_gone() {
        let (core, _streams) = core(3);
        let leases: [_; 2] = leases(&core);
        let gone = || Vote::No(Refusal::Gone { resource: 0, floor: Ballot::ZERO });
        for (count, acquires, repairable) in [(1, false, 1), (1, true, 0), (2, false, 0), (2, true, 0)] {
            let leases = &leases[..count];
            leases.iter().for_each(confirm);
            let ballot = leases[0].state().sent;
            let facts = Facts { started: core.now(), ballot, length: LEASE, acquires };
            let round = Round::new(&core, Purpose::Hold, facts, leases.to_vec(), None);
            let mut follows = [(0, gone()), (1, Vote::Yes), (2, Vote::Yes)]
                .map(|(node, vote)| round.count(node, vote).map_or(0, |follows| follows.repairable));
            follows.sort_unstable();
            assert_eq!(follows, [0, 0, repairable], "{count} leases, acquired: {acquires}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_answered_is_reported() {
        let (core, _streams) = core(3);
        let leases: [_; 1] = leases(&core);
        let round = round(&core, Purpose::Hold, &leases, None);
        round.answered(1, Ok(Value::Array([5, 99, 1, 3].map(Value::Int).to_vec())));
        let floor = Ballot::from_wire(3).expect("a ballot");
        assert_eq!(round.refusals(), [Refusal::Gone { resource: 0, floor }]);
        let names =
            |indices: &[usize]| indices.iter().map(|index| core.nodes[*index].name.to_string()).collect::<Vec<_>>();
        assert_eq!(round.pending(), names(&[0, 2]));
        assert_eq!(round.first_over(), leases[0].resource.to_string());
    }

    #[tokio::test(start_paused = true)]
    async fn the_answers_say_which_ballots_the_nodes_take() {
        let (core, _streams) = core(4);
        let leases: [_; 1] = leases(&core);
        let round = round(&core, Purpose::Hold, &leases, None);
        let wall = core.wall();
        let answers = [vec![4, 7, 1], vec![3, 8, 1, 5], vec![6, 9, 1, 1500]];
        round.answered(0, Ok(Value::Int(1)));
        for (node, fields) in answers.into_iter().enumerate() {
            round.answered(node + 1, Ok(Value::Array(fields.into_iter().map(Value::Int).collect())));
        }
        let accepted: Vec<_> = round.accepted_ballots().iter().map(|it| (it.floor.get(), it.clock)).collect();
        assert_eq!(accepted, [(0, wall), (0, 7), (5, 8)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_names_the_resource_that_a_majority_had_lost() {
        let (core, _streams) = core(3);
        let leases: [_; 2] = leases(&core);
        let release = round(&core, Purpose::Release, &leases, None);
        for node in 0..2 {
            release.answered(node, Ok(Value::Array([1, 1, 0].map(Value::Int).to_vec())));
        }
        assert_eq!(release.first_over(), leases[1].resource.to_string());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_had_the_time_to_answer_is_reported_as_silent() {
        let (core, mut streams) = core(1);
        let mut server = Server::new(streams.recv().await.expect("it connects"));
        server.greet(1).await;
        let leases: [_; 1] = leases(&core);
        let round = round(&core, Purpose::Hold, &leases, None);
        core.sleep(Duration::from_millis(1)).await;
        let said = |waited| round.reports(waited).0.swap_remove(0).answer;
        assert_eq!([None, Some(Duration::from_millis(1))].map(said), [Answer::Up, Answer::Up]);
        assert!(matches!(said(Some(core.settings.node_timeout(LEASE))), Answer::Failed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn ends_of_leases_that_were_not_released_are_learnt() {
        let (core, _streams) = core(3);
        let leases: [_; 1] = leases(&core);
        let round = round(&core, Purpose::Hold, &leases, None);
        round.answered(0, Ok(Value::Int(1)));
        let early = [7, 99, 1, 1500, 88].map(Value::Int).into_iter().chain([Value::BulkString(b"af".to_vec())]);
        round.answered(2, Ok(Value::Array(early.collect())));
        let ends: Vec<_> = round.last_ends().into_iter().map(|(last, left)| (last.end, left)).collect();
        assert_eq!(ends, [(88, Duration::from_millis(1500))]);
    }
}
