//! Passwords are for nodes only.

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
    let run = ["run", "-v", "--try", "job", "--", "true"];
    let cases: &[(&str, &[&str], i32)] = &[
        (&right, &run, 0),
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
    ];
    for (nodes, args, code) in cases {
        let ended = finish(sandbox.quorlock(args).env("QUORLOCK_NODES", nodes).spawn().expect("quorlock"));
        assert_eq!(ended.code, Some(*code), "{args:?}: {ended:?}");
        assert!(!format!("{ended:?}").contains(PASSWORD), "{args:?} shows the password: {ended:?}");
    }
    let script = ["run", "job", "--", "sh", "-c", "\"$QUORLOCK\" run --try job -- echo $QUORLOCK_NODES"];
    let nested = finish(sandbox.quorlock(&script).env("QUORLOCK_NODES", &right).spawn().expect("quorlock"));
    assert_eq!(nested.stdout.trim(), right, "the command itself needs it, to lock there again");
}
