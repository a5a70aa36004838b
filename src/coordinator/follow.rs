//! What follows from replies and from time: extensions, repairs, and the end of lost leases.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, Weak};

use redis::Value;

use super::lease::{Lease, State};
use super::round::Round;
use super::send::{Bid, hold_round, send_hold, send_leave, send_release};
use super::watchdog::Tick;
use crate::environment::Moment;
use crate::error::NodeError;
use crate::node::{Exchange, Facts, Vote, parse_hold, parse_release};
use crate::protocol::{Due, Phase, Purpose};
use crate::telemetry::{Extension, LossCause};

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
        Round::is_decided(self)
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
        count(self, node, Vote::Untouched);
    }

    fn answered(&self, node: usize, reply: Result<Value, NodeError>) {
        self.reached.fetch_or(1 << node, Ordering::Relaxed);
        let vote = match (reply, self.purpose) {
            (Ok(value), Purpose::Hold) => parse_hold(&value),
            (Ok(value), Purpose::Release | Purpose::Leave) => match parse_release(&value) {
                // The lease was held by this client's clock, and the first copy of this release may have taken it away.
                Vote::No(_) | Vote::Partly(_) if self.is_resent_to(node) => Vote::Yes,
                vote => vote,
            },
            (Err(error), _) => Vote::NoReply(error),
        };
        count(self, node, vote);
    }
}

/// Counts a vote, and sends what follows from it.
fn count(round: &Round, node: usize, vote: Vote) {
    if let (Some(resources), Some(ticket)) = (round.note(node, &vote), &round.ticket) {
        send_leave(&round.core, &resources, ticket);
    }
    round.report(node, &vote);
    let Some(follows) = round.count(node, vote) else { return };
    if let [lease] = round.leases.as_slice() {
        for node in (0..round.core.nodes.len()).filter(|node| follows.repairable & (1 << node) != 0) {
            match round.newer_ballot(node) {
                None => repair(lease, node),
                Some(ballot) => lease.overtake(ballot),
            }
        }
    }
    if let Some(lease) = follows.over {
        refused(&lease, round);
    }
    if let Some(waker) = follows.waker {
        waker.wake();
    }
}

/// Ends a lease that a majority has refused.
fn refused(lease: &Arc<Lease>, round: &Round) {
    let mut state = lease.state();
    let is_waiting = state.fresh || state.lease.phase(lease.core.now()) == Phase::Pending;
    // A refused acquisition is an error of its request, and not the loss of a lease.
    if !is_waiting && state.lease.refused() {
        let reports = round.reports(None);
        lease.report_extension(&Extension::Refused(&reports));
        lease.failed(round.facts.started, reports);
        over(lease, state, LossCause::Refused);
    }
}

/// Sends a hold message to one node that has no key of the lease.
fn repair(lease: &Arc<Lease>, node: usize) {
    let (mut state, now) = lease.state_now();
    if matches!(state.lease.phase(now), Phase::Held | Phase::Endangered) {
        let (length, bid) = (state.lease.length, Bid::default());
        let (round, command) = hold_round(&lease.core, std::slice::from_ref(lease), &mut [&mut state], length, &bid);
        round.send_to(node, &command);
    }
}

/// Releases what may be left on the nodes of a lease that was lost just now, and wakes all that wait for that.
fn over(lease: &Arc<Lease>, mut state: MutexGuard<'_, State>, cause: LossCause) {
    let (token, held) = (state.lease.token, state.take_held(lease.core.now()));
    let reports = lease.reports(&state);
    lease.lost(reports.clone());
    send_release(&lease.core, std::slice::from_ref(lease), &mut [&mut state]);
    lease.reschedule(&mut state);
    let turn = state.turn.take();
    drop(state);
    drop(turn);
    lease.changed.notify_waiters();
    if let Some(held) = held {
        lease.report_loss(token, cause, held, &reports);
    }
}

impl Tick for Lease {
    fn tick(self: Arc<Self>) {
        let (mut state, now) = self.state_now();
        state.scheduled = None;
        let due = state.lease.due(now);
        let extend = match due {
            Due::Loss => return over(&self, state, LossCause::Expired),
            Due::Extension => true,
            Due::Warning { extend } => extend,
            Due::Nothing => false,
        };
        let latest = state.extension.as_ref().and_then(Weak::upgrade);
        let is_under_way = latest.is_some_and(|message| message.is_under_way(now));
        if extend && !is_under_way && !state.is_left(now) {
            let length = state.lease.length;
            let leases = std::slice::from_ref(&self);
            let round = send_hold(&self.core, leases, &mut [&mut state], length, &Bid::default());
            state.extension = Some(Arc::<Round>::downgrade(&round));
        }
        self.reschedule(&mut state);
        let (token, left) = (state.lease.token, state.lease.remaining(now));
        let is_warning = matches!(due, Due::Warning { .. });
        let reports = (is_warning && state.is_held()).then(|| self.reports(&state));
        drop(state);
        if is_warning {
            self.changed.notify_waiters();
        }
        if let Some(reports) = reports {
            self.report_endangered(token, left, &reports);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::DuplexStream;
    use tokio::time::{sleep, timeout};

    use super::super::core::Core;
    use super::super::fake::{LEASE, confirm, core, lease, resource};
    use super::super::holds::hold_one;
    use super::*;
    use crate::node::fake::Server;
    use crate::owner::Owner;
    use crate::protocol::Ballot;

    const MS: Duration = Duration::from_millis(1);
    const GONE: &str = "*4\r\n:5\r\n:1790000000000000\r\n:1\r\n:0\r\n";

    fn leases<const N: usize>(core: &Arc<Core>) -> [Arc<Lease>; N] {
        let owner = Owner::new();
        std::array::from_fn(|number| lease(core, &resource(&number.to_string()), &owner))
    }

    fn round(core: &Arc<Core>, purpose: Purpose, leases: &[&Arc<Lease>]) -> Arc<Round> {
        let facts = Facts { started: core.now(), ballot: Ballot::ZERO, length: LEASE, acquires: false };
        Round::new(core, purpose, facts, leases.iter().map(|lease| Arc::clone(lease)).collect(), None)
    }

    const AGREED: Result<Value, NodeError> = Ok(Value::Int(1));

    /// A client that holds a lease, the third node, and the ends of the streams to the other two.
    async fn held_at_the_third_of_three() -> (Arc<Core>, Arc<Lease>, Server, Vec<DuplexStream>) {
        let (core, mut streams) = core(3);
        let [lease] = leases(&core);
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(streams.recv().await.expect("it connects"));
        }
        let mut server = Server::new(open.pop().expect("the third"));
        server.greet(3).await;
        confirm(&lease);
        (core, lease, server, open)
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_concerns_its_leases_and_a_leave_any_lease() {
        let (core, _streams) = core(3);
        let [first, second] = leases(&core);
        let (mut ids, none) = (HashSet::new(), HashSet::new());
        round(&core, Purpose::Hold, &[&first]).add_lease_ids(&mut ids);
        assert_eq!(ids, HashSet::from([first.id]));
        let [own, other] = [&first, &second].map(|lease| round(&core, Purpose::Release, &[lease]));
        let leave = round(&core, Purpose::Leave, &[]);
        assert_eq!([&own, &other, &leave].map(|round| round.concerns(&ids)), [true, false, true]);
        assert_eq!([&own, &other, &leave].map(|round| round.concerns(&none)), [false; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_moot_when_all_its_leases_are_over() {
        let (core, _streams) = core(3);
        let [first, second] = leases(&core);
        let message = round(&core, Purpose::Hold, &[&first, &second]);
        assert!(!message.is_moot());
        first.state().lease.released(core.now());
        assert!(!message.is_moot());
        second.state().lease.refused();
        assert!(message.is_moot());
        assert!(!round(&core, Purpose::Leave, &[]).is_moot());
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_is_expired_after_the_lease() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let release = round(&core, Purpose::Release, &[&lease]);
        let began = core.now();
        assert_eq!([LEASE / 2, LEASE, LEASE + MS].map(|age| release.is_expired(began + age)), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_is_decided_by_a_majority_of_answers() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let hold = round(&core, Purpose::Hold, &[&lease]);
        hold.answered(0, AGREED);
        assert!(!Exchange::is_decided(&*hold));
        hold.answered(0, AGREED);
        assert!(!Exchange::is_decided(&*hold), "the same node");
        hold.answered(2, AGREED);
        assert!(Exchange::is_decided(&*hold));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_sent_nothing_has_nothing_to_release() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let release = round(&core, Purpose::Release, &[&lease]);
        (0..3).for_each(|node| release.nothing_sent(node));
        assert!(Exchange::is_decided(&*release));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_without_the_key_is_repaired_when_a_majority_has_confirmed_the_lease() {
        let (core, lease, mut server, _streams) = held_at_the_third_of_three().await;
        let extension = hold_one(&core, &lease, &mut lease.state(), LEASE);
        let sent = server.command().await.expect("the extension");
        server.reply(GONE).await;
        sleep(MS).await;
        extension.answered(0, AGREED);
        extension.answered(1, AGREED);
        let repair = timeout(MS, server.command()).await.expect("at once").expect("a command");
        assert_eq!(repair[1], sent[1], "the same script");
        assert_ne!(repair, sent, "with a newer ballot");
    }

    /// A client whose clock is ahead was refused by the others, and has released that node.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_met_a_newer_ballot_is_repaired_by_the_extension_above_that() {
        let (core, lease, mut server, _streams) = held_at_the_third_of_three().await;
        let extend = || {
            let round = hold_one(&core, &lease, &mut lease.state(), LEASE);
            for node in [0, 1] {
                round.answered(node, AGREED);
            }
            round
        };
        let met = |ballot: u64| format!("*4\r\n:5\r\n:1790000000000000\r\n:1\r\n:{ballot}\r\n");
        sleep(LEASE / 5).await;
        let (extension, newer) = (extend(), lease.state().sent.get() + 3_000_000);
        server.command().await.expect("the extension");
        server.reply(&met(newer)).await;
        sleep(MS).await;
        assert_eq!(lease.state().lease.next_due(), Some(extension.facts().started + LEASE / 15));
        let above = extend();
        assert!(above.facts().ballot.get() > newer);
        server.command().await.expect("the next extension, and no repair before it");
        server.reply(&met(newer)).await;
        let repair = timeout(MS, server.command()).await.expect("at once").expect("a command");
        assert!(
            repair.iter().any(|word| word.contains(&format!(" {:016} ", above.facts().ballot.get()))),
            "{repair:?}"
        );
        // One that is far ahead is left alone.
        let before = lease.state().sent;
        lease.overtake(Ballot::from_wire(core.wall() + 600_000_000).expect("a ballot"));
        assert_eq!(lease.state().sent, before);
        let above = |lease: &Arc<Lease>| lease.state().above;
        assert!(above(&lease).get() < core.wall() + 100_000_000);
        let near = |seconds: u64| Ballot::from_wire(core.wall() + seconds * 1_000_000).expect("a ballot");
        lease.overtake(near(100));
        assert_eq!(above(&lease), near(100));
        core.common.learn_window(100 * LEASE / 5);
        lease.overtake(near(101));
        assert_eq!(above(&lease), near(100), "a node takes ballots for 200 s only");
        assert!(lease.state().sent == before, "what was not sent is released by no message");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_goes_on_naming_newer_ballots_is_followed_less_and_less_often() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        confirm(&lease);
        let mut extensions = 0;
        let began = core.now();
        for _ in 0..600 {
            let due = lease.state().lease.next_due().expect("it is held");
            core.sleep(due.since(core.now())).await;
            confirm(&lease);
            let sent = lease.state().sent.get();
            lease.overtake(Ballot::from_wire(sent + 1).expect("a ballot"));
            extensions += 1;
            if core.now().since(began) > 10 * LEASE {
                break;
            }
        }
        assert!((30..=45).contains(&extensions), "{extensions} extensions in ten leases");
    }

    #[tokio::test(start_paused = true)]
    async fn a_contested_lease_is_extended_soon_and_then_less_and_less_often() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        confirm(&lease);
        let due = || lease.state().lease.next_due().expect("it is held");
        let began = core.now();
        assert!(due() > began + LEASE / 8);
        lease.extend_soon();
        assert_eq!(due(), began + 5 * MS);
        sleep(100 * MS).await;
        confirm(&lease);
        lease.extend_soon();
        assert_eq!(due(), began + 200 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_to_a_node_is_known_of_that_node() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let hold = round(&core, Purpose::Hold, &[&lease]);
        hold.mark_sent(2);
        assert_eq!(hold.reached.load(Ordering::Relaxed), 0b100);
        assert_eq!([0, 1, 2].map(|node| hold.may_hold_state(node)), [false, false, true]);
        hold.answered(1, AGREED);
        assert_eq!(hold.reached.load(Ordering::Relaxed), 0b110);
        hold.mark_resent(2);
        assert_eq!([0, 1, 2].map(|node| hold.is_resent_to(node)), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_that_was_sent_twice_is_not_refused_by_the_second_copy() {
        let (core, _streams) = core(3);
        let [lease] = leases(&core);
        let gone = || Ok(Value::Array(vec![Value::Int(1), Value::Int(0)]));
        for resent in [false, true] {
            let release = round(&core, Purpose::Release, &[&lease]);
            release.answered(0, AGREED);
            if resent {
                release.mark_resent(2);
            }
            release.answered(2, gone());
            assert_eq!(release.tally().votes(), 1 + usize::from(resent));
        }
    }
}
