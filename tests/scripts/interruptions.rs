//! Signals to `up`, `down` and `demo`, at any time.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::place::{LIMIT, Place, SIGNALS, entries, finish, interruptions, kill};

#[test]
fn interrupted_up_leaves_nothing() {
    let place = Place::new();
    let begin = Instant::now();
    place.succeed("up", &["3"]);
    let whole = begin.elapsed();
    place.succeed("down", &[]);
    place.assert_nothing("down");
    let (rounds, mut hits) = (interruptions(), 0);
    for round in 0..rounds {
        let stop = place.interrupt("up", &["3"], whole * round / rounds, round);
        if stop.was {
            hits += 1;
            place.assert_no_process(&stop.words);
            // Before it has the folder's lock it may leave the folder, empty, which the next call uses or removes.
            assert!(entries(&place.dir).is_empty(), "{}: {:?}", stop.words, entries(&place.dir));
        } else {
            place.assert_whole(&stop.words);
        }
        place.succeed("down", &[]);
        place.assert_nothing(&stop.words);
    }
    assert!(hits > 0, "no signal came before the end");
}

#[test]
fn interrupted_down_is_finished_by_the_next_call() {
    let place = Place::new();
    place.succeed("up", &["3"]);
    let begin = Instant::now();
    place.succeed("down", &[]);
    let whole = begin.elapsed();
    let (rounds, mut hits) = (interruptions(), 0);
    place.succeed("up", &["3"]);
    for round in 0..rounds {
        let stop = place.interrupt("down", &[], whole * round / rounds, round);
        hits += u32::from(stop.was);
        if round % 4 < 2 {
            place.succeed("down", &[]);
            place.assert_nothing(&stop.words);
        }
        place.succeed("up", &["3"]);
        place.assert_whole(&stop.words);
    }
    place.succeed("down", &[]);
    place.assert_nothing("the last down");
    assert!(hits > 0, "no signal came before the end");
}

#[test]
fn interrupted_up_of_an_older_cluster_is_finished_by_the_next() {
    let place = Place::new();
    place.succeed("up", &["3"]);
    let kept = place.pid(1);
    place.succeed("kill", &["2", "3"]);
    let begin = Instant::now();
    place.succeed("up", &[]);
    let whole = begin.elapsed();
    let (rounds, mut hits) = (interruptions(), 0);
    for round in 0..rounds {
        place.succeed("kill", &["2", "3"]);
        let stop = place.interrupt("up", &[], whole * round / rounds, round);
        hits += u32::from(stop.was);
        place.succeed("up", &[]);
        place.assert_whole(&stop.words);
        assert_eq!(place.pid(1), kept, "{}: what was up stays", stop.words);
    }
    assert!(hits > 0, "no signal came before the end");
}

/// The demo's worker is one that never gets the lock, and `cargo` says where it is. Every other time the demo alone is
/// interrupted, with its workers at work.
#[test]
fn interrupted_demo_leaves_nothing() {
    let place = Place::new();
    let at_work = place.root.join("tools/at work");
    let text = "[ \"$1\" != clock ] || exec date +%s%6N\n: >\"${0%/*}/at work\"\nexec sleep 100";
    let worker = place.tool("worker", text);
    place.tool("cargo", &format!("echo '{{\"executable\":\"{}\"}}'", worker.display()));
    let rounds = interruptions() / 2;
    for round in 0..rounds {
        let (signal, code) = SIGNALS[round as usize % SIGNALS.len()];
        let call = place.spawn("demo", &[]);
        let begin = Instant::now();
        let after = Duration::from_millis(50) + Duration::from_secs(3) * round / rounds;
        // bash 5.2 forgets a SIGINT that comes to it alone while it waits for the end of a `$(...)`. A Ctrl-C comes to the group.
        let group = if round.is_multiple_of(2) || signal == "INT" { "-" } else { "" };
        while if group == "-" { begin.elapsed() < after } else { !at_work.exists() } {
            assert!(begin.elapsed() < LIMIT, "the demo does not start its workers");
            sleep(Duration::from_millis(10));
        }
        kill(signal, &format!("{group}{}", call.child.id()));
        let outcome = finish(call);
        let words = format!("demo, SIG{signal} to {group}PID after {:?}", begin.elapsed());
        assert_eq!(outcome.code, code, "{words}: {}{}", outcome.stdout, outcome.stderr);
        place.assert_no_process(&words);
        assert_eq!(entries(&place.root), [place.root.join("tools")], "{words}");
        let _ = fs::remove_file(&at_work);
    }
}
