//! The verbs that break links, on links that are shell scripts.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::place::{Place, kill, stat};

/// The interval at which a link reads its state.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Not a test: a link that only listens, at the address in the variable.
#[test]
fn link_process() {
    let Ok(address) = std::env::var("QUORLOCK_TEST_LINK") else { return };
    let listener = TcpListener::bind(address).expect("a free port");
    listener.incoming().for_each(drop);
}

/// Starts one node behind such a link.
fn one_node(place: &Place) {
    let this = std::env::current_exe().expect("this program");
    let link = format!("QUORLOCK_TEST_LINK=$3 exec '{}' --exact links::link_process --nocapture", this.display());
    let lab = place.tool("lab", &link);
    place.tool("cargo", &format!("echo '{{\"executable\":\"{}\"}}'", lab.display()));
    place.succeed("up", &["--lab", "1"]);
}

fn link_pid(place: &Place) -> u32 {
    let text = fs::read_to_string(place.node(1, "link-pid")).expect("a pid file");
    text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

#[test]
fn broken_links_are_reported_once_they_have_read_their_state() {
    let place = Place::new();
    one_node(&place);
    for (verb, args, state) in [
        ("cut", &["1"][..], "cut"),
        ("cut", &["1", "--requests"], "cut requests"),
        ("cut", &["--answers", "1"], "cut answers"),
        ("mute", &["1"], "mute"),
        ("delay", &["1", "50ms"], "delay 50ms"),
        ("heal", &[], "pass"),
    ] {
        let begin = Instant::now();
        let outcome = place.run(verb, args);
        assert!(begin.elapsed() > LOOK_EVERY, "{verb} has not waited for the link");
        assert_eq!((outcome.code, outcome.stderr), (0, format!("node 1   link: {state}\n")), "{verb}");
        assert_eq!(fs::read_to_string(place.node(1, "link")).expect("a state"), format!("{state}\n"), "{verb}");
    }
    let outcome = place.run("cut", &["1", "--requests", "--answers"]);
    assert_eq!(outcome.code, 64, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("For both ways: cluster/cut I...\nusage: "), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(place.node(1, "link")).expect("a state"), "pass\n");
}

#[test]
fn links_that_do_not_run_are_named_and_started_again() {
    let place = Place::new();
    one_node(&place);
    for signal in ["KILL", "STOP"] {
        let pid = link_pid(&place);
        kill(signal, &pid.to_string());
        while signal == "KILL" && stat(pid).is_some() {
            std::thread::yield_now();
        }
        let outcome = place.run("mute", &["1"]);
        assert_eq!(outcome.code, 1, "{signal}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("the link of node 1 does not run"), "{signal}: {}", outcome.stderr);
        place.succeed("up", &[]);
        assert_eq!(stat(pid), None, "{signal}: the old link is there");
        assert_eq!(fs::read_to_string(place.node(1, "link")).expect("a state"), "mute\n", "{signal}");
        place.succeed("heal", &["1"]);
    }
}
