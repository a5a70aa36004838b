//! `quorlock doctor`: what is wrong with the nodes, and what mends it.

use quorlock_testkit::{Cluster, Setup};

use crate::sandbox::{Sandbox, finish};

const KEEPS_EVERY_WRITE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

fn run(sandbox: &Sandbox, node: usize, command: &str) {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query::<redis::Value>(&mut sandbox.cluster.redis(node)).expect("an answer");
}

#[test]
fn nodes_in_order_pass_every_check() {
    let sandbox = Sandbox::around(Setup::new(3).options(&KEEPS_EVERY_WRITE).start());
    let before = keys(&sandbox);
    let ended = sandbox.end(&["doctor"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.lines().all(|line| line.starts_with("[OK]   ")), "{}", ended.stdout);
    assert!(ended.stdout.starts_with("[OK]   3 of 3 vote"), "{}", ended.stdout);
    assert_eq!(keys(&sandbox), before, "it writes nothing");
    let ended = sandbox.end(&["doctor", "--format", "nagios"]);
    let line = "QUORLOCK OK - 3 of 3 vote, quorum 2, 1 more may fail\n";
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), line), "{ended:?}");
}

#[test]
fn a_monitoring_system_is_told_of_flags_that_cannot_work() {
    let sandbox = Sandbox::new(1);
    let args = ["doctor", "--nodes", "nonsense"];
    let ended = sandbox.end(&args);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{ended:?}");
    let ended = sandbox.end(&[&args[..], &["--format", "nagios"]].concat());
    assert!(ended.stdout.starts_with("QUORLOCK UNKNOWN - ") && ended.stdout.contains("write it as a URL"), "{ended:?}");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(3), ""), "{ended:?}");
    let ended = sandbox.end(&["doctor", "--format", "nagios", "--nodes-file", "no-such-file"]);
    assert!(ended.code == Some(3) && ended.stdout.starts_with("QUORLOCK UNKNOWN - "), "{ended:?}");
}

fn keys(sandbox: &Sandbox) -> Vec<u64> {
    sandbox.cluster.each(&redis::cmd("DBSIZE"))
}

#[test]
fn each_fault_is_named_with_what_mends_it() {
    let sandbox = Sandbox::new(3);
    run(&sandbox, 0, "CONFIG SET maxmemory-policy allkeys-lru");
    run(&sandbox, 0, "CONFIG SET maxmemory 100mb");
    run(&sandbox, 1, "SET quorlock:lock:stuck x");
    let ended = sandbox.end(&["doctor"]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    let port = |node: usize| sandbox.cluster.ports()[node];
    for line in [
        "[WARN] 2 of 3 vote, quorum 2, 0 more may fail".to_owned(),
        format!("[FAIL] 127.0.0.1:{}: it may evict keys (allkeys-lru)", port(0)),
        format!("redis-cli -u redis://127.0.0.1:{} CONFIG SET maxmemory-policy noeviction", port(0)),
        format!("[WARN] 127.0.0.1:{}: the key quorlock:lock:stuck has no end", port(1)),
        format!("[WARN] 127.0.0.1:{}: it is in quarantine after each restart (appendonly is no, not yes)", port(2)),
        format!("redis-cli -u redis://127.0.0.1:{} CONFIG SET appendonly yes", port(2)),
    ] {
        assert!(ended.stdout.contains(&line), "{line}\n{}", ended.stdout);
    }
    let ended = sandbox.end(&["doctor", "--format", "nagios"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stdout.starts_with("QUORLOCK CRITICAL - 2 of 3 vote"), "{ended:?}");
}

#[test]
fn missing_rights_are_listed_as_an_acl_line_grants_them() {
    let sandbox = Sandbox::new(1);
    let rights = "+evalsha +script|load +ping +info +mget +set +psetex +del +exists +pttl +pexpire +time +type +zcard +zpopmin \
                  +publish +subscribe +acl|whoami";
    run(&sandbox, 0, &format!("ACL SETUSER few on >secret ~quorlock:* resetchannels &quorlock:call:* -@all {rights}"));
    let url = sandbox.cluster.urls()[0].replace("://", "://few:secret@");
    let ended = finish(sandbox.quorlock(&["doctor"]).env("QUORLOCK_NODES", url).spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stdout.contains("the user lacks the rights +zadd +zrem. Mend: "), "{}", ended.stdout);
    assert!(ended.stdout.contains("ACL SETUSER few +zadd +zrem (as an administrator"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("secret"), "{}", ended.stdout);
    let unknown = "it is not known whether every lock has an end: the search is refused";
    assert!(ended.stdout.contains(unknown), "{}", ended.stdout);
    assert!(!ended.stdout.contains("in quarantine after each restart"), "{}", ended.stdout);
}

/// A key that the user may not touch is no missing command, and a channel is none either.
#[test]
fn missing_keys_channels_and_subscribe_are_told_apart() {
    let sandbox = Sandbox::new(1);
    let info: String = redis::cmd("INFO").arg("server").query(&mut sandbox.cluster.redis(0)).expect("what it is");
    if info.contains("redis_version:6.0.") {
        return; // It has no rights for channels.
    }
    let rights = "+evalsha +script|load +ping +info +mget +set +psetex +del +exists +pttl +pexpire +time +type +zadd +zcard +zpopmin \
                  +zrem +publish +acl|whoami +scan +config|get";
    let keys = "~quorlock:lock:* ~quorlock:ballot:quorlock:lock:* ~quorlock:list:quorlock:lock: ~quorlock:node";
    let missing = |more: &str| {
        run(&sandbox, 0, &format!("ACL SETUSER few reset on >secret resetchannels {keys} -@all {rights} {more}"));
        let url = sandbox.cluster.urls()[0].replace("://", "://few:secret@");
        let ended = finish(sandbox.quorlock(&["doctor"]).env("QUORLOCK_NODES", url).spawn().expect("quorlock"));
        let line = ended.stdout.lines().find(|line| line.contains("lacks the rights")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{ended:?}"))
    };
    let [queue, channel] = ["~quorlock:queue:quorlock:lock:*", "&quorlock:call:*"];
    for (more, lacks) in [
        (format!("{channel} +subscribe"), queue.to_owned()),
        (format!("{queue} +subscribe"), channel.to_owned()),
        (format!("{queue} {channel}"), "+subscribe".to_owned()),
        (String::new(), format!("{queue} {channel} +subscribe")),
    ] {
        let line = missing(&more);
        assert!(line.contains(&format!("the user lacks the rights {lacks}. Mend: ")), "{more}: {line}");
    }
}

#[test]
fn a_dead_majority_fails_and_an_undeclared_cluster_is_a_warning() {
    let mut sandbox = Sandbox::around(Cluster::undeclared(3, &[]));
    let ended = sandbox.end(&["doctor"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert_eq!(
        ended
            .stdout
            .matches("it has no record: it is new, or has lost its data. Mend: quorlock nodes declare-new, ")
            .count(),
        3,
        "{ended:?}"
    );
    let bare = sandbox.end(&["doctor", "--prefix", ""]);
    assert_eq!(bare.stdout.matches("Mend: quorlock nodes declare-new --prefix '', ").count(), 3, "{bare:?}");
    (0..2).for_each(|node| sandbox.cluster.kill(node));
    let ended = sandbox.end(&["doctor"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert_eq!(ended.stdout.matches("start the server, or check the way to it").count(), 2, "{}", ended.stdout);
}

/// The name of a key is written by others: a command with it, in a shell, names that key and does nothing else.
#[test]
fn a_printed_command_names_the_very_key_or_is_left_out() {
    let sandbox = Sandbox::new(1);
    let long = "x".repeat(200);
    for (name, is_in_a_command) in [
        ("a'; touch $DIR/injected #", true),
        ("$(touch $DIR/injected) `touch $DIR/injected`", true),
        (long.as_str(), false),
        ("a\nb", false),
        ("a\\nb", true),
    ] {
        let mut redis = sandbox.cluster.redis(0);
        let key = Cluster::lock_key(name);
        redis::cmd("SET").arg(&key).arg("x").query::<()>(&mut redis).expect("a key");
        let ended = sandbox.end(&["doctor"]);
        let line = ended.stdout.lines().find(|line| line.contains("has no end")).unwrap_or_else(|| panic!("{ended:?}"));
        let (_, mend) = line.split_once(". Mend: ").expect("what mends it");
        let command = mend.split_once(" DEL ").map(|(_, rest)| rest.rsplit_once(", if ").expect("a condition").0);
        assert_eq!(command.is_some(), is_in_a_command, "{line}");
        if let Some(word) = command {
            let said = finish(sandbox.command("sh", &["-c", &format!("printf %s {word}")]).spawn().expect("sh"));
            assert_eq!(said.stdout, key, "{line}");
            assert!(!sandbox.path("injected").exists(), "{line}");
        } else {
            assert!(mend.contains(&format!("{} bytes", key.len())), "{line}");
        }
        redis::cmd("DEL").arg(&key).query::<()>(&mut redis).expect("no key");
    }
}
