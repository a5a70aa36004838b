//! `quorlock nodes`: the declaration of a cluster, and the messages of the other commands without one.

use std::time::{Duration, Instant};

use quorlock_testkit::Cluster;

use crate::pty::Pty;
use crate::sandbox::{Ended, Sandbox, finish};

const RECORD: &str = "quorlock:node";
const LIST: &str = "quorlock:list:quorlock:lock:";
const HOLD: &str = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
const DECLARE: [&str; 3] = ["nodes", "declare-new", "--yes"];
const SET: [&str; 2] = ["nodes", "set-list"];
/// A first connection takes more than the default node timeout on a busy machine.
const TRY: [&str; 7] = ["run", "--try", "--node-timeout", "5s", "job", "--", "true"];

fn undeclared(nodes: usize) -> Sandbox {
    Sandbox::around(Cluster::undeclared(nodes, &[]))
}

/// Runs `quorlock` with the nodes of these indices as its list.
fn with_nodes(sandbox: &Sandbox, places: &[usize], args: &[&str]) -> Ended {
    let urls = sandbox.cluster.urls();
    let list: Vec<&str> = places.iter().map(|place| urls[*place].as_str()).collect();
    finish(sandbox.quorlock(args).env("QUORLOCK_NODES", list.join(",")).spawn().expect("quorlock"))
}

fn get(sandbox: &Sandbox, node: usize, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(&mut sandbox.cluster.redis(node)).expect("a string or none")
}

fn set(sandbox: &Sandbox, node: usize, key: &str, value: &str) {
    redis::cmd("SET").arg(key).arg(value).query::<()>(&mut sandbox.cluster.redis(node)).expect("a key");
}

fn delete(sandbox: &Sandbox, node: usize, key: &str) {
    redis::cmd("DEL").arg(key).query::<()>(&mut sandbox.cluster.redis(node)).expect("a key less");
}

/// Returns one field of the record, counted from 0: word, longest, end, wall, window, cluster, keeps, run id.
fn field(sandbox: &Sandbox, node: usize, index: usize) -> String {
    let record = get(sandbox, node, RECORD).expect("a record");
    record.split(' ').nth(index).expect("eight fields").to_owned()
}

fn lists(sandbox: &Sandbox) -> Vec<Option<String>> {
    (0..sandbox.cluster.len()).map(|node| get(sandbox, node, LIST)).collect()
}

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
        assert!(refused.stderr.contains("set-list") && refused.stderr.contains("empty data folders"), "{refused:?}");
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
fn wrong_usage_of_nodes_is_refused() {
    let sandbox = undeclared(1);
    let cases: &[(&[&str], &str)] = &[
        (&["nodes"], "nodes declare-new"),
        (&["nodes", "forget"], "unrecognized subcommand"),
        (&["nodes", "declare-new"], "give --yes"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "soon"], "--ballot-ttl"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "1s", "--longest-lease", "400ms"], "ballots cannot be kept"),
        (&["nodes", "declare-new", "-y", "--ballot-ttl", "1m", "--longest-lease", "40s"], "at least twice"),
        (&["nodes", "declare-new", "-y", "--longest-lease", "1ms"], "too short"),
        (&["nodes", "set-list", "--yes"], "'--yes'"),
        (&["nodes", "set-list", "--nodes", "redis://me:hunter2@host:x"], "cannot be used"),
    ];
    for (args, said) in cases {
        let ended = sandbox.end(args);
        assert_eq!(ended.code, Some(64), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
    }
    assert_eq!(sandbox.cluster.count_keys(RECORD), 0);
}

#[test]
fn set_list_is_refused_while_a_lease_is_in_force() {
    let sandbox = undeclared(5);
    assert_eq!(with_nodes(&sandbox, &[0, 1, 2], &DECLARE).code, Some(0));
    let three = sandbox.cluster.urls()[..3].join(",");
    let run = ["run", "--lease", "10s", "--nodes", &three, "job", "--", "sh", "-c", HOLD];
    let holder = sandbox.start(&run);
    sandbox.wait_for("held");
    let refused = sandbox.end(&SET);
    assert_eq!(refused.code, Some(75), "{refused:?}");
    assert!(refused.stderr.contains("has the lock quorlock:lock:job"), "{}", refused.stderr);
    assert!(refused.stderr.contains("Nothing was changed"), "{}", refused.stderr);
    assert_eq!(lists(&sandbox)[..4], [Some("3".into()), Some("3".into()), Some("3".into()), None]);

    // The key expires by the nodes' clocks, and the lease ends by that of its holder.
    let mut holder = holder;
    holder.kill().and_then(|()| holder.wait().map(drop)).expect("a process that ends");
    for node in 0..3 {
        delete(&sandbox, node, &Cluster::lock_key("job"));
    }
    let refused = sandbox.end(&SET);
    assert_eq!(refused.code, Some(75), "{refused:?}");
    assert!(refused.stderr.contains("was not released") && refused.stderr.contains("ends in"), "{}", refused.stderr);

    let start = Instant::now();
    while sandbox.end(&SET).code != Some(0) {
        assert!(start.elapsed() < Duration::from_secs(30), "the lease must end");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(lists(&sandbox), vec![Some("5".to_owned()); 5]);
    assert_eq!(sandbox.end(&TRY).code, Some(0), "three of five vote at once");
}

#[test]
fn clients_with_another_list_get_no_lock() {
    let sandbox = undeclared(5);
    assert_eq!(with_nodes(&sandbox, &[0, 1, 2], &DECLARE).code, Some(0));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let three = sandbox.cluster.urls()[..3].to_vec();
        let old = quorlock::Quorlock::builder().nodes(three).connect().await.expect("settings that work");
        old.lock("job").try_acquire().await.expect("the lock").release().await.expect("a release");
        let cluster = field(&sandbox, 0, 5);
        let changed = sandbox.end(&SET);
        assert_eq!(changed.code, Some(0), "{changed:?}");
        assert_eq!((changed.stdout.matches("now").count(), changed.stdout.matches("in 10s").count()), (3, 2));
        assert_ne!(field(&sandbox, 0, 5), cluster, "the listed nodes must get a new cluster word");
        for name in ["job", "other", "job"] {
            let error = old.lock(name).try_acquire().await.expect_err("its list differs from the nodes' list");
            assert!(error.is_no_quorum(), "{error}");
        }
        let new = sandbox.cluster.builder().connect().await.expect("settings that work");
        new.lock("job").wait(Duration::from_secs(5)).acquire().await.expect("the lock").release().await.expect("it");
        let error = old.lock("job").wait(Duration::from_millis(700)).acquire().await.expect_err("no lock for it");
        assert!(error.to_string().contains("3 nodes are listed here, and this node is one of 5"), "{error}");
    });
    let four = with_nodes(&sandbox, &[0, 1, 2, 3], &TRY);
    assert_eq!(four.code, Some(78), "{four:?}");
    assert!(four.stderr.contains("4 nodes are listed here, and this node is one of 5"), "{}", four.stderr);
    assert!(four.stderr.contains("quorlock nodes set-list"), "{}", four.stderr);
    let looked = with_nodes(&sandbox, &[0, 1, 2, 3], &["inspect", "job"]);
    assert_eq!(looked.code, Some(78), "{looked:?}");
}

#[test]
fn set_list_keeps_a_majority_of_the_old_list() {
    let sandbox = undeclared(5);
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
    let refused = with_nodes(&sandbox, &[0, 1], &SET);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("only 2 of the 5 nodes"), "{}", refused.stderr);
    assert_eq!(lists(&sandbox), vec![Some("5".to_owned()); 5]);
    let cluster = field(&sandbox, 0, 5);
    let done = with_nodes(&sandbox, &[0, 1, 2], &SET);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_ne!(field(&sandbox, 0, 5), cluster, "the nodes outside are no part of it");
    assert_eq!(with_nodes(&sandbox, &[0, 1, 2], &TRY).code, Some(0));
    assert_eq!(sandbox.end(&TRY).code, Some(78));
    // Of the same length, and with nodes that were left out.
    let stray = with_nodes(&sandbox, &[2, 3, 4], &TRY);
    assert_eq!(stray.code, Some(78), "{stray:?}");
}

#[test]
fn a_change_that_one_node_refuses_is_undone() {
    let sandbox = undeclared(3);
    assert_eq!(with_nodes(&sandbox, &[0, 1], &DECLARE).code, Some(0));
    let script = |right: &str| {
        let mut allow = redis::cmd("ACL");
        allow.arg(&["SETUSER", "default", right]).query::<()>(&mut sandbox.cluster.redis(2)).expect("ACL");
    };
    script("-eval");
    let word = field(&sandbox, 0, 0);
    let failed = sandbox.end(&SET);
    assert_eq!(failed.code, Some(69), "{failed:?}");
    assert!(failed.stderr.contains("NOPERM") && failed.stderr.contains("The list is as it was"), "{}", failed.stderr);
    assert_eq!(lists(&sandbox), [Some("2".to_owned()), Some("2".to_owned()), None]);
    assert_ne!(field(&sandbox, 0, 0), word, "the change began on node 0");
    assert_eq!(with_nodes(&sandbox, &[0, 1], &TRY).code, Some(0));
    script("+eval");
    assert_eq!(sandbox.end(&SET).code, Some(0));
}

#[test]
fn the_same_list_stays_one_cluster() {
    let sandbox = undeclared(3);
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
    let clusters = || [0, 1, 2].map(|node| field(&sandbox, node, 5));
    let before = clusters();
    let again = sandbox.end(&SET);
    assert_eq!((again.code, clusters()), (Some(0), before), "{again:?}");
    assert!(again.stdout.contains("3 nodes are the list for the prefix \"quorlock:lock:\"."), "{}", again.stdout);
}

/// One node of the old list is left out, and another one may have forgotten what it granted.
#[test]
fn set_list_waits_for_nodes_that_may_have_forgotten_leases() {
    let mut sandbox = undeclared(3);
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
    redis::cmd("SAVE").query::<()>(&mut sandbox.cluster.redis(1)).expect("SAVE");
    sandbox.cluster.restart(1, false);
    let refused = with_nodes(&sandbox, &[0, 1], &SET);
    assert_eq!(refused.code, Some(75), "{refused:?}");
    assert!(refused.stderr.contains("may have forgotten leases"), "{}", refused.stderr);
    assert!(refused.stderr.contains("try again in "), "{}", refused.stderr);
    assert_eq!(lists(&sandbox), vec![Some("3".to_owned()); 3]);
}

#[test]
fn declare_new_asks_on_a_terminal() {
    let sandbox = undeclared(2);
    for (answer, code, declared) in [("\r", 64, 0), ("no\r", 64, 0), (" Y \r", 0, 2)] {
        let mut terminal = Pty::start(&sandbox, "sh", &["-c", "\"$QUORLOCK\" nodes declare-new; echo code=$?"]);
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

/// Returns the arguments of the commands that a node has executed since its slow log was set to take all.
fn arguments(sandbox: &Sandbox, node: usize) -> Vec<String> {
    let entries: Vec<Vec<redis::Value>> =
        redis::cmd("SLOWLOG").arg(&["GET", "-1"]).query(&mut sandbox.cluster.redis(node)).expect("a log");
    let words = |entry: Vec<redis::Value>| redis::from_redis_value::<Vec<String>>(entry[3].clone()).expect("words");
    entries.into_iter().flat_map(words).collect()
}

#[test]
fn a_list_that_is_being_changed_names_the_old_and_the_new_length() {
    let sandbox = undeclared(3);
    assert_eq!(with_nodes(&sandbox, &[0, 1], &DECLARE).code, Some(0));
    sandbox.cluster.each::<()>(redis::cmd("CONFIG").arg(&["SET", "slowlog-log-slower-than", "0"]));
    // The state after a call that was interrupted on node 1.
    set(&sandbox, 1, LIST, "3002");
    assert_eq!(sandbox.end(&SET).code, Some(0));
    for (node, changing, other) in [(0, "3002", "3000"), (1, "3002", "3000"), (2, "3000", "3002")] {
        let arguments = arguments(&sandbox, node);
        let says = |number: &str| arguments.iter().any(|argument| argument == number);
        assert!(says(changing) && !says(other), "node {node}: {arguments:?}");
    }
}

/// Clients have written the records, and a change from no list was interrupted.
#[test]
fn a_first_list_is_finished_although_the_nodes_are_in_quarantine() {
    let sandbox = undeclared(3);
    assert_eq!(sandbox.end(&TRY).code, Some(69));
    (0..3).for_each(|node| set(&sandbox, node, LIST, "3000"));
    let finished = sandbox.end(&SET);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stdout.matches(" in ").count(), 3, "{}", finished.stdout);
    assert_eq!(lists(&sandbox), vec![Some("3".to_owned()); 3]);
}

#[test]
fn set_list_writes_the_record_of_a_new_node_as_a_client_does() {
    let sandbox = undeclared(3);
    assert_eq!(with_nodes(&sandbox, &[0, 1], &[&DECLARE[..], &["--ballot-ttl", "8m"]].concat()).code, Some(0));
    assert_eq!(sandbox.end(&SET).code, Some(0));
    assert_eq!([0, 1, 2].map(|node| field(&sandbox, node, 4)), ["240000"; 3]);
}

#[test]
fn a_node_votes_when_its_quarantine_is_over() {
    let sandbox = undeclared(1);
    assert_eq!(sandbox.end(&DECLARE).code, Some(0));
    let [word, cluster, run_id] = [0, 5, 7].map(|index| field(&sandbox, 0, index));
    set(&sandbox, 0, RECORD, &format!("{word} 10000 1700000000000 1700000000000 300000 {cluster} 0 {run_id}"));
    let changed = sandbox.end(&SET);
    assert_eq!((changed.code, changed.stdout.matches("now").count()), (Some(0), 1), "{changed:?}");
    assert!(changed.stdout.contains("1 node is the list"), "{}", changed.stdout);
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

#[test]
fn set_list_joins_clusters_only_with_its_option() {
    let sandbox = undeclared(3);
    assert_eq!(with_nodes(&sandbox, &[0], &DECLARE).code, Some(0));
    assert_eq!(with_nodes(&sandbox, &[1, 2], &DECLARE).code, Some(0));
    let refused = sandbox.end(&SET);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("--adopt"), "{}", refused.stderr);
    let adopted = sandbox.end(&[&SET[..], &["--adopt"]].concat());
    assert_eq!(adopted.code, Some(0), "{adopted:?}");
    assert_eq!([1, 2].map(|node| field(&sandbox, node, 5)), [0; 2].map(|node| field(&sandbox, node, 5)));
    assert_eq!(sandbox.end(&TRY).code, Some(0));
}

#[test]
fn a_change_that_was_interrupted_blocks_until_it_is_repeated() {
    let sandbox = undeclared(3);
    assert_eq!(with_nodes(&sandbox, &[0], &DECLARE).code, Some(0));
    // The state after a call that ended when one node had the new list.
    set(&sandbox, 0, LIST, "3001");
    set(&sandbox, 1, LIST, "3000");
    assert_eq!(with_nodes(&sandbox, &[2], &DECLARE).code, Some(0));
    set(&sandbox, 2, LIST, "3");
    for nodes in [&[0, 1, 2][..], &[0]] {
        // A try is decided by the first two nodes that refuse, when the third may be connecting still: so it waits.
        let patient = ["run", "--lease", "20s", "--node-timeout", "3s", "--wait", "1s", "job", "--", "true"];
        let blocked = with_nodes(&sandbox, nodes, &patient);
        assert_eq!(blocked.code, Some(78), "{blocked:?}");
        assert!(blocked.stderr.contains("its list of nodes is being changed"), "{}", blocked.stderr);
    }
    let repeated = sandbox.end(&SET);
    assert_eq!(repeated.code, Some(0), "{repeated:?}");
    assert_eq!(lists(&sandbox), vec![Some("3".to_owned()); 3]);
    assert_eq!(sandbox.end(&TRY).code, Some(0));
}

#[test]
fn no_nodes_command_shows_a_password() {
    let sandbox = undeclared(1);
    let allow = redis::cmd("ACL").arg(&["SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all"]).to_owned();
    sandbox.cluster.each::<()>(&allow);
    let port = sandbox.cluster.ports()[0];
    for (user, code) in [("you", 69), ("me", 0)] {
        let url = format!("redis://{user}:hunter2@127.0.0.1:{port}");
        for args in [&DECLARE[..], &SET] {
            let ended = finish(sandbox.quorlock(args).env("QUORLOCK_NODES", &url).spawn().expect("quorlock"));
            assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
            assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
        }
    }
}

/// The list of a client with an unreachable node does not block clients with another prefix.
#[test]
fn a_list_for_another_prefix_does_not_affect_a_holder() {
    let mut sandbox = undeclared(4);
    let declared = with_nodes(&sandbox, &[0, 1, 2], &[&DECLARE[..], &["--longest-lease", "5s"]].concat());
    assert_eq!(declared.code, Some(0), "{declared:?}");
    let list = sandbox.cluster.urls()[..3].join(",");
    // The work takes more than three leases.
    let mut holder = sandbox.quorlock(&["run", "--lease", "5s", "job", "--", "sh", "-c", "echo > $DIR/held; sleep 16"]);
    let holder = holder.env("QUORLOCK_NODES", list).spawn().expect("quorlock");
    sandbox.wait_for("held");
    sandbox.cluster.kill(2);
    let other = with_nodes(&sandbox, &[0, 1, 3], &[&SET[..], &["--prefix", "other:"]].concat());
    assert_eq!(other.code, Some(0), "{other:?}");
    let ended = finish(holder);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
