//! One question to all nodes at once, and the count of their answers.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use redis::{Cmd, Value};

use crate::client::Core;
use crate::error::{ClientError, Holder, NodeError};
use crate::lease::{Lease, send_leave};
use crate::node::{Exchange, Facts, Refusal, ReplyTo, Request, Vote, pack_open, parse_hold, parse_release};
use crate::protocol::{Moment, Phase, Tally, Verdict};
use crate::resource::Resource;
use crate::sync::locked;
use crate::waiting::Ticket;

mod said;

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Acquire, re-enter, extend, repair.
    Hold,
    Release,
    /// Take a ticket away from the nodes' lines.
    Leave,
}

/// A round that has been sent. It completes by itself, in the task of the connections, whether or not anybody waits for
/// it: what it means for its leases happens when the deciding answer arrives.
pub(crate) struct Round {
    core: Arc<Core>,
    purpose: Purpose,
    facts: Facts,
    leases: Vec<Arc<Lease>>,
    /// One bit for each node that may have been sent it twice.
    repeated: AtomicU64,
    /// What it may leave in a node's line, or what it takes from there.
    ticket: Option<Arc<Ticket>>,
    /// How often the connections had been polled before.
    polls: u64,
    /// One bit for each node that it has been sent to, or that has a part in the count.
    reached: AtomicU64,
    count: Mutex<Count>,
}

struct Count {
    /// By node.
    votes: Vec<Option<Vote>>,
    tally: Tally,
    /// Of a hold, for each lease, once one is refused: how many nodes say that it is over. (A node names the first that it
    /// refuses.) Of a release of several leases, for each of them: what the nodes say of it.
    each: Vec<Tally>,
    /// The leases of a round that was won know of it: only then does whoever waits.
    confirmed: bool,
    waiting: Option<Waker>,
}

impl Count {
    fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.votes.iter().flatten()
    }
}

impl Round {
    pub(crate) fn new(
        core: &Arc<Core>,
        purpose: Purpose,
        facts: Facts,
        leases: Vec<Arc<Lease>>,
        ticket: Option<Arc<Ticket>>,
    ) -> Arc<Self> {
        let nodes = core.nodes.len();
        let each = if purpose == Purpose::Release && leases.len() > 1 {
            vec![Tally::new(nodes); leases.len()]
        } else {
            Vec::new()
        };
        Arc::new(Self {
            core: Arc::clone(core),
            purpose,
            facts,
            leases,
            repeated: AtomicU64::new(0),
            ticket,
            polls: core.driver.polls(),
            reached: AtomicU64::new(0),
            count: Mutex::new(Count {
                votes: vec![None; nodes],
                tally: Tally::new(nodes),
                each,
                confirmed: false,
                waiting: None,
            }),
        })
    }

    /// Hands the command to one node's queue only.
    pub(crate) fn send_to(self: &Arc<Self>, node: usize, command: &Cmd) {
        let reply_to = ReplyTo::Hold(Arc::<Self>::clone(self));
        self.core.nodes[node].send(Request { command: pack_open(command), reply_to });
    }

    /// Hands the command to every node's queue. Never waits.
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

    fn is_repeated_on(&self, node: usize) -> bool {
        self.repeated.load(Ordering::Relaxed) & (1 << node) != 0
    }

    /// Would the same round, sent again, only be queued behind it? While it waits in this client's own queues, where no majority
    /// can have answered it, or at nodes that still have time to answer.
    pub(crate) fn is_under_way(&self, now: Moment) -> bool {
        let is_queued = (self.reached.load(Ordering::Relaxed).count_ones() as usize) < self.core.settings.quorum;
        is_queued || (now.since(self.facts.started) < self.core.common.timeout && !self.is_decided())
    }

    fn vote(&self, node: usize, vote: Vote) {
        if let (Purpose::Hold, Vote::No(_), false) = (self.purpose, &vote, self.is_repeated_on(node)) {
            for lease in &self.leases {
                lease.left_nothing_on(node);
            }
        }
        if let (Vote::No(Refusal::Held { .. } | Refusal::Kept { .. } | Refusal::Early { .. }), Some(ticket)) =
            (&vote, &self.ticket)
        {
            ticket.wait_on(node);
        }
        if let Vote::No(Refusal::Held { resource, by, .. }) = &vote {
            self.pass_calls_on(*resource, by);
        }
        if let Vote::No(Refusal::Stale { clock, .. }) = &vote {
            self.core.has_met(*clock);
        }
        let is_gone = |vote: &Vote| matches!(vote, Vote::No(Refusal::Gone { .. }));
        let (before, tally, over, gone, is_refused_somewhere, mut waker) = {
            let mut count = locked(&self.count);
            if count.votes[node].is_some() {
                return;
            }
            let before = count.tally.verdict();
            let mut over = None;
            match &vote {
                Vote::Yes => count.tally.yes(),
                Vote::No(refusal) => {
                    count.tally.no();
                    if count.each.is_empty() {
                        count.each = vec![Tally::new(self.core.nodes.len()); self.leases.len()];
                    }
                    over = refusal.ends().filter(|lease| {
                        count.each.get_mut(*lease).is_some_and(|tally| {
                            tally.no();
                            tally.is_refused()
                        })
                    });
                }
                Vote::Partly(_) | Vote::Untouched => count.tally.no(),
                Vote::Unheard(_) => count.tally.unheard(),
            }
            if self.purpose == Purpose::Release {
                for (lease, tally) in count.each.iter_mut().enumerate() {
                    match &vote {
                        Vote::Partly(honoured) if honoured.get(lease) == Some(&true) => tally.yes(),
                        Vote::Yes => tally.yes(),
                        Vote::Partly(_) | Vote::Untouched => tally.no(),
                        Vote::No(_) => {}
                        Vote::Unheard(_) => tally.unheard(),
                    }
                }
            }
            let newly_won = before == Verdict::Pending && count.tally.verdict() == Verdict::Won;
            let mut gone: Vec<usize> = if is_gone(&vote) { vec![node] } else { Vec::new() };
            if newly_won {
                let earlier = count.votes.iter().enumerate();
                gone.extend(earlier.filter(|(_, vote)| vote.as_ref().is_some_and(is_gone)).map(|(node, _)| node));
            }
            let is_no = |vote: &Vote| matches!(vote, Vote::No(_));
            let is_refused_somewhere = is_no(&vote) || (newly_won && count.votes().any(is_no));
            count.votes[node] = Some(vote);
            self.look_for_clocks_behind(&count);
            let settled = count.tally.is_complete() || self.verdict(&count) != Verdict::Pending;
            let waker = if settled { count.waiting.take() } else { None };
            (before, count.tally, over, gone, is_refused_somewhere, waker)
        };
        if self.purpose == Purpose::Hold {
            if tally.verdict() == Verdict::Won {
                let newly_won = before == Verdict::Pending;
                for lease in &self.leases {
                    lease.voted(self.facts.ballot, tally.votes(), tally.awaited());
                    if newly_won {
                        lease.confirmed(self);
                    }
                    // Whoever lost the race for those nodes is about to leave them. Had they to wait for the usual
                    // extension, the next failure would cost the lease.
                    if is_refused_somewhere {
                        lease.extend_soon();
                    }
                }
                if newly_won {
                    let mut count = locked(&self.count);
                    count.confirmed = true;
                    waker = count.waiting.take().or(waker);
                }
                // These have met somebody's ballot since the last confirmation, perhaps of one who only asked. The one
                // that was confirmed just now is newer: with it they can be repaired, before another node fails.
                if let ([lease], false) = (self.leases.as_slice(), self.facts.acquires) {
                    for node in gone {
                        lease.repair(node);
                    }
                }
            } else if let Some(lease) = over {
                self.leases[lease].refused(self);
            } else if tally.is_complete() {
                for lease in &self.leases {
                    lease.failed(self);
                }
            }
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A node refused the request because of one resource. The nodes may keep others for the request, which has been called
    /// there: the next request may have them, unless the one that is in the way is likely to be free soon.
    fn pass_calls_on(&self, refused: usize, by: &Holder) {
        let (Some(ticket), Some(in_the_way), 2..) = (&self.ticket, self.leases.get(refused), self.leases.len()) else {
            return;
        };
        let token = if let Holder::Owner { token, .. } = by { Some(*token) } else { None };
        if ticket.meets(&in_the_way.resource, token) {
            let others = self.leases.iter().filter(|lease| !Arc::ptr_eq(lease, in_the_way));
            let others: Vec<Resource> = others.map(|lease| lease.resource.clone()).collect();
            send_leave(&self.core, &others, ticket);
        }
    }

    /// When a majority takes no ballot of this machine's clock, ballots go by theirs.
    fn look_for_clocks_behind(&self, count: &Count) {
        let clock = |vote: &Vote| if let Vote::No(Refusal::Ahead { clock }) = vote { Some(*clock) } else { None };
        let mut clocks: Vec<u64> = count.votes().filter_map(clock).collect();
        clocks.sort_unstable();
        if let (Some(lease), Some(clock)) = (self.leases.first(), clocks.get(self.core.settings.quorum - 1)) {
            self.core.set_back(&lease.owner, *clock);
        }
    }

    /// What whoever waits is told; `None` as long as there is something to wait for. Pending then means that there is nothing
    /// more to hear: a release that too few nodes have answered.
    fn told(&self, count: &Count) -> Option<Verdict> {
        match (self.verdict(count), self.purpose) {
            (Verdict::Won, Purpose::Hold) if !count.confirmed => None,
            (Verdict::Pending, _) if !count.tally.is_complete() => None,
            (verdict, _) => Some(verdict),
        }
    }

    fn verdict(&self, count: &Count) -> Verdict {
        match self.purpose {
            Purpose::Hold => count.tally.verdict(),
            Purpose::Release if !count.each.is_empty() && self.leases.len() > 1 => {
                // Each lease had its own majority.
                let verdicts = || count.each.iter().map(released);
                if verdicts().any(|verdict| verdict == Verdict::Lost) {
                    Verdict::Lost
                } else if verdicts().all(|verdict| verdict == Verdict::Won) {
                    Verdict::Won
                } else {
                    Verdict::Pending
                }
            }
            Purpose::Release | Purpose::Leave => released(&count.tally),
        }
    }

    /// Waits for the verdict, for at most `limit`. What is still open then counts as unheard, in the reports too; a
    /// release has done its part when a majority has answered.
    pub(crate) async fn decided_within(&self, limit: Duration) -> Verdict {
        let decided = poll_fn(|cx| {
            let mut count = locked(&self.count);
            match self.told(&count) {
                None => {
                    count.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(verdict) => Poll::Ready(verdict),
            }
        });
        match self.core.within(limit, decided).await {
            Some(verdict) => verdict,
            None if self.purpose == Purpose::Release && self.tally().is_free() => Verdict::Won,
            None => Verdict::Pending,
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        locked(&self.count).tally
    }
}

impl Exchange for Round {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn mark_sent(&self, node: usize) {
        self.reached.fetch_or(1 << node, Ordering::Relaxed);
        if let Purpose::Hold = self.purpose {
            for lease in &self.leases {
                lease.mark_sent(node);
            }
        }
        if let (Purpose::Hold | Purpose::Release, Some(ticket)) = (self.purpose, &self.ticket) {
            ticket.leave_on(node);
        }
        if let (Purpose::Release, Some(ticket)) = (self.purpose, &self.ticket) {
            ticket.free_on(node);
        }
    }

    fn mark_resent(&self, node: usize) {
        self.repeated.fetch_or(1 << node, Ordering::Relaxed);
    }

    fn may_hold_state(&self, node: usize) -> bool {
        let left_ticket = self.purpose == Purpose::Leave && self.ticket.as_ref().is_some_and(|t| t.may_be_on(node));
        left_ticket || self.leases.iter().any(|lease| lease.may_hold_state(node))
    }

    fn is_decided(&self) -> bool {
        self.verdict(&locked(&self.count)) != Verdict::Pending
    }

    fn is_moot(&self) -> bool {
        let is_over = |lease: &Arc<Lease>| matches!(lease.phase(), Phase::Lost | Phase::Released);
        !self.leases.is_empty() && self.leases.iter().all(is_over)
    }

    fn is_expired(&self, now: Moment) -> bool {
        self.leases.iter().all(|lease| now.since(self.facts.started) > lease.state().lease.length)
    }

    fn add_lease_ids(&self, ids: &mut HashSet<u64>) {
        ids.extend(self.leases.iter().map(|lease| lease.id));
    }

    fn concerns(&self, leases: &HashSet<u64>) -> bool {
        let is_any = self.purpose == Purpose::Leave && !leases.is_empty();
        is_any || self.leases.iter().any(|lease| leases.contains(&lease.id))
    }

    fn nothing_sent(&self, node: usize) {
        self.vote(node, Vote::Untouched);
    }

    fn answered(&self, node: usize, reply: Result<Value, NodeError>) {
        self.reached.fetch_or(1 << node, Ordering::Relaxed);
        let vote = match (reply, self.purpose) {
            (Ok(value), Purpose::Hold) => parse_hold(&value),
            (Ok(value), Purpose::Release | Purpose::Leave) => match parse_release(&value) {
                // This client's clock says that the lease was held, and what is not there may have been taken away the first time.
                Vote::No(_) | Vote::Partly(_) if self.is_repeated_on(node) => Vote::Yes,
                vote => vote,
            },
            (Err(error), _) => Vote::Unheard(error),
        };
        self.vote(node, vote);
    }
}

/// The verdict on a release when everything that can be heard is: it is enough that a majority is known to be free.
fn released(tally: &Tally) -> Verdict {
    match tally.release_verdict() {
        Verdict::Pending if tally.is_complete() && tally.is_free() => Verdict::Won,
        verdict => verdict,
    }
}
