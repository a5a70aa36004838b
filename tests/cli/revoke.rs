//! `quorlock release NAME --force`: a lock is taken from its holder.

use serde_json::Value;

use crate::pty::Pty;
use crate::sandbox::{Ended, Sandbox, finish, within};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

const WORK: &str = "echo $QUORLOCK_TOKEN > $DIR/ready; while :; do sleep 0.01; done";

#[test]
fn a_holder_at_work_is_ended_and_the_next_one_gets_the_lock() {
    let sandbox = Sandbox::new(3);
    let run = sandbox.start(&["run", "--lease", "3s", "job", "--", "sh", "-c", WORK]);
    sandbox.wait_for("ready");
    within("the token is written", || sandbox.text("ready").ends_with('\n'));
    let token: u64 = sandbox.text("ready").trim().parse().expect("a token");

    let other = sandbox.end(&["release", "job", "--force", "--yes", "--token", "7"]);
    assert_eq!(other.code, Some(75), "{other:?}");
    assert!(other.stderr.contains("job is held by") && other.stderr.contains("not touched"), "{other:?}");

    let revoked = sandbox.end(&["release", "job", "--force", "--yes", "--json", "--token", &token.to_string()]);
    assert_eq!((revoked.code, revoked.stderr.as_str()), (Some(0), ""), "{revoked:?}");
    let said = json(&revoked);
    assert_eq!((&said["resource"], &said["revoked"], &said["token"]), (&"job".into(), &true.into(), &token.into()));
    assert!(said["free_in_ms"].as_u64().is_some_and(|ms| ms <= 3000), "{said}");
    assert_eq!(said["nodes"].as_array().map(Vec::len), Some(3), "{said}");

    let seen = sandbox.end(&["inspect", "job", "--json"]);
    let seen = json(&seen);
    // Where the machine was busy, the lease may be over by now.
    assert!(seen["verdict"] == "revoked" && seen["owner"] == Value::Null || seen["verdict"] == "free", "{seen}");

    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(
        ended.stderr.contains("the lock on job was revoked (") && ended.stderr.contains("revoked from"),
        "{}",
        ended.stderr
    );

    let next = sandbox.end(&["run", "job", "--", "true"]);
    assert_eq!(next.code, Some(0), "{next:?}");
    // A node that has not granted the next lease may show the revoked one for some milliseconds more.
    within("no node has the lease any more", || {
        let again = sandbox.end(&["release", "job", "--force", "--yes", "--token", &token.to_string()]);
        assert_eq!(again.code, Some(0), "{again:?}");
        again.stdout.contains(&format!("no node of a majority has the lease with token {token}"))
    });
    sandbox.is_clean();
}

#[test]
fn it_needs_to_be_meant() {
    let mut sandbox = Sandbox::new(3);
    let ended = sandbox.end(&["release", "job", "--yes"]);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("--force"), "{ended:?}");
    let ended = sandbox.end(&["release", "job", "--force"]);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("give --yes"), "{ended:?}");
    let ended = sandbox.end(&["release", "job", "--force", "--yes"]);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "job: not held, so there is nothing to revoke\n"),
        "{ended:?}"
    );
    let ended = sandbox.end(&["release", "", "--force", "--yes"]);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    sandbox.cluster.kill(0);
    sandbox.cluster.kill(1);
    let ended = sandbox.end(&["release", "job", "--force", "--yes"]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(ended.stderr.contains("repeat this"), "{ended:?}");
}

#[test]
fn the_lease_that_the_question_shows_is_the_one_that_is_revoked() {
    let sandbox = Sandbox::new(3);
    let work = "echo > $DIR/$0.ready; until [ -e $DIR/$0.end ]; do sleep 0.01; done";
    let first = sandbox.start(&["run", "--label", "first", "job", "--", "sh", "-c", work, "first"]);
    sandbox.wait_for("first.ready");
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", "\"$QUORLOCK\" release job --force; echo code=$?"]);
    terminal.wait_for("[y/N]");
    sandbox.touch("first.end");
    assert_eq!(finish(first).code, Some(0));
    let second = sandbox.start(&["run", "--label", "second", "job", "--", "sh", "-c", work, "second"]);
    sandbox.wait_for("second.ready");
    terminal.press("y\r");
    terminal.wait_for("code=75");
    terminal.end();
    sandbox.touch("second.end");
    assert_eq!(finish(second).code, Some(0));
}

/// A script that executes quorlock leaves its children to it.
#[test]
fn what_quorlock_has_not_started_is_not_killed() {
    let sandbox = Sandbox::new(3);
    let script = r#"
        sh -c 'sh -c "echo \$\$ > \$DIR/below; while :; do sleep 0.01; done" & echo $$ > $DIR/helper; wait' > $DIR/out 2>&1 &
        exec "$QUORLOCK" run --lease 3s job -- sh -c 'trap "" TERM; echo > $DIR/ready; while :; do sleep 0.01; done'"#;
    let run = sandbox.command("sh", &["-c", script]).spawn().expect("sh");
    sandbox.wait_for("ready");
    let helpers = ["helper", "below"].map(|file| sandbox.wait_for(file));
    assert_eq!(sandbox.end(&["release", "job", "--force", "--yes"]).code, Some(0));
    let ended = finish(run);
    assert_eq!(ended.code, Some(79), "{ended:?}");
    assert!(ended.stderr.contains("killed (SIGKILL)") && !ended.stderr.contains("still there"), "{ended:?}");
    let left: Vec<String> = sandbox.processes().iter().map(|pid| format!("{}\n", pid.as_raw_nonzero())).collect();
    assert!(helpers.iter().all(|helper| left.contains(helper)), "{helpers:?} and {left:?}");
}
