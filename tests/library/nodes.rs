//! Every kind of node: one, two, unix sockets, passwords, TLS, replicas, the same one twice.

#[cfg(feature = "tls")]
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use quorlock::environment::{Connecting, Environment, Moment};
use quorlock::{Answer, Holder, NodeError, Quorlock};
#[cfg(feature = "tls")]
use quorlock_testkit::server::free_port;
use quorlock_testkit::worker::Worker;
use quorlock_testkit::worker::report;
use quorlock_testkit::{Cluster, Setup, eventually, within};
use redis::ConnectionAddr;

use crate::clocks::Ahead;

const SECOND: Duration = Duration::from_secs(1);

pub async fn cycle(urls: impl IntoIterator<Item = String>) -> Result<usize, String> {
    let builder = Quorlock::builder().nodes(urls).node_timeout(5 * SECOND);
    let locks = builder.connect().await.map_err(|error| error.to_string())?;
    locks.flush().await;
    let guard = locks.lock("cycle").try_acquire().await.map_err(|error| error.to_string())?;
    locks.flush().await;
    let margin = guard.margin();
    guard.release().await.map_err(|error| error.to_string())?;
    locks.flush().await;
    Ok(margin)
}

pub async fn run(job: &[String]) {
    report(match cycle(job.iter().cloned()).await {
        Ok(margin) => format!("margin {margin}"),
        Err(error) => error,
    });
}

// On a current-thread runtime the requests would be batched in any case.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_of_many_tasks_are_batched() {
    const TASKS: usize = 32;
    let mut cluster = Cluster::start(3);
    let environment = Arc::new(Ahead::default());
    // However long a busy machine takes, no lease is extended and no node is given up meanwhile.
    let builder = cluster.builder().environment(environment.clone()).lease(120 * SECOND).node_timeout(20 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    // The first cycle loads the scripts.
    locks.lock("first").acquire().await.expect("a free lock").release().await.expect("a release");
    locks.flush().await;
    // No answer arrives between the requests.
    (0..3).for_each(|node| cluster.pause(node));
    let before = environment.writes.load(Ordering::Relaxed);
    let ask = move || (0..TASKS).map(|task| tokio::spawn(locks.lock(task.to_string()).try_acquire())).collect();
    let asked: Vec<_> = tokio::spawn(async move { ask() }).await.expect("a task");
    let writes = || environment.writes.load(Ordering::Relaxed) - before;
    eventually(10 * SECOND, "the first have left", || writes() >= 6).await;
    (0..3).for_each(|node| cluster.resume(node));
    let mut guards = Vec::new();
    for task in asked {
        guards.push(task.await.expect("a task").expect("its own lock"));
    }
    // One by one it would be 96. A busy machine may stop the tasks between two requests.
    assert!(writes() <= 3 * TASKS / 4, "{TASKS} requests to three nodes in {} writes", writes());
}

/// An answer as long as the value would end the connection, and with it what all other requests have under way.
#[tokio::test]
async fn a_foreign_key_of_any_length_can_be_inspected() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(10 * SECOND).await;
    locks.flush().await;
    let before: Vec<u64> = locks.stats().nodes.iter().map(|node| node.reconnections).collect();
    cluster.each::<()>(redis::cmd("SET").arg(Cluster::lock_key("long")).arg("x".repeat(2 << 20)));
    let seen = locks.inspect("long").await.expect("a name");
    let holders = seen.nodes.iter().map(|node| node.state.as_ref().map(|state| state.holder.clone()));
    assert!(holders.into_iter().all(|holder| holder == Ok(Some(Holder::Foreign))), "{seen:?}");
    locks.flush().await;
    assert_eq!(locks.stats().nodes.iter().map(|node| node.reconnections).collect::<Vec<u64>>(), before);
}

#[tokio::test]
async fn nodes_out_of_memory_name_the_holder_and_release() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.client(10 * SECOND).await, cluster.client(10 * SECOND).await);
    let guard = first.lock("x").acquire().await.expect("a free lock");
    first.flush().await;
    let memory = |limit: &str| cluster.each::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit));
    memory("1");
    let held = second.lock("x").try_acquire().await.expect_err("it is held");
    assert!(held.is_held(), "{held}");
    let full = second.lock("y").try_acquire().await.expect_err("there is no room");
    let is_full = |answer: &Answer| matches!(answer, Answer::Failed(NodeError::Redis { code, .. }) if code == "OOM");
    assert!(full.nodes().iter().filter(|node| is_full(&node.answer)).count() >= 2, "{full}");
    guard.release().await.expect("a release");
    first.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("x")), 0);
    memory("0");
    second.lock("x").try_acquire().await.expect("it is free").release().await.expect("a release");
}

/// A node that refuses writes for now keeps the lease that it should release.
#[tokio::test]
async fn a_failed_release_is_repeated_until_the_nodes_execute_it() {
    let cluster = Cluster::start(3);
    let locks = cluster.client(60 * SECOND).await;
    let guard = locks.lock("x").acquire().await.expect("a free lock");
    locks.flush().await;
    let replicas = |least: &str| {
        cluster.each::<()>(redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(least));
    };
    replicas("1"); // From now on writes are answered NOREPLICAS.
    guard.release().await.expect_err("no node can do it");
    assert_eq!(cluster.count_keys(&Cluster::lock_key("x")), 3);
    replicas("0");
    eventually(20 * SECOND, "it was sent again", || cluster.count_keys(&Cluster::lock_key("x")) == 0).await;
}

/// The client keeps only a limited number of failed releases: each one uses memory until its lease would have ended.
#[tokio::test]
async fn only_the_latest_failed_releases_are_repeated() {
    const CYCLES: usize = 9000;
    let cluster = Cluster::quiet(3);
    let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
    let locks = builder.connect().await.expect("settings that work");
    locks.flush().await;
    let mut unable = cluster.redis(0);
    let mut replicas = |least: usize| {
        let set = redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(least).to_owned();
        set.exec(&mut unable).expect("a setting");
    };
    replicas(1);
    let one = async |i: usize| locks.lock(format!("{i}")).acquire().await?.release().await.map_err(Into::into);
    let cycles = futures::stream::iter(0..CYCLES).map(one).buffer_unordered(100);
    let failed = cycles.filter_map(|cycle: Result<_, Box<dyn std::error::Error>>| futures::future::ready(cycle.err()));
    let failed: Vec<_> = failed.collect().await;
    assert!(failed.is_empty(), "{failed:?}");
    let ballots = |cluster: &Cluster| {
        let keys = redis::cmd("KEYS").arg("quorlock:ballot:*").to_owned();
        keys.query::<Vec<String>>(&mut cluster.redis(0)).expect("names").len()
    };
    locks.flush().await;
    replicas(0);
    // Each release leaves a ballot key.
    eventually(20 * SECOND, "they were sent again", || ballots(&cluster) >= 1024).await;
    locks.flush().await;
    assert!(ballots(&cluster) <= 4096, "{} releases", ballots(&cluster));
}

/// All connections of a client share a task. A bug in one of them must not affect the others.
#[tokio::test]
async fn a_panic_in_one_connection_leaves_the_others_working() {
    let cluster = Setup::new(2).listed(3).start();
    let urls = cluster.urls().into_iter().chain(["unix:///nowhere/redis.sock".to_owned()]);
    let environment = Arc::new(Ahead::default());
    let locks = Quorlock::builder()
        .node_timeout(2 * SECOND)
        .nodes(urls)
        .environment(environment)
        .connect()
        .await
        .expect("settings that work");
    let guard = locks.lock("x").acquire().await.expect("two of three are there");
    assert_eq!(guard.margin(), 0);
    guard.release().await.expect("a release");
}

/// An environment that panics in the first connects, as tokio does when it cannot start a thread for a lookup.
#[derive(Debug, Default)]
struct Clumsy {
    machine: Ahead,
    attempts: AtomicUsize,
}

impl Environment for Clumsy {
    fn now(&self) -> Moment {
        self.machine.now()
    }

    fn wall(&self) -> Duration {
        self.machine.wall()
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.machine.fill(bytes);
    }

    fn connect<'a>(&'a self, address: &'a ConnectionAddr) -> Connecting<'a> {
        assert!(self.attempts.fetch_add(1, Ordering::Relaxed) >= 9, "on purpose");
        self.machine.connect(address)
    }
}

#[tokio::test]
async fn a_node_recovers_after_panics_in_its_connection() {
    let cluster = Cluster::start(3);
    let builder = cluster.builder().node_timeout(2 * SECOND).environment(Arc::new(Clumsy::default()));
    let locks = builder.connect().await.expect("settings that work");
    let error = locks.lock("x").try_acquire().await.expect_err("no connection yet");
    assert!(error.to_string().contains("on purpose"), "{error}");
    within(20 * SECOND, "every node is back", async || {
        let nodes = locks.inspect("x").await.expect("a name").nodes;
        nodes.iter().all(|node| node.state.is_ok())
    })
    .await;
    locks.lock("x").acquire().await.expect("they are there").release().await.expect("a release");
}

#[tokio::test]
async fn clusters_of_any_size_work() {
    for (nodes, margin) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)] {
        let cluster = Cluster::start(nodes);
        assert_eq!(cycle(cluster.urls()).await, Ok(margin), "{nodes} nodes");
    }
}

#[tokio::test]
async fn an_even_number_needs_more_than_half() {
    let mut cluster = Cluster::start(4);
    let locks = cluster.client(10 * SECOND).await;
    cluster.kill(0);
    locks.lock("x").acquire().await.expect("three of four").release().await.expect("a release");
    cluster.kill(1);
    assert!(locks.lock("x").try_acquire().await.is_err_and(|error| error.is_no_quorum()));
}

#[tokio::test]
async fn nodes_on_unix_sockets_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("redis.sock");
    let path = socket.to_str().expect("a plain path");
    let _cluster = Cluster::with_options(1, &["--unixsocket", path]);
    assert_eq!(cycle([format!("redis+unix://{path}")]).await, Ok(0));
    assert_eq!(cycle([format!("unix://{path}?db=2")]).await, Ok(0));
}

#[tokio::test]
async fn users_and_passwords_are_used_and_never_shown() {
    let cluster = Cluster::start(1);
    let secret = "p%40ss-hunter2";
    let mut redis = cluster.redis(0);
    for words in [&["SETUSER", "clerk", "on", ">p@ss-hunter2", "~*", "+@all"][..], &["SETUSER", "default", "off"]] {
        redis::cmd("ACL").arg(words).query::<()>(&mut redis).expect("an ACL");
    }
    let port = cluster.ports()[0];
    assert_eq!(cycle([format!("redis://clerk:{secret}@127.0.0.1:{port}/1")]).await, Ok(0));
    for url in [format!("redis://clerk:wrong-hunter2@127.0.0.1:{port}"), format!("redis://127.0.0.1:{port}")] {
        let builder = Quorlock::builder().nodes([url]);
        let said = format!("{builder:?}");
        let locks = builder.connect().await.expect("a good URL");
        let error = locks.lock("x").try_acquire().await.expect_err("no access");
        let said = format!("{said} {locks:?} {error} {error:?}");
        assert!(!said.contains("hunter2"), "{said}");
        let report = &error.nodes()[0];
        assert!(
            matches!(&report.answer, Answer::Failed(NodeError::Redis { .. } | NodeError::Connect(_))),
            "{report:?}"
        );
        assert!(["authentication", "NOAUTH", "WRONGPASS"].iter().any(|word| said.contains(word)), "{said}");
    }
}

#[tokio::test]
async fn a_durable_node_keeps_its_vote_over_a_restart() {
    let mut cluster = Cluster::with_options(1, &["--appendonly", "yes", "--appendfsync", "always"]);
    // A busy disk takes seconds to write before the node answers.
    let patient = async |cluster: &Cluster| {
        let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
        builder.connect().await.expect("settings that work")
    };
    let locks = patient(&cluster).await;
    cycle(cluster.urls()).await.expect("a new node counts");
    let quarantined = |answer: &Answer| matches!(answer, Answer::Failed(NodeError::Quarantined { .. }));
    for empty in [false, true] {
        cluster.restart(0, empty);
        let newcomer = patient(&cluster).await;
        for locks in [&locks, &newcomer] {
            // A quarantine lasts for a minute.
            let wait = if empty { 5 * SECOND } else { 50 * SECOND };
            let outcome = locks.lock("x").wait(wait).acquire().await;
            match outcome {
                Ok(guard) if !empty => drop(guard.release().await.expect("a release")),
                Err(error) if empty => assert!(quarantined(&error.nodes()[0].answer), "{error}"),
                other => panic!("empty: {empty}: {other:?}"),
            }
        }
    }
}

/// The log exists after the restart, but may lack the last votes.
#[tokio::test]
async fn a_node_with_a_lagging_log_is_quarantined_after_a_restart() {
    let always = ["--appendonly", "yes", "--appendfsync", "always"];
    let not_on_rewrite = [&always[..], &["--no-appendfsync-on-rewrite", "yes"]].concat();
    let on_rewrite = [&always[..], &["--no-appendfsync-on-rewrite", "no"]].concat();
    let every_second = ["--appendonly", "yes", "--appendfsync", "everysec"];
    for (options, keeps) in [(&every_second[..], false), (&not_on_rewrite, false), (&on_rewrite, true)] {
        let mut cluster = Cluster::with_options(1, options);
        cycle(cluster.urls()).await.expect("a new node counts");
        cluster.restart(0, false);
        let outcome = cluster.client(10 * SECOND).await.lock("x").try_acquire().await;
        let is_quarantined = outcome
            .as_ref()
            .is_err_and(|error| matches!(error.nodes()[0].answer, Answer::Failed(NodeError::Quarantined { .. })));
        assert_eq!((outcome.is_ok(), is_quarantined), (keeps, !keeps), "{options:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn one_server_under_two_names_has_one_vote() {
    let cluster = Setup::new(2).listed(3).start();
    let ports = cluster.ports();
    let urls = [
        format!("redis://127.0.0.1:{}", ports[0]),
        format!("redis://localhost:{}", ports[0]),
        format!("redis://127.0.0.1:{}", ports[1]),
    ];
    let locks = Quorlock::builder().node_timeout(2 * SECOND).nodes(urls).connect().await.expect("they look different");
    locks.flush().await;
    let guard = locks.lock("x").acquire().await.expect("two servers are a majority of three");
    locks.flush().await;
    assert_eq!(guard.margin(), 0, "the server has only one vote");
    guard.release().await.expect("a release");
}

/// The client drops queued requests that the other nodes have decided, but sends every release of a sent request.
#[tokio::test]
async fn a_node_paused_under_load_gets_its_releases_and_no_old_requests() {
    const CYCLES: usize = 3000;
    for stops_before in [false, true] {
        let mut cluster = Cluster::start(3);
        let builder = cluster.builder().lease(60 * SECOND).node_timeout(10 * SECOND);
        let locks = builder.connect().await.expect("a client");
        if stops_before {
            cluster.pause(0); // The connection is still being opened during the load.
        } else {
            locks.flush().await;
            cluster.pause(0);
        }
        let cycles = futures::stream::iter(0..CYCLES).map(|i| {
            let locks = locks.clone();
            async move { locks.lock(format!("load:{i}")).acquire().await.expect("two of three").release().await }
        });
        assert!(cycles.buffer_unordered(47).all(|released| async move { released.is_ok() }).await);
        cluster.resume(0);
        locks.flush().await;

        let mut node = cluster.redis(0);
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut node).expect("its counts");
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
        let calls: usize = calls.unwrap_or("0").parse().expect("a number");
        assert!(calls < CYCLES, "{calls} of {} requests were sent", 2 * CYCLES);
        assert_eq!(lock_keys(&cluster, 0), [""; 0], "stopped before: {stops_before}");
    }
}

fn lock_keys(cluster: &Cluster, node: usize) -> Vec<String> {
    redis::cmd("KEYS").arg("quorlock:lock:*").query(&mut cluster.redis(node)).expect("its keys")
}

/// Many guards and their client are dropped at once.
#[tokio::test]
async fn a_dropped_client_releases_all_its_leases() {
    let cluster = Cluster::start(3);
    let locks = cluster.builder().node_timeout(2 * SECOND).lease(300 * SECOND).connect().await.expect("a client");
    let ask = |i: usize| locks.lock(format!("many:{i}")).acquire();
    let asked = futures::stream::iter(0..3000).map(ask).buffer_unordered(100);
    let guards: Vec<_> = asked.collect().await;
    assert!(guards.iter().all(Result::is_ok));
    // A majority that does not include this node may have granted the last ones.
    eventually(60 * SECOND, "the node has them all", || lock_keys(&cluster, 0).len() == 3000).await;
    drop((guards, locks));
    eventually(60 * SECOND, "all are free", || (0..3).all(|node| lock_keys(&cluster, node).is_empty())).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_verifies_certificates_unless_insecure() {
    if !quorlock_testkit::program::serves_tls() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str| dir.path().join(name).to_str().expect("a plain path").to_owned();
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    fs::write(file("cert"), key.cert.pem()).expect("a file");
    fs::write(file("key"), key.signing_key.serialize_pem()).expect("a file");
    let port = free_port().expect("a free port").to_string();
    let (cert, private) = (file("cert"), file("key"));
    let options = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &private,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ];
    let cluster = Cluster::with_options(1, &options);
    let url = format!("rediss://localhost:{port}");
    let ask =
        |trusted: &str, url: &str| Worker::spawn_in(&["env", &format!("SSL_CERT_FILE={trusted}")], &[url]).finish();
    assert_eq!(ask(&cert, &url), ["margin 0"]);
    assert_eq!(ask("/etc/ssl/certs/ca-certificates.crt", &format!("{url}/#insecure")), ["margin 0"]);
    for (trusted, url, hint) in [
        (&file("nothing"), &url, &file("nothing")),
        (&"/etc/ssl/certs/ca-certificates.crt".to_owned(), &url, &"SSL_CERT_FILE".to_owned()),
        (&cert, &format!("rediss://127.0.0.1:{port}"), &"not for the name 127.0.0.1".to_owned()),
        (&cert, &format!("redis://localhost:{port}"), &"needs the scheme rediss".to_owned()),
    ] {
        let refused = ask(trusted, url);
        assert!(refused[0].starts_with("no quorum") && refused[0].contains(hint), "{refused:?}");
    }
    // A server without TLS waits for more bytes, and does not answer.
    let plain = format!("rediss://localhost:{}/#insecure", cluster.ports()[0]);
    let locks = Quorlock::builder().nodes([plain]).connect().await.expect("a client");
    let hint = || locks.known().to_string().contains("needs the scheme redis)");
    eventually(30 * SECOND, "a hint", hint).await;
}

/// The file with the trusted certificates is on a disk that hangs. A separate thread reads it, and the other nodes grant the
/// lock.
#[cfg(feature = "tls")]
#[tokio::test]
async fn unreadable_certificates_affect_only_their_node() {
    let cluster = Setup::new(2).listed(3).start();
    let pipe = cluster.dir().join("certificates");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let trusted = format!("SSL_CERT_FILE={}", pipe.to_str().expect("a plain path"));
    let urls = [cluster.urls(), vec![format!("rediss://localhost:{port}")]].concat();
    let job: Vec<&str> = urls.iter().map(String::as_str).collect();
    // The pipe has no writer, so opening it blocks for ever.
    let worker = Worker::spawn_in(&["timeout", "20", "env", &trusted], &job);
    assert_eq!(worker.finish(), ["margin 0"]);
}
