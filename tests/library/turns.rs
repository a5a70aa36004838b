//! Requests of one process for the same resource, which take turns.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::poll;
use quorlock::{AcquireError, Guard, Owner};
use quorlock_testkit::{Cluster, eventually};

use crate::clocks::Ahead;

const SECOND: Duration = Duration::from_secs(1);

/// A request that waits for another task of this process, and then has less time left than the node timeout, fails because
/// of that task and not for want of a quorum.
#[tokio::test]
async fn a_wait_whose_turn_comes_too_late_fails_as_held() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(Duration::from_secs(60)).await;
    let guard = locks.lock("turn").acquire().await.expect("the lock");
    let mut waiting = Box::pin(locks.lock("turn").wait(Duration::from_millis(500)).acquire());
    assert!(poll!(&mut waiting).is_pending());
    for node in 0..3 {
        cluster.pause(node);
    }
    drop(guard);
    let error = waiting.await.expect_err("no node answers");
    assert!(error.is_timed_out() && error.is_held(), "{error}");
}

/// The release and the next one's request: one system call for each node, and the server reads both at once.
#[tokio::test]
async fn a_lock_changes_hands_in_one_message_to_each_node() {
    const CHANGES: usize = 20;
    let cluster = Cluster::start(3);
    let environment = Arc::new(Ahead::default());
    let locks = cluster
        .builder()
        .node_timeout(2 * SECOND)
        .environment(environment.clone())
        .connect()
        .await
        .expect("settings that work");
    locks.flush().await;
    let mut guard = locks.lock("hands").acquire().await.expect("the lock");
    for _ in 0..CHANGES {
        let token = guard.token();
        let next = tokio::spawn(locks.lock("hands").acquire());
        // On a current-thread runtime its task runs meanwhile, and waits.
        locks.flush().await;
        let before = environment.writes.load(Ordering::Relaxed);
        drop(guard);
        guard = next.await.expect("a task").expect("its turn");
        assert!(guard.token() > token);
        assert_eq!(environment.writes.load(Ordering::Relaxed) - before, 3);
    }
    locks.flush().await;
    let taken: Vec<String> = cluster.each(redis::cmd("GET").arg(Cluster::lock_key("hands")));
    assert!(taken.iter().all(|lock| lock.contains(&guard.token().to_string())), "{taken:?}");
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(20 * SECOND, future).await.expect("in time")
}

/// A task that has stopped running must not block the lock for longer than a lease.
#[tokio::test]
async fn a_grant_to_an_unpolled_request_ends_with_its_lease() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.client(SECOND).await, cluster.client(SECOND).await);
    let is_held = || cluster.count_keys(&Cluster::lock_key("left")) == 3;
    for is_handed_over in [false, true] {
        let guard: Option<Guard> = match is_handed_over {
            true => Some(first.lock("left").acquire().await.expect("the lock")),
            false => None,
        };
        let mut left = Box::pin(first.lock("left").acquire());
        assert!(poll!(&mut left).is_pending());
        drop(guard);
        eventually(5 * SECOND, "it is granted", is_held).await;
        first.flush().await;
        let guard =
            in_time(second.lock("left").acquire()).await.expect("the unpolled request does not extend its lease");
        assert!(poll!(&mut left).is_pending(), "its grant has expired, and it sends a new request");
        guard.release().await.expect("a release");
        let guard = in_time(left).await.expect("the lock");
        guard.release().await.expect("a release");
        first.flush().await;
    }
}

/// A round that begins for a request that has just been dropped leaves no key, and no ticket that the nodes would call and
/// wait for.
#[tokio::test]
async fn cancel_at_handoff_leaves_no_ticket() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = locks.lock("ghost").acquire().await.expect("the lock");
    let mut waiting = Box::pin(locks.lock("ghost").acquire());
    assert!(poll!(&mut waiting).is_pending());
    drop(guard);
    drop(waiting);
    locks.flush().await;
    locks.flush().await; // The first made sure that everything has been sent.
    assert_eq!(cluster.count_keys(&Cluster::lock_key("ghost")), 0);
    assert_eq!(cluster.count_waiting("ghost"), 0);
    drop(other.lock("ghost").try_acquire().await.expect("a free lock"));
}

/// Each task that is called must use the call, and not leave it to the other one.
#[tokio::test]
async fn two_tasks_of_one_owner_get_the_lock_beside_a_client_that_asks_again_at_once() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let mut guard = other.lock("busy").acquire().await.expect("the lock");
    let owner = Owner::new();
    let asked = [(); 2].map(|()| tokio::spawn(locks.lock("busy").owner(&owner).wait(20 * SECOND).acquire()));
    eventually(5 * SECOND, "one waits", || cluster.count_waiting("busy") >= 2).await;
    let again = tokio::spawn(async move {
        loop {
            drop(guard); // The next request leaves with the release.
            guard = other.lock("busy").acquire().await.expect("the lock");
        }
    });
    let mut guards = Vec::new();
    for asked in asked {
        guards.push(asked.await.expect("a task").expect("the lock, or a hold on it"));
    }
    assert_eq!(guards[1].owner(), &owner);
    again.abort();
}

/// One task has the turn from an earlier try, while the other has the right to send requests for their owner.
#[tokio::test]
async fn two_tasks_of_one_owner_do_not_wait_for_each_other() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = other.lock("shared").acquire().await.expect("the lock");
    let owner = Owner::new();
    let ask = || tokio::spawn(locks.lock("shared").owner(&owner).acquire());
    let asked = [ask(), ask(), ask()];
    eventually(5 * SECOND, "one waits", || cluster.count_waiting("shared") >= 2).await;
    locks.flush().await;
    guard.release().await.expect("a release");
    let mut guards = Vec::new();
    for asked in asked {
        guards.push(in_time(asked).await.expect("a task").expect("the lock, or a hold on it"));
    }
    assert_eq!(guards[0].hold_count(), 3);
    locks.flush().await;
    assert_eq!(cluster.count_waiting("shared"), 0, "no ticket is left: {:?}", cluster.wait_queues("shared"));
}

/// A waiting request enters a lease that another task of its owner was granted, and removes its own ticket. The request is
/// for this resource alone, or for another one too.
#[tokio::test]
async fn entering_a_lease_of_another_task_removes_the_ticket() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(10 * SECOND).await;
    for names in [&["entered"][..], &["entered", "new"]] {
        let (key, owner) = (Cluster::lock_key("entered"), Owner::new());
        cluster.each::<()>(redis::cmd("SET").arg(&key).arg("theirs"));
        let mut waiting = Box::pin(locks.lock_all(names).owner(&owner).acquire());
        assert!(poll!(&mut waiting).is_pending());
        eventually(5 * SECOND, "its ticket is in every queue", || cluster.count_waiting("entered") == 3).await;
        locks.flush().await;
        assert!(poll!(&mut waiting).is_pending(), "it has been refused, and waits");
        cluster.each::<()>(redis::cmd("DEL").arg(&key));
        let guard = locks.lock("entered").owner(&owner).try_acquire().await.expect("a free lock");
        let entered = in_time(waiting).await.expect("a hold on it");
        assert_eq!((guard.hold_count(), entered.token_of("entered")), (2, Some(guard.token())));
        locks.flush().await;
        assert_eq!(cluster.count_waiting("entered"), 0, "{names:?}: {:?}", cluster.wait_queues("entered"));
        drop((guard, entered));
        locks.flush().await;
    }
}

/// On another thread, the next acquisition of the same owner must not get ahead of the release.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_release_is_not_overtaken_by_the_owners_next_acquisition() {
    let cluster = Cluster::start(1);
    let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    let owner = Owner::new();
    let users = (0..4).map(|_| {
        let (locks, owner) = (locks.clone(), owner.clone());
        tokio::spawn(async move {
            let mut grants = 0;
            while grants < 200 {
                match locks.lock("overtaken").owner(&owner).try_acquire().await {
                    Ok(guard) => {
                        guard.release().await.expect("it was held");
                        grants += 1;
                    }
                    // Another task of the same owner may be acquiring or releasing.
                    Err(AcquireError::Held { .. } | AcquireError::Contended { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        tokio::time::timeout(60 * SECOND, user).await.expect("each is granted again and again").expect("a task");
    }
}

/// Calls that a test publishes cause tries, but far fewer tries than calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn false_calls_cause_few_tries() {
    const FOR: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(3);
    let (holder, locks) = (cluster.client(60 * SECOND).await, cluster.client(60 * SECOND).await);
    let guard = holder.lock("called").acquire().await.expect("the lock");
    let waiting = tokio::spawn(locks.lock("called").acquire());
    eventually(5 * SECOND, "it waits", || cluster.count_waiting("called") == 3).await;
    let line = cluster.wait_queues("called").swap_remove(0);
    let (number, client) = line.rsplit_once(' ').and_then(|(_, ticket)| ticket.split_once(':')).expect("a ticket");
    let mut nodes: Vec<redis::Connection> = (0..3).map(|node| cluster.redis(node)).collect();
    let (before, began, mut calls) = (cluster.scripts_run(), Instant::now(), 0);
    while began.elapsed() < FOR {
        for node in &mut nodes {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(format!("quorlock:call:{client}")).arg(number).exec(node).expect("a server that is up");
        }
        calls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await; // Between calls.
    }
    let after = cluster.scripts_run();
    let most = 20.0 * began.elapsed().as_secs_f64() + 20.0;
    for (before, after) in before.into_iter().zip(after) {
        assert!(((after - before) as f64) < most, "{} tries after {calls} calls", after - before);
    }
    guard.release().await.expect("a release");
    in_time(waiting).await.expect("a task").expect("its turn").release().await.expect("a release");
}
