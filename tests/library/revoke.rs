//! `Quorlock::revoke`: taking a lease from a holder that is alive.

use std::time::{Duration, Instant};

use quorlock::{ErrorKind, Holder, LostError, Quorlock, RevokeError, Verdict};
use quorlock_testkit::{Cluster, within};

const SECOND: Duration = Duration::from_secs(1);

/// Returns a client that waits five seconds for an answer, on a busy machine.
pub async fn patient(cluster: &Cluster) -> Quorlock {
    let builder = cluster.builder().lease(10 * SECOND).node_timeout(5 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    locks
}

#[tokio::test]
async fn a_revoked_holder_is_refused_and_the_lock_stays_closed_until_its_end() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(3 * SECOND).await;
    let operator = patient(&cluster).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let label = guard.owner().label().to_owned();

    let before = Instant::now();
    let relied_on = before + guard.remaining();
    let revoked = operator.revoke("job", None).await.expect("a majority");
    assert_eq!((revoked.token, &revoked.label), (guard.token(), &label));
    assert!(revoked.free_in <= 3 * SECOND && Instant::now() + revoked.free_in > relied_on, "{revoked:?}");

    // The holder may still rely on it: no other owner gets it, and it is shown as what it is.
    let error = operator.lock("job").try_acquire().await.expect_err("closed until the end");
    assert!(error.to_string().contains(&format!("revoked from {label}")), "{error}");
    let seen = operator.inspect("job").await.expect("a look");
    assert_eq!(
        (seen.verdict, seen.holder),
        (Verdict::Held, Some(Holder::Revoked { label: label.clone(), token: guard.token() }))
    );

    let waiter = tokio::spawn({
        let operator = operator.clone();
        async move {
            let guard = operator.lock("job").wait(10 * SECOND).acquire().await.expect("free after the lease");
            (Instant::now(), guard)
        }
    });
    let error = guard.extend().await.expect_err("refused");
    let losses = holder.stats().losses;
    assert_eq!((losses.revoked, losses.refused, losses.expired), (1, 0, 0));
    assert!(error.is_lost() && error.to_string().contains("revoked from"), "{error}");
    assert!(guard.is_lost());
    let lost: LostError = guard.protect(std::future::pending::<()>()).await.expect_err("lost");
    assert!(lost.to_string().contains("revoked from"), "{lost}");
    assert!(guard.release().await.expect_err("nothing to release").is_lost());
    let (granted, newer) = waiter.await.expect("no panic");
    assert!(granted >= relied_on, "granted {:?} before the revoked lease was over", relied_on - granted);
    assert!(newer.token() > revoked.token);

    // The same call again names a lease that is over: it touches no newer holder.
    let error = operator.revoke("job", Some(revoked.token)).await.expect_err("a newer holder");
    assert!(
        matches!(&error, RevokeError::Held { by: Holder::Owner { token, .. }, .. } if *token == newer.token()),
        "{error}"
    );
    newer.extend().await.expect("still held");
    newer.release().await.expect("a release");
    // A node that has not granted the newer lease may show the revoked one for some milliseconds more.
    let is_free = async || matches!(operator.revoke("job", None).await, Err(RevokeError::NotHeld { .. }));
    within(5 * SECOND, "nothing is left to revoke", is_free).await;
}

#[tokio::test]
async fn a_holder_that_only_waits_learns_of_it_by_its_next_extension() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(3 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let end = Instant::now() + guard.remaining();
    patient(&cluster).await.revoke("job", None).await.expect("a majority");
    guard.lost().await;
    assert!(Instant::now() < end, "told only by the end of its lease");
    assert!(guard.is_lost());
}

/// The node that has no key would repair a lease whose known ballot is not below its own.
#[tokio::test]
async fn a_node_without_the_key_repairs_no_revoked_lease() {
    let mut cluster = Cluster::start(3);
    let holder = cluster.client(60 * SECOND).await;
    let operator = patient(&cluster).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    holder.flush().await;
    for key in [Cluster::lock_key("job"), format!("quorlock:ballot:{}", Cluster::lock_key("job"))] {
        let _: u64 = redis::cmd("DEL").arg(key).query(&mut cluster.redis(2)).expect("a number");
    }
    cluster.pause(1);
    operator.revoke("job", Some(guard.token())).await.expect("two of three");
    cluster.resume(1);
    assert!(guard.extend().await.expect_err("refused by two").is_lost());
    assert!(guard.is_lost());
}

#[tokio::test]
async fn repeated_and_with_a_minority_down() {
    let mut cluster = Cluster::start(5);
    let holder = cluster.client(60 * SECOND).await;
    // Each call waits that long for the two that are down.
    let builder = cluster.builder().node_timeout(2 * SECOND);
    let operator = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&operator).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    cluster.pause(0);
    cluster.pause(1);
    for _ in 0..3 {
        let revoked = operator.revoke("job", Some(guard.token())).await.expect("three of five");
        assert_eq!(revoked.token, guard.token());
    }
    assert!(guard.extend().await.expect_err("refused").is_lost());
    cluster.pause(2);
    let error = operator.revoke("job", Some(guard.token())).await.expect_err("two of five");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NoQuorum, true), "{error}");
    assert_eq!(error.nodes().len(), 5);
    (0..3).for_each(|node| cluster.resume(node));
}

#[tokio::test]
async fn a_revoked_lease_cannot_be_entered_joined_or_released() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let joiner = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let export = guard.export();
    patient(&cluster).await.revoke("job", None).await.expect("a majority");
    assert!(joiner.join(&export).await.expect_err("revoked").is_lost());
    let error = holder.lock("job").owner(guard.owner()).try_acquire().await.expect_err("revoked");
    assert!(error.is_lost() || error.is_held(), "{error}");
    assert!(guard.release().await.expect_err("revoked").is_lost());
    assert_eq!(cluster.count_keys(&Cluster::lock_key("job")), 3, "closed until the end");
}

#[tokio::test]
async fn keys_of_other_kinds_are_not_touched() {
    let cluster = Cluster::start(3);
    let operator = patient(&cluster).await;
    let key = Cluster::lock_key("job");
    let set: Vec<()> = cluster.each(redis::cmd("SET").arg(&key).arg("foreign").arg("PX").arg(60_000));
    assert_eq!(set.len(), 3);
    let error = operator.revoke("job", None).await.expect_err("not quorlock's");
    assert!(matches!(error, RevokeError::Held { by: Holder::Foreign, .. }), "{error}");
    let (other, _) = (operator.lock("other").acquire().await.expect("the lock"), ());
    let error = operator.revoke("job", Some(other.token())).await.expect_err("not quorlock's");
    assert!(matches!(error, RevokeError::Held { by: Holder::Foreign, .. }), "{error}");
    let values: Vec<String> = cluster.each(redis::cmd("GET").arg(&key));
    assert_eq!(values, ["foreign"; 3]);
    let error = operator.revoke("absent", Some(other.token())).await.expect_err("no such lease");
    assert!(matches!(error, RevokeError::NotHeld { .. }), "{error}");
}

#[tokio::test]
async fn one_of_a_set_is_revoked() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock_all(["a", "b"]).acquire().await.expect("both");
    let operator = patient(&cluster).await;
    operator.revoke("b", None).await.expect("a majority");
    let error = guard.extend().await.expect_err("b is lost");
    assert!(error.is_lost() && error.to_string().contains('b'), "{error}");
    drop(guard);
    holder.flush().await;
    let free = operator.lock("a").try_acquire().await.expect("released");
    free.release().await.expect("a release");
    assert!(operator.lock("b").try_acquire().await.expect_err("closed until the end").is_held());
}

/// The nodes remember it for a day.
#[tokio::test]
async fn a_revoked_lease_that_is_over_is_reported_as_not_held() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(3 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let token = guard.token();
    let operator = patient(&cluster).await;
    operator.revoke("job", Some(token)).await.expect("a majority");
    let is_over = async {
        while !matches!(operator.revoke("job", Some(token)).await, Err(RevokeError::NotHeld { .. })) {
            tokio::time::sleep(SECOND / 20).await;
        }
    };
    tokio::time::timeout(20 * SECOND, is_over).await.expect("its end");
}
