//! `Quorlock::revoke` by an operator whose clock or list is wrong, and on nodes that have lost or kept what they should not.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorlock::{ErrorKind, ExtendError, Guard, Quorlock, RevokeError, Token};
use quorlock_testkit::{Cluster, Setup, eventually};

use crate::clocks::Ahead;
use crate::revoke::patient;

const SECOND: Duration = Duration::from_secs(1);

async fn client(cluster: &Cluster, ahead: i64) -> Quorlock {
    let builder = cluster.builder().environment(Arc::new(Ahead::with_wall(ahead)));
    // A first connection takes more than the default node timeout on a busy machine.
    builder.node_timeout(5 * SECOND).connect().await.expect("settings that work")
}

fn ballot_key() -> String {
    format!("quorlock:ballot:{}", Cluster::lock_key("job"))
}

/// Leaves what a revocation leaves that reached no other node.
fn revoked_at_first_node(cluster: &Cluster, guard: &Guard) {
    let mut redis = cluster.redis(0);
    for key in [Cluster::lock_key("job"), ballot_key()] {
        let value: String = redis::cmd("GET").arg(&key).query(&mut redis).expect("a value");
        let value = value.replace(&guard.owner().id(), &"0".repeat(32));
        let _: () = redis::cmd("SET").arg(&key).arg(value).arg("KEEPTTL").query(&mut redis).expect("ok");
    }
}

fn now_micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros()).expect("a time")
}

/// A revocation of a lease that is over, by a machine whose clock is behind, leaves a ballot that is far too low.
#[tokio::test]
async fn tokens_still_increase_after_a_revocation_by_a_clock_that_is_behind() {
    let cluster = Setup::new(3).window(SECOND).start();
    let holder = cluster.client(SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let token = guard.token();
    guard.release().await.expect("a release");
    eventually(20 * SECOND, "the ballots are forgotten", || cluster.count_keys(&ballot_key()) == 0).await;
    let behind = client(&cluster, -5 * 3600).await;
    let error = behind.revoke("job", Some(token)).await.expect_err("over");
    assert!(matches!(error, RevokeError::NotHeld { .. }), "{error}");
    let next = behind.lock("job").try_acquire().await.expect("free");
    assert!(next.token() > token, "{} after {token}", next.token());
}

/// The same by a release of a request that got no quorum (no revocation).
#[tokio::test]
async fn tokens_still_increase_after_a_request_without_a_quorum_by_a_clock_that_is_behind() {
    let mut cluster = Setup::new(3).window(SECOND).start();
    let holder = cluster.client(SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let token = guard.token();
    guard.release().await.expect("a release");
    eventually(20 * SECOND, "the ballots are forgotten", || cluster.count_keys(&ballot_key()) == 0).await;
    let builder = cluster.builder().node_timeout(2 * SECOND).environment(Arc::new(Ahead::with_wall(-5 * 3600)));
    let behind = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&behind).await;
    cluster.pause(1);
    cluster.pause(2);
    behind.lock("job").try_acquire().await.expect_err("no quorum");
    cluster.resume(1);
    cluster.resume(2);
    Cluster::until_all_answer(&behind).await;
    behind.flush().await;
    let next = behind.lock("job").try_acquire().await.expect("free");
    assert!(next.token() > token, "{} after {token}", next.token());
}

#[tokio::test]
async fn another_list_revokes_nothing() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let builder = Quorlock::builder().nodes([cluster.urls()[0].clone()]).node_timeout(5 * SECOND);
    let other = builder.connect().await.expect("a client");
    let said = other.revoke("job", None).await;
    guard.extend().await.expect("still held");
    let error = said.expect_err("the holder goes on");
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
}

#[tokio::test]
async fn one_server_under_two_names_is_not_two_votes() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let (urls, cut) = (cluster.urls(), "redis://127.0.0.1:1".to_owned());
    let twin = urls[0].replace("127.0.0.1", "localhost");
    let builder = Quorlock::builder().nodes([urls[0].clone(), twin, cut]).node_timeout(5 * SECOND);
    let other = builder.connect().await.expect("a client");
    // Either of the names is connected first.
    let is_known = || other.stats().nodes[..2].iter().any(|node| node.state() == "listed twice");
    eventually(20 * SECOND, "both names have been found to be one server", is_known).await;
    let said = other.revoke("job", None).await;
    let goes_on = guard.extend().await;
    assert!(said.is_err(), "{said:?}, and the holder: {goes_on:?}");
}

/// Repeated after a call that reached one node only, where another node has no key.
#[tokio::test]
async fn a_split_of_revoked_and_held_is_not_reported_as_not_held() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let operator = patient(&cluster).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    holder.flush().await;
    revoked_at_first_node(&cluster, &guard);
    // Node 2 lost its key, and remembers the lease.
    let _: u64 = redis::cmd("DEL").arg(Cluster::lock_key("job")).query(&mut cluster.redis(2)).expect("a number");
    let said = operator.revoke("job", None).await;
    let goes_on = guard.extend().await;
    assert!(
        said.is_ok() || goes_on.as_ref().is_err_and(ExtendError::is_lost),
        "{said:?}, and the holder goes on: {goes_on:?}"
    );
}

/// The lock keys are gone (a clock that leapt, or by hand), the lease is in force.
#[tokio::test]
async fn a_lease_whose_keys_have_gone_is_revoked_by_name() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let operator = patient(&cluster).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    holder.flush().await;
    let _: Vec<u64> = cluster.each(redis::cmd("DEL").arg(Cluster::lock_key("job")));
    let said = operator.revoke("job", None).await;
    let goes_on = guard.extend().await;
    assert!(
        said.is_ok() || goes_on.as_ref().is_err_and(ExtendError::is_lost),
        "{said:?}, and the holder goes on: {goes_on:?}"
    );
}

/// All messages of the lease are still under way. The operator's clock is behind that of its holder.
#[tokio::test]
async fn a_node_that_has_answered_absent_takes_no_later_message_of_the_lease() {
    let cluster = Cluster::start(3);
    let operator = client(&cluster, -100).await;
    let token = Token::try_from(now_micros()).expect("a token");
    let error = operator.revoke("job", Some(token)).await.expect_err("no node has it");
    assert!(matches!(error, RevokeError::NotHeld { .. }), "{error}");
    for node in 0..3 {
        let ballot: u64 = redis::cmd("GET").arg(ballot_key()).query(&mut cluster.redis(node)).expect("a ballot");
        assert!(ballot > token.get(), "node {node}: {ballot} after {token}");
    }
}

/// One node has a ballot that is far ahead, and the operator's clock is a little behind the holder's ballots.
#[tokio::test]
async fn one_ballot_far_ahead_does_not_keep_a_majority_from_revoking() {
    let cluster = Cluster::start(3);
    for (node, ahead) in [(0, 20), (1, 20), (2, 3600)] {
        let ballot = format!("{:016}", now_micros() + ahead * 1_000_000);
        let _: () = redis::cmd("SET")
            .arg(ballot_key())
            .arg(ballot)
            .arg("PX")
            .arg(600_000)
            .query(&mut cluster.redis(node))
            .expect("ok");
    }
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("two of three");
    let operator = patient(&cluster).await;
    operator.revoke("job", Some(guard.token())).await.expect("two of three");
    assert!(guard.extend().await.expect_err("revoked").is_lost());
}

/// The operator's clock is ahead by more than the window.
#[tokio::test]
async fn an_operator_whose_clock_is_ahead_is_not_shut_out() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let operator = client(&cluster, 600).await;
    let other = operator.lock("other").try_acquire().await.expect("a client with this clock is not shut out");
    other.release().await.expect("a release");
    let fresh = client(&cluster, 600).await;
    fresh.revoke("job", Some(guard.token())).await.expect("a majority");
}

/// The operator's clock is behind, and the nodes once had a quarantine.
#[tokio::test]
async fn an_operator_whose_clock_is_behind_is_not_shut_out_by_a_quarantine_that_is_over() {
    let cluster = Cluster::undeclared(3, &[]);
    let holder = cluster.builder().lease(SECOND).connect().await.expect("a client");
    let guard = holder.lock("job").wait(30 * SECOND).acquire().await.expect("the lock");
    let environment = Arc::new(Ahead::with_wall(-600));
    let operator = cluster.builder().lease(SECOND).environment(environment).connect().await.expect("a client");
    let other =
        operator.lock("other").wait(30 * SECOND).acquire().await.expect("a client with this clock waits a lease");
    other.release().await.expect("a release");
    let environment = Arc::new(Ahead::with_wall(-1200));
    let later = cluster.builder().lease(SECOND).environment(environment).connect().await.expect("a client");
    Cluster::until_all_answer(&later).await;
    later.revoke("job", Some(guard.token())).await.expect("a majority");
}

/// The list was changed (`set-list`: a new list number and new words), and the operator's client lives on.
#[tokio::test]
async fn a_living_client_of_the_old_list_revokes_nothing() {
    let cluster = Setup::new(5).listed(3).start();
    let urls = cluster.urls();
    let old = [urls[0].clone(), urls[1].clone(), "redis://127.0.0.1:1".to_owned()];
    let operator = Quorlock::builder().nodes(old).lease(SECOND).connect().await.expect("a client");
    let before = operator.lock("other").acquire().await.expect("two of three");
    before.release().await.expect("a release");
    operator.flush().await;
    for (node, word) in
        ["aaaaaaaaaaaaaaa1", "aaaaaaaaaaaaaaa2", "aaaaaaaaaaaaaaa3", "aaaaaaaaaaaaaaa4", "aaaaaaaaaaaaaaa5"]
            .into_iter()
            .enumerate()
    {
        let mut redis = cluster.redis(node);
        let record: String = redis::cmd("GET").arg("quorlock:node").query(&mut redis).expect("a record");
        let mut words: Vec<&str> = record.split(' ').collect();
        words[0] = word;
        words[5] = "bbbbbbbbbbbbbbbb";
        let _: () = redis::cmd("SET").arg("quorlock:node").arg(words.join(" ")).query(&mut redis).expect("ok");
        let list = format!("quorlock:list:{}", quorlock::DEFAULT_PREFIX);
        let _: () = redis::cmd("SET").arg(list).arg(5).query(&mut redis).expect("ok");
    }
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("five of five");
    let said = operator.revoke("job", None).await;
    let goes_on = guard.extend().await;
    assert!(
        said.is_err() || goes_on.as_ref().is_err_and(ExtendError::is_lost),
        "{said:?}, and the holder: {goes_on:?}"
    );
}

/// What is said about the end. The keys have gone, and the operator's clock is ahead.
#[tokio::test]
async fn free_in_is_no_less_than_what_the_nodes_answer_to_a_request() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    holder.flush().await;
    let _: Vec<u64> = cluster.each(redis::cmd("DEL").arg(Cluster::lock_key("job")));
    let operator = client(&cluster, 60).await;
    let said = operator.revoke("job", Some(guard.token())).await.expect("a majority");
    let other = cluster.client(SECOND).await;
    tokio::time::sleep(said.free_in + 500 * Duration::from_millis(1)).await;
    let got = other.lock("job").try_acquire().await;
    assert!(got.is_ok(), "free in {:?} at the latest, but {}", said.free_in, got.expect_err("closed"));
}

/// Re-entries at a high rate, and a clock that is behind.
#[tokio::test]
async fn re_entries_do_not_overtake_it_for_ever() {
    let cluster = Cluster::start(5);
    let holder = cluster.client(10 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let owner = guard.owner().clone();
    let work = (0..20).map(|_| {
        let (holder, owner) = (holder.clone(), owner.clone());
        tokio::spawn(async move {
            while let Ok(inner) = holder.lock("job").owner(&owner).try_acquire().await {
                drop(inner);
            }
        })
    });
    let work: Vec<_> = work.collect();
    tokio::time::sleep(SECOND / 2).await;
    let operator = client(&cluster, -120).await;
    operator.revoke("job", None).await.expect("a majority");
    for task in work {
        tokio::time::timeout(20 * SECOND, task).await.expect("ended").expect("no panic");
    }
    assert!(guard.extend().await.expect_err("revoked").is_lost());
}

/// A waiter waits no longer than the lease.
#[tokio::test]
async fn a_waiter_for_a_revoked_lock() {
    let cluster = Cluster::start(3);
    let holder = cluster.client(4 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    let operator = patient(&cluster).await;
    let said = operator.revoke("job", Some(guard.token())).await.expect("a majority");
    let start = std::time::Instant::now();
    let next = operator.lock("job").wait(10 * SECOND).acquire().await.expect("free");
    assert!(start.elapsed() < said.free_in + 5 * SECOND, "it looks again when the lease ends");
    assert!(next.token() > guard.token());
    drop(next);
    // Of the same owner, while the lock is free again, and with repeated revocations of the old lease.
    let again = operator.lock("job").owner(guard.owner()).acquire().await.expect("free");
    for _ in 0..3 {
        operator.revoke("job", Some(guard.token())).await.expect_err("a newer one");
    }
    again.extend().await.expect("not touched");
}

/// A revocation that came to nothing, and a lease that ends as its nodes cannot be reached.
#[tokio::test]
async fn a_lease_that_expired_is_not_counted_as_revoked() {
    let mut cluster = Cluster::start(3);
    let holder = cluster.client(2 * SECOND).await;
    let guard = holder.lock("job").acquire().await.expect("the lock");
    holder.flush().await;
    revoked_at_first_node(&cluster, &guard);
    cluster.pause(1);
    cluster.pause(2);
    guard.lost().await;
    assert_eq!(holder.stats().losses.revoked, 0);
}
