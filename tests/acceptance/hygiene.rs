//! Rows 26, 27, 32 and 33: keys, connections, scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use quorlock::{AcquireError, Holder};
use quorlock_testkit::{Cluster, eventually};

const SECOND: Duration = Duration::from_secs(1);
const TYPES: [(&str, &str, &[&str]); 6] = [
    ("string", "SET", &["value"]),
    ("list", "RPUSH", &["a", "b"]),
    ("hash", "HSET", &["field", "1"]),
    ("set", "SADD", &["member"]),
    ("zset", "ZADD", &["1", "member"]),
    ("stream", "XADD", &["*", "field", "1"]),
];

fn put(cluster: &Cluster, node: usize, key: &str, (_, command, args): (&str, &str, &[&str])) {
    redis::cmd(command).arg(key).arg(args).query::<redis::Value>(&mut cluster.redis(node)).expect("a key of a user");
}

/// Returns every key of a node that is not a ballot, with its content.
fn others(cluster: &Cluster, node: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut redis = cluster.redis(node);
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut redis).expect("its keys");
    let mut others = BTreeMap::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query(&mut redis).expect("a type");
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut redis).expect("a TTL");
        let is_ballot = key.starts_with(b"quorlock:ballot:") && kind == "string" && ttl > 0;
        let is_record = key == b"quorlock:node" || key.starts_with(b"quorlock:list:");
        if is_ballot || is_record {
            continue;
        }
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut redis).expect("a dump");
        others.insert(key, dump);
    }
    others
}

#[tokio::test]
async fn acc_26_user_keys_are_unchanged_and_only_ballots_remain() {
    let cluster = Cluster::start(5);
    for node in 0..5 {
        for kind in TYPES {
            put(&cluster, node, kind.0, kind);
            put(&cluster, node, &Cluster::lock_key(kind.0), kind);
            put(&cluster, node, &format!("quorlock:ballot:blocked-{}", kind.0), kind);
        }
    }
    let before: Vec<_> = (0..5).map(|node| others(&cluster, node)).collect();
    assert!(before.iter().all(|keys| keys.len() == 18));

    let locks = cluster.client(10 * SECOND).await;
    let bare = cluster.builder().node_timeout(2 * SECOND).prefix("").connect().await.expect("an empty prefix");
    Cluster::until_all_answer(&bare).await;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let names: [&[u8]; 4] = [b"lock", b"", &[b'x'; 10_000], &all_bytes];
    for locks in [&locks, &bare] {
        for name in names {
            let outer = locks.lock(name).acquire().await.expect("a lock of any name");
            let inner = locks.lock(name).owner(outer.owner()).acquire().await.expect("a re-entry");
            locks.join(&outer.export()).await.expect("a join").release().await.expect("a release");
            assert!(locks.lock(name).try_acquire().await.is_err_and(|error| error.is_held()));
            inner.release().await.expect("a release");
            outer.release().await.expect("a release");
        }
        let guard = locks.lock_all(names).acquire().await.expect("all of them at once");
        guard.release().await.expect("a release");
        // A user's key of any type under the name of a lock key or a ballot key makes the lock busy.
        for (kind, _, _) in TYPES {
            let error = locks.lock(kind).try_acquire().await.expect_err("a user's key is there");
            assert!(
                matches!(&error, AcquireError::Held { by: Holder::Foreign, free_in: None, .. }),
                "{kind}: {error:?}"
            );
        }
    }
    for (kind, _, _) in TYPES {
        let name = format!("blocked-{kind}");
        let error = bare.lock(&name).try_acquire().await.expect_err("a user's key is there");
        assert!(matches!(&error, AcquireError::Held { by: Holder::Foreign, .. }), "{kind}: {error:?}");
        bare.lock_all(["free", name.as_str()]).try_acquire().await.expect_err("all or nothing");
    }
    locks.flush().await;
    bare.flush().await;
    for (node, before) in before.iter().enumerate() {
        assert_eq!(others(&cluster, node), *before, "node {node}");
    }
}

#[tokio::test]
async fn acc_27_each_foreign_key_costs_one_vote() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    for kind in TYPES {
        let name = format!("foreign-{}", kind.0);
        let key = Cluster::lock_key(&name);
        put(&cluster, 0, &key, kind);
        let guard = locks.lock(&name).acquire().await.expect("four nodes are free");
        locks.flush().await;
        assert_eq!(guard.margin(), 1);
        guard.release().await.expect("a release");

        put(&cluster, 1, &key, kind);
        put(&cluster, 2, &key, kind);
        let error = locks.lock(&name).try_acquire().await.expect_err("three nodes are taken");
        assert!(matches!(error, AcquireError::Held { by: Holder::Foreign, .. }), "{error:?}");
        locks.flush().await;
        let types: Vec<String> = cluster.each(redis::cmd("TYPE").arg(&key));
        assert_eq!(types, [kind.0, kind.0, kind.0, "none", "none"]);
    }
}

#[tokio::test]
async fn acc_26_a_plain_redlock_client_and_quorlock_exclude_each_other() {
    let cluster = Cluster::start(5);
    let locks = cluster.builder().node_timeout(2 * SECOND).prefix("").connect().await.expect("an empty prefix");
    Cluster::until_all_answer(&locks).await;
    let plain =
        || cluster.each::<Option<String>>(redis::cmd("SET").arg("shared").arg("plain").arg("NX").arg("PX").arg(60_000));
    let guard = locks.lock("shared").acquire().await.expect("the lock");
    locks.flush().await;
    assert_eq!(plain(), vec![None; 5], "the plain client must be refused");
    guard.release().await.expect("a release");
    locks.flush().await;
    assert_eq!(plain(), vec![Some("OK".to_owned()); 5]);
    assert!(locks.lock("shared").try_acquire().await.is_err_and(|error| error.is_held()));
}

#[tokio::test]
async fn acc_32_database_numbers_connections_and_reconnection() {
    let mut cluster = Cluster::start(5);
    let urls = cluster.urls().into_iter().map(|url| format!("{url}/3"));
    let locks =
        quorlock::Quorlock::builder().node_timeout(2 * SECOND).nodes(urls).connect().await.expect("settings that work");
    let guard = locks.lock("in three").acquire().await.expect("the lock");
    locks.flush().await;
    for node in 0..5 {
        let mut redis = cluster.redis(node);
        let sizes: Vec<usize> = [0, 3]
            .map(|db| {
                redis::cmd("SELECT").arg(db).query::<()>(&mut redis).expect("a database");
                redis::cmd("DBSIZE").query(&mut redis).expect("its size")
            })
            .into();
        assert_eq!(sizes, [2, 4], "lock and ballot belong into database 3, beside the record and the list of each");
    }
    let tasks: Vec<_> = (0..50)
        .map(|i| {
            let locks = locks.clone();
            tokio::spawn(async move { locks.lock(format!("n{i}")).acquire().await.expect("a lock").release().await })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task").expect("a release");
    }
    let clients = |cluster: &Cluster| -> Vec<usize> {
        let lists: Vec<String> = cluster.each(redis::cmd("CLIENT").arg("LIST"));
        lists.iter().map(|list| list.lines().count() - 1).collect() // One of them is the test's own.
    };
    assert!(clients(&cluster).iter().all(|count| (1..=2).contains(count)), "{:?}", clients(&cluster));

    cluster.each::<i64>(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal"));
    cluster.restart(2, false);
    eventually(10 * SECOND, "it reconnects by itself", || clients(&cluster) == [1; 5]).await;
    assert!(!guard.is_lost());
    guard.extend().await.expect("an extension");
    guard.release().await.expect("a release");
    drop(locks);
    eventually(10 * SECOND, "no connection outlives the client", || clients(&cluster) == [0; 5]).await;
}

#[tokio::test]
async fn acc_33_a_lost_script_cache_has_no_effect() {
    let cluster = Cluster::start(5);
    let locks = cluster.client(10 * SECOND).await;
    let forget = || cluster.each::<()>(redis::cmd("SCRIPT").arg("FLUSH"));
    let guard = locks.lock("scripted").acquire().await.expect("the lock");
    forget();
    guard.extend().await.expect("an extension");
    forget();
    let inner = locks.lock("scripted").owner(guard.owner()).acquire().await.expect("a re-entry");
    forget();
    assert_eq!(locks.inspect("scripted").await.expect("a look").holds, 2);
    forget();
    inner.release().await.expect("an inner release");
    forget();
    guard.release().await.expect("a release");
    locks.flush().await;
    assert_eq!(cluster.count_keys(&Cluster::lock_key("scripted")), 0);
}

#[tokio::test]
async fn acc_33_flush_waits_for_requests_repeated_with_scripts() {
    let mut cluster = Cluster::start(3);
    let locks = cluster.client(10 * SECOND).await;
    locks.lock("scripted").acquire().await.expect("the lock").release().await.expect("a release");
    locks.flush().await;
    cluster.each::<()>(redis::cmd("SCRIPT").arg("FLUSH"));
    cluster.pause(0);
    let guard = locks.lock("scripted").acquire().await.expect("two of three nodes answer");
    assert_eq!(guard.margin(), 0);
    // The request and the PING are in the queue of the paused node.
    let mut flush = std::pin::pin!(locks.flush());
    assert!(futures::poll!(&mut flush).is_pending());
    tokio::task::yield_now().await;
    cluster.resume(0);
    flush.await;
    assert_eq!(guard.margin(), 1, "the third node has answered the request that was sent again");
}
