//! The table of rights in docs/operations.md: each row is enough for its use, and each right in it is needed.

use std::process::Child;
use std::time::Duration;

use quorlock::Quorlock;
use quorlock_testkit::Cluster;
use redis::{Connection, Value};
use rustix::process::Signal;

use crate::sandbox::{Ended, Sandbox, finish, signal, within};

const SECOND: Duration = Duration::from_secs(1);
const TEAM: &str = "billing:";

/// The rights of a row of the table.
#[derive(Clone, Debug, Default)]
struct Row {
    commands: Vec<String>,
    keys: Vec<String>,
    channels: Vec<String>,
}

impl Row {
    /// Returns the row for a use.
    fn of(wanted: &str) -> Self {
        let text = include_str!("../../docs/operations.md");
        let table = text.lines().skip_while(|line| *line != "| Use | Commands | Keys |").skip(2);
        let mut rows = table.take_while(|line| line.starts_with('|'));
        let row =
            rows.find(|row| row.starts_with(&format!("| {wanted}:")) || row.starts_with(&format!("| `{wanted}` |")));
        let row = row.unwrap_or_else(|| panic!("a row for {wanted}")).replace("\\|", "\n");
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let client = if cells[1].contains("as a client") { Self::of("client") } else { Self::default() };
        let words = |cell: &str, first: char| {
            let codes =
                cell.split('`').skip(1).step_by(2).flat_map(|code| code.split(' ').map(|word| word.replace('\n', "|")));
            codes.filter(|word| word.starts_with(first)).collect::<Vec<_>>()
        };
        Self {
            commands: [client.commands, words(cells[1], '+')].concat(),
            keys: [client.keys, words(cells[2], '~')].concat(),
            channels: if wanted == "client" { vec!["&quorlock:call:*".to_owned()] } else { client.channels },
        }
    }

    /// Returns this row without one of its rights, for each of them, with what is missing. `kept` are those that stay.
    fn each_less_one(&self, kept: &[&str]) -> Vec<(String, Self)> {
        let all = [&self.commands[..], &self.keys, &self.channels].concat();
        let less = |gone: &String| {
            let left = |rights: &[String]| rights.iter().filter(|right| *right != gone).cloned().collect();
            let row = Self { commands: left(&self.commands), keys: left(&self.keys), channels: left(&self.channels) };
            (gone.clone(), row)
        };
        all.iter().filter(|right| !kept.contains(&right.as_str())).map(less).collect()
    }
}

fn has_channels(redis: &mut Connection) -> bool {
    let info: String = redis::cmd("INFO").arg("server").query(redis).expect("what it is");
    !info.contains("redis_version:6.0.")
}

/// Makes a user with these rights on each node. Forgets what was refused before.
fn make_user(cluster: &Cluster, name: &str, row: &Row, prefix: &str) {
    for node in 0..cluster.len() {
        let mut redis = cluster.redis(node);
        let mut acl = redis::cmd("ACL");
        acl.arg(&["SETUSER", name, "on", ">secret", "resetkeys", "-@all"]).arg(&row.commands);
        if has_channels(&mut redis) {
            acl.arg("resetchannels").arg(&row.channels);
        }
        acl.arg(row.keys.iter().map(|key| key.replace("PREFIX", prefix)).collect::<Vec<_>>());
        acl.exec(&mut redis).unwrap_or_else(|error| panic!("{error}: {row:?}"));
        redis::cmd("ACL").arg(&["LOG", "RESET"]).exec(&mut redis).expect("an empty log");
    }
}

/// Returns what the nodes refused to this user.
fn refused(cluster: &Cluster, name: &str) -> Vec<String> {
    let logs: Vec<Vec<Value>> = cluster.each(redis::cmd("ACL").arg("LOG"));
    let entries = logs.into_iter().flatten().map(|entry| format!("{entry:?}"));
    entries.filter(|entry| entry.contains(&format!("'\"{name}\"'"))).collect()
}

fn urls(cluster: &Cluster, name: &str) -> Vec<String> {
    cluster.urls().iter().map(|url| url.replace("://", &format!("://{name}:secret@"))).collect()
}

fn start(sandbox: &Sandbox, user: &str, prefix: &str, args: &[&str]) -> Child {
    let mut command = sandbox.quorlock(args);
    command.env("QUORLOCK_NODES", urls(&sandbox.cluster, user).join(",")).env("QUORLOCK_PREFIX", prefix);
    command.spawn().expect("the quorlock command")
}

fn end(sandbox: &Sandbox, user: &str, prefix: &str, args: &[&str]) -> Ended {
    finish(start(sandbox, user, prefix, args))
}

/// Acquires this lock, waits, gives up, is called, inspects and releases, as far as it gets within so long for each
/// step. Returns how many requests were granted or extended.
async fn use_lock(cluster: &Cluster, user: &str, name: &str, patience: Duration) -> usize {
    cluster.each::<()>(redis::cmd("SCRIPT").arg("FLUSH"));
    let client = async || {
        let builder = Quorlock::builder().nodes(urls(cluster, user)).prefix(TEAM);
        builder.node_timeout(patience.min(2 * SECOND)).connect().await.expect("a client")
    };
    let (first, second) = (client().await, client().await);
    let acquired = first.lock(name).wait(patience).acquire().await;
    drop(first.inspect(name).await);
    drop(second.lock(name).wait(SECOND / 20).acquire().await); // It leaves the queue.
    let mut granted = usize::from(acquired.is_ok());
    if let Ok(guard) = acquired {
        let waiting = tokio::spawn(second.lock(name).wait(2 * patience).acquire());
        let queue = redis::cmd("EXISTS").arg(format!("quorlock:queue:{TEAM}{name}")).to_owned();
        let began = std::time::Instant::now();
        while cluster.each::<u64>(&queue) == [0] && began.elapsed() < patience {
            tokio::time::sleep(SECOND / 100).await;
        }
        granted += usize::from(guard.extend().await.is_ok());
        drop(guard.release().await);
        if let Ok(guard) = waiting.await.expect("no panic") {
            granted += 1;
            drop(guard.release().await);
        }
    }
    first.flush().await;
    second.flush().await;
    granted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_one_prefix_needs_each_right_of_its_row() {
    let cluster = Cluster::start(1);
    let row = Row::of("client");
    assert!(row.commands.len() > 15 && row.keys.len() == 5, "{row:?}");
    make_user(&cluster, "team", &row, TEAM);
    assert_eq!(use_lock(&cluster, "team", "x", 10 * SECOND).await, 3);
    assert_eq!(refused(&cluster, "team"), [""; 0]);

    let mut cases = row.each_less_one(&[]);
    if !has_channels(&mut cluster.redis(0)) {
        cases.retain(|(gone, _)| !gone.starts_with('&'));
    }
    for (number, (gone, less)) in cases.iter().enumerate() {
        let user = format!("less{number}");
        make_user(&cluster, &user, less, TEAM);
        let mut attempts = 0;
        while refused(&cluster, &user).is_empty() {
            // On a busy machine it may not get far enough.
            assert!(attempts < 10, "{gone} is not missed");
            redis::cmd("DEL").arg("quorlock:list:billing:").exec(&mut cluster.redis(0)).expect("no list");
            use_lock(&cluster, &user, &format!("{user}:{attempts}"), SECOND / 2).await;
            attempts += 1;
        }
    }
}

/// The user of one team cannot touch what belongs to the other, and both lock under one declaration.
#[test]
fn a_team_cannot_touch_the_locks_of_another() {
    let sandbox = Sandbox::new(3);
    let row = Row::of("client");
    make_user(&sandbox.cluster, "billing", &row, TEAM);
    make_user(&sandbox.cluster, "web", &row, "web:");
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let holder = start(&sandbox, "billing", TEAM, &["run", "job", "--", "sh", "-c", hold]);
    sandbox.wait_for("held");
    let own = end(&sandbox, "web", "web:", &["run", "--try", "--node-timeout", "5s", "job", "--", "true"]);
    assert_eq!(own.code, Some(0), "{own:?}");
    assert_eq!((refused(&sandbox.cluster, "billing"), refused(&sandbox.cluster, "web")), (vec![], vec![]));

    let theirs = end(&sandbox, "web", TEAM, &["run", "--try", "--node-timeout", "5s", "job", "--", "true"]);
    // 69 where a slow node has not answered yet.
    assert!([Some(78), Some(69)].contains(&theirs.code), "{theirs:?}");
    let url = urls(&sandbox.cluster, "web").remove(0);
    let mut web = redis::Client::open(url).and_then(|client| client.get_connection()).expect("a connection");
    for key in ["billing:job", "quorlock:ballot:billing:job", "quorlock:queue:billing:job", "quorlock:list:billing:"] {
        for command in ["MGET", "DEL", "PTTL", "ZPOPMIN"] {
            let error = redis::cmd(command).arg(key).exec(&mut web).expect_err(key);
            assert_eq!(error.code(), Some("NOPERM"), "{command} {key}: {error}");
        }
        let mut load = redis::cmd("SCRIPT");
        let script: String =
            load.arg("LOAD").arg("return redis.call('DEL', KEYS[1])").query(&mut web).expect("its hash");
        redis::cmd("EVALSHA").arg(script).arg(1).arg(key).exec(&mut web).expect_err(key);
    }
    sandbox.touch("end");
    assert_eq!(finish(holder).code, Some(0));
}

#[test]
fn each_command_needs_its_row() {
    let sandbox = Sandbox::new(1);
    make_user(&sandbox.cluster, "client", &Row::of("client"), TEAM);
    let work = "echo > $DIR/ready; while :; do sleep 0.01; done";
    let holder = start(&sandbox, "client", TEAM, &["run", "job", "--", "sh", "-c", work]);
    sandbox.wait_for("ready");
    let waiter = start(&sandbox, "client", TEAM, &["run", "job", "--", "true"]);
    let queue = format!("quorlock:queue:{TEAM}job");
    within("the request waits", || sandbox.cluster.count_keys(&queue) == 1);

    let client = Row::of("client");
    let all_of_client = client.commands.iter().chain(&client.keys).chain(&client.channels);
    let of_client: Vec<&str> = all_of_client.map(String::as_str).collect();
    for (name, args, wanted) in [
        ("status", &["status", "--json"][..], "\"locks\": 1"),
        ("list", &["list", "--json"], "\"waiters\": 1"),
        ("doctor", &["doctor"], "the user has the rights it needs"),
        ("release --force", &["release", "job", "--force", "--yes"], "revoked from"),
    ] {
        let row = Row::of(name);
        // Where it is "as a client", only what is beyond the rights of a client.
        let cases = row.each_less_one(if row.channels.is_empty() { &[] } else { &of_client });
        assert!(!cases.is_empty(), "{name}");
        for (number, (gone, less)) in cases.iter().enumerate() {
            let user = format!("less{number}");
            make_user(&sandbox.cluster, &user, less, TEAM);
            let ended = end(&sandbox, &user, TEAM, args);
            assert_ne!(refused(&sandbox.cluster, &user), [""; 0], "{name} without {gone}: {ended:?}");
        }
        make_user(&sandbox.cluster, "enough", &row, TEAM);
        let ended = end(&sandbox, "enough", TEAM, args);
        assert_eq!((ended.code, ended.stdout.contains(wanted)), (Some(0), true), "{name}: {ended:?}");
        assert_eq!(refused(&sandbox.cluster, "enough"), [""; 0], "{name}");
    }
    for run in [waiter, holder] {
        signal(&run, Signal::TERM);
        finish(run);
    }
}

#[test]
fn an_administrator_needs_the_row_of_nodes() {
    let sandbox = Sandbox::around(Cluster::undeclared(1, &[]));
    let flush = || {
        for words in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"]] {
            sandbox.cluster.each::<()>(redis::cmd(words[0]).arg(&words[1..]));
        }
    };
    let (declare, set) = (&["nodes", "declare-new", "--yes"][..], &["nodes", "set-list"][..]);
    // What only two administrators at once, or a change that is taken back, need.
    for (name, args, kept) in [("nodes declare-new", declare, "+get"), ("nodes set-list", set, "+del")] {
        let row = Row::of(name);
        flush();
        make_user(&sandbox.cluster, "admin", &row, TEAM);
        let ended = end(&sandbox, "admin", TEAM, args);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(refused(&sandbox.cluster, "admin"), [""; 0], "{name}");
        for (number, (gone, less)) in row.each_less_one(&[kept]).iter().enumerate() {
            flush();
            let user = format!("less{number}");
            make_user(&sandbox.cluster, &user, less, TEAM);
            if gone == "~PREFIX*" {
                redis::cmd("SET").arg("billing:x").arg("1").exec(&mut sandbox.cluster.redis(0)).expect("a lock");
            }
            let ended = end(&sandbox, &user, TEAM, args);
            assert_ne!(refused(&sandbox.cluster, &user), [""; 0], "{name} without {gone}: {ended:?}");
        }
    }
}
