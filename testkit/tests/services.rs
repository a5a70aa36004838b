//! Tests as users of quorlock write them: what does a service do when the lock is not there?

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use quorlock::{ErrorKind, Quorlock, RunError};
use quorlock_testkit::MemoryCluster;
use tokio::time::sleep;

const LEASE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// The service under test: a step each second, while it holds the lock.
async fn serve(locks: Quorlock, steps: Arc<AtomicU32>) -> Result<(), RunError> {
    let work = async |_: &_| loop {
        sleep(SECOND).await;
        steps.fetch_add(1, Relaxed);
    };
    locks.lock("service").run(work).await
}

#[tokio::test(start_paused = true)]
async fn a_service_that_loses_its_lock_stops() {
    let (cluster, steps) = (MemoryCluster::new(3), Arc::default());
    let service = tokio::spawn(serve(cluster.client(LEASE).await, Arc::clone(&steps)));
    sleep(60 * SECOND).await; // Six leases, in no real time.
    assert!(!service.is_finished());
    cluster.lose("service");
    let ended = service.await.expect("no panic");
    assert!(matches!(ended, Err(RunError::Lost(_))), "{ended:?}");
    assert!((59..=64).contains(&steps.load(Relaxed)), "{steps:?}"); // The next extension is within a third of the lease.
}

#[tokio::test(start_paused = true)]
async fn a_second_instance_takes_over_after_the_first_has_stopped() {
    let (cluster, steps) = (MemoryCluster::new(3), [(); 2].map(|()| Arc::<AtomicU32>::default()));
    let (first, second) = (cluster.host(), cluster.host());
    let active = tokio::spawn(serve(first.client(LEASE).await, Arc::clone(&steps[0])));
    sleep(5 * SECOND).await;
    let standby = tokio::spawn(serve(second.client(LEASE).await, Arc::clone(&steps[1])));
    sleep(15 * SECOND).await;
    first.cut_all();
    assert!(active.await.expect("no panic").is_err());
    assert_eq!(steps[1].load(Relaxed), 0); // The first has stopped before the second begins.
    sleep(2 * SECOND).await;
    assert!(steps[1].load(Relaxed) > 0 && !standby.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_job_without_a_majority_reports_that() {
    let cluster = MemoryCluster::new(5);
    let locks = cluster.client(LEASE).await;
    (0..3).for_each(|node| cluster.stop(node));
    let refused = serve(locks.clone(), Arc::default()).await;
    let Err(RunError::Acquire(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::NoQuorum);
    assert!(error.to_string().contains("node0"), "{error}");
    cluster.start(0);
    sleep(SECOND).await;
    assert!(locks.lock("service").acquire().await.is_ok());
}

/// A limit of zero is one try: it gets a lock that is free, and finds out that another client holds it.
#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_is_one_try() {
    let cluster = MemoryCluster::new(3);
    let (locks, other) = (cluster.client(LEASE).await, cluster.client(LEASE).await);
    sleep(SECOND).await; // The connections are made.
    let attempt = || other.lock("turn").wait(Duration::ZERO).run(async |_| Ok(1));
    assert!(matches!(attempt().await, Ok::<_, RunError<Infallible, _>>(1)));
    let _guard = locks.lock("turn").acquire().await.expect("the lock");
    let error = attempt().await.expect_err("the other client holds the lock");
    assert_eq!(error.kind(), Some(ErrorKind::Held), "{error}");
}
