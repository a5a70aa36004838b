//! `Quorlock::elect` and `Quorlock::observe`: one of several candidates leads, and the next one when it cannot.

use std::convert::Infallible;
use std::future::pending;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorlock::{
    AcquireError, ErrorKind, Guard, Leader, Leadership, Observation, Outage, Owner, Quorlock, RunError, Token,
};
use quorlock_testkit::proxy::{Mode, Proxy};
use quorlock_testkit::{Cluster, eventually};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::revoke::patient;

const SECOND: Duration = Duration::from_secs(1);
/// The limit for an event that takes a moment, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Begins(String, Token),
    Stops(String, Token),
}

/// What happened to the work of all candidates, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn note(&self, event: Event) {
        self.0.lock().expect("no panic").push(event);
    }

    fn events(&self) -> Vec<Event> {
        self.0.lock().expect("no panic").clone()
    }

    /// Leads until the work is dropped.
    async fn lead(&self, name: &str, term: &Guard) -> Result<ControlFlow<()>, Infallible> {
        struct Stops<'a>(&'a Log, &'a str, Token);
        impl Drop for Stops<'_> {
            fn drop(&mut self) {
                self.0.note(Event::Stops(self.1.to_owned(), self.2));
            }
        }
        assert_eq!(Owner::current().as_ref(), Some(term.owner()), "it runs in the scope of its owner");
        self.note(Event::Begins(name.to_owned(), term.token()));
        let _stops = Stops(self, name, term.token());
        pending().await
    }

    /// Starts a candidate.
    fn candidate(&self, locks: &Quorlock, name: &str) -> JoinHandle<Result<(), RunError>> {
        let (log, name) = (self.clone(), name.to_owned());
        tokio::spawn(locks.elect("x").run(async move |term| log.lead(&name, term).await))
    }

    /// Waits until so many events have been noted, and checks that one work stops before the next one begins, with a larger token.
    async fn until(&self, count: usize) -> Vec<Event> {
        eventually(LIMIT, "the next leader", || self.events().len() >= count).await;
        let events = self.events();
        for pair in events.windows(2) {
            match pair {
                [Event::Begins(name, token), Event::Stops(stopped, of)] => assert_eq!((name, token), (stopped, of)),
                [Event::Stops(_, before), Event::Begins(_, token)] => assert!(before < token, "{events:?}"),
                _ => panic!("two lead at once: {events:?}"),
            }
        }
        events
    }
}

/// The first of two candidates reaches the nodes through these proxies.
async fn two_candidates(cluster: &Cluster, log: &Log) -> (Vec<Proxy>, [JoinHandle<Result<(), RunError>>; 2]) {
    let mut proxies = Vec::new();
    for port in cluster.ports() {
        proxies.push(Proxy::start(port).await);
    }
    let first = Quorlock::builder().nodes(proxies.iter().map(Proxy::url)).lease(3 * SECOND).connect().await;
    let first = log.candidate(&first.expect("sound settings"), "first");
    log.until(1).await;
    let second = log.candidate(&cluster.client(3 * SECOND).await, "second");
    eventually(LIMIT, "the second waits", || cluster.count_waiting("x") > 1).await;
    (proxies, [first, second])
}

fn is_next(events: &[Event]) {
    let [Event::Begins(first, _), Event::Stops(..), Event::Begins(second, _), ..] = events else {
        panic!("{events:?}")
    };
    assert_eq!((first.as_str(), second.as_str()), ("first", "second"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_has_stopped_before_the_next_one_begins() {
    let (cluster, log) = (Cluster::start(3), Log::default());
    let (proxies, candidates) = two_candidates(&cluster, &log).await;
    proxies[..2].iter().for_each(|proxy| proxy.set(Mode::LoseRequests));
    is_next(&log.until(3).await);
    assert!(candidates.iter().all(|candidate| !candidate.is_finished()), "both are candidates for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_revoked_has_stopped_before_the_next_one_begins() {
    let (cluster, log) = (Cluster::start(3), Log::default());
    let (_proxies, _candidates) = two_candidates(&cluster, &log).await;
    patient(&cluster).await.revoke("x", None).await.expect("a majority");
    log.until(3).await; // Either of them: both wait until the revoked lease would have ended.
}

#[tokio::test]
async fn an_election_that_is_dropped_hands_over_at_once() {
    let (cluster, log) = (Cluster::start(3), Log::default());
    let locks = cluster.client(3600 * SECOND).await;
    let first = log.candidate(&locks, "first");
    log.until(1).await;
    let second = log.candidate(&cluster.client(3600 * SECOND).await, "second");
    first.abort();
    is_next(&log.until(3).await);
    second.abort();
    let third = locks.elect("x").run(async |term| Ok::<_, Infallible>(ControlFlow::Break(term.token())));
    assert!(timeout(LIMIT, third).await.expect("the second has released").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_leads_again_after_an_outage() {
    let (mut cluster, log) = (Cluster::start(5), Log::default());
    let mut candidates = Vec::new();
    for name in ["first", "second"] {
        candidates.push(log.candidate(&cluster.client(3 * SECOND).await, name));
    }
    log.until(1).await;
    let mut leaders = patient(&cluster).await.observe("x").every(SECOND / 20);
    assert!(matches!(next(&mut leaders).await, Leadership::Led(_)));
    (0..3).for_each(|node| cluster.pause(node));
    log.until(2).await;
    assert_eq!(next(&mut leaders).await, Leadership::Unknown, "the last leader is not shown in an outage");
    (0..3).for_each(|node| cluster.resume(node));
    log.until(3).await;
    candidates.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_leader_that_resigns_lets_the_other_one_lead() {
    let cluster = Cluster::start(3);
    let (locks, other) = (cluster.client(60 * SECOND).await, cluster.client(60 * SECOND).await);
    let waiting = tokio::spawn(async move {
        other.elect("x").run(async |term| Ok::<_, Infallible>(ControlFlow::Break(term.token()))).await
    });
    // Whichever leads first, the one that resigns meets the other's term.
    let mut terms = Vec::new();
    let election = locks.elect("x").run(async |term| {
        terms.push(term.token());
        Ok::<_, AcquireError>(if waiting.is_finished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    timeout(LIMIT, election).await.expect("the other one leads, too").expect("a term");
    let token = waiting.await.expect("no panic").expect("a term");
    assert!(terms.is_sorted() && !terms.contains(&token), "{terms:?} {token:?}");
}

#[tokio::test]
async fn a_list_of_nodes_that_is_not_theirs_ends_the_election() {
    let cluster = Cluster::start(3);
    patient(&cluster).await.lock("y").acquire().await.expect("the lock").release().await.expect("a release");
    let one = Quorlock::builder()
        .nodes(cluster.urls().into_iter().take(1))
        .lease(SECOND)
        .outage(Outage::Wait)
        .connect()
        .await;
    let one = one.expect("sound settings");
    let election = one.elect("x").run(async |_| Ok::<_, Infallible>(ControlFlow::Break(())));
    let error = timeout(LIMIT, election).await.expect("no retry mends it").expect_err("another list");
    assert_eq!(error.kind(), Some(ErrorKind::Misconfigured), "{error}");
}

async fn next(leaders: &mut Observation) -> Leadership {
    timeout(LIMIT, leaders.changed()).await.expect("news").expect("a name")
}

#[tokio::test]
async fn an_observer_sees_each_term_and_writes_nothing() {
    let cluster = Cluster::start(3);
    let locks = cluster
        .builder()
        .node_timeout(2 * SECOND)
        .lease(60 * SECOND)
        .label("worker")
        .connect()
        .await
        .expect("sound settings");
    let mut leaders = patient(&cluster).await.observe("x").every(SECOND / 20);
    assert_eq!(next(&mut leaders).await, Leadership::Vacant);
    let mut before = None;
    for _ in 0..2 {
        let guard = locks.lock("x").acquire().await.expect("the lock");
        let dumps = || cluster.each::<Vec<String>>(redis::cmd("KEYS").arg("*"));
        locks.flush().await;
        let keys = dumps();
        let Leadership::Led(leader) = next(&mut leaders).await else { panic!("there is a leader") };
        assert_eq!(dumps(), keys);
        let Leader { label, owner, token, left, .. } = &leader;
        assert_eq!(
            (label.as_str(), owner, *token),
            (guard.owner().label(), &guard.owner().fingerprint(), guard.token())
        );
        assert!(label.ends_with(":worker") && *left > Duration::ZERO && *left <= 60 * SECOND, "{leader:?}");
        assert!(before.is_none_or(|before| before < leader.since), "{leader:?}");
        before = Some(leader.since);
        guard.release().await.expect("a release");
        assert_eq!(next(&mut leaders).await, Leadership::Vacant);
    }
}
