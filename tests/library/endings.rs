//! Runtimes that end before the guards of their clients, processes that end, and callers outside a runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use quorlock::{AcquireError, Answer, ClientError, ExtendError, Guard, NodeError, Quorlock, ReleaseError};
use quorlock_testkit::server::free_port;
use quorlock_testkit::worker::{Worker, report};
use quorlock_testkit::{CUT_OFF, Cluster, eventually};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
/// The limit for an event that takes a moment, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn single() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn held(cluster: &Cluster, lease: Duration, name: &str) -> (Quorlock, Guard) {
    let locks = cluster.client(lease).await;
    let guard = locks.lock(name).acquire().await.expect("the lock");
    (locks, guard)
}

/// Runs a future on a thread outside a runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

#[test]
fn a_loss_is_signalled_after_the_client_runtime_ended() {
    let cluster = Cluster::start(3);
    let (elsewhere, home) = (single(), runtime());
    let (_locks, guard) = home.block_on(held(&cluster, SECOND, "x"));
    drop(home);
    elsewhere.block_on(async {
        let work = guard.protect(std::future::pending::<()>());
        assert!(timeout(LIMIT, work).await.expect("the loss ends the work").is_err());
        timeout(LIMIT, guard.endangered()).await.expect("the signal");
        timeout(LIMIT, guard.lost()).await.expect("the signal");
    });
    assert!(guard.is_lost());
    block_on(guard.lost());
}

/// All that it could see is there at once. It must not look for ever within one poll.
#[test]
fn an_observer_of_an_ended_client_waits_between_its_looks() {
    let cluster = Cluster::start(1);
    let (elsewhere, home) = (single(), runtime());
    let locks = home.block_on(cluster.client(SECOND));
    drop(home);
    elsewhere.block_on(async {
        let mut leaders = locks.observe("x").every(Duration::ZERO);
        leaders.changed().await.expect("a name");
        assert!(timeout(SECOND / 10, leaders.changed()).await.is_err(), "nothing changes");
    });
}

#[test]
fn a_loss_is_signalled_while_the_client_runtime_is_stalled() {
    let cluster = Cluster::start(3);
    let home = single();
    let (_locks, guard) = home.block_on(held(&cluster, SECOND, "x"));
    runtime().block_on(async { timeout(LIMIT, guard.lost()).await.expect("the signal") });
    assert!(guard.is_lost());

    let (locks, guard) = home.block_on(held(&cluster, 60 * SECOND, "y"));
    let is_to_blame = |error: &NodeError| matches!(error, NodeError::Client(ClientError::RuntimeStalled(_)));
    let blamed = |answer: &Answer| matches!(answer, Answer::Failed(error) if is_to_blame(error));
    let error = block_on(locks.lock("z").wait(SECOND).acquire()).expect_err("nothing is sent");
    assert!(error.is_no_quorum() && error.nodes().iter().all(|node| blamed(&node.answer)), "{error}");
    let Err(ExtendError::NoQuorum { nodes, .. }) = block_on(guard.extend()) else { panic!("nothing is sent") };
    assert!(nodes.0.iter().all(|node| blamed(&node.answer)), "{nodes}");
    let seen = block_on(locks.inspect("y")).expect("a name");
    assert!(seen.nodes.iter().all(|node| node.state.as_ref().is_err_and(is_to_blame)), "{seen:?}");
    let Err(ReleaseError::Unconfirmed { nodes }) = block_on(guard.release()) else { panic!("nothing is sent") };
    assert!(nodes.0.iter().all(|node| blamed(&node.answer)), "{nodes}");
    drop(home);
    let gone = || cluster.count_keys(&Cluster::lock_key("y")) == 0;
    single().block_on(async { eventually(LIMIT, "queued bytes leave at the end", gone).await });
}

/// The caller sends without the task of the connections, which has nothing to do before an answer comes or is overdue.
#[test]
fn silent_nodes_are_not_taken_for_a_stalled_runtime() {
    let mut cluster = Cluster::start(3);
    runtime().block_on(async {
        let locks = cluster.builder().node_timeout(2 * SECOND).connect().await.expect("settings that work");
        locks.lock("x").acquire().await.expect("the lock").release().await.expect("a release");
        (0..3).for_each(|node| cluster.pause(node));
        let wait = Duration::from_millis(200); // Shorter than the time after which a connection in use is doubted.
        let error = locks.lock("x").wait(wait).acquire().await.expect_err("no node answers");
        let is_blamed = |answer: &Answer| matches!(answer, Answer::Failed(NodeError::NoAnswer(_)));
        assert!(error.nodes().iter().all(|node| is_blamed(&node.answer)), "{error}");
        (0..3).for_each(|node| cluster.resume(node));
    });
}

#[test]
fn a_dropped_guard_releases_while_the_client_runtime_is_stalled() {
    let cluster = Cluster::start(3);
    let home = single();
    let (locks, guard) = home.block_on(held(&cluster, 60 * SECOND, "x"));
    home.block_on(locks.flush());
    thread::spawn(move || drop(guard)).join().expect("a thread");
    let gone = || cluster.count_keys(&Cluster::lock_key("x")) == 0;
    single().block_on(async { eventually(LIMIT, "it is released", gone).await });
    // The runtime continues as if its own task had sent the release.
    let again = home.block_on(locks.lock("x").acquire()).expect("free");
    drop(home.block_on(again.release()).expect("a release"));
}

#[test]
fn errors_name_the_end_of_the_client_runtime() {
    let cluster = Cluster::start(3);
    let (elsewhere, home) = (single(), runtime());
    let (locks, guard) = home.block_on(held(&cluster, 60 * SECOND, "x"));
    let waiting = {
        let request = locks.lock("x");
        thread::spawn(move || single().block_on(request.acquire()))
    };
    let again = locks.lock("x").owner(guard.owner());
    home.block_on(async { eventually(LIMIT, "it waits", || locks_wait(&locks)).await });
    drop(home);
    let ended = ClientError::RuntimeEnded;
    assert_eq!(waiting.join().expect("a thread").expect_err("it waited"), AcquireError::Client(ended));
    elsewhere.block_on(async {
        for request in [locks.lock("y"), locks.lock("x"), again] {
            assert_eq!(request.acquire().await.expect_err("no node can be asked"), AcquireError::Client(ended));
        }
        assert_eq!(locks.lock("y").try_acquire().await.expect_err("the same"), AcquireError::Client(ended));
        assert_eq!(guard.extend().await, Err(ExtendError::Client(ended)));
        let seen = locks.inspect("x").await.expect("a name");
        assert!(seen.nodes.iter().all(|node| node.state == Err(NodeError::Client(ended))), "{seen:?}");
        locks.flush().await;
        assert_eq!(guard.release().await, Err(ReleaseError::Client(ended)));
    });
}

/// Checks that a second request of this process for "x" fails because the first one holds it.
fn locks_wait(locks: &Quorlock) -> bool {
    let second = block_on(locks.lock("x").wait(Duration::ZERO).acquire());
    second.is_err_and(|error| error.is_held())
}

#[test]
fn a_guard_releases_on_the_sockets_of_an_ended_runtime() {
    let cluster = Cluster::start(3);
    for (number, home) in [single(), runtime()].into_iter().enumerate() {
        let names: Vec<String> = ["a", "b", "c"].iter().map(|name| format!("{name}{number}")).collect();
        let guards = home.block_on(async {
            let locks = cluster.client(60 * SECOND).await;
            let mut guards = Vec::new();
            for name in &names {
                guards.push(locks.lock(name).acquire().await.expect("the lock"));
            }
            locks.flush().await;
            guards
        });
        drop(home);
        for (name, guard) in names.iter().zip(guards) {
            assert_eq!(cluster.count_keys(&Cluster::lock_key(name)), 3, "the lease runs on");
            drop(guard);
            let gone = || cluster.count_keys(&Cluster::lock_key(name)) == 0;
            single().block_on(async { eventually(LIMIT, "it is released everywhere", gone).await });
        }
    }
}

#[cfg(feature = "tls")]
#[test]
fn every_kind_of_stream_sends_the_last_release() {
    if !quorlock_testkit::program::serves_tls() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str| dir.path().join(name).to_str().expect("a plain path").to_owned();
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    std::fs::write(file("cert"), key.cert.pem()).expect("a file");
    std::fs::write(file("key"), key.signing_key.serialize_pem()).expect("a file");
    let port = free_port().expect("a free port").to_string();
    let (cert, private, socket) = (file("cert"), file("key"), file("redis.sock"));
    let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &private, "--tls-auth-clients", "no"];
    let options = [&tls[..], &["--tls-ca-cert-file", &cert, "--unixsocket", &socket]].concat();
    let cluster = Cluster::with_options(1, &options);
    for url in [format!("redis+unix://{socket}"), format!("rediss://localhost:{port}/#insecure")] {
        for outlives in [false, true] {
            let home = single();
            let guard = home.block_on(async {
                let locks = Quorlock::builder()
                    .node_timeout(2 * SECOND)
                    .nodes([&url])
                    .lease(60 * SECOND)
                    .connect()
                    .await
                    .expect("settings");
                locks.lock("x").acquire().await.expect("the lock")
            });
            if outlives {
                drop(home);
                drop(guard);
            } else {
                drop(guard);
                drop(home);
            }
            let gone = || cluster.count_keys(&Cluster::lock_key("x")) == 0;
            single().block_on(async { eventually(LIMIT, &url, gone).await });
        }
    }
}

#[test]
fn calls_outside_a_runtime_use_the_client_runtime() {
    let cluster = Cluster::start(3);
    let home = runtime();
    let locks = home.block_on(cluster.client(10 * SECOND));
    let guard = block_on(locks.lock("x").acquire()).expect("the lock");
    let (waiting, request) = (Instant::now(), locks.lock("x").wait(SECOND / 10));
    assert!(block_on(request.acquire()).expect_err("it is held").is_timed_out());
    assert!(waiting.elapsed() >= SECOND / 10);
    block_on(guard.extend()).expect("an extension");
    assert_eq!(block_on(guard.protect(async { 7 })), Ok(7));
    assert!(block_on(locks.inspect("x")).expect("a name").nodes.iter().all(|node| node.state.is_ok()));
    block_on(guard.release()).expect("a release");
    block_on(locks.flush());
    let without_timers = Builder::new_current_thread().build().expect("a runtime");
    let again = without_timers.block_on(locks.lock("x").acquire()).expect("the lock");
    assert!(without_timers.block_on(locks.lock("x").try_acquire()).expect_err("it is held").is_held());
    without_timers.block_on(again.release()).expect("a release");
}

#[test]
fn a_wait_continues_in_another_runtime() {
    let cluster = Cluster::start(3);
    let home = runtime();
    let (locks, guard) = home.block_on(held(&cluster, 10 * SECOND, "x"));
    let mut waiting = Box::pin(locks.lock("x").wait(LIMIT).acquire());
    for elsewhere in [single(), runtime(), single()] {
        let polled = elsewhere.block_on(async { timeout(SECOND / 100, &mut waiting).await });
        assert!(polled.is_err(), "it is held");
    }
    let mut lost = Box::pin(guard.lost());
    assert!(single().block_on(async { timeout(SECOND / 100, &mut lost).await }).is_err());
    assert!(single().block_on(async { timeout(SECOND / 100, &mut lost).await }).is_err());
    drop(lost);
    drop(guard);
    drop(block_on(waiting).expect("its turn"));
}

/// Returns the processor time of this thread.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below 10^9"))
}

/// The clock of tokio jumps when all tasks wait for its timers. The clocks of the nodes and of this machine do not.
#[tokio::test(start_paused = true)]
async fn a_paused_tokio_clock_causes_no_busy_loop() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("redis://{}", listener.local_addr().expect("its address"));
    let cluster = Cluster::start(3);
    for nodes in [vec![CUT_OFF.to_owned()], vec![silent], cluster.urls()] {
        let (start, before) = (Instant::now(), busy());
        let locks = Quorlock::builder().nodes(&nodes).lease(4 * SECOND).connect().await.expect("settings");
        let are_up = nodes.len() == 3;
        // The second wait is longer than the lease, which needs an extension.
        let (first, second) = if are_up { (LIMIT, 5 * SECOND) } else { (SECOND, 2 * SECOND) };
        let holding = locks.lock("x").wait(first).acquire().await;
        assert_eq!(holding.is_ok(), are_up, "{holding:?}");
        let waiting = locks.lock("x").wait(second).acquire().await;
        assert!(waiting.is_err() && start.elapsed() > second, "{waiting:?} after {:?}", start.elapsed());
        let (busy, passed) = (busy() - before, start.elapsed());
        assert!(busy < passed / 3, "{busy:?} of {passed:?} with {nodes:?}");
        if let Ok(guard) = holding {
            assert!(!guard.is_lost(), "it was extended meanwhile");
            guard.release().await.expect("a release");
        }
    }
}

#[test]
fn connect_outside_a_runtime_fails() {
    let error = block_on(Quorlock::builder().nodes(["redis://127.0.0.1:1"]).connect()).expect_err("no runtime");
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

/// The ways in which a process ends.
const ENDS: [&str; 8] = ["error", "panic", "end", "single error", "single panic", "single exit", "task", "request"];

#[test]
fn an_ending_process_releases_its_locks() {
    let cluster = Cluster::start(3);
    let urls = cluster.urls().join(",");
    for end in ENDS {
        for run in 0..20 {
            let name = format!("{end} {run}");
            Worker::spawn(&["end", end, &name, &urls]).finish();
            let key = Cluster::lock_key(&name);
            let gone = || cluster.count_keys(&key) == 0;
            single().block_on(async { eventually(LIMIT, &name, gone).await });
        }
    }
}

/// The jobs of the processes.
pub fn end(job: &[String]) {
    let [_, way, name, urls] = job else { panic!("{job:?}") };
    let outcome = match way.as_str() {
        "single error" => thread::scope(|scope| scope.spawn(|| single_main("error", name, urls)).join().map(drop)),
        "single exit" => thread::scope(|scope| scope.spawn(|| single_main("exit", name, urls)).join().map(drop)),
        "single panic" => thread::scope(|scope| scope.spawn(|| single_main("panic", name, urls)).join().map(drop)),
        way => thread::scope(|scope| scope.spawn(|| multi_main(way, name, urls)).join().map(drop)),
    };
    report(outcome.is_ok());
    std::process::exit(0);
}

#[tokio::main]
async fn multi_main(way: &str, name: &str, urls: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    body(way, name, urls).await
}

#[tokio::main(flavor = "current_thread")]
async fn single_main(way: &str, name: &str, urls: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    body(way, name, urls).await
}

async fn body(way: &str, name: &str, urls: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let locks =
        Quorlock::builder().node_timeout(2 * SECOND).nodes(urls.split(',')).lease(60 * SECOND).connect().await?;
    if way == "request" {
        // The request is dropped while the nodes' answers are in transit.
        let mut request = Box::pin(locks.lock(name).acquire());
        let until = Instant::now() + SECOND / 50;
        while Instant::now() < until && timeout(Duration::from_micros(200), &mut request).await.is_err() {}
        return Ok(());
    }
    let guard = locks.lock(name).acquire().await?;
    match way {
        "error" => Err("on purpose")?,
        "exit" => {
            drop(guard);
            std::process::exit(0);
        }
        "panic" => std::panic::resume_unwind(Box::new("on purpose")),
        "task" => {
            tokio::spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
        }
        _ => {}
    }
    Ok(())
}

#[test]
fn a_forked_child_does_not_use_the_connections() {
    let cluster = Cluster::start(3);
    let mut worker = Worker::spawn(&["fork", &cluster.urls().join(",")]);
    assert_eq!(worker.next().as_deref(), Some("the child got an error"));
    assert_eq!(worker.next().as_deref(), Some("the child has waited"));
    assert_eq!(worker.next().as_deref(), Some("the child has ended"));
    assert_eq!(worker.next().as_deref(), Some("the parent went on"));
    worker.finish();
    let key = Cluster::lock_key("x");
    single().block_on(async { eventually(LIMIT, "it is released", || cluster.count_keys(&key) == 0).await });
}

/// Returns the numbers of the connections on which nodes call waiting requests.
fn subscribers(urls: &str) -> Vec<String> {
    let lists = urls.split(',').map(|url| {
        let mut node = redis::Client::open(url).and_then(|client| client.get_connection()).expect("a connection");
        redis::cmd("CLIENT").arg("LIST").query::<String>(&mut node).expect("a list")
    });
    let number = |line: &str| line.contains(" sub=1 ").then(|| line.split(' ').next().map(str::to_owned))?;
    lists.flat_map(|list| list.lines().filter_map(number).collect::<Vec<_>>()).collect()
}

/// Connects anew, and waits for a lock outside the runtime.
fn waits_in_a_fork(urls: &str) {
    let home = runtime();
    let builder = Quorlock::builder().nodes(urls.split(',')).node_timeout(5 * SECOND);
    let locks = home.block_on(builder.connect()).expect("settings");
    let error = block_on(locks.lock("x").wait(2 * SECOND).acquire()).expect_err("the parent holds it");
    assert!(error.is_timed_out() && error.is_held(), "{error}");
}

/// A process that connects, forks, and uses the client in both.
pub fn fork(job: &[String]) {
    let urls = &job[1];
    let forked = || {
        let home = single();
        home.block_on(async {
            let builder = Quorlock::builder().nodes(urls.split(',')).lease(60 * SECOND).node_timeout(5 * SECOND);
            let locks = builder.connect().await.expect("settings");
            let guard = locks.lock("x").acquire().await.expect("the lock");
            let mut waiting = Box::pin(locks.lock("x").acquire());
            assert!(futures::poll!(&mut waiting).is_pending());
            locks.flush().await;
            let (parent, connected, theirs) = (std::process::id(), subscribers(urls), urls.clone());
            let waits = locks.lock("x").wait(SECOND).acquire();
            let waits = thread::spawn(|| block_on(waits).expect_err("it is held"));
            while !waits.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(connected.len(), 3);
            // SAFETY: the child uses no lock that another thread may have held: it reports, and ends.
            match unsafe { nix::unistd::fork() }.expect("a fork") {
                nix::unistd::ForkResult::Child => {
                    let why = ClientError::Forked { from: parent };
                    for name in ["x", "y"] {
                        let error = locks.lock(name).try_acquire().await.expect_err("a copy");
                        assert_eq!(error, AcquireError::Client(why));
                    }
                    assert_eq!(guard.extend().await, Err(ExtendError::Client(why)));
                    let seen = locks.inspect("x").await.expect("a name");
                    assert!(seen.nodes.iter().all(|node| node.state == Err(NodeError::Client(why))), "{seen:?}");
                    drop(waiting);
                    assert_eq!(guard.release().await, Err(ReleaseError::Client(why)));
                    tokio::task::yield_now().await;
                    report("the child got an error");
                    // It has no thread of the parent. A wait outside a runtime ends in time all the same.
                    thread::spawn(move || waits_in_a_fork(&theirs)).join().expect("a thread");
                    report("the child has waited");
                    None
                }
                nix::unistd::ForkResult::Parent { child } => {
                    nix::sys::wait::waitpid(child, None).expect("the child");
                    report("the child has ended");
                    for _ in 0..10 {
                        guard.extend().await.expect("an extension");
                        locks.lock("y").try_acquire().await.expect("free").release().await.expect("a release");
                    }
                    assert!(locks.lock("x").try_acquire().await.is_err_and(|error| error.is_held()));
                    drop(guard);
                    drop(waiting.await.expect("its turn"));
                    assert_eq!(subscribers(urls), connected, "a connection was made again");
                    Some(())
                }
            }
        })
    };
    // In the child, the drop of the runtime must not affect the parent's sockets.
    let is_parent = thread::scope(|scope| scope.spawn(forked).join().expect("a thread")).is_some();
    if is_parent {
        report("the parent went on");
    }
    std::process::exit(0);
}
