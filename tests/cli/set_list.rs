//! `quorlock nodes set-list`: another list of nodes for a prefix.

use std::time::{Duration, Instant};

use quorlock_testkit::Cluster;

use crate::nodes::{DECLARE, LIST, RECORD, SET, TRY, delete, field, lists, set, undeclared, with_nodes};
use crate::sandbox::{Sandbox, finish};

const HOLD: &str = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";

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
        let old = quorlock::Quorlock::builder().nodes(three).node_timeout(Duration::from_secs(2)).connect().await;
        let old = old.expect("settings that work");
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
    let longer = sandbox.end(&TRY);
    assert_eq!(longer.code, Some(78), "{longer:?}");
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
