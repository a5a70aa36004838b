//! The events that an observer gets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use quorlock::{Event, Guard, Observer, Quorlock};
use quorlock_testkit::{Cluster, eventually, within};

use crate::observability::until_state;

const SECOND: Duration = Duration::from_secs(1);

/// Notes each event in a few words.
#[derive(Default)]
struct Diary(Mutex<Vec<String>>);

impl Diary {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has(&self, line: &str) -> bool {
        self.lines().iter().any(|found| found == line)
    }
}

impl Observer for Diary {
    fn event(&self, event: &Event<'_>) {
        let line = match event {
            Event::Granted { locks, token, votes, rounds, .. } => {
                assert!(*votes >= 2 && *rounds >= 1, "{event:?}");
                format!("granted {locks} {token}")
            }
            Event::Refused { locks, error, .. } => format!("refused {locks} {:?}", error.kind()),
            Event::Cancelled { locks, .. } => format!("cancelled {locks}"),
            Event::Endangered { lock, token, .. } => format!("endangered {lock} {token}"),
            Event::Lost { lock, token, cause, .. } => format!("lost {lock} {token} {}", cause.word()),
            Event::Released { lock, token, .. } => format!("released {lock} {token}"),
            Event::NodeUp { node, is_back, .. } => format!("up {node} {is_back}"),
            Event::NodeDown { node, .. } => format!("down {node}"),
            Event::NodeQuarantined { node, .. } => format!("quarantined {node}"),
            Event::NodeRefuses { node, error, .. } => format!("refuses {node} {}", error.state()),
            other => panic!("{other:?}"),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

#[tokio::test]
async fn an_observer_gets_the_life_of_a_lock_in_order() {
    let mut cluster = Cluster::start(3);
    let diary = Arc::new(Diary::default());
    let builder = cluster.builder().lease(2 * SECOND).observer(Arc::<Diary>::clone(&diary));
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    let node = |node: usize| format!("127.0.0.1:{}", cluster.ports()[node]);
    let nodes: Vec<String> = (0..3).map(node).collect();
    let mut connected = diary.lines();
    connected.sort_unstable();
    let mut expected: Vec<String> = nodes.iter().map(|node| format!("up {node} false")).collect();
    expected.sort_unstable();
    assert_eq!(connected, expected);

    let guard = locks.lock_all(["b", "a"]).acquire().await.expect("free locks");
    let token = guard.token();
    locks.lock("a").try_acquire().await.expect_err("it is held");
    guard.release().await.expect("a release");
    let lines = diary.lines().split_off(3);
    let expected = [
        format!("granted a, b {token}"),
        "refused a Held".to_owned(),
        format!("released a {token}"),
        format!("released b {token}"),
    ];
    assert_eq!(lines, expected);

    let guard = locks.lock("c").acquire().await.expect("a free lock");
    cluster.kill(0);
    cluster.kill(1);
    guard.lost().await;
    let token = guard.token();
    eventually(5 * SECOND, "the loss", || diary.has(&format!("lost c {token} expired"))).await;
    let lines = diary.lines();
    assert!(lines.contains(&format!("endangered c {token}")), "{lines:?}");
    assert!(lines.contains(&format!("down {}", nodes[0])), "{lines:?}");
    drop(guard);
    assert!(!diary.has(&format!("released c {token}")), "it was lost");
    cluster.restart(0, false);
    eventually(10 * SECOND, "a quarantine", || diary.has(&format!("quarantined {}", nodes[0]))).await;
}

/// Gives a lock back as soon as a node is down, and waits until the node that is asked has no key of it any more.
struct Reacts {
    client: OnceLock<Quorlock>,
    guard: Mutex<Option<Guard>>,
    node: Mutex<redis::Connection>,
    freed: OnceLock<bool>,
}

impl Observer for Reacts {
    fn event(&self, event: &Event<'_>) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Event::NodeDown { .. }, Some(client)) = (event, self.client.get()) else {
            *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = guard;
            return;
        };
        assert_eq!(client.stats().held, 1);
        drop(guard);
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let mut is_there =
            || redis::cmd("EXISTS").arg(Cluster::lock_key("x")).query::<bool>(&mut node).expect("an answer");
        while is_there() && began.elapsed() < 3 * SECOND {}
        let _ = self.freed.set(!is_there());
    }
}

/// The connections report that a node is down. A release that leaves from within the observer shows that they are not locked.
#[tokio::test]
async fn an_observer_may_call_the_client() {
    let mut cluster = Cluster::start(3);
    let reacts = Arc::new(Reacts {
        client: OnceLock::new(),
        guard: Mutex::default(),
        node: Mutex::new(cluster.redis(2)),
        freed: OnceLock::new(),
    });
    let builder = cluster.builder().node_timeout(2 * SECOND).observer(Arc::<Reacts>::clone(&reacts));
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    locks.flush().await;
    *reacts.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    assert!(reacts.client.set(locks.clone()).is_ok());
    cluster.kill(0);
    eventually(10 * SECOND, "the observer was called", || reacts.freed.get().is_some()).await;
    assert_eq!(reacts.freed.get(), Some(&true), "the release left at once");
    assert_eq!((locks.stats().held, locks.stats().released), (0, 1));
}

#[derive(Default)]
pub struct Panics(AtomicUsize);

impl Observer for Panics {
    fn event(&self, event: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::panic::resume_unwind(Box::new(format!("{event:?}"))); // It prints nothing.
    }
}

#[tokio::test]
async fn a_client_whose_observer_panics_works() {
    let mut cluster = Cluster::start(3);
    let panics = Arc::new(Panics::default());
    let builder = cluster.builder().node_timeout(2 * SECOND).observer(Arc::<Panics>::clone(&panics));
    let locks = builder.connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    cluster.kill(0);
    until_state(&locks, 0, "unreachable").await;
    cluster.restart(0, false);
    until_state(&locks, 0, "quarantined").await;
    for _ in 0..3 {
        locks.lock("x").acquire().await.expect("a free lock").release().await.expect("a release");
    }
    // More of them where a node is slow.
    eventually(5 * SECOND, "all events", || panics.0.load(Ordering::Relaxed) >= 3 + 2 + 6).await;
}

/// The user of one node may not run the script, that of another may not run a command in it.
#[tokio::test]
async fn a_node_whose_user_lacks_a_right_refuses_until_it_has_it() {
    let cluster = Cluster::start(3);
    let diary = Arc::new(Diary::default());
    let builder = cluster.builder().node_timeout(2 * SECOND).observer(Arc::<Diary>::clone(&diary));
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let change = |sign: char| {
        for (node, right) in ["evalsha", "set"].into_iter().enumerate() {
            let acl = redis::cmd("ACL").arg(&["SETUSER", "default", &format!("{sign}{right}")]).to_owned();
            acl.exec(&mut cluster.redis(node)).expect("an ACL");
        }
    };
    change('-');
    assert_eq!(locks.ready(), Ok(()), "it asks nothing");
    for _ in 0..20 {
        locks.lock("x").try_acquire().await.expect_err("one of three");
        locks.flush().await;
    }
    let nodes = [0, 1].map(|node| format!("127.0.0.1:{}", cluster.ports()[node]));
    for (node, address) in nodes.iter().enumerate() {
        until_state(&locks, node, "forbids it").await;
        let refusals = diary.lines().iter().filter(|line| **line == format!("refuses {address} forbids it")).count();
        assert_eq!(refusals, 1, "{:?}", diary.lines());
    }
    let error = locks.ready().expect_err("two nodes refuse");
    assert!(error.to_string().contains("docs/operations.md, \"Rights of a Redis user\""), "{error}");
    assert!(!error.is_retryable() && locks.stats().nodes[2].state() == "up", "{error}");

    change('+');
    within(20 * SECOND, "a majority grants", async || locks.lock("x").try_acquire().await.is_ok()).await;
    eventually(5 * SECOND, "it is ready", || locks.ready().is_ok()).await;
    within(30 * SECOND, "the nodes are back", async || {
        drop(locks.lock("x").try_acquire().await);
        nodes.iter().all(|node| diary.has(&format!("up {node} true")))
    })
    .await;
}
