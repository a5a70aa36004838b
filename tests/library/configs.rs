//! Nodes as typed settings, and passwords that are asked for at each connection.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use quorlock::{ConfigError, NodeConfig, Quorlock};
use quorlock_testkit::{Cluster, eventually, within};

const LIMIT: Duration = Duration::from_secs(30);
/// A password that has to be escaped in a URL.
const SECRET: &str = "p@ss,#?/% hunter2";

async fn client(nodes: impl IntoIterator<Item = NodeConfig>) -> Quorlock {
    let builder = Quorlock::builder().node_configs(nodes).node_timeout(Duration::from_secs(2));
    builder.connect().await.expect("settings that work")
}

async fn works(locks: &Quorlock) -> Result<(), String> {
    let guard = locks.lock("x").try_acquire().await.map_err(|error| error.to_string())?;
    guard.release().await.map(drop).map_err(|error| error.to_string())
}

async fn says(locks: &Quorlock, words: &str) {
    eventually(LIMIT, words, || locks.known().to_string().contains(words)).await;
}

/// Gives the user `clerk` this password alone.
fn set_password(cluster: &Cluster, password: &str) {
    let rule = format!(">{password}");
    let words = ["SETUSER", "clerk", "on", "resetpass", &rule, "~*", "&*", "+@all"];
    redis::cmd("ACL").arg(&words).exec(&mut cluster.redis(0)).expect("an ACL");
}

/// Ends the client's connections.
fn end_connections(cluster: &Cluster) {
    redis::cmd("CLIENT").arg(&["KILL", "USER", "clerk"]).exec(&mut cluster.redis(0)).expect("their end");
}

#[tokio::test]
async fn typed_nodes_need_no_escapes_and_show_no_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("a #socket");
    let cluster = Cluster::with_options(1, &["--unixsocket", socket.to_str().expect("a plain path")]);
    set_password(&cluster, SECRET);
    let port = cluster.ports()[0];
    let url = || NodeConfig::url(format!("redis://127.0.0.1:{port}"));
    for (node, name) in [
        (NodeConfig::tcp("127.0.0.1", port), format!("127.0.0.1:{port}/2")),
        (NodeConfig::unix(&socket), format!("{}/2", socket.display())),
        (url().tls(false), format!("127.0.0.1:{port}/2")),
    ] {
        let node = node.user("clerk").password(SECRET).database(2);
        let locks = client([node.clone()]).await;
        works(&locks).await.expect("a free lock");
        assert_eq!(format!("{node:?}"), name);
        let shown = format!("{:?} {locks:?}", Quorlock::builder().node_configs([node]));
        assert!(shown.contains(&name) && !shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn typed_nodes_that_cannot_work_are_refused() {
    for (node, words) in [
        (NodeConfig::tcp("", 1), "the host must be a name or an address alone"),
        (NodeConfig::tcp("redis://:hunter2@host", 1), "the host must be a name or an address alone"),
        (NodeConfig::tcp("host:1", 1), "without port and brackets"),
        (NodeConfig::tcp("host", 1).user("clerk"), "node 1 (host:1) cannot be used: it has a user and no password"),
        (NodeConfig::unix("/run/redis.sock").tls(true), "TLS"),
        (NodeConfig::url("hunter2"), "node 1 (…) cannot be used: it has no scheme"),
    ] {
        let builder = Quorlock::builder().node_configs([node]);
        let shown = format!("{builder:?}");
        let error = builder.connect().await.expect_err("it cannot work");
        assert!(matches!(error, ConfigError::NodeUrl { position: 1, .. }), "{error:?}");
        let shown = format!("{shown} {error} {error:?}");
        assert!(shown.contains(words) && !shown.contains("hunter2"), "{words}: {shown}");
    }
    let twice = ["A", "a"].map(|host| NodeConfig::tcp(host, 1));
    let error = Quorlock::builder().node_configs(twice).connect().await.expect_err("it is one server");
    assert!(matches!(error, ConfigError::DuplicateNode { first: 1, second: 2, .. }), "{error:?}");
}

#[tokio::test]
async fn a_rotated_password_is_read_by_the_next_connection() {
    let cluster = Cluster::start(1);
    set_password(&cluster, "first-hunter2");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    fs::write(&file, "first-hunter2\n").expect("a file");
    let node = NodeConfig::tcp("127.0.0.1", cluster.ports()[0]).user("clerk").password_file(&file);
    let locks = client([node]).await;
    works(&locks).await.expect("a free lock");

    set_password(&cluster, "second-hunter2");
    works(&locks).await.expect("the connection goes on");
    end_connections(&cluster);
    says(&locks, "WRONGPASS").await;
    fs::write(&file, "second-hunter2").expect("a file");
    within(LIMIT, "the new password is used", async || works(&locks).await.is_ok()).await;

    fs::remove_file(&file).expect("a file");
    end_connections(&cluster);
    says(&locks, &format!("the password file {} cannot be used: No such file", file.display())).await;
    fs::write(&file, "\n").expect("a file");
    says(&locks, "cannot be used: it is empty").await;
    assert!(!format!("{locks:?} {}", locks.known()).contains("hunter2"));
}

#[tokio::test]
async fn a_function_is_asked_for_connections_and_not_for_requests() {
    let cluster = Cluster::start(1);
    set_password(&cluster, SECRET);
    let (asked, password) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Some(SECRET.to_owned()))));
    let function = {
        let (asked, password) = (Arc::clone(&asked), Arc::clone(&password));
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            password.lock().expect("no panic").clone().ok_or_else(|| io::Error::other("the vault is sealed"))
        }
    };
    let node = NodeConfig::tcp("127.0.0.1", cluster.ports()[0]).user("clerk").password_with(function);
    let locks = client([node]).await;
    for _ in 0..20 {
        works(&locks).await.expect("a free lock");
    }
    // A slow machine may make a second connection.
    assert!(asked.load(Ordering::SeqCst) < 10, "{asked:?}");
    *password.lock().expect("no panic") = None;
    end_connections(&cluster);
    says(&locks, "the password of the program's function cannot be used: the vault is sealed").await;
    *password.lock().expect("no panic") = Some(SECRET.to_owned());
    within(LIMIT, "it is asked again", async || works(&locks).await.is_ok()).await;
}

/// The connections of a client share a task, which no function may block.
#[tokio::test]
async fn a_function_that_blocks_costs_only_its_node() {
    let cluster = Cluster::start(3);
    let ports = cluster.ports();
    let (end, is_over) = mpsc::channel::<()>();
    let is_over = Mutex::new(is_over);
    let blocks = move || {
        let _ = is_over.lock().expect("no panic").recv();
        Err::<String, _>("it ends with the test")
    };
    let nodes = [
        NodeConfig::tcp("127.0.0.1", ports[0]).password_with(blocks),
        NodeConfig::tcp("127.0.0.1", ports[1]),
        NodeConfig::tcp("127.0.0.1", ports[2]),
    ];
    let locks = client(nodes).await;
    let guard = locks.lock("x").wait(LIMIT).acquire().await.expect("two of three nodes");
    assert_eq!(guard.margin(), 0);
    guard.release().await.expect("a release");
    says(&locks, "cannot be used: it is still being read").await;
    drop(end);
}
