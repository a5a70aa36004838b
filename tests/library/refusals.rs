//! Nodes that refuse: permissions of users, settings of nodes, and servers that are not suitable.

use std::time::{Duration, Instant};

use quorlock::{Answer, NodeError, Quorlock};
use quorlock_testkit::{Cluster, Setup, eventually, within};

use crate::nodes::cycle;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_user_who_may_only_run_scripts_can_lock() {
    let cluster = Cluster::start(1);
    let mut redis = cluster.redis(0);
    let operations = include_str!("../../docs/operations.md");
    // For 6.2 and newer, and for 6.0.
    let mut rules = operations.lines().filter_map(|line| line.strip_prefix("ACL SETUSER quorlock "));
    let info: String = redis::cmd("INFO").arg("server").query(&mut redis).expect("what it is");
    let rule = rules.nth(usize::from(info.contains("redis_version:6.0."))).expect("the rule");
    redis::cmd("ACL")
        .arg(&["SETUSER", "quorlock"])
        .arg(rule.split(' ').collect::<Vec<_>>())
        .exec(&mut redis)
        .expect(rule);

    let key = Cluster::lock_key("x");
    let locks = async || {
        let url = format!("redis://quorlock:secret@127.0.0.1:{}", cluster.ports()[0]);
        let locks = Quorlock::builder().node_timeout(2 * SECOND).nodes([url]).connect().await.expect("a client");
        locks.inspect("x").await.expect("a name");
        locks
    };
    let (first, second) = (locks().await, locks().await);
    let guard = first.lock("x").acquire().await.expect("a free lock");
    let waiting = tokio::spawn(second.lock("x").acquire());
    // A ticket is in the wait queue.
    eventually(10 * SECOND, "the second waits", || cluster.count_waiting("x") == 1).await;
    guard.release().await.expect("a release");
    let guard = waiting.await.expect("no panic").expect("its turn");
    // A key that outlives the longest lease is shortened.
    redis::cmd("PEXPIRE").arg(&key).arg(3_600_000).exec(&mut redis).expect("a longer life");
    first.lock("x").try_acquire().await.expect_err("it is held");
    let left: i64 = redis::cmd("PTTL").arg(&key).query(&mut redis).expect("a TTL");
    assert!((1..=10_000).contains(&left), "{left} ms");
    drop(guard);
    second.flush().await;
    let refused: Vec<redis::Value> = redis::cmd("ACL").arg("LOG").query(&mut redis).expect("what was refused");
    assert_eq!(refused, []);
    let url = format!("redis://quorlock:secret@127.0.0.1:{}", cluster.ports()[0]);
    let mut user = redis::Client::open(url).and_then(|client| client.get_connection()).expect("a connection");
    redis::cmd("CONFIG").arg("GET").arg("requirepass").exec(&mut user).expect_err("an administrator's password");
}

#[tokio::test]
async fn a_node_that_denies_info_never_has_a_vote() {
    let options: [&[&str]; 2] = [&[], &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]];
    for options in options {
        for setup in [Setup::new(1), Setup::new(1).undeclared()] {
            let cluster = setup.options(options).longest(SECOND).start();
            let mut redis = cluster.redis(0);
            redis::cmd("ACL").arg(&["SETUSER", "default", "-info"]).query::<()>(&mut redis).expect("an ACL");
            let locks = cluster.client(SECOND).await;
            // Longer than the longest lease and any quarantine.
            let error = locks.lock("x").wait(3 * SECOND).acquire().await.expect_err("nothing is known of the node");
            let denied = NodeError::NotAllowed { command: "INFO".to_owned() };
            assert_eq!(error.nodes()[0].answer, Answer::Failed(denied), "{options:?}");
            assert_eq!(cluster.count_keys(&Cluster::lock_key("x")), 0);
        }
    }
}

#[tokio::test]
async fn a_node_that_may_evict_keys_has_no_vote() {
    let cluster = Cluster::with_options(1, &["--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"]);
    let locks = cluster.client(SECOND).await;
    let error = locks.lock("x").try_acquire().await.expect_err("no vote");
    let evicts = NodeError::MayEvict { policy: "volatile-ttl".to_owned() };
    assert_eq!(error.nodes()[0].answer, Answer::Failed(evicts));
}

#[tokio::test]
async fn a_replica_has_no_vote() {
    let cluster = Cluster::start(3);
    let master = cluster.ports()[0].to_string();
    let command = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(&master).to_owned();
    for node in [1, 2] {
        command.query::<()>(&mut cluster.redis(node)).expect("a replica");
    }
    let locks = cluster.client(10 * SECOND).await;
    let error = locks.lock("x").wait(SECOND).acquire().await.expect_err("one master of three");
    assert!(error.is_no_quorum(), "{error}");
    for report in &error.nodes()[1..] {
        assert_eq!(report.answer, Answer::Failed(NodeError::Replica), "{report:?}");
    }
}

/// The error names the reason at once, and the node votes again when it accepts the scripts.
#[tokio::test]
async fn a_node_that_denies_script_loading_is_named() {
    let cluster = Cluster::start(1);
    let locks = cluster.client(SECOND).await;
    let acl = |words: &[&str]| redis::cmd("ACL").arg(&["SETUSER", "default"]).arg(words).exec(&mut cluster.redis(0));
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut cluster.redis(0)).expect("a flush");
    acl(&["-script"]).expect("an ACL");
    // The first request is answered. The release of it may block the others.
    for try_number in 0..5 {
        let error = locks.lock("x").try_acquire().await.expect_err("no script");
        assert!(error.to_string().contains("NOPERM"), "try {try_number}: {error}");
    }
    // Each connection works until its first command.
    let (before, start) = (connections(&cluster), Instant::now());
    while start.elapsed() < 2 * SECOND {
        locks.lock("x").try_acquire().await.expect_err("no script");
    }
    let (made, most) = (connections(&cluster) - before, 10 + 4 * start.elapsed().as_secs());
    assert!(made <= most, "{made} connections in {:?}", start.elapsed());
    acl(&["+script"]).expect("an ACL");
    let is_granted = async || locks.lock("x").try_acquire().await.is_ok();
    within(10 * SECOND, "the node votes again", is_granted).await;
}

/// Returns how many connections the node has accepted so far.
fn connections(cluster: &Cluster) -> u64 {
    let stats: String = redis::cmd("INFO").arg("stats").query(&mut cluster.redis(0)).expect("its counts");
    let made = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:")).expect("a count");
    made.trim().parse().expect("a number")
}

/// Starts a listener that sends these words on every connection without reading commands. Returns its URL.
async fn impostor(words: &'static [u8]) -> String {
    speaks(words, false).await
}

/// The same, but it closes the connection after the first command.
async fn hangs_up(words: &'static [u8]) -> String {
    speaks(words, true).await
}

async fn speaks(words: &'static [u8], hangs_up: bool) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(words).await);
            if hangs_up {
                // It reads all bytes: otherwise the reset of the connection would discard the answer.
                while let Ok(1..) = stream.read(&mut [0; 1 << 16]).await {
                    drop(stream.shutdown().await);
                }
            } else {
                streams.push(stream);
            }
        }
    });
    format!("redis://127.0.0.1:{port}")
}

#[tokio::test]
async fn a_server_that_is_not_redis_costs_only_its_vote() {
    let cluster = Setup::new(2).listed(3).start();
    let urls = cluster.urls().into_iter().chain([impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n").await]);
    assert_eq!(cycle(urls).await, Ok(0));
}

#[tokio::test]
async fn old_and_full_servers_differ_from_unreachable_ones() {
    // It supports only the first of the five commands of a handshake.
    let words = b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n";
    let locks = Quorlock::builder().nodes([impostor(words).await]).connect().await.expect("a client");
    let error = locks.lock("x").try_acquire().await.expect_err("no vote");
    assert_eq!(error.nodes()[0].answer, Answer::Failed(NodeError::TooOld));

    let words = b"-ERR max number of clients reached\r\n";
    let full = hangs_up(words).await;
    let locks = Quorlock::builder().nodes([full]).connect().await.expect("a client");
    let error = locks.lock("x").try_acquire().await.expect_err("no vote");
    let detail = "max number of clients reached".to_owned();
    assert_eq!(error.nodes()[0].answer, Answer::Failed(NodeError::Redis { code: "ERR".to_owned(), detail }));
}
