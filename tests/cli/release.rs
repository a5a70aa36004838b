//! Messages in transit to the nodes when quorlock ends.

use std::time::{Duration, Instant};

use quorlock_testkit::Cluster;
use quorlock_testkit::proxy::Proxy;
use rustix::process::Signal;

use crate::sandbox::{Sandbox, finish, signal, within};

/// Returns the shortest duration of several runs, because the machine has other load.
fn shortest(sandbox: &Sandbox, args: &[&str], code: i32) -> Duration {
    let run = || {
        let start = Instant::now();
        assert_eq!(sandbox.end(args).code, Some(code), "{args:?}");
        start.elapsed()
    };
    (0..7).map(|_| run()).min().expect("seven runs")
}

#[test]
fn a_paused_node_does_not_delay_the_end_of_a_run() {
    let mut sandbox = Sandbox::around(Cluster::quiet(3));
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let holder = sandbox.start(&["run", "held", "--", "sh", "-c", hold]);
    sandbox.wait_for("held");
    let (runs, is_refused) =
        (["run", "job", "--", "true"], ["run", "--try", "--node-timeout", "5s", "held", "--", "true"]);
    let limit = |all_up: Duration| all_up * 3 / 2 + Duration::from_millis(30);
    // Other load may begin between the two measurements. A delay by the node is in all of them.
    let mut measured = Vec::new();
    let is_fast = (0..4).any(|_| {
        let all_up = (shortest(&sandbox, &runs, 0), shortest(&sandbox, &is_refused, 75));
        sandbox.cluster.pause(2);
        let one_stopped = (shortest(&sandbox, &runs, 0), shortest(&sandbox, &is_refused, 75));
        sandbox.cluster.resume(2);
        measured.push((one_stopped, all_up));
        one_stopped.0 <= limit(all_up.0) && one_stopped.1 <= limit(all_up.1)
    });
    assert!(is_fast, "with a paused node, and with all nodes: {measured:?}");
    // The paused node has received the releases.
    within("the releases arrive", || sandbox.lock_keys("job") == 0);
    sandbox.touch("end");
    assert_eq!(finish(holder).code, Some(0));
}

/// With two of three nodes paused no majority answers, and the end does not wait for one again: that would take another node timeout.
#[test]
fn a_paused_majority_does_not_delay_the_end_of_a_run() {
    const NODE_TIMEOUT: Duration = Duration::from_secs(8);
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.pause(1);
    sandbox.cluster.pause(2);
    let start = Instant::now();
    let ended = sandbox.end(&["run", "--try", "--lease", "1m", "--node-timeout", "8s", "job", "--", "true"]);
    let took = start.elapsed();
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(NODE_TIMEOUT <= took && took < NODE_TIMEOUT * 3 / 2, "{took:?}");
    within("the release of the vote", || sandbox.lock_keys_up(&[0], "job") == 0);
}

/// All connections die without notice while the command runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_on_dead_connections_reaches_all_nodes() {
    let sandbox = Sandbox::around(Cluster::quiet(5));
    let mut proxies = Vec::new();
    for port in sandbox.cluster.ports() {
        proxies.push(Proxy::start(port).await);
    }
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    for forgotten in [2, 5] {
        let hold = format!("echo > $DIR/held{forgotten}; until [ -e $DIR/end{forgotten} ]; do sleep 0.01; done");
        let mut command = sandbox.quorlock(&["run", "--lease", "1h", "job", "--", "sh", "-c", &hold]);
        let run = command.env("QUORLOCK_NODES", urls.join(",")).spawn().expect("the quorlock command");
        sandbox.wait_for(&format!("held{forgotten}"));
        within("a lock on all nodes", || sandbox.lock_keys("job") == 5);
        std::thread::sleep(Duration::from_millis(1500)); // How long the connections are idle.
        proxies[..forgotten].iter().for_each(Proxy::hold_requests);
        sandbox.touch(&format!("end{forgotten}"));
        assert_eq!(finish(run).code, Some(0));
        within("no lock on any node", || sandbox.lock_keys("job") == 0);
    }
}

/// Without the release, the votes of two of five nodes would last for the lease of an hour.
#[test]
fn an_interrupted_wait_releases_its_votes() {
    let mut sandbox = Sandbox::new(5);
    for node in 0..3 {
        sandbox.cluster.pause(node);
    }
    for _ in 0..5 {
        let run = sandbox.start(&["run", "--lease", "1h", "job", "--", "true"]);
        within("a grant of two nodes", || sandbox.lock_keys_up(&[3, 4], "job") > 0);
        signal(&run, Signal::TERM);
        assert_eq!(finish(run).signal, Some(Signal::TERM.as_raw()));
        within("the releases", || sandbox.lock_keys_up(&[3, 4], "job") == 0);
    }
}
