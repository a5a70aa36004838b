//! What the connections of one client share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clocks::NodeClocks;
use super::health::Health;
use super::life::Life;
use super::places::{Listing, Places};
use crate::environment::{Environment, Moment, both_clocks};
use crate::error::NodeError;
use crate::protocol::{Newcomer, Wall, difference};
use crate::sync::locked;
use crate::telemetry::Telemetry;
use crate::waiting::{Hearing, Reachability, Tickets};

#[derive(Debug)]
pub(crate) struct Common {
    environment: Arc<dyn Environment>,
    /// To which its parts report.
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) life: Life,
    wall: Mutex<Wall>,
    /// How long a round waits for an answer.
    pub(crate) timeout: Duration,
    /// How far ballots may lie from a node's clock, for a node whose record does not say so yet.
    pub(crate) window: Duration,
    /// The lease of this client's settings. Other clients may have leases as long.
    usual_lease: Duration,
    /// The longest lease that this client was granted, or that its settings name, in µs.
    used_lease: AtomicU64,
    /// The longest lease that the nodes' records show, in µs.
    learnt_lease: AtomicU64,
    /// The least of these longest leases, in µs.
    least_learnt: AtomicU64,
    /// The shortest time by which ballots may lie from a node's clock, as far as the nodes' records show, in µs.
    least_window: AtomicU64,
    /// One bit for each node whose record had a quarantine, over or not, when the last connection was made.
    quarantined: AtomicU64,
    places: Mutex<Places>,
    has_conflict: AtomicBool,
    /// How many requests were sent again, behind scripts that their node had lost.
    resent: AtomicU64,
    /// The key that says how many nodes the list of this client's prefix has.
    pub(crate) list_key: Vec<u8>,
    /// Random: names this client in its shares, and the channel on which nodes call it.
    pub(crate) client: u64,
    /// The requests that nodes may call.
    pub(crate) tickets: Arc<Tickets>,
    /// By node, how long the end of a program may wait for it, in µs.
    last_waits: Vec<AtomicU64>,
    pub(crate) reachability: Reachability,
    pub(crate) hearing: Hearing,
    pub(crate) clocks: NodeClocks,
}

impl Common {
    pub(crate) fn new(
        environment: Arc<dyn Environment>,
        telemetry: Arc<Telemetry>,
        list_key: Vec<u8>,
        timeout: Duration,
        window: Duration,
        usual_lease: Duration,
    ) -> Self {
        let nodes = telemetry.nodes();
        let (now, micros, _) = both_clocks(environment.as_ref());
        let wall = Wall::new(now, micros);
        let client = random(environment.as_ref());
        Self {
            environment,
            telemetry,
            life: Life::new(),
            wall: Mutex::new(wall),
            timeout,
            window,
            usual_lease,
            used_lease: AtomicU64::new(0),
            learnt_lease: AtomicU64::new(0),
            least_learnt: AtomicU64::new(u64::MAX),
            least_window: AtomicU64::new(u64::MAX),
            quarantined: AtomicU64::new(0),
            places: Mutex::new(Places::new(nodes)),
            has_conflict: AtomicBool::new(false),
            resent: AtomicU64::new(0),
            list_key,
            client,
            tickets: Arc::default(),
            last_waits: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            reachability: Reachability::new(nodes),
            hearing: Hearing::new(nodes),
            clocks: NodeClocks::new(nodes),
        }
    }

    /// Notes that the client, or its runtime, has ended.
    pub(super) fn end_of_runtime(&self) {
        self.environment.runtime_has_ended();
        self.life.end();
    }

    /// Returns the wall clock in µs, as it has run on since the client was made.
    pub(crate) fn wall(&self) -> u64 {
        let steady_for = self.longest_lease().max(self.usual_lease);
        match both_clocks(self.environment.as_ref()) {
            (now, micros, true) => locked(&self.wall).read(now, micros, steady_for),
            (now, _, false) => locked(&self.wall).at(now),
        }
    }

    /// Notes what a node's clock shows, in µs, if an answer shows it.
    pub(crate) fn sees_clock(&self, node: usize, shown: Option<u64>) {
        if let Some(micros) = shown {
            self.clocks.saw(node, self.ahead_of_monotonic(micros));
        }
    }

    /// Returns how far a clock that shows this now is ahead of the monotonic one, in µs.
    pub(super) fn ahead_of_monotonic(&self, clock_micros: u64) -> i64 {
        difference(self.environment.now(), clock_micros)
    }

    /// Records that this client was granted a lease of this length, or that its settings name it.
    pub(crate) fn use_lease(&self, lease: Duration) {
        self.used_lease.fetch_max(micros(lease), Ordering::SeqCst);
    }

    /// Records the longest lease that a node's record shows.
    pub(super) fn learn_lease(&self, longest: Duration) {
        self.least_learnt.fetch_min(micros(longest), Ordering::SeqCst);
        self.learnt_lease.fetch_max(micros(longest), Ordering::SeqCst);
    }

    /// Returns the longest lease in use, as far as the nodes' records show.
    pub(crate) fn learnt_lease(&self) -> Duration {
        Duration::from_micros(self.learnt_lease.load(Ordering::SeqCst))
    }

    /// Records how far ballots may lie from the clock of a node, by its record.
    pub(crate) fn learn_window(&self, window: Duration) {
        self.least_window.fetch_min(micros(window), Ordering::SeqCst);
    }

    /// Returns how far ballots may lie from the clock of each node, as far as this client knows.
    pub(crate) fn least_window(&self) -> Duration {
        self.window.min(Duration::from_micros(self.least_window.load(Ordering::SeqCst)))
    }

    /// Records whether the record of a node has a quarantine, over or not: it may have forgotten leases at this moment, or before.
    pub(crate) fn has_quarantine(&self, index: usize, forgot: Option<Moment>) {
        if let Some(forgot) = forgot {
            self.hearing.begins(forgot);
            self.quarantined.fetch_or(1 << index, Ordering::SeqCst);
        } else {
            self.quarantined.fetch_and(!(1 << index), Ordering::SeqCst);
        }
    }

    /// Returns the nodes whose vote depends on the end of a quarantine, one bit for each.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::SeqCst)
    }

    /// Returns whether the records of two nodes show different longest leases.
    pub(crate) fn nodes_differ_on_leases(&self) -> bool {
        self.least_learnt.load(Ordering::SeqCst) < self.learnt_lease.load(Ordering::SeqCst)
    }

    /// Returns the longest lease in use, as far as this client knows.
    pub(super) fn longest_lease(&self) -> Duration {
        Duration::from_micros(self.used_lease.load(Ordering::SeqCst)).max(self.learnt_lease())
    }

    /// Records how long it takes at most until the node gets what it has not answered. Zero while it cannot be reached.
    pub(super) fn waits_for(&self, index: usize, time: Duration) {
        self.last_waits[index].store(micros(time), Ordering::Relaxed);
    }

    /// Returns how long the end of a program may wait for this node, when a majority has answered.
    pub(crate) fn last_wait(&self, index: usize) -> Duration {
        Duration::from_micros(self.last_waits[index].load(Ordering::Relaxed))
    }

    /// What this client brings along to a node.
    pub(super) fn newcomer(&self, index: usize) -> Newcomer {
        Newcomer {
            word: random(self.environment.as_ref()),
            longest: self.longest_lease().max(self.usual_lease),
            proven: self.longest_lease(),
            window: self.window,
            wall: self.wall() / 1000,
            cluster: locked(&self.places).cluster_of_others(index),
        }
    }

    /// Changes or reads what is known of the servers at all places.
    fn places<T>(&self, with: impl FnOnce(&mut Places) -> T) -> T {
        let mut places = locked(&self.places);
        let result = with(&mut places);
        self.has_conflict.store(places.has_conflict(), Ordering::SeqCst);
        result
    }

    /// Records the server that an attempt has reached.
    ///
    /// # Errors
    ///
    /// Why it cannot be part of this list, or has no vote yet.
    pub(super) fn reached(&self, index: usize, name: &Arc<str>, health: &Health) -> Result<Listing, NodeError> {
        let stored = health.record.as_ref().map_or(Duration::ZERO, |(_, record)| record.longest);
        let longest = self.longest_lease().max(self.usual_lease).max(stored);
        self.places(|places| places.attempt(index, name, health, (self.environment.now(), longest)))
    }

    /// Returns whether this server has the data of one at another place, whose replica it was.
    pub(super) fn is_copy(&self, index: usize, health: &Health) -> bool {
        locked(&self.places).is_copy(index, health)
    }

    /// Notes that the connection of the latest attempt is used from now on.
    pub(super) fn connected(&self, index: usize) {
        self.places(|places| places.connected(index));
        self.reachability.connected(index);
        self.hearing.is_known(index);
    }

    /// Notes that the connection in use has ended.
    pub(super) fn disconnected(&self, index: usize) {
        self.places(|places| places.disconnected(index, self.environment.now()));
        self.reachability.disconnected(index);
        self.hearing.is_known(index);
    }

    /// Notes that the latest attempt is over, and that its connection, if any, is not used.
    pub(super) fn abandoned(&self, index: usize) {
        self.places(|places| places.abandoned(index));
        self.hearing.is_known(index);
    }

    /// Notes that no server can be reached at this place.
    pub(super) fn unreachable(&self, index: usize) {
        self.places(|places| places.unreachable(index));
        self.hearing.is_known(index);
    }

    /// Returns how many conflicts were found so far. What a connection made before the last one knows of its node may be out of
    /// date.
    pub(super) fn conflicts(&self) -> u64 {
        locked(&self.places).conflicts
    }

    /// Returns why this client acquires nothing at all: its list is not that of its nodes.
    pub(crate) fn conflict(&self, index: usize) -> Option<NodeError> {
        if !self.has_conflict.load(Ordering::SeqCst) {
            return None;
        }
        locked(&self.places).conflict(index)
    }

    /// Notes that a request is sent again, as its node had lost the scripts. It leaves behind what was sent after it.
    pub(super) fn resend(&self) {
        self.resent.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how many requests were sent again for want of scripts.
    pub(crate) fn resent(&self) -> u64 {
        self.resent.load(Ordering::SeqCst)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn random(environment: &dyn Environment) -> u64 {
    let mut bytes = [0; 8];
    environment.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Fake;

    const SECOND: Duration = Duration::from_secs(1);

    fn common() -> Common {
        let (environment, _) = Fake::new();
        let environment: Arc<dyn Environment> = Arc::new(environment);
        let telemetry = Telemetry::silent(&environment, 2);
        Common::new(environment, telemetry, Vec::new(), SECOND, 300 * SECOND, 10 * SECOND)
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_lease_is_that_of_the_records_or_of_this_client() {
        let common = common();
        assert_eq!((common.longest_lease(), common.newcomer(0).longest), (Duration::ZERO, 10 * SECOND));
        common.learn_lease(12 * SECOND);
        assert!(!common.nodes_differ_on_leases());
        common.learn_lease(11 * SECOND);
        assert!(common.nodes_differ_on_leases());
        assert_eq!((common.learnt_lease(), common.longest_lease()), (12 * SECOND, 12 * SECOND));
        common.use_lease(15 * SECOND);
        common.use_lease(13 * SECOND);
        assert_eq!((common.learnt_lease(), common.longest_lease()), (12 * SECOND, 15 * SECOND));
        let newcomer = common.newcomer(0);
        assert_eq!((newcomer.longest, newcomer.proven), (15 * SECOND, 15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_are_given_in_their_units() {
        let common = common();
        assert_eq!((common.wall(), common.newcomer(0).wall), (1_790_000_000_000_000, 1_790_000_000_000));
        assert_eq!(common.ahead_of_monotonic(1_000_000_007), 7, "the monotonic clock of the fake shows 1000 s");
        assert_eq!(common.ahead_of_monotonic(999_999_993), -7);
    }

    /// A server that knows of a list of two.
    fn server(run_id: &str) -> Health {
        let process = crate::protocol::Process::new(run_id, 0, false, false);
        Health { run_id: run_id.to_owned(), process, record: None, listed: Some(2), clock: 0 }
    }

    fn reached(common: &Common, index: usize, run_id: &str) -> Result<Listing, NodeError> {
        common.reached(index, &format!("node {index}").into(), &server(run_id))
    }

    fn same_as(index: usize) -> Result<Listing, NodeError> {
        Err(NodeError::SameServer(format!("node {index}")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_to_be_heard_once_it_is_reached_and_until_it_is_known_to_be_out_of_reach() {
        let common = common();
        let missing = || common.hearing.missing(common.reachability.reached());
        assert_eq!(missing(), 0b11, "neither was tried yet");
        common.unreachable(0);
        assert_eq!(missing(), 0b10);
        common.connected(0);
        common.connected(1);
        assert_eq!(missing(), 0b11);
        common.disconnected(1);
        assert_eq!(missing(), 0b01);
        common.has_quarantine(0, Some(common.environment.now()));
        common.hearing.answered(0, common.environment.now());
        assert_eq!(missing(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_next_record_has_no_quarantine_has_forgotten_nothing() {
        let common = common();
        let now = common.environment.now();
        (0..3).for_each(|node| common.has_quarantine(node, Some(now)));
        common.has_quarantine(1, None);
        assert_eq!(common.quarantined(), 0b101);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_keeps_its_place_for_the_longest_lease_after_its_connection() {
        let common = common();
        common.use_lease(20 * SECOND);
        assert_eq!(reached(&common, 0, "a"), Ok(Listing::Known));
        common.connected(0);
        common.abandoned(0);
        assert_eq!(reached(&common, 1, "a"), same_as(0));
        common.disconnected(0);
        common.unreachable(0);
        tokio::time::advance(20 * SECOND).await;
        assert_eq!(reached(&common, 1, "a"), same_as(0));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(reached(&common, 1, "a"), Ok(Listing::Known));
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_servers_that_have_gone_the_latest_are_kept() {
        let common = common();
        for server in 0..70 {
            assert_eq!(reached(&common, 0, &server.to_string()), Ok(Listing::Known));
            common.connected(0);
            common.disconnected(0);
            common.unreachable(0);
        }
        assert_eq!(reached(&common, 1, "6"), same_as(0));
        assert_eq!(reached(&common, 1, "5"), Ok(Listing::Known));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_over_keeps_no_place() {
        let common = common();
        assert_eq!(reached(&common, 0, "a"), Ok(Listing::Known));
        common.connected(0);
        assert_eq!(reached(&common, 0, "b"), Ok(Listing::Known));
        assert_eq!(reached(&common, 1, "b"), same_as(0));
        common.abandoned(0);
        assert_eq!(reached(&common, 1, "b"), Ok(Listing::Known));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_cannot_be_reached_keeps_no_place() {
        let common = common();
        assert_eq!(reached(&common, 0, "a"), Ok(Listing::Known));
        assert_eq!(reached(&common, 1, "a"), same_as(0));
        common.unreachable(0);
        assert_eq!(reached(&common, 1, "a"), Ok(Listing::Known));
    }

    #[tokio::test(start_paused = true)]
    async fn conflicts_are_counted_until_they_are_mended() {
        let common = common();
        assert_eq!((common.conflicts(), common.conflict(0)), (0, None));
        let of_list = |listed| Health { listed: Some(listed), ..server("b") };
        for listed in [7, 6] {
            assert!(common.reached(1, &"node 1".into(), &of_list(listed)).is_err());
            common.unreachable(1);
            assert_eq!(common.conflict(0), None);
        }
        assert!(common.reached(1, &"node 1".into(), &of_list(5)).is_err());
        assert_eq!(common.conflicts(), 3);
        assert_eq!(common.conflict(0), Some(NodeError::NotAsked { node: "node 1".to_owned() }));
        assert_eq!(common.conflict(1), Some(NodeError::OtherList { ours: 2, theirs: 5 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_with_the_record_of_another_place_is_a_copy() {
        let common = common();
        let text = "0000000000000007 10000 0 0 300000 0000000000000001 1 a";
        let with_record = |run_id| {
            let record = crate::protocol::Record::parse(text).expect("a record");
            Health { record: Some((text.to_owned(), record)), ..server(run_id) }
        };
        assert!(common.reached(0, &"node 0".into(), &with_record("a")).is_ok());
        assert!(common.is_copy(1, &with_record("b")) && !common.is_copy(1, &server("b")));
    }

    #[tokio::test(start_paused = true)]
    async fn words_are_random() {
        let common = common();
        assert_ne!(common.client, common.newcomer(0).word);
        assert_ne!(common.newcomer(0).word, common.newcomer(0).word);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_an_answer_shows_is_kept() {
        let common = common();
        let shown = || common.clocks.median(common.environment.now());
        common.sees_clock(0, None);
        assert_eq!(shown(), None);
        common.sees_clock(0, Some(7_000_000));
        assert_eq!(shown(), Some(7_000_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_runtime_ends_the_client() {
        let common = common();
        assert!(!common.life.has_ended());
        common.end_of_runtime();
        assert!(common.life.has_ended());
    }

    #[test]
    fn the_last_wait_is_kept_for_each_node() {
        let common = common();
        common.waits_for(1, SECOND);
        assert_eq!([common.last_wait(0), common.last_wait(1)], [Duration::ZERO, SECOND]);
        common.waits_for(1, Duration::ZERO);
        assert_eq!(common.last_wait(1), Duration::ZERO);
    }
}
