//! `quorlock nodes declare-new`: the declaration of a cluster, and what a client gets without one.

use quorlock_testkit::Cluster;

use crate::nodes::{DECLARE, LIST, RECORD, SET, TRY, delete, field, get, lists, set, undeclared, with_nodes};
use crate::pty::Pty;
use crate::sandbox::Sandbox;

#[test]
fn new_nodes_vote_at_once_when_declared() {
    let sandbox = undeclared(3);
    let declared = sandbox.end(&[&DECLARE[..], &["--ballot-ttl", "4m", "--longest-lease", "20s"]].concat());
    assert_eq!((declared.code, declared.stderr.as_str()), (Some(0), ""), "{declared:?}");
    assert_eq!(declared.stdout.matches("now").count(), 3, "{}", declared.stdout);
    assert_eq!(declared.stdout.matches("no: appendonly is no, not yes").count(), 3, "{}", declared.stdout);
    assert!(declared.stdout.contains("3 nodes are declared to be one new cluster"), "{}", declared.stdout);
    assert!(declared.stdout.contains("has no vote after a restart"), "{}", declared.stdout);
    for node in 0..3 {
        let record = get(&sandbox, node, RECORD).expect("a record");
        assert!(record.contains(" 20000 0 0 120000 "), "{record}");
        assert!(!declared.stdout.contains(&field(&sandbox, node, 0)), "the record's word is not printed");
        assert_eq!(field(&sandbox, node, 5), field(&sandbox, 0, 5), "one cluster");
        assert_eq!(field(&sandbox, node, 7).len(), 16);
    }
    assert_ne!(field(&sandbox, 0, 0), field(&sandbox, 1, 0), "each node has a word of its own");
    assert_eq!(lists(&sandbox), vec![Some("3".to_owned()); 3]);
    assert_eq!(sandbox.end(&TRY).code, Some(0));
}

#[test]
fn nodes_without_a_declaration_have_no_vote_at_first() {
    let sandbox = undeclared(3);
    let refused = sandbox.end(&TRY);
    assert_eq!(refused.code, Some(69), "a quarantine ends by itself: {refused:?}");
    let late = sandbox.end(&DECLARE);
    assert_eq!(late.code, Some(78), "{late:?}");
    assert!(late.stderr.contains("has a record already") && late.stderr.contains("set-list"), "{}", late.stderr);
}

#[test]
fn declare_new_refuses_nodes_that_were_used() {
    let sandbox = undeclared(3);
    let ballot = format!("quorlock:ballot:{}", Cluster::lock_key("job"));
    for key in [Cluster::lock_key("job"), ballot, "quorlock:list:other:".to_owned()] {
        set(&sandbox, 1, &key, "1");
        let refused = sandbox.end(&DECLARE);
        assert_eq!(refused.code, Some(78), "{key}: {refused:?}");
        let node = format!("127.0.0.1:{} has the key {key}", sandbox.cluster.ports()[1]);
        assert!(refused.stderr.contains(&node), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("set-list") && refused.stderr.contains("folders when no lease is in force"),
            "{refused:?}"
        );
        delete(&sandbox, 1, &key);
    }
    set(&sandbox, 2, LIST, "5");
    let refused = sandbox.end(&DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("has a list of 5 nodes already, not of 3"), "{}", refused.stderr);
    assert_eq!(sandbox.cluster.count_keys(RECORD), 0, "no write before all checks");
}

#[test]
fn declare_new_refuses_parts_of_two_clusters() {
    let sandbox = undeclared(2);
    for node in 0..2 {
        assert_eq!(with_nodes(&sandbox, &[node], &DECLARE).code, Some(0));
        delete(&sandbox, node, LIST);
    }
    let refused = sandbox.end(&DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("two clusters") && refused.stderr.contains("--adopt"), "{}", refused.stderr);
}

#[test]
fn declare_new_can_be_repeated() {
    let sandbox = undeclared(3);
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
    let records: Vec<_> = (0..3).map(|node| get(&sandbox, node, RECORD)).collect();
    // The state after a call that ended after two records.
    for node in 0..3 {
        delete(&sandbox, node, LIST);
    }
    delete(&sandbox, 2, RECORD);
    let repeated = sandbox.end(&DECLARE);
    assert_eq!(repeated.code, Some(0), "{repeated:?}");
    assert_eq!(repeated.stdout.matches("before").count(), 2, "{}", repeated.stdout);
    assert_eq!([0, 1].map(|node| get(&sandbox, node, RECORD)), [records[0].clone(), records[1].clone()]);
    assert_eq!(field(&sandbox, 2, 5), field(&sandbox, 0, 5), "the same cluster");
    assert_eq!(lists(&sandbox), vec![Some("3".to_owned()); 3]);

    let other = sandbox.end(&[&DECLARE[..], &["--ballot-ttl", "20m"]].concat());
    assert_eq!(other.code, Some(78), "{other:?}");
    assert!(other.stderr.contains("with --ballot-ttl 10m"), "{}", other.stderr);

    // After a complete declaration this is refused: that node has lost its data.
    delete(&sandbox, 1, RECORD);
    let refused = sandbox.end(&DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("has lost its data"), "{}", refused.stderr);
}

#[test]
fn declare_new_needs_every_node() {
    let mut sandbox = undeclared(3);
    sandbox.cluster.kill(1);
    let port = sandbox.cluster.ports()[1].to_string();
    for args in [&DECLARE[..], &SET] {
        let refused = sandbox.end(args);
        assert_eq!(refused.code, Some(69), "{refused:?}");
        assert!(refused.stderr.contains(&port) && refused.stderr.contains("Nothing was changed"), "{}", refused.stderr);
    }
    assert_eq!(sandbox.cluster.count_keys(RECORD), 0);
}

#[test]
fn servers_without_a_vote_are_not_declared() {
    let sandbox = undeclared(3);
    let urls = sandbox.cluster.urls();
    let twice = format!("{},{},{}", urls[0], urls[1], urls[0].replace("127.0.0.1", "localhost"));
    let refused = sandbox.end(&[&DECLARE[..], &["--nodes", &twice]].concat());
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("it is the same server as"), "{}", refused.stderr);
    let replica = |of: &[&str]| {
        redis::cmd("REPLICAOF").arg(of).query::<()>(&mut sandbox.cluster.redis(2)).expect("REPLICAOF");
    };
    replica(&["127.0.0.1", &sandbox.cluster.ports()[0].to_string()]);
    let refused = sandbox.end(&DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("it is a replica"), "{}", refused.stderr);
    replica(&["NO", "ONE"]);
    // One by one: servers before version 7 take no more.
    for [name, value] in [["maxmemory", "100mb"], ["maxmemory-policy", "allkeys-lru"]] {
        redis::cmd("CONFIG").arg(&["SET", name, value]).exec(&mut sandbox.cluster.redis(1)).expect("CONFIG SET");
    }
    let refused = sandbox.end(&DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("it may evict keys (allkeys-lru)"), "{}", refused.stderr);
    assert_eq!(sandbox.cluster.count_keys(RECORD), 0);
}

#[test]
fn a_node_with_synchronous_logging_is_declared_durable() {
    let options = ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];
    let sandbox = Sandbox::around(Cluster::undeclared(3, &options));
    let config = |node: usize, name: &str, value: &str| {
        redis::cmd("CONFIG").arg(&["SET", name, value]).query::<()>(&mut sandbox.cluster.redis(node)).expect("CONFIG");
    };
    config(1, "appendfsync", "everysec");
    redis::cmd("ACL").arg(&["SETUSER", "default", "-config"]).query::<()>(&mut sandbox.cluster.redis(2)).expect("ACL");
    let declared = sandbox.end(&DECLARE);
    assert_eq!(declared.code, Some(0), "{declared:?}");
    assert!(declared.stdout.contains("no: appendfsync is everysec, not always"), "{}", declared.stdout);
    assert!(declared.stdout.contains("CONFIG GET is refused (NOPERM)"), "{}", declared.stdout);
    assert_eq!([0, 1, 2].map(|node| field(&sandbox, node, 6)), ["1", "0", "0"]);
    config(0, "no-appendfsync-on-rewrite", "yes");
    config(1, "appendfsync", "always");
    let again = sandbox.end(&SET);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!([0, 1, 2].map(|node| field(&sandbox, node, 6)), ["0", "1", "0"]);
}

#[test]
fn declare_new_asks_on_a_terminal() {
    let sandbox = undeclared(2);
    for (answer, code, declared) in [("\r", 64, 0), ("no\r", 64, 0), (" Y \r", 0, 2)] {
        let mut terminal = Pty::start(&sandbox, "sh", &["-c", "\"$QUORLOCK\" nodes declare-new; echo code=$?"]);
        terminal.wait_for("Nodes that have lost their data are not new");
        terminal.wait_for("[y/N]");
        for port in sandbox.cluster.ports() {
            terminal.wait_for(&port.to_string());
        }
        terminal.press(answer);
        terminal.wait_for(&format!("code={code}"));
        terminal.end();
        assert_eq!(sandbox.cluster.count_keys(RECORD), declared, "{answer:?}");
    }
}

#[test]
fn declare_new_refuses_nodes_that_may_have_forgotten_leases() {
    let mut sandbox = undeclared(2);
    let declared = with_nodes(&sandbox, &[0], &DECLARE);
    assert!(declared.stdout.contains("1 node is declared"), "{}", declared.stdout);
    delete(&sandbox, 0, LIST);
    redis::cmd("SAVE").query::<()>(&mut sandbox.cluster.redis(0)).expect("SAVE");
    sandbox.cluster.restart(0, false);
    let refused = with_nodes(&sandbox, &[0], &DECLARE);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("has a record already"), "{}", refused.stderr);
}

#[test]
fn declare_new_says_which_nodes_were_written() {
    let sandbox = undeclared(3);
    let set_is = |right: &str| {
        let mut allow = redis::cmd("ACL");
        allow.arg(&["SETUSER", "default", right]).query::<()>(&mut sandbox.cluster.redis(1)).expect("ACL");
    };
    set_is("-set");
    let failed = sandbox.end(&DECLARE);
    assert_eq!(failed.code, Some(69), "{failed:?}");
    let names: Vec<String> = sandbox.cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let done = format!("Declared are: {}, {}. Repeat the call", names[0], names[2]);
    assert!(failed.stderr.contains(&done) && failed.stderr.contains("NOPERM"), "{}", failed.stderr);
    assert_eq!(lists(&sandbox), [None, None, None], "no list before every record");
    set_is("+set");
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
}
