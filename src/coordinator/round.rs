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
            Refusal::Stale { clock, .. } => self.core.has_met(*clock),
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
                // These nodes have met a ballot since the last confirmation, perhaps of a request that was not granted. The
                // ballot that was confirmed just now is newer: with it they can be repaired, before another node fails.
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
                    lease.failed(self.facts.ballot, reports);
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
        let clock = |vote: &Vote| if let Vote::No(Refusal::Ahead { clock }) = vote { Some(*clock) } else { None };
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
