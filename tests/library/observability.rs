//! What a client reports: counters, events, metrics, and whether it is ready.

#[cfg(feature = "metrics")]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
#[cfg(feature = "metrics")]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::poll;
use quorlock::{
    AcquireStats, Answer, ErrorKind, Event, ExtensionStats, Guard, LossStats, Observer, Owner, Quorlock, ReadyError,
};
use quorlock_testkit::{Cluster, Setup, eventually, within};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Metadata, Subscriber};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until this client finds a node in this state.
async fn until_state(locks: &Quorlock, node: usize, state: &str) {
    eventually(10 * SECOND, state, || locks.stats().nodes[node].state() == state).await;
}

#[tokio::test]
async fn each_request_and_each_lease_is_counted_once() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let outer = locks.lock("x").acquire().await.expect("a free lock");
    let inner = locks.lock("x").owner(outer.owner()).acquire().await.expect("the same owner");
    let stats = locks.stats();
    assert_eq!((stats.acquires.granted, stats.held, stats.waiting), (2, 1, 0));

    other.lock("x").try_acquire().await.expect_err("it is held");
    {
        let mut waits = pin!(other.lock("x").acquire());
        assert!(poll!(&mut waits).is_pending());
        assert_eq!(other.stats().waiting, 1);
    }
    other.lock_all(Vec::<&str>::new()).acquire().await.expect_err("no name");
    let stats = other.stats();
    assert_eq!((stats.acquires.held, stats.acquires.cancelled, stats.acquires.usage, stats.waiting), (1, 1, 1, 0));
    assert_eq!((stats.acquires.granted, stats.held, stats.released), (0, 0, 0));

    outer.extend().await.expect("a majority");
    inner.release().await.expect("a release");
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released), (1, 0), "the outer guard holds it");
    assert!(stats.extensions.extended >= 1 && stats.extensions.refused == 0, "{stats:?}");
    drop(outer);
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released, stats.losses), (0, 1, LossStats::default()));
}

#[tokio::test]
async fn a_lease_that_expires_is_counted_as_lost_and_not_as_released() {
    let cluster = Cluster::start(1);
    let builder = cluster.builder().lease(SECOND).auto_extend(false);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    guard.lost().await;
    eventually(5 * SECOND, "it is counted", || locks.stats().losses.expired == 1).await;
    drop(guard);
    let stats = locks.stats();
    assert_eq!((stats.held, stats.released, stats.endangered, stats.losses.refused), (0, 0, 1, 0), "{stats:?}");
    assert_eq!(stats.extensions, ExtensionStats::default());
    assert_eq!(stats.acquires.granted, 1);
    assert_ne!(stats.acquires, AcquireStats::default());
}

#[tokio::test]
async fn the_numbers_of_a_node_follow_its_connections() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.builder().node_timeout(SECOND).connect().await.expect("settings that work");
    Cluster::until_all_answer(&locks).await;
    // On a busy machine an answer may have been overdue already.
    let before = locks.stats().nodes;
    for node in &before {
        assert_eq!(node.state(), "up", "{node:?}");
        assert!(node.round_trip.is_some_and(|took| took < 5 * SECOND), "{node:?}");
    }
    cluster.pause(0);
    locks.flush().await;
    eventually(10 * SECOND, "an answer is overdue", || locks.stats().nodes[0].timeouts > before[0].timeouts).await;
    cluster.resume(0);
    until_state(&locks, 0, "up").await;
    cluster.kill(1);
    until_state(&locks, 1, "unreachable").await;
    cluster.restart(1, false);
    until_state(&locks, 1, "quarantined").await; // It keeps nothing.
    let nodes = locks.stats().nodes;
    assert!(nodes[1].reconnections > before[1].reconnections, "{nodes:?}");
    let is_steady = |node: usize| nodes[node].timeouts == before[node].timeouts;
    assert!(!is_steady(2) || nodes[2].reconnections == before[2].reconnections, "{nodes:?}");
    assert_eq!(nodes[1].node, format!("127.0.0.1:{}", cluster.ports()[1]));
}

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
    let builder = cluster.builder().observer(Arc::<Reacts>::clone(&reacts));
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
struct Panics(AtomicUsize);

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
    let builder = cluster.builder().observer(Arc::<Panics>::clone(&panics));
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

#[tokio::test]
async fn a_client_is_ready_while_a_majority_is_known_to_vote() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.builder().node_timeout(SECOND).connect().await.expect("settings that work");
    let early = locks.ready().expect_err("it is connecting");
    assert!(early.is_retryable(), "{early}");
    // On a busy machine it takes more than the second of one attempt.
    eventually(10 * SECOND, "all nodes vote", || locks.ready() == Ok(())).await;
    locks.flush().await;
    cluster.kill(0);
    until_state(&locks, 0, "unreachable").await;
    assert_eq!(locks.ready(), Ok(()), "two of three");
    cluster.restart(0, false);
    until_state(&locks, 0, "quarantined").await;
    cluster.pause(1);
    assert_eq!(locks.ready(), Ok(()), "it asks nothing");
    locks.flush().await;
    until_state(&locks, 1, "silent").await;
    let error = locks.ready().expect_err("one is quarantined, one is silent");
    let text = error.to_string();
    assert!(text.starts_with("not ready: 2 of 3 nodes must be up (127.0.0.1:"), "{text}");
    assert!(
        matches!(&error, ReadyError::NoQuorum { needed: 2, nodes, .. } if nodes.0[2].answer == Answer::Up),
        "{text}"
    );
    cluster.resume(1);
    eventually(5 * SECOND, "a majority votes", || locks.ready().is_ok()).await;
}

#[tokio::test]
async fn a_client_with_another_list_is_not_ready() {
    let cluster = Setup::new(3).listed(5).start();
    let locks = cluster.builder().connect().await.expect("settings that work");
    eventually(5 * SECOND, "the nodes refuse it", || {
        locks.ready().is_err_and(|error| error.kind() == ErrorKind::Misconfigured && !error.is_retryable())
    })
    .await;
}

/// The user of one node may not run the script, that of another may not run a command in it.
#[tokio::test]
async fn a_node_whose_user_lacks_a_right_refuses_until_it_has_it() {
    let cluster = Cluster::start(3);
    let diary = Arc::new(Diary::default());
    let builder = cluster.builder().observer(Arc::<Diary>::clone(&diary));
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

/// The rows of the table in docs/operations.md whose first heading is this: each cell without its backticks.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = include_str!("../../docs/operations.md");
    let rows = text.lines().skip_while(|line| !line.starts_with(&format!("| {heading} |"))).skip(2);
    let cells = |row: &str| row.split('|').skip(1).map(|cell| cell.replace('`', "").trim().to_owned()).collect();
    rows.take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// The words of a cell, sorted.
fn words(cell: &str) -> Vec<String> {
    let mut words: Vec<String> = cell.split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect();
    words.sort_unstable();
    words
}

/// The name of a span, event or metric, its level or kind, and its fields or labels, sorted.
type Names = BTreeSet<(String, String, Vec<String>)>;

/// Notes the names of all spans and events of quorlock, and all values.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<(Names, String)>>);

impl Journal {
    fn add(&self, metadata: &Metadata<'_>, name: &str, values: &str) {
        let fields = metadata.fields().iter().map(|field| field.name().to_owned());
        let mut fields: Vec<String> = fields.filter(|field| field != "message").collect();
        fields.sort_unstable();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.insert((name.to_owned(), metadata.level().to_string(), fields));
        seen.1 += values;
    }
}

#[derive(Default)]
struct Values {
    message: String,
    all: String,
}

impl Visit for Values {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
        self.all += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "quorlock"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut values = Values::default();
        attributes.record(&mut values);
        self.add(attributes.metadata(), attributes.metadata().name(), &values.all);
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, record: &Record<'_>) {
        let mut values = Values::default();
        record.record(&mut values);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 += &values.all;
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut values = Values::default();
        event.record(&mut values);
        self.add(event.metadata(), &values.message, &values.all);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Holds and loses locks while nodes go and come, so that everything that a client reports is reported.
async fn eventful_life(locks: &Quorlock, cluster: &mut Cluster, owner: &Owner) {
    locks.flush().await;
    let guard = locks.lock("account:1").owner(owner).acquire().await.expect("a free lock");
    guard.extend().await.expect("a majority");
    locks.lock("account:1").try_acquire().await.expect_err("it is held");
    assert!(poll!(pin!(locks.lock("account:1").acquire())).is_pending());
    guard.release().await.expect("a release");
    let guard = locks.lock("job").owner(owner).acquire().await.expect("a free lock");
    cluster.kill(0);
    cluster.kill(1);
    guard.extend().await.expect_err("one of three");
    guard.lost().await;
    eventually(5 * SECOND, "the loss", || locks.stats().losses.expired == 1).await;
    drop(guard);
    cluster.restart(0, false);
    cluster.restart_as_replica(1, 0);
    until_state(locks, 1, "replica").await;
    within(20 * SECOND, "the node votes again", async || locks.lock("job").acquire().await.is_ok()).await;
}

#[tokio::test]
async fn the_table_of_events_has_them_all() {
    let mut cluster = Setup::new(3).longest(SECOND).start();
    let journal = Journal::default();
    // While there is one subscriber, tracing asks only that of the thread which comes first to an event. Other tests have none.
    let _second = Dispatch::new(journal.clone());
    let _default = tracing::subscriber::set_default(journal.clone());
    let builder = cluster.builder().lease(SECOND).label("me").observer(Arc::new(Panics::default()));
    let locks = builder.connect().await.expect("settings that work");
    // 127.0.0.1 as one number. The client takes it for the name of another machine.
    let elsewhere = format!("redis://:secret@2130706433:{}", cluster.ports()[2]);
    drop(Quorlock::builder().nodes([elsewhere]).connect().await.expect("settings that work"));
    let owner = Owner::new();
    eventful_life(&locks, &mut cluster, &owner).await;
    let seen = journal.0.lock().unwrap_or_else(PoisonError::into_inner);
    let row = |row: Vec<String>| (row[1].clone(), row[0].clone(), words(&row[2]));
    let listed: Names = table("Level").into_iter().map(row).collect();
    assert_eq!(seen.0, listed);
    assert!(seen.1.contains(&owner.fingerprint()) && !seen.1.contains(&owner.id()), "{}", seen.1);
    assert!(!seen.1.contains("secret"), "{}", seen.1);
    for value in
        ["lock=account:1 ", "wait=unlimited ", "outcome=\"granted\" ", "cause=\"expired\" ", "state=\"replica\" "]
    {
        assert!(seen.1.contains(value), "{value}: {}", seen.1);
    }
}

#[cfg(feature = "metrics")]
mod metrics_of_a_client {
    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    /// Notes the names of all metrics, and which were described.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<(Names, BTreeSet<String>, Values)>>);

    /// By name and values of the labels.
    type Values = BTreeMap<String, Arc<AtomicU64>>;

    impl Notes {
        fn add(&self, kind: &str, key: &Key) -> Arc<AtomicU64> {
            let mut labels: Vec<String> = key.labels().map(|label| label.key().to_owned()).collect();
            labels.sort_unstable();
            let values: Vec<&str> = key.labels().map(metrics::Label::value).collect();
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0.insert((key.name().to_owned(), kind.to_owned(), labels));
            Arc::clone(seen.2.entry(format!("{} {}", key.name(), values.join(" "))).or_default())
        }

        fn describe(&self, key: &KeyName) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).1.insert(key.as_str().to_owned());
        }
    }

    impl Recorder for Notes {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&key);
        }

        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&key);
        }

        fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.describe(&key);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.add("counter", key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.add("gauge", key))
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.add("histogram", key);
            Histogram::noop()
        }
    }

    fn class(name: &[u8]) -> &'static str {
        assert_ne!(name, b"job");
        "account"
    }

    #[tokio::test]
    async fn the_table_of_metrics_has_them_all() {
        let mut cluster = Setup::new(3).longest(SECOND).start();
        let notes = Notes::default();
        let _default = metrics::set_default_local_recorder(&notes);
        let builder = cluster.builder().lease(SECOND).metric_class(class);
        let locks = builder.connect().await.expect("settings that work");
        eventful_life(&locks, &mut cluster, &Owner::new()).await;
        let seen = notes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |row: Vec<String>| (row[0].clone(), row[1].clone(), words(&row[2]));
        let listed: Names = table("Metric").into_iter().map(row).collect();
        assert_eq!(seen.0, listed);
        assert_eq!(seen.1, listed.iter().map(|(name, ..)| name.clone()).collect(), "each has a description");
        let value =
            |key: &str| seen.2.get(key).unwrap_or_else(|| panic!("{key}: {:?}", seen.2)).load(Ordering::Relaxed);
        assert_eq!(value("quorlock_acquire_total granted account"), 1);
        assert_eq!(value("quorlock_acquire_total held account"), 1);
        assert_eq!(value("quorlock_acquire_total cancelled account"), 1);
        assert_eq!(value("quorlock_lost_total expired unknown"), 1, "the function panics for this name");
        let gauge = |key: &str| f64::from_bits(value(key));
        let zero = 0.0_f64.to_bits();
        for key in ["quorlock_locks_held account", "quorlock_waiting account", "quorlock_waiting unknown"] {
            assert_eq!(gauge(key).to_bits(), zero, "{key}");
        }
        let node = |node: usize| format!("127.0.0.1:{}", cluster.ports()[node]);
        for (state, set) in [("connecting", 0.0_f64), ("voting", 0.0), ("unreachable", 0.0), ("replica", 1.0)] {
            let key = format!("quorlock_node_state {} {state}", node(1));
            assert_eq!(gauge(&key).to_bits(), set.to_bits(), "{key}");
        }
        let up = |of: usize| gauge(&format!("quorlock_node_up {}", node(of)));
        assert_eq!([up(0), up(1), up(2)].map(f64::to_bits), [1.0, 0.0, 1.0].map(f64::to_bits));
    }
}
