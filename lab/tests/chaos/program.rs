//! `quorlock-lab chaos -- COMMAND`. Where the command is to use the lock, it is this test program itself, see [`worker_process`].

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use quorlock::{Guard, Quorlock};
use quorlock_testkit::worker::{job, report};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::time::sleep;

use crate::place::{Place, said, within};

/// Not a test: the command of the runs below.
#[test]
fn worker_process() {
    let Some(job) = job() else { return };
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    match job[0].as_str() {
        "count" => runtime().block_on(count()),
        "forge" => {
            // The client ends with its runtime, and the lease goes on.
            let client = runtime();
            let token = client.block_on(hold());
            client.shutdown_background();
            runtime().block_on(forge(token));
        }
        other => panic!("no such job: {other}"),
    }
}

fn nodes() -> Vec<String> {
    std::env::var("QUORLOCK_NODES").expect("nodes").split(',').map(str::to_owned).collect()
}

/// Two clients that use one lock, until a signal ends the process.
async fn count() {
    let work = async || {
        let locks = Quorlock::builder().nodes(nodes()).lease(Duration::from_secs(1)).connect().await.expect("nodes");
        loop {
            // A request may fail under the faults.
            let request = locks.lock("job").wait(Duration::from_secs(5));
            let work = async |_: &Guard| {
                sleep(Duration::from_millis(150)).await;
                Ok::<_, Infallible>(())
            };
            if request.run(work).await.is_ok() {
                report("worked");
            }
        }
    };
    tokio::join!(work(), work());
}

/// Acquires a lock on every node, and never releases it.
async fn hold() -> u64 {
    let locks = Quorlock::builder().nodes(nodes()).lease(Duration::from_secs(5)).connect().await.expect("nodes");
    let guard = locks.lock("stolen").acquire().await.expect("a lock");
    while guard.margin() < 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let token = guard.token().get();
    std::mem::forget(guard);
    token
}

/// Overwrites the lock with this token, and makes one that no node has granted.
async fn forge(token: u64) {
    let thief = format!("ql1 {} {:032x} thief:1 ab/1:1", token + 1, 7);
    for node in &nodes()[..2] {
        let client = redis::Client::open(node.as_str()).expect("a URL");
        let mut redis = client.get_multiplexed_async_connection().await.expect("a node");
        for name in ["stolen", "invented"] {
            let mut set = redis::cmd("SET");
            set.arg(format!("quorlock:lock:{name}")).arg(&thief).arg("PX").arg(3000);
            set.query_async::<()>(&mut redis).await.expect("an answer");
        }
    }
    sleep(Duration::from_secs(1)).await;
}

fn with_job(place: &Place, arguments: &str, job: &str) -> Output {
    let mut command = place.chaos(arguments);
    command.args(["--", "env"]).arg(format!("QUORLOCK_TEST_JOB={job}"));
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "program::worker_process", "--nocapture", "--test-threads=1"]);
    command.output().expect("the command that was built for this test")
}

fn with_shell(place: &Place, arguments: &str, script: &str) -> Command {
    let mut command = place.chaos(arguments);
    command.args(["--", "sh", "-c", script]);
    command
}

fn verdict(results: &Value, invariant: &str) -> Value {
    results["invariants"][invariant]["verdict"].clone()
}

#[test]
fn a_program_that_uses_the_lock_passes_under_faults() {
    let place = Place::new("program");
    let output = with_job(&place, "--for 6s --seed 3 --nodes-count 3 --lease 1s --json", "count");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = place.results();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON on stdout"), results);
    for invariant in ["MutualExclusion", "GrantedByVote", "TokenMonotonic", "NoOrphan"] {
        assert_eq!(verdict(&results, invariant), "held", "{results}");
    }
    assert!(results["grants"].as_u64() > Some(3) && results["ledger"].is_null(), "{results}");
    assert!(results["faults"].as_object().is_some_and(|faults| faults.len() >= 2), "{results}");
    let program = &results["program"];
    assert_eq!((&program["code"], &program["succeeded"]), (&143.into(), &true.into()), "SIGTERM was asked for");
    assert_eq!((&program["ended_early"], &program["names"]), (&false.into(), &1.into()));
    let history = fs::read_to_string(place.out().join("history.jsonl")).expect("a history");
    assert!(history.contains("\"stream\":\"stdout\",\"text\":\"worker> worked\""), "its output is in the history");
    let page = fs::read_to_string(place.out().join("report.html")).expect("a report");
    assert!(page.contains("Every promise held") && page.contains("<td>worker&gt; worked</td>"));
    place.is_clean();
}

#[test]
fn a_second_holder_and_a_lock_that_no_node_granted_are_violations() {
    let place = Place::new("forged");
    let output = with_job(&place, "--for 5s --seed 1 --nodes-count 3 --lease 5s --quiet", "forge");
    assert_eq!(output.status.code(), Some(80), "{}", said(&output));
    let results = place.results();
    for (invariant, name) in [("MutualExclusion", "stolen"), ("GrantedByVote", "stolen"), ("GrantedByVote", "invented")]
    {
        let described = &results["invariants"][invariant]["described"];
        assert!(described.to_string().contains(&format!("{name}: ")), "{invariant}: {results}");
    }
    assert_eq!(results["program"]["succeeded"], true, "a violation is not a failure of the command");
    place.is_clean();
}

#[test]
fn a_command_that_fails_or_takes_no_lock_is_no_violation() {
    let place = Place::new("failed");
    for (script, code, own) in [("echo fine; echo broken >&2; exit 7", 83, 7), ("exit 0", 81, 0)] {
        let mut command = with_shell(&place, "--for 60s --seed 1 --nodes-count 3 --lease 1s", script);
        let output = command.output().expect("the command that was built for this test");
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let results = place.results();
        assert_eq!((&results["program"]["code"], &results["program"]["ended_early"]), (&own.into(), &true.into()));
        assert!(said(&output).contains(&format!("the command ended with {own} by itself")), "{}", said(&output));
        assert_eq!(said(&output).contains("broken"), code == 83, "the last lines are shown: {}", said(&output));
    }
    let output = with_shell(&place, "--for 5s --workers 3", "exit 0").output().expect("the command");
    assert_eq!(output.status.code(), Some(64), "a command stands in the place of workers: {}", said(&output));
    place.is_clean();
}

/// One command ignores SIGTERM, the other leaves a process in a group of its own.
#[test]
fn ctrl_c_ends_a_command_and_all_that_it_started() {
    let place = Place::new("stopped");
    let detached = "setsid sleep 600 & sleep 600 & echo ready; while :; do sleep 600; done";
    for script in [format!("trap '' TERM INT; {detached}"), detached.to_owned()] {
        let child = with_shell(&place, "--for 60s --seed 1 --nodes-count 3 --lease 1s --quiet", &script)
            .process_group(0)
            .spawn()
            .expect("the command that was built for this test");
        let history = place.out().join("history.jsonl");
        within("its output", || fs::read_to_string(&history).is_ok_and(|text| text.contains("\"text\":\"ready\"")));
        kill_process_group(Pid::from_child(&child), Signal::INT).expect("a signal to our own child");
        let output = child.wait_with_output().expect("its end");
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        let results = place.results();
        assert_eq!((&results["interrupted"], &results["program"]["killed"]), (&true.into(), &true.into()));
        fs::remove_file(history).expect("a history");
        place.is_clean();
    }
}
