//! Whether a majority of the nodes answers, as the requests of one client find out together.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::select;
use tokio::sync::{Mutex, Notify};

use crate::environment::{Environment, random_time, within};
use crate::protocol::quorum;

/// A request that no majority has answered asks again no sooner than after such a pause.
const LEAST_PAUSE: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(100);
/// The pause is doubled at most so often: 160 to 800 ms.
const MOST_DOUBLINGS: u32 = 3;

/// Of the requests that no majority has answered, one at a time asks again, after a pause that grows. The others wait until a
/// majority has answered any request of the client.
#[derive(Debug)]
pub(crate) struct Reachability {
    nodes: usize,
    /// One bit for each node to which there is a connection.
    connected: AtomicU64,
    /// A majority is connected again.
    reconnected: Notify,
    /// How many requests wait.
    waiting: AtomicU32,
    /// The request that asks next holds this during its pause.
    asks_next: Mutex<()>,
    /// How many have asked since a majority answered.
    asked: AtomicU32,
    answered: Notify,
}

impl Reachability {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            connected: AtomicU64::new(0),
            reconnected: Notify::new(),
            waiting: AtomicU32::new(0),
            asks_next: Mutex::new(()),
            asked: AtomicU32::new(0),
            answered: Notify::new(),
        }
    }

    /// Notes a new connection to this node. The one that makes a majority ends the pause of the request that asks next.
    pub(crate) fn connected(&self, node: usize) {
        let before = self.connected.fetch_or(1 << node, Ordering::SeqCst);
        let after = before | 1 << node;
        if after != before && after.count_ones() as usize == quorum(self.nodes) {
            self.reconnected.notify_one();
        }
    }

    pub(crate) fn disconnected(&self, node: usize) {
        self.connected.fetch_and(!(1 << node), Ordering::SeqCst);
    }

    /// Returns the nodes to which there are connections, one bit for each.
    pub(crate) fn reached(&self) -> u64 {
        self.connected.load(Ordering::SeqCst)
    }

    /// Ends all waits, as a majority has answered a request of this client.
    pub(crate) fn majority_answered(&self) {
        // Also when the request that found the majority again was the only one, which waits no more.
        if self.asked.load(Ordering::SeqCst) > 0 {
            self.asked.store(0, Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.answered.notify_waiters();
        }
    }

    /// Waits until a request that no majority has answered is to ask again. Returns whether a majority has answered meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn next_try(&self, environment: &dyn Environment) -> bool {
        let _waiting = Waiting::new(&self.waiting);
        // Created before the pause, so it is notified of an answer during the pause, too.
        let answered = self.answered.notified();
        environment.sleep(random_time(environment, LEAST_PAUSE)).await;
        let asks = async {
            // Each that is before this one asks within a pause, unless its task is not run: a future that is kept and not polled.
            let most = LEAST_PAUSE.end * 2_u32.pow(MOST_DOUBLINGS) * self.waiting.load(Ordering::SeqCst);
            let _next = within(environment, most, self.asks_next.lock()).await;
            let doublings = self.asked.fetch_add(1, Ordering::SeqCst).min(MOST_DOUBLINGS);
            let pause = random_time(environment, LEAST_PAUSE) * (2_u32.pow(doublings) - 1);
            let _ = within(environment, pause, self.reconnected.notified()).await;
        };
        select! {
            biased;
            () = answered => true,
            () = asks => false,
        }
    }
}

/// Counts a request for as long as it waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::environment::{Connecting, Moment};

    /// Tokio's paused clock, and random bytes that are all the same.
    #[derive(Debug)]
    struct Loaded(u8);

    /// The longest pauses are the worst case for those who wait, the shortest ones for the nodes.
    const LONGEST: Loaded = Loaded(255);
    const SHORTEST: Loaded = Loaded(0);

    impl Environment for Loaded {
        fn now(&self) -> Moment {
            Moment::new(Duration::ZERO)
        }

        fn wall(&self) -> Duration {
            Duration::ZERO
        }

        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }

        fn connect<'a>(&'a self, _: &'a redis::ConnectionAddr) -> Connecting<'a> {
            unreachable!("nothing connects here")
        }
    }

    async fn tries(reachability: Arc<Reachability>, until: Instant) -> u32 {
        let mut tries = 0;
        while timeout(until.saturating_duration_since(Instant::now()), reachability.next_try(&SHORTEST)).await.is_ok() {
            tries += 1;
        }
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_one_client_ask_by_turns_and_less_and_less_often() {
        for waiters in [1, 50, 500] {
            let (reachability, began) = (Arc::new(Reachability::new(5)), Instant::now());
            let until = began + Duration::from_secs(10);
            let each: Vec<_> = (0..waiters).map(|_| tokio::spawn(tries(Arc::clone(&reachability), until))).collect();
            let mut all = 0;
            for each in each {
                all += each.await.expect("no panic");
            }
            assert!((50..=80).contains(&all), "{waiters} waiters ask {all} times in 10 s with the shortest pauses");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_majority_that_answers_ends_all_pauses_but_the_first_part() {
        let reachability = Arc::new(Reachability::new(5));
        let waits = |reachability: &Arc<Reachability>| {
            let reachability = Arc::clone(reachability);
            tokio::spawn(async move { (reachability.next_try(&LONGEST).await, Instant::now()) })
        };
        assert!(!reachability.next_try(&LONGEST).await && !reachability.next_try(&LONGEST).await);
        let (began, early) = (Instant::now(), [(); 20].map(|()| waits(&reachability)));
        sleep(Duration::from_millis(150)).await;
        let late = waits(&reachability);
        sleep(Duration::from_millis(20)).await;
        reachability.majority_answered();
        for waiting in early {
            let (answered, at) = waiting.await.expect("no panic");
            assert!(answered && at - began == Duration::from_millis(170), "{answered}, after {:?}", at - began);
        }
        let (answered, at) = late.await.expect("no panic");
        assert!(answered && at - began == Duration::from_millis(250), "{answered}, after {:?}", at - began);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_kept_and_not_polled_stops_no_other_one() {
        let reachability = Reachability::new(5);
        assert!(!reachability.next_try(&LONGEST).await);
        let mut kept = Box::pin(reachability.next_try(&LONGEST));
        assert!(timeout(Duration::from_millis(150), &mut kept).await.is_err(), "it waits to ask next");
        let began = Instant::now();
        assert!(!reachability.next_try(&LONGEST).await);
        assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
        drop(kept);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_begin_anew_when_a_majority_answered() {
        let reachability = Arc::new(Reachability::new(5));
        let pause = async || {
            let began = Instant::now();
            assert!(!reachability.next_try(&LONGEST).await);
            began.elapsed().as_millis()
        };
        assert_eq!(
            [pause().await, pause().await, pause().await, pause().await, pause().await],
            [100, 200, 400, 800, 800]
        );
        reachability.majority_answered();
        assert_eq!([pause().await, pause().await], [100, 200], "the one that asked has had its answer");
        let waits = tokio::spawn({
            let reachability = Arc::clone(&reachability);
            async move { reachability.next_try(&LONGEST).await }
        });
        sleep(Duration::from_millis(1)).await;
        reachability.majority_answered();
        assert!(waits.await.expect("no panic"));
        assert_eq!([pause().await, pause().await], [100, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_asks_when_a_majority_is_connected_again() {
        let reachability = Arc::new(Reachability::new(5));
        for _ in 0..6 {
            reachability.next_try(&LONGEST).await;
        }
        let waits = || {
            let reachability = Arc::clone(&reachability);
            tokio::spawn(async move { reachability.next_try(&LONGEST).await })
        };
        let (first, second) = (waits(), waits());
        sleep(Duration::from_millis(150)).await;
        for node in [0, 1, 1] {
            reachability.connected(node);
        }
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "two are no majority");
        reachability.connected(4);
        let at_once = |waits| timeout(Duration::from_millis(1), waits);
        let answered = at_once(first).await.expect("the connection ends its pause").expect("no panic");
        assert!(!answered, "it asks before a majority has answered");
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "one is enough");
        for node in [3, 0] {
            reachability.connected(node);
        }
        sleep(Duration::from_millis(1)).await;
        assert!(!second.is_finished(), "there was a majority before");
        for node in [3, 4] {
            reachability.disconnected(node);
        }
        reachability.connected(3);
        assert!(!at_once(second).await.expect("the connection ends its pause").expect("no panic"));
    }
}
