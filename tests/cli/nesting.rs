//! A `quorlock run` inside another one.

use std::collections::BTreeSet;

use crate::sandbox::{Sandbox, finish};

/// Runs a shell script under `quorlock run`, whose own arguments come first. `run` stands for the command in the script.
fn nest(sandbox: &Sandbox, args: &[&str], script: &str) -> crate::sandbox::Ended {
    let script = format!(
        "run() {{ \"$QUORLOCK\" run --try --node-timeout 5s \"$@\"; }}; inspect() {{ \"$QUORLOCK\" inspect --json \"$1\"; }}; {script}"
    );
    sandbox.end(&[&["run"], args, &["--", "bash", "-ec", &script]].concat())
}

#[test]
fn three_nested_runs_on_one_name() {
    let sandbox = Sandbox::new(5);
    let ended = nest(
        &sandbox,
        &["job"],
        r#"echo $QUORLOCK_TOKEN
           run job -- sh -c 'echo $QUORLOCK_TOKEN
               "$QUORLOCK" run --try --node-timeout 5s job -- sh -c "echo \$QUORLOCK_TOKEN
                   \"\$QUORLOCK\" inspect --json job > \$DIR/deep; exit 11" && exit 1 || exit $(($? + 1))' || code=$?
           inspect job > $DIR/shallow
           exit $code"#,
    );
    assert_eq!(ended.code, Some(12), "{ended:?}");
    let tokens: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(tokens.len(), 3, "{ended:?}");
    assert!(tokens.iter().all(|token| *token == tokens[0]), "a re-entry keeps the token: {tokens:?}");
    let deep: serde_json::Value = serde_json::from_str(&sandbox.text("deep")).expect("JSON");
    let shallow: serde_json::Value = serde_json::from_str(&sandbox.text("shallow")).expect("JSON");
    assert_eq!((deep["holds"].as_u64(), shallow["holds"].as_u64()), (Some(3), Some(1)));
    assert_eq!(deep["owner"], shallow["owner"]);
    assert_eq!(sandbox.lock_keys("job"), 0);
    sandbox.is_clean();
}

#[test]
fn nested_runs_on_other_names_share_the_owner() {
    let sandbox = Sandbox::new(5);
    let ended = nest(
        &sandbox,
        &["a"],
        r#"echo $QUORLOCK_TOKEN
           run b -- sh -c 'echo $QUORLOCK_TOKEN
               "$QUORLOCK" run --try --node-timeout 5s c a -- sh -c "echo \$QUORLOCK_NAME; echo \$QUORLOCK_TOKEN
                   \"\$QUORLOCK\" run --try --node-timeout 5s b -- true && for name in a b c; do \"\$QUORLOCK\" inspect --json \$name | grep owner; done"'"#,
    );
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [a, b, "c a", tokens, owners @ ..] = lines.as_slice() else { panic!("{ended:?}") };
    let (c, again) = tokens.split_once(' ').expect("two names with different tokens");
    let [a, b, c, again] = [a, b, &c, &again].map(|token| token.parse::<u64>().expect("a token"));
    assert!(a < b && b < c && again == a, "{ended:?}");
    let owners: BTreeSet<&str> = owners.iter().map(|line| line.trim()).collect();
    assert_eq!(owners.len(), 1, "of all three names, on every node");
    assert!(owners.iter().all(|owner| owner.starts_with(r#""owner": ""#)), "{owners:?}");
    for name in ["a", "b", "c"] {
        assert_eq!(sandbox.lock_keys(name), 0, "{name}");
    }
}

#[test]
fn a_nested_run_enters_only_the_same_lock() {
    let sandbox = Sandbox::new(3);
    let ended = nest(
        &sandbox,
        &["job"],
        r#"reversed=$(echo $QUORLOCK_NODES | tr , '\n' | tac | paste -sd ,)
           run --nodes "$reversed" job -- echo order does not matter
           run --prefix other: job -- echo another key
           run --nodes ${QUORLOCK_NODES%%,*} job -- true || echo other nodes $?
           env -u QUORLOCK_LEASE "$QUORLOCK" run --try --node-timeout 5s job -- true || echo a stranger $?
           QUORLOCK_LEASE=x "$QUORLOCK" run --try --node-timeout 5s --prefix other: job -- echo nothing is inherited
           QUORLOCK_LEASE=x "$QUORLOCK" run --try --node-timeout 5s job -- true || echo malformed $?"#,
    );
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let expected = [
        "order does not matter",
        "another key",
        "other nodes 78",
        "a stranger 75",
        "nothing is inherited",
        "malformed 64",
    ];
    assert_eq!(lines, expected, "{ended:?}");
    assert!(ended.stderr.contains("QUORLOCK_LEASE") && ended.stderr.contains("unset it"), "{}", ended.stderr);
}

/// A nested run without the lease (as under sudo) waits for the run around it, and says so.
#[test]
fn a_nested_run_without_the_lease_is_warned_of_a_deadlock() {
    let sandbox = Sandbox::new(3);
    let script = r#"env -u QUORLOCK_LEASE "$QUORLOCK" run --wait 3s job -- true"#;
    let ended = nest(&sandbox, &["job"], script);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [waiting, refused] = lines.as_slice() else { panic!("{ended:?}") };
    assert!(waiting.starts_with("quorlock: waiting: job is held by "), "{waiting}");
    for line in [waiting, refused] {
        assert!(line.contains("around this one") && line.contains("QUORLOCK_LEASE"), "{line}");
    }
}

#[test]
fn a_nested_run_does_not_enter_an_ended_lease() {
    let sandbox = Sandbox::new(3);
    let lease = sandbox.end(&["run", "job", "--", "sh", "-c", "echo $QUORLOCK_LEASE"]).stdout;
    let mut late = sandbox.quorlock(&["run", "job", "--", "touch", "/nowhere"]);
    let late = finish(late.env("QUORLOCK_LEASE", lease.trim()).spawn().expect("quorlock"));
    assert_eq!(late.code, Some(79), "{late:?}");
    assert!(late.stderr.contains("cannot be entered again"), "{}", late.stderr);
}

/// The inner lock differs from the outer one of the same name.
#[test]
fn a_nested_run_on_other_nodes_does_not_enter_the_outer_lock() {
    let (outer, inner) = (Sandbox::new(3), Sandbox::new(3));
    let script = r#"QUORLOCK_NODES=$INNER "$QUORLOCK" run --try --node-timeout 5s job -- sh -c 'echo inner; "$QUORLOCK" run --try --node-timeout 5s job -- echo again'
                    "$QUORLOCK" run --try --node-timeout 5s job -- echo outer
                    QUORLOCK_PREFIX=other: "$QUORLOCK" run --try --node-timeout 5s job -- echo prefix"#;
    let mut run = outer.quorlock(&["run", "job", "--", "sh", "-ec", script]);
    let ended = finish(run.env("INNER", inner.cluster.urls().join(",")).spawn().expect("quorlock"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "inner\nagain\nouter\nprefix\n"), "{ended:?}");
    assert_eq!((outer.lock_keys("job"), inner.lock_keys("job")), (0, 0));
}

/// Users and passwords are not part of the identity of a node.
#[test]
fn a_nested_run_with_other_credentials_enters_the_outer_lock() {
    let sandbox = Sandbox::new(3);
    let allow = redis::cmd("ACL").arg(&["SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all"]).to_owned();
    sandbox.cluster.each::<()>(&allow);
    let ended = nest(
        &sandbox,
        &["job"],
        r#"export QUORLOCK_NODES=$(echo $QUORLOCK_NODES | sed s,://,://me:hunter2@,g); run job -- echo entered"#,
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "entered\n"), "{ended:?}");
    let where_it_is =
        sandbox.end(&["run", "job", "--", "sh", "-c", "echo $QUORLOCK_LEASE_NODES $QUORLOCK_LEASE_PREFIX"]);
    let mut nodes: Vec<String> = sandbox.cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    nodes.sort_unstable();
    assert_eq!(where_it_is.stdout, format!("{} quorlock:lock:\n", nodes.join(",")));
}

/// The holder's label names the outermost run, which is around both.
#[test]
fn a_nested_run_beside_another_one_is_not_warned_of_a_deadlock() {
    let sandbox = Sandbox::new(3);
    let script = r#"
        "$QUORLOCK" run db -- sh -c 'echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done' &
        until [ -e $DIR/held ]; do sleep 0.01; done
        "$QUORLOCK" run -v --wait 3s db -- true || echo code=$?
        "$QUORLOCK" run --try --node-timeout 5s db -- true || echo code=$?
        touch $DIR/end; wait"#;
    let ended = sandbox.end(&["run", "deploy", "--", "sh", "-c", script]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "code=75\ncode=75\n"), "{ended:?}");
    let said = "Another nested run of the same outermost `quorlock run` has it";
    assert_eq!(ended.stderr.matches(said).count(), 3, "during the wait, after it and without one: {ended:?}");
    assert!(!ended.stderr.contains("wait for itself") && !ended.stderr.contains("export()"), "{ended:?}");
}
