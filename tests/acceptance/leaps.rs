//! The clocks of a majority leap far ahead and back: the effects on the nodes are limited, and no name stays blocked.

use std::time::Duration;

use quorlock::{AcquireError, Quorlock};
use quorlock_testkit::worker::Worker;
use quorlock_testkit::{Cluster, Setup, within};

const SECOND: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(2);
/// How far ballots may lie from a node's clock: they are kept twice as long.
const WINDOW: Duration = Duration::from_secs(3);
const DAY: i64 = 24 * 3600;
const NAMES: [&str; 5] = ["held and dead", "held and released", "taken and dead", "taken and released", "untouched"];

async fn client(cluster: &Cluster) -> Quorlock {
    cluster.client(LONGEST).await
}

fn is_typed(error: &AcquireError) -> bool {
    error.is_held() || error.is_no_quorum() || error.is_lost()
}

/// Returns the longest lifetimes of a lock key and a ballot key of this name on any node, in ms.
fn lives(cluster: &Cluster, name: &str) -> (i64, i64) {
    let life = |key: &str| cluster.each::<i64>(redis::cmd("PTTL").arg(key)).into_iter().max().expect("three nodes");
    let key = Cluster::lock_key(name);
    (life(&key), life(&format!("quorlock:ballot:{key}")))
}

/// Checks leases that begin, end and continue while two of three clocks are this far ahead.
async fn leap(cluster: &mut Cluster, seconds: i64) {
    let urls = cluster.urls().join(",");
    let hold = |name: &str| Worker::spawn(&["hold", &urls, name, &LONGEST.as_millis().to_string()]);
    let locks = client(cluster).await;
    let mut dead = hold(NAMES[0]);
    dead.next().expect("it holds");
    let released = locks.lock(NAMES[1]).acquire().await.expect("a free lock");
    locks.flush().await;

    for node in [0, 1] {
        cluster.step(node, seconds);
    }
    let mut taken = hold(NAMES[2]);
    taken.next().expect("it holds, by the clocks of the two");
    // Nodes that have forgotten the lease do not hold it any more.
    drop(released.release().await);
    match locks.lock(NAMES[3]).wait(20 * SECOND).acquire().await {
        Ok(guard) => drop(guard.release().await),
        Err(error) => assert!(is_typed(&error), "{error}"),
    }
    // One extension at least, by clocks that are ahead.
    tokio::time::sleep(LONGEST / 2).await;
    dead.kill();
    taken.kill();
    locks.flush().await;
    for node in [0, 1] {
        cluster.step(node, -seconds);
    }
}

async fn leaves_nothing_for_long(seconds: i64) {
    let Some(mut cluster) = Setup::new(3).longest(LONGEST).window(WINDOW).with_clocks() else { return };
    leap(&mut cluster, seconds).await;
    let next = client(&cluster).await;
    for name in NAMES {
        let look = next.lock(name).wait(SECOND / 2).acquire().await;
        assert!(look.as_ref().is_ok() || look.as_ref().is_err_and(is_typed), "{name}: {look:?}");
        next.flush().await;
        let (lock, _) = lives(&cluster, name);
        let longest = i64::try_from(LONGEST.as_millis()).expect("a short time");
        assert!(lock <= longest, "{name}: a lock key has {lock} ms");
    }
    for name in NAMES {
        let is_granted = async || {
            let outcome = next.lock(name).try_acquire().await;
            assert!(outcome.as_ref().is_ok() || outcome.as_ref().is_err_and(is_typed), "{name}: {outcome:?}");
            outcome.is_ok()
        };
        let said = format!("{name} can be locked again; its keys have {:?} ms left", lives(&cluster, name));
        within(2 * WINDOW + LONGEST + 20 * SECOND, &said, is_granted).await;
    }
}

#[tokio::test]
async fn a_majority_leap_of_a_day_and_back_has_limited_effects() {
    leaves_nothing_for_long(DAY).await;
}

#[tokio::test]
async fn a_majority_leap_of_ten_years_and_back_has_limited_effects() {
    leaves_nothing_for_long(3652 * DAY).await;
}
