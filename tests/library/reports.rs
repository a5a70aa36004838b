//! The tables of spans, events and metrics in docs/operations.md, against all that a client reports.

#[cfg(feature = "metrics")]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
#[cfg(feature = "metrics")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::poll;
use quorlock::{Owner, Quorlock};
use quorlock_testkit::{Cluster, Setup, eventually, within};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Metadata, Subscriber};

use crate::observability::until_state;
use crate::observers::Panics;

const SECOND: Duration = Duration::from_secs(1);

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
