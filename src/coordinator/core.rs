//! What all leases, rounds and tasks of one client share.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::watchdog::Watchdog;
use crate::environment::{Environment, Moment, random_time, within};
use crate::error::{Answer, ClientError, ConfigError, NodeError, NodeReport, ReadyError, Reports};
use crate::node::{Common, Driver, Node, NodeAddress};
use crate::owner::Owner;
use crate::protocol::{self, AcceptedBallots, Ballot};
use crate::resource::{LIST, Resource};
use crate::settings::Settings;
use crate::telemetry::{Listeners, Stats, Telemetry};
use crate::text::readable;
use crate::waiting::{Ticket, Turns};

/// How far ahead of this machine's clock a ballot may pull the client's own proposals: what NTP leaves between clocks.
const TRUSTED_LEAD: Duration = Duration::from_secs(60);

/// How far ahead of the nodes' clocks a ticket may be, in µs: no client requests a million locks a second.
const FAR_TICKET: u64 = 1_000_000;

/// A runtime that does nothing for a shorter time may just be busy.
const STALLED: Duration = Duration::from_millis(100);

/// Advances a counter by `next`. Returns its value before.
fn advance(counter: &AtomicU64, next: impl Fn(u64) -> u64) -> u64 {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).unwrap_or_else(|last| last)
}

/// What leases, rounds and tasks share.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<Node>,
    /// Of all connections.
    pub(crate) driver: Arc<Driver>,
    pub(crate) common: Arc<Common>,
    pub(crate) watchdog: Watchdog,
    pub(crate) turns: Arc<Turns>,
    environment: Arc<dyn Environment>,
    label: Arc<str>,
    ids: AtomicU64,
    last_ballot: AtomicU64,
    last_ticket: AtomicU64,
    /// How far this machine's wall clock is ahead of the nodes', in µs, when it is further than ballots may be.
    lead: AtomicU64,
}

impl Core {
    /// Connects to the nodes. The tasks of the client run in the current runtime until [`close`](Self::close).
    pub(crate) fn start(
        settings: Settings,
        addresses: Vec<NodeAddress>,
        environment: Arc<dyn Environment>,
        label: &str,
        listeners: Listeners,
    ) -> Arc<Self> {
        let timeout = settings.node_timeout(settings.lease);
        let list_key = [LIST, &settings.prefix].concat();
        let names = addresses.iter().map(|address| address.name.as_str().into()).collect();
        let telemetry = Arc::new(Telemetry::new(Arc::clone(&environment), names, listeners));
        let common = Arc::new(Common::new(
            Arc::clone(&environment),
            telemetry,
            list_key,
            timeout,
            settings.ballot_ttl / 2,
            settings.lease,
        ));
        if settings.longest_lease > settings.lease {
            common.use_lease(settings.longest_lease);
        }
        for (index, _) in addresses.iter().enumerate().filter(|(_, address)| address.shows_password()) {
            common.telemetry.password_in_the_clear(index);
        }
        let start = |(index, address)| Node::new(index, address, Arc::clone(&environment), Arc::clone(&common));
        let (nodes, connections): (Vec<Node>, Vec<_>) = addresses.into_iter().enumerate().map(start).unzip();
        let driver = Arc::new(Driver::new(connections, Arc::clone(&common)));
        tokio::spawn(driver.run());
        let core = Arc::new(Self {
            settings,
            nodes,
            driver,
            common,
            watchdog: Watchdog::new(),
            turns: Arc::default(),
            label: Owner::labelled(label).label().into(),
            ids: AtomicU64::new(0),
            last_ballot: AtomicU64::new(0),
            last_ticket: AtomicU64::new(0),
            lead: AtomicU64::new(0),
            environment,
        });
        let watched = Arc::clone(&core);
        tokio::spawn(async move { watched.watchdog.run(watched.environment.as_ref()).await });
        core
    }

    /// Lets the tasks end when they have seen through what was sent.
    pub(crate) fn close(&self) {
        if self.common.life.is_copy() {
            return; // Another thread may have had a lock when the process was copied, and is not in the copy.
        }
        self.watchdog.close();
        for node in &self.nodes {
            node.close();
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.environment.now()
    }

    pub(crate) fn random_time(&self, range: Range<Duration>) -> Duration {
        random_time(self.environment.as_ref(), range)
    }

    /// Waits for `future`, for at most `limit`, by a timer of the caller.
    pub(crate) async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        within(self.environment.as_ref(), limit, future).await
    }

    /// Waits until a request that no majority has answered is to ask again. Returns whether a majority has answered meanwhile.
    pub(crate) async fn next_try(&self) -> bool {
        self.common.reachability.next_try(self.environment.as_ref()).await
    }

    /// Waits until every node that can be reached has said, since this client met a node that may have forgotten leases, if it knows
    /// of longer leases; once for at most `limit`.
    pub(crate) async fn hear_all(&self, limit: Duration) {
        let (hearing, connected) = (&self.common.hearing, || self.common.reachability.reached());
        if self.within(limit, hearing.all(connected)).await.is_none() {
            hearing.give_up(hearing.missing(connected()));
        }
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.environment.sleep(time).await;
    }

    /// Checks that this client can still reach its nodes.
    ///
    /// # Errors
    ///
    /// Why it can ask no node.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.common.life.check()
    }

    /// Returns the error for a node that has not answered within this time. `polls` is how often the connections had been polled
    /// before: if that has not grown, the client's runtime is to blame.
    pub(crate) fn no_answer(&self, limit: Duration, polls: u64) -> NodeError {
        match self.check() {
            Err(why) => why.into(),
            Ok(()) if limit >= STALLED && polls == self.driver.polls() => ClientError::RuntimeStalled(limit).into(),
            Ok(()) => NodeError::NoAnswer(limit),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes an owner for one acquisition.
    pub(crate) fn anonymous(&self) -> Owner {
        Owner::anonymous(self.environment.as_ref(), &self.label)
    }

    /// Returns the number of the ticket of a request that begins now. It is taken from the nodes' clocks, so a client whose own clock
    /// is behind gets no older tickets. A ticket by another clock, before a node has shown its own, makes no later one newer.
    pub(crate) fn ticket_number(&self) -> u64 {
        let median = self.common.clocks.median(self.now());
        let now = median.unwrap_or_else(|| self.wall());
        let is_far = |last: u64| median.is_some() && last > now.saturating_add(FAR_TICKET);
        let next = |last: u64| if is_far(last) { now } else { now.max(last + 1) };
        next(advance(&self.last_ticket, next))
    }

    /// Returns the ticket of a request that has waited since the ticket with this number; `None` for one that begins.
    pub(crate) fn ticket_since(&self, number: Option<u64>) -> Arc<Ticket> {
        let number = number.unwrap_or_else(|| self.ticket_number());
        self.common.tickets.issue(number, self.common.client, self.settings.quorum)
    }

    /// Returns the wall clock in µs, as it has run on since the client was made.
    pub(crate) fn wall(&self) -> u64 {
        self.common.wall()
    }

    /// Makes ballots go by the nodes' clocks, one of which shows `clock`, in µs. A majority of them is so far behind this
    /// machine's wall clock that it takes no ballot of it. Ends of leases still go by this machine's clock.
    pub(crate) fn set_back(&self, owner: &Owner, clock: u64) {
        self.lead.store(self.wall().saturating_sub(clock), Ordering::Relaxed);
        self.last_ballot.store(clock, Ordering::Relaxed);
        owner.last_ballot().store(clock, Ordering::Relaxed);
    }

    /// Notes that a node has shown its clock. If this machine's clock agrees again with those of the nodes, ballots go by this
    /// machine's. One node alone that agrees says nothing: it may run on this machine.
    pub(crate) fn has_met_a_clock(&self) {
        let is_near = |clock: u64| u128::from(self.wall().abs_diff(clock)) <= self.common.window.as_micros();
        if self.lead.load(Ordering::Relaxed) > 0 && self.common.clocks.median(self.now()).is_some_and(is_near) {
            self.lead.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the ballots that a node would take that has seen none, and whose clock agrees with those of the nodes that have
    /// shown theirs. This machine's own clock may be far from them.
    pub(crate) fn accepted_by_fresh_node(&self) -> AcceptedBallots {
        let window = u64::try_from(self.common.window.as_micros()).unwrap_or(u64::MAX);
        let clock = self.common.clocks.median(self.now()).unwrap_or_else(|| self.wall());
        AcceptedBallots { floor: Ballot::ZERO, clock, window }
    }

    /// Returns whether a lease that goes on may be extended with a ballot above this one. Half of what nodes take is left for what
    /// follows.
    pub(crate) fn may_overtake(&self, ballot: Ballot) -> bool {
        let clock = self.common.clocks.median(self.now()).unwrap_or_else(|| self.wall());
        let most = u64::try_from(self.common.least_window().as_micros() / 2).unwrap_or(u64::MAX);
        ballot.get() <= clock.saturating_add(most)
    }

    /// Returns a new ballot, larger than `floor` and than every other one that this process has proposed for the owner.
    ///
    /// A floor that is a little ahead of this machine's clock pulls all later proposals of the client along, as a hybrid
    /// logical clock does. One that is far ahead counts for this owner only, or a few broken clocks would pull all clients to
    /// where sound nodes refuse their ballots.
    pub(crate) fn propose_above(&self, owner: &Owner, floor: Ballot) -> Ballot {
        let wall = self.wall().saturating_sub(self.lead.load(Ordering::Relaxed));
        let trusted = wall.saturating_add(u64::try_from(TRUSTED_LEAD.as_micros()).unwrap_or(0));
        let pull = if floor.get() <= trusted { floor.get() } else { 0 };
        let propose = |last: u64| protocol::propose(last.max(pull), wall);
        let proposed = propose(advance(&self.last_ballot, propose));
        let ahead = |last: u64| protocol::propose(last.max(floor.get()), proposed);
        let proposed = ahead(advance(owner.last_ballot(), ahead));
        // Nodes take no ballot that is far ahead of their clocks, so the limit is centuries away.
        Ballot::from_wire(proposed).unwrap_or(floor)
    }

    /// Returns what keeps a node from being counted, as far as is known without asking it; `None` when it is up.
    fn trouble(&self, node: &Node, now: Moment) -> Option<NodeError> {
        match self.check() {
            // No lock is taken in a fork.
            Err(why @ ClientError::Forked { .. }) => Some(why.into()),
            _ => node.trouble(now),
        }
    }

    /// Checks that a majority has a vote, by what is known without asking.
    pub(crate) fn ready(&self) -> Result<(), ReadyError> {
        self.check()?;
        let nodes = self.reports(|node| self.common.conflict(node).map(Answer::Failed));
        let needed = self.settings.quorum;
        let up = nodes.0.iter().filter(|report| report.answer == Answer::Up).count();
        if up >= needed { Ok(()) } else { Err(ReadyError::NoQuorum { needed, nodes }) }
    }

    /// Returns what this client has done so far, and what is known of the nodes.
    pub(crate) fn stats(&self) -> Stats {
        let now = self.now();
        self.common.telemetry.stats(self.nodes.iter().map(|node| self.trouble(node, now)))
    }

    /// Returns what each node answered, by `said`; for a node without an answer, what is known of it.
    pub(crate) fn reports(&self, said: impl Fn(usize) -> Option<Answer>) -> Reports {
        let now = self.now();
        let report = |(index, node): (usize, &Node)| {
            let known = || self.trouble(node, now).map_or(Answer::Up, Answer::Failed);
            NodeReport { node: node.name.to_string(), answer: said(index).unwrap_or_else(known) }
        };
        Reports(self.nodes.iter().enumerate().map(report).collect())
    }

    /// Returns why a node has not answered for so long. `polls` is as for [`no_answer`](Self::no_answer).
    pub(crate) fn unanswered(&self, node: usize, waited: Duration, polls: u64) -> NodeError {
        match self.no_answer(waited, polls) {
            late @ NodeError::Client(_) => late,
            late => self.nodes[node].absence(self.now()).unwrap_or(late),
        }
    }

    pub(crate) fn resource(&self, name: &[u8]) -> Result<Resource, ConfigError> {
        Resource::new(&self.settings.prefix, name).ok_or_else(|| ConfigError::ReservedName(readable(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{LEASE, core, core_with};
    use super::*;
    use crate::node::fake::Server;

    #[tokio::test(start_paused = true)]
    async fn ballots_go_by_the_nodes_clocks_until_this_machines_clock_agrees_again() {
        let (core, _streams) = core(3);
        let propose = || core.propose_above(&Owner::new(), Ballot::ZERO).get();
        let (wall, window) = (core.wall(), 300_000_000);
        let behind = wall - 2 * window;
        core.set_back(&Owner::new(), behind);
        assert_eq!(propose(), behind + 1);
        let shows = |node, clock| {
            core.common.sees_clock(node, Some(clock));
            core.has_met_a_clock();
        };
        (0..3).for_each(|node| shows(node, wall - window - 1));
        assert_eq!(propose(), behind + 2);
        shows(0, wall);
        assert_eq!(propose(), behind + 3, "one node of three");
        shows(1, wall - window);
        assert_eq!(propose(), wall);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_by_this_machines_clock_makes_no_later_one_newer() {
        let (core, _streams) = core(3);
        let number =
            || core.ticket_since(None).text().split_once(':').expect("a number").0.parse::<u64>().expect("a number");
        let wall = number();
        let clock = wall - 60_000_000;
        (0..3).for_each(|node| core.common.sees_clock(node, Some(clock)));
        assert_eq!(number(), clock);
        assert_eq!(number(), clock + 1);
    }

    /// The first refusal of three nodes decides a round when two of five are down. The client must not take the others for
    /// nodes that refuse the next ballot because its own clock is behind.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_not_answered_is_taken_to_have_the_clock_of_the_others() {
        let (core, _streams) = core(3);
        let wall = core.wall();
        assert_eq!(core.accepted_by_fresh_node().clock, wall, "no node has shown its clock");
        (0..3).for_each(|node| core.common.sees_clock(node, Some(wall + 600_000_000)));
        assert_eq!(core.accepted_by_fresh_node().clock, wall + 600_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn ballots_and_tickets_increase_while_the_clock_stands() {
        let (core, _streams) = core(3);
        let (owner, wall) = (Owner::new(), core.wall());
        let ballots = [&owner, &owner, &Owner::new()].map(|owner| core.propose_above(owner, Ballot::ZERO).get());
        assert_eq!(ballots, [wall, wall + 1, wall + 2]);
        let tickets = [(); 3].map(|()| core.ticket_since(None).text());
        assert_eq!(tickets, [0, 1, 2].map(|later| format!("{}:{:016x}", wall + later, core.common.client)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ballot_that_is_far_ahead_counts_for_its_owner_only() {
        let (core, _streams) = core(3);
        let (owner, wall, lead) = (Owner::new(), core.wall(), 60_000_000);
        let propose =
            |owner: &Owner, floor: u64| core.propose_above(owner, Ballot::from_wire(floor).expect("a ballot")).get();
        assert_eq!(propose(&owner, wall + lead + 1), wall + lead + 2);
        assert_eq!(propose(&owner, 0), wall + lead + 3);
        assert!(propose(&Owner::new(), 0) <= wall + 2);
        assert_eq!(propose(&Owner::new(), wall + lead), wall + lead + 1);
        assert_eq!(propose(&Owner::new(), 0), wall + lead + 2, "it may pull all owners along");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_polled_nothing_meanwhile_is_to_blame() {
        let (core, _streams) = core(3);
        let polls = core.driver.polls();
        let busy = Duration::from_millis(99);
        assert_eq!(core.no_answer(busy, polls), NodeError::NoAnswer(busy));
        assert_eq!(core.no_answer(STALLED, polls), ClientError::RuntimeStalled(STALLED).into());
        assert_eq!(core.no_answer(STALLED, polls + 1), NodeError::NoAnswer(STALLED));
        assert_eq!(core.unanswered(0, STALLED, polls), ClientError::RuntimeStalled(STALLED).into());
        assert_eq!(core.unanswered(0, STALLED, polls + 1), NodeError::Connecting);
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_end_with_the_client() {
        let (core, mut streams) = core(3);
        core.sleep(Duration::from_millis(1)).await;
        assert!(core.check().is_ok());
        core.close();
        core.sleep(Duration::from_millis(1)).await;
        assert_eq!(core.check(), Err(ClientError::RuntimeEnded));
        while streams.try_recv().is_ok() {}
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_and_owners_are_drawn_from_the_environment() {
        let second = Duration::from_secs(1);
        let drawn = || {
            let (core, _streams) = core(3);
            assert!(core.random_time(second..2 * second) >= second);
            core.anonymous().number()
        };
        assert_eq!(drawn(), drawn());
    }

    #[tokio::test(start_paused = true)]
    async fn a_longest_lease_of_the_settings_is_named_to_the_nodes() {
        let (core, mut streams) = core_with(1, 2 * LEASE);
        let mut server = Server::new(streams.recv().await.expect("it connects"));
        server.greet(1).await;
        let mut next = async || core.within(LEASE, server.command()).await.flatten().expect("the record is written");
        assert_eq!(next().await[0], "SCRIPT");
        let written = next().await;
        assert!(written.iter().any(|word| word.ends_with(" 20000")), "{written:?}");
    }
}
