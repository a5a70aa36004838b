//! Passwords go to nodes only.

use crate::sandbox::{Sandbox, finish};

const PASSWORD: &str = "hunter2";

#[test]
fn a_password_is_never_shown() {
    let sandbox = Sandbox::new(1);
    let allow = redis::cmd("ACL").arg(&["SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all"]).to_owned();
    sandbox.cluster.each::<()>(&allow);
    let port = sandbox.cluster.ports()[0];
    let right = format!("redis://me:{PASSWORD}@127.0.0.1:{port}");
    let wrong = format!("redis://you:{PASSWORD}@127.0.0.1:{port}");
    let broken = format!("redis://me:{PASSWORD}@127.0.0.1:port");
    let bare = format!("me:{PASSWORD}@127.0.0.1:{port}");
    let dead = format!("redis://me:{PASSWORD}@127.0.0.1:1");
    let held = format!("redis://me:{PASSWORD}@held");
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let mut holder = sandbox.quorlock(&["run", &held, "--", "sh", "-c", hold]);
    let holder = holder.env("QUORLOCK_NODES", &right).spawn().expect("quorlock");
    sandbox.wait_for("held");
    let run = ["run", "-v", "--try", "job", "--", "true"];
    let patient = [&run[..3], &["--node-timeout", "5s"], &run[3..]].concat();
    let cases: &[(&str, &[&str], i32)] = &[
        (&right, &patient, 0),
        (&wrong, &run, 69),
        (&broken, &run, 64),
        (&bare, &run, 64),
        (&dead, &run, 69),
        (&right, &["run", "--help"], 0),
        (&right, &["inspect", "job"], 0),
        (&right, &["inspect", "--json", "job"], 0),
        (&wrong, &["inspect", "job"], 69),
        (&wrong, &["inspect", "--json", "job"], 69),
        (&right, &["inspect", "job", &right], 64),
        (&right, &["run", "--node", &right, "job", "--", "true"], 64),
        (&right, &["run", &format!("--wait={right}"), "job", "--", "true"], 64),
        (&right, &["run", "--nodes", &bare, "job", "--", "true"], 64),
        (&right, &["run", &format!("--wait=redis://me:two {PASSWORD}@127.0.0.1"), "job", "--", "true"], 64),
        (&right, &["run", &format!("--wait={bare}"), "job", "--", "true"], 64),
        (&right, &["run", &format!("--lease=redis://me:{PASSWORD}"), "job", "--", "true"], 64),
        (&right, &["run", "--nodes", &format!("redis://me:{PASSWORD}#x@127.0.0.1:1"), "job", "--", "true"], 64),
        // In the place of a name.
        (&right, &["run", "-v", &right, "--", "true"], 0),
        (&right, &["run", &right, "true"], 64),
        (&dead, &["run", "--try", &dead, "--", "true"], 69),
        (&right, &["run", "--try", "--node-timeout", "5s", &held, "--", "true"], 75),
        (&right, &["run", "--wait=3s", "-v", &held, "--", "true"], 75),
        (&right, &["inspect", &right], 0),
        (&right, &["inspect", "--json", &right], 0),
        // In the place of the command.
        (&right, &["run", "job", "--", &right], 127),
    ];
    for (nodes, args, code) in cases {
        let ended = finish(sandbox.quorlock(args).env("QUORLOCK_NODES", nodes).spawn().expect("quorlock"));
        assert_eq!(ended.code, Some(*code), "{args:?}: {ended:?}");
        assert!(!format!("{ended:?}").contains(PASSWORD), "{args:?} shows the password: {ended:?}");
    }
    sandbox.touch("end");
    assert_eq!(finish(holder).code, Some(0));
}

/// A nested run finds the nodes in a file, which it needs no open file for: Python closes all when it starts a process.
#[test]
#[cfg(target_os = "linux")]
fn the_command_gets_no_password_and_a_nested_run_enters_the_lock() {
    let sandbox = Sandbox::new(1);
    let allow = redis::cmd("ACL").arg(&["SETUSER", "me", "on", ">hunter2", "~*", "&*", "+@all"]).to_owned();
    sandbox.cluster.each::<()>(&allow);
    let url = format!("redis://me:{PASSWORD}@127.0.0.1:{}", sandbox.cluster.ports()[0]);
    let script = "env; exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; $QUORLOCK run --try --node-timeout 5s job -- sh -c 'echo inner; env'";
    let mut outer = sandbox.quorlock(&["run", "job", "--", "sh", "-c", script]);
    outer.env("QUORLOCK_NODES", &url).env("QUORLOCK", env!("CARGO_BIN_EXE_quorlock"));
    let ended = finish(outer.spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("\ninner\n"), "{ended:?}");
    assert!(!format!("{ended:?}").contains(PASSWORD), "{ended:?}");
    let file = ended.stdout.lines().find_map(|line| line.strip_prefix("QUORLOCK_NODES_FILE=")).expect("a file");
    assert!(!std::path::Path::new(file).exists(), "{file} is left behind");
}
