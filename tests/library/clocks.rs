//! Wall clocks that are wrong, and one that is set while a lock is held.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorlock::environment::{Connecting, Environment, Moment, Stream};
use quorlock::{AcquireError, Holder, Quorlock};
use quorlock_testkit::{Cluster, Setup, monotonic_micros, within};
use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const SECOND: Duration = Duration::from_secs(1);

/// This machine, with a wall clock that is `wall` seconds ahead, after a sleep of `slept` seconds. It supports TCP only, and
/// panics for any other address.
#[derive(Debug, Default)]
pub struct Ahead {
    wall: AtomicI64,
    slept: AtomicU64,
    /// The number of writes to all nodes.
    pub writes: Arc<AtomicUsize>,
    /// How long it takes to open a stream.
    connects_after: Duration,
}

impl Ahead {
    /// A machine with a correct clock, far away from its nodes.
    pub fn that_connects_after(connects_after: Duration) -> Self {
        Self { connects_after, ..Self::default() }
    }

    /// A machine whose clock is so many seconds ahead.
    pub fn with_wall(ahead: i64) -> Self {
        Self { wall: AtomicI64::new(ahead), ..Self::default() }
    }
}

/// A stream that counts its writes.
struct Counted(TcpStream, Arc<AtomicUsize>);

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Environment for Ahead {
    fn now(&self) -> Moment {
        Moment::new(Duration::from_micros(monotonic_micros()) + Duration::from_secs(self.slept.load(Ordering::Relaxed)))
    }

    fn wall(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let ahead = self.wall.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    fn fill(&self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        Box::pin(async move {
            tokio::time::sleep(self.connects_after).await; // The delay of the network.
            let ConnectionAddr::Tcp(host, port) = address else { panic!("{address:?}") };
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            Ok(Box::new(Counted(stream, Arc::clone(&self.writes))) as Box<dyn Stream>)
        })
    }
}

async fn client(cluster: &Cluster, ahead: i64) -> (Quorlock, Arc<Ahead>) {
    let environment = Arc::new(Ahead { wall: AtomicI64::new(ahead), ..Ahead::default() });
    let builder = cluster.builder().node_timeout(2 * SECOND).environment(environment.clone());
    (builder.connect().await.expect("settings that work"), environment)
}

#[tokio::test]
async fn clients_with_clocks_minutes_apart_take_turns_in_order() {
    let cluster = Cluster::start(5);
    let (fast, _) = client(&cluster, 20 * 60).await;
    let (slow, _) = client(&cluster, -20 * 60).await;
    let mut last = None;
    for turn in 0..10 {
        let locks = if turn % 2 == 0 { &fast } else { &slow };
        let guard = locks.lock("x").wait(5 * SECOND).acquire().await.expect("its turn");
        assert!(last < Some(guard.token()), "turn {turn}");
        last = Some(guard.token());
        guard.extend().await.expect("an extension");
        guard.release().await.expect("a release");
    }
}

#[tokio::test]
async fn a_client_clock_hours_behind_costs_one_round() {
    let cluster = Cluster::start(5);
    let (behind, _) = client(&cluster, -5 * 3600).await;
    let mut last = None;
    for _ in 0..10 {
        let guard = behind.lock("x").try_acquire().await.expect("the nodes answer with their ballots");
        assert!(last < Some(guard.token()));
        last = Some(guard.token());
        guard.release().await.expect("a release");
    }
    let (right, _) = client(&cluster, 0).await;
    assert!(Some(right.lock("x").try_acquire().await.expect("free").token()) > last);
}

#[tokio::test]
async fn a_client_clock_hours_ahead_keeps_tokens_within_the_window() {
    const WINDOW: u128 = 300_000_000; // us
    let cluster = Cluster::start(5);
    let (ahead, _) = client(&cluster, 5 * 3600).await;
    let (right, _) = client(&cluster, 0).await;
    let mut last = None;
    for turn in 0..10 {
        let locks = if turn % 2 == 0 { &ahead } else { &right };
        let guard = locks.lock("x").try_acquire().await.expect("the nodes answer with their ballots");
        assert!(last < Some(guard.token()), "turn {turn}");
        last = Some(guard.token());
        guard.extend().await.expect("an extension");
        guard.release().await.expect("a release");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
        let token = u128::from(last.expect("a token").get());
        assert!(token <= now + WINDOW, "turn {turn}: token {token} at {now}");
    }
}

#[tokio::test]
async fn a_wall_clock_step_under_a_held_lock_changes_nothing() {
    let cluster = Cluster::start(5);
    let (locks, environment) = client(&cluster, 0).await;
    let guard = locks.lock("x").acquire().await.expect("the lock");
    for ahead in [-10 * 3600, 10 * 3600] {
        environment.wall.store(ahead, Ordering::Relaxed);
        guard.extend().await.expect("an extension");
        let other = locks.lock("y").try_acquire().await.expect("another lock");
        other.release().await.expect("a release");
    }
    guard.release().await.expect("a release");
}

#[tokio::test]
async fn a_loss_found_by_a_late_answer_is_signalled() {
    let cluster = Cluster::start(3);
    let (locks, environment) = client(&cluster, 0).await;
    let guard = locks.lock("x").acquire().await.expect("the lock");
    let mut lost = pin!(guard.lost());
    assert!(futures::poll!(&mut lost).is_pending());
    let mut extension = pin!(guard.extend());
    assert!(futures::poll!(&mut extension).is_pending(), "under way");
    environment.slept.store(3600, Ordering::Relaxed); // The machine slept; the answers wait.
    assert!(extension.await.expect_err("too late").is_lost());
    tokio::time::timeout(SECOND, lost).await.expect("the signal of the loss");
}

/// Returns the end of the lease on a name on its node, in ms ahead of this machine's wall clock.
fn end_ahead(cluster: &Cluster, name: &str) -> i64 {
    let key = format!("quorlock:ballot:{}", Cluster::lock_key(name));
    let mark: String = redis::cmd("GET").arg(key).query(&mut cluster.redis(0)).expect("a ballot");
    let end: i64 = mark.split(' ').nth(1).and_then(|end| end.parse().ok()).expect("an end");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    end - i64::try_from(now.as_millis()).expect("a time")
}

#[tokio::test]
async fn a_corrected_clock_is_used_after_the_longest_lease() {
    const HOUR: i64 = 3_600_000;
    let cluster = Setup::new(1).longest(SECOND).start();
    let environment = Arc::new(Ahead { wall: AtomicI64::new(-5 * 3600), ..Ahead::default() });
    let builder = cluster.builder().lease(SECOND).environment(environment.clone());
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    assert!((-6 * HOUR..-4 * HOUR).contains(&end_ahead(&cluster, "x")), "{} ms", end_ahead(&cluster, "x"));

    environment.wall.store(0, Ordering::Relaxed);
    let set = environment.now();
    guard.extend().await.expect("an extension");
    let ahead = end_ahead(&cluster, "x");
    // The client does not follow a step at once.
    assert!(ahead < -4 * HOUR || environment.now().since(set) >= SECOND, "{ahead} ms");
    let is_followed = async || {
        guard.extend().await.expect("an extension");
        (-1000..=1100).contains(&end_ahead(&cluster, "x"))
    };
    within(20 * SECOND, "ends follow the clock as it is now", is_followed).await;
    guard.release().await.expect("a release");
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    assert!(u128::from(guard.token().get()).abs_diff(now) < 10_000_000, "{}", guard.token());
}

#[tokio::test]
async fn a_client_clock_set_hours_ahead_keeps_ballots_reachable() {
    let cluster = Setup::new(1).longest(SECOND).start();
    let environment = Arc::new(Ahead::default());
    let builder = cluster.builder().lease(SECOND).environment(environment.clone());
    let locks = builder.connect().await.expect("settings that work");
    let other = cluster.client(SECOND).await;
    let cycle = async |locks: &Quorlock| {
        let guard = locks.lock("x").wait(10 * SECOND).acquire().await.expect("a free lock");
        guard.release().await.expect("a release");
    };
    cycle(&locks).await;
    environment.wall.store(3600, Ordering::Relaxed);
    // Wait until the client follows the step, which the end of the lease shows.
    let is_followed = async || {
        let guard = locks.lock("y").wait(10 * SECOND).acquire().await.expect("a free lock");
        let ahead = end_ahead(&cluster, "y");
        guard.release().await.expect("a release");
        ahead > 1_800_000
    };
    within(20 * SECOND, "ends follow the clock as it was set", is_followed).await;
    cycle(&locks).await;
    // Other clients can still exceed its ballots.
    cycle(&other).await;
}

/// A node whose clock is a day apart from the client's may have forgotten a lease in a leap of its clock.
#[tokio::test]
async fn a_client_a_day_behind_waits_one_longest_lease_per_name() {
    let cluster = Setup::new(3).longest(SECOND).start();
    let environment = Arc::new(Ahead { wall: AtomicI64::new(-2 * 24 * 3600), ..Ahead::default() });
    let builder = cluster.builder().lease(SECOND).environment(environment);
    let behind = builder.connect().await.expect("settings that work");
    for name in ["x", "y"] {
        let start = Instant::now();
        let error = behind.lock(name).try_acquire().await.expect_err("it has not waited");
        assert!(matches!(error, AcquireError::Held { by: Holder::Forgotten, .. }), "{error}");
        let guard = behind.lock(name).wait(30 * SECOND).acquire().await.expect("it has waited");
        assert!(start.elapsed() >= SECOND, "after {:?}", start.elapsed());
        guard.release().await.expect("a release");
        // Its ballot is remembered there now.
        behind.lock(name).try_acquire().await.expect("free").release().await.expect("a release");
    }
}

/// A process that was stopped past the end of its lease continues before any timer fires.
#[tokio::test]
async fn protected_work_is_not_polled_after_the_lease() {
    let cluster = Cluster::start(3);
    let (locks, environment) = client(&cluster, 0).await;
    let guard = locks.lock("x").acquire().await.expect("the lock");
    let polls = AtomicUsize::new(0);
    let work = std::future::poll_fn(|_| {
        polls.fetch_add(1, Ordering::Relaxed);
        Poll::<()>::Pending
    });
    let (mut protected, mut lost) = (pin!(guard.protect(work)), pin!(guard.lost()));
    assert!(futures::poll!(&mut protected).is_pending() && futures::poll!(&mut lost).is_pending());
    environment.slept.store(3600, Ordering::Relaxed);
    assert!(matches!(futures::poll!(&mut protected), Poll::Ready(Err(_))));
    assert!(futures::poll!(&mut lost).is_ready());
    assert_eq!(polls.load(Ordering::Relaxed), 1);
}

/// The order of turns depends on how long a request has waited, not on the ballot from its client's clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_slow_clocks_get_an_equal_share_of_turns() {
    const TURNS: usize = 300;
    let cluster = Cluster::start(3);
    let taken = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for seconds in [-1, -1, 0] {
        let environment = Arc::new(Ahead::default());
        environment.wall.store(seconds, Ordering::Relaxed);
        let locks = cluster
            .builder()
            .node_timeout(2 * SECOND)
            .environment(environment)
            .connect()
            .await
            .expect("settings that work");
        locks.flush().await;
        let taken = Arc::clone(&taken);
        clients.push(tokio::spawn(async move {
            let mut own = 0_usize;
            while taken.fetch_add(1, Ordering::Relaxed) < TURNS {
                let guard = locks.lock("turns").acquire().await.expect("its turn");
                tokio::time::sleep(Duration::from_millis(3)).await; // How long it holds the lock.
                guard.release().await.expect("a release");
                own += 1;
            }
            own
        }));
    }
    let mut shares = Vec::new();
    for client in clients {
        shares.push(client.await.expect("a task"));
    }
    let most = TURNS / 3 * 6 / 5;
    assert!(shares.iter().all(|share| *share <= most), "the shares are {shares:?}");
}

/// Enters the lock again. The lease is extended after that, and the guard says the same as before.
async fn reenters_and_goes_on(locks: &Quorlock, guard: &quorlock::Guard) {
    let again = locks.lock("x").owner(guard.owner()).wait(5 * SECOND).acquire().await.expect("the owner has it");
    assert_eq!(again.token(), guard.token());
    for _ in 0..3 {
        guard.extend().await.expect("an extension");
    }
    again.release().await.expect("an inner release");
    guard.extend().await.expect("an extension");
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn a_lease_is_entered_again_after_the_wall_clock_was_set_a_day_ahead() {
    let cluster = Setup::new(3).longest(2 * SECOND).start();
    let environment = Arc::new(Ahead::default());
    let builder = cluster.builder().lease(2 * SECOND).node_timeout(SECOND).environment(environment.clone());
    let locks = builder.connect().await.expect("settings that work");
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    environment.wall.store(24 * 3600 - 60, Ordering::Relaxed);
    let is_followed = async || {
        guard.extend().await.expect("an extension");
        end_ahead(&cluster, "x") > 1_800_000
    };
    within(20 * SECOND, "ends follow the clock as it is now", is_followed).await;
    // Other locks of the owner in the same request: the nodes refuse the first ballot, which is a day ahead.
    let both = locks.lock_all(["x", "y"]).owner(guard.owner()).wait(5 * SECOND).acquire().await.expect("both");
    assert_eq!(both.token_of("x"), Some(guard.token()));
    reenters_and_goes_on(&locks, &guard).await;
}

#[tokio::test]
async fn a_lease_is_entered_again_where_one_node_shares_the_clients_wrong_clock() {
    let Some(mut cluster) = Setup::new(3).longest(2 * SECOND).with_clocks() else { return };
    cluster.step(0, 600);
    let environment = Arc::new(Ahead::with_wall(600));
    let builder = cluster.builder().lease(2 * SECOND).node_timeout(SECOND).environment(environment);
    let locks = builder.connect().await.expect("settings that work");
    let guard = locks.lock("x").wait(5 * SECOND).acquire().await.expect("a free lock");
    reenters_and_goes_on(&locks, &guard).await;
    let both = locks.lock_all(["x", "y"]).owner(guard.owner()).wait(5 * SECOND).acquire().await.expect("both");
    drop(both);
    reenters_and_goes_on(&locks, &guard).await;
}
