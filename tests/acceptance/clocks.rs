//! Row 35: node clocks that are set while a lock is held.

use std::time::Duration;

use quorlock::{Answer, Guard, NodeError, Quorlock};
use quorlock_testkit::worker::Worker;
use quorlock_testkit::{CUT_OFF, Cluster, Setup, Stopwatch};

const LEASE: Duration = Duration::from_millis(1500);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

async fn client(urls: &[String], extends: bool) -> Quorlock {
    let builder = Quorlock::builder().nodes(urls).lease(LEASE).auto_extend(extends);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    locks
}

/// The first two of three nodes: a holder that is cut off from the third has no spare vote.
fn without_third(cluster: &Cluster) -> [String; 3] {
    let urls = cluster.urls();
    [urls[0].clone(), urls[1].clone(), CUT_OFF.to_owned()]
}

/// Checks one lock that is extended, and one that is not, while clocks are set ahead or back by this number of seconds.
struct Step {
    nodes: &'static [usize],
    seconds: i64,
}

impl Step {
    /// Tries again where the machine stood still for so long that the lease was over before the nodes were asked.
    async fn under_holders(&self, cluster: &mut Cluster) {
        for _ in 0..5 {
            if self.is_shown_under_holders(cluster).await {
                return;
            }
        }
        panic!(
            "{} nodes, {} s: no node was asked in time, or no extension came in time",
            self.nodes.len(),
            self.seconds
        );
    }

    async fn is_shown_under_holders(&self, cluster: &mut Cluster) -> bool {
        let Self { nodes, seconds } = self;
        let watch = Stopwatch::new();
        let what = format!("{} nodes, {seconds} s", nodes.len());
        let (kept_name, ending_name) = (format!("kept {what}"), format!("ending {what}"));
        let (urls, reached) = (cluster.urls(), without_third(cluster));
        let (idle, inspects) = (client(&urls, true).await, client(&urls, true).await);
        inspects.inspect(&kept_name).await.expect("a name");
        let (extends, lets_end) = (client(&reached, true).await, client(&reached, false).await);
        let ending = lets_end.lock(&ending_name).acquire().await.expect("two of three");
        let kept = extends.lock(&kept_name).acquire().await.expect("two of three");
        assert_eq!((kept.margin(), ending.margin()), (0, 0));

        for node in *nodes {
            cluster.step(*node, *seconds);
        }
        let newcomer = client(&urls, true).await;
        let mut refusals = 0;
        while !ending.remaining().is_zero() {
            for locks in [&newcomer, &idle, &inspects] {
                refusals += u32::from(is_refused_while_held(locks, &kept_name, &kept, &what).await);
                refusals += u32::from(is_refused_while_held(locks, &ending_name, &ending, &what).await);
            }
            tokio::time::sleep(Duration::from_millis(5)).await; // Between tries.
        }
        let mut is_shown = refusals > 0;
        if seconds.abs() <= 10 * MINUTE {
            match kept.extend().await {
                Ok(_) => drop(is_refused_while_held(&idle, &kept_name, &kept, &what).await),
                Err(_) if watch.stalled() > LEASE / 4 => is_shown = false,
                Err(error) => panic!("{what}: {error}"),
            }
        }
        drop((kept, ending));
        for name in [&kept_name, &ending_name] {
            let next = newcomer.lock(name).wait(20 * SECOND).acquire().await;
            next.unwrap_or_else(|error| panic!("{what}: {error}")).release().await.expect("a release");
        }
        for node in *nodes {
            cluster.step(*node, -seconds);
        }
        is_shown
    }
}

/// Returns whether a node has refused the lock before the lease was over.
async fn is_refused_while_held(locks: &Quorlock, name: &str, guard: &Guard, what: &str) -> bool {
    let outcome = locks.lock(name).try_acquire().await;
    let left = guard.remaining();
    assert!(outcome.is_err() || left.is_zero(), "{what}: a second holder of {name:?}, {left:?} before the end");
    let is_refusal = |answer: &Answer| match answer {
        Answer::Failed(error) => matches!(error, NodeError::Quarantined { .. }),
        answer => *answer != Answer::Agreed,
    };
    !left.is_zero() && outcome.is_err_and(|error| error.nodes().iter().any(|report| is_refusal(&report.answer)))
}

// Setting a clock blocks a thread. The clients have another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_35_one_clock_step_under_a_holder_gives_no_second_holder() {
    let Some(mut cluster) = Setup::new(3).longest(LEASE).with_clocks() else { return };
    for seconds in [2, MINUTE, 10 * MINUTE, HOUR, -10 * MINUTE] {
        Step { nodes: &[1], seconds }.under_holders(&mut cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acc_35_all_clocks_set_ahead_give_no_second_holder() {
    let Some(mut cluster) = Setup::new(3).longest(LEASE).with_clocks() else { return };
    for seconds in [2, MINUTE, 10 * MINUTE, HOUR] {
        Step { nodes: &[0, 1, 2], seconds }.under_holders(&mut cluster).await;
    }
}

/// A cancelled request leaves a newer ballot behind. The last lease is still repaired after that.
#[tokio::test]
async fn acc_35_cancelled_requests_do_not_end_a_lease_without_keys() {
    let mut cluster = Cluster::start(3);
    let holder = cluster.client(60 * SECOND).await;
    let asks = cluster.client(60 * SECOND).await;
    let guard = holder.lock("x").acquire().await.expect("a free lock");
    holder.flush().await;
    let key = Cluster::lock_key("x");
    // A clock step ahead ends the keys in the same way.
    cluster.each::<i64>(redis::cmd("DEL").arg(&key));
    for node in 0..3 {
        // The other two refuse, so this one gets the release of the request as well.
        cluster.pause(node);
        assert!(asks.lock("x").try_acquire().await.is_err_and(|error| error.is_held()), "it is held");
        cluster.resume(node);
        asks.flush().await;
    }
    assert_eq!(cluster.count_keys(&key), 0);
    guard.extend().await.expect("every node still knows the lease");
    holder.flush().await;
    assert_eq!((guard.margin(), cluster.count_keys(&key)), (1, 3));
    assert!(asks.lock("x").try_acquire().await.is_err_and(|error| error.is_held()));
    guard.release().await.expect("a release");
    asks.lock("x").wait(20 * SECOND).acquire().await.expect("free").release().await.expect("a release");
}

#[tokio::test]
async fn acc_35_a_dead_holders_lock_is_free_after_its_lease() {
    let Some(mut cluster) = Setup::new(3).longest(LEASE).quiet().with_clocks() else { return };
    let reached = without_third(&cluster).join(",");
    let steps: [(&[usize], i64); 5] =
        [(&[1], 2), (&[1], 10 * MINUTE), (&[1], -10 * MINUTE), (&[0, 1, 2], 10 * MINUTE), (&[0, 1, 2], HOUR)];
    for (nodes, seconds) in steps {
        let name = format!("{} nodes, {seconds} s", nodes.len());
        let waits = client(&cluster.urls(), true).await;
        let mut holder = Worker::spawn(&["hold", &reached, &name, &LEASE.as_millis().to_string()]);
        holder.next().expect("it holds");
        for node in nodes {
            cluster.step(*node, seconds);
        }
        let killed = Stopwatch::new();
        holder.kill();
        let guard = waits.lock(&name).wait(20 * SECOND).acquire().await.expect("after the lease");
        let (took, limit) = (killed.elapsed(), LEASE + Duration::from_millis(300) + killed.contended());
        assert!(took <= limit, "{name}: granted {took:?} after the holder's death, {limit:?} allowed");
        guard.release().await.expect("a release");
        for node in nodes {
            cluster.step(*node, -seconds);
        }
    }
}
