//! Wrong calls, calls at the same time, and calls for a damaged state folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::place::{Call, NODES, Place, finish, kill, replace, scripts, stat};

#[test]
fn wrong_use_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let refused = |verb: &str, args: &[&str], code: i32, words: &str| {
        let outcome = place.run(verb, args);
        assert_eq!(outcome.code, code, "{verb} {args:?}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(words), "{verb} {args:?}: {}", outcome.stderr);
        assert!(code != 64 || outcome.stderr.contains("usage:"), "{verb} {args:?}: {}", outcome.stderr);
    };
    let of_nodes = ["kill", "start", "restart", "replace", "flush", "swap", "promote", "pause", "resume"];
    for verb in of_nodes {
        refused(verb, &[], 64, "which node?");
        refused(verb, &["1"], 69, "Start one: cluster/up");
    }
    for verb in [&of_nodes[..], &["cut", "mute", "heal"]].concat() {
        refused(verb, &["1", "--wrong"], 64, "unknown option '--wrong'");
        for number in ["", "0", "100", "1x", "01", "-1", "a[$(id)]"] {
            refused(verb, &["1", number], 64, &format!("'{number}' is no number of a node"));
        }
    }
    refused("cut", &["--answers"], 64, "which node?");
    refused("mute", &[], 64, "which node?");
    refused("delay", &["one", "50ms"], 64, "'one' is no number of a node");
    refused("delay", &["50ms"], 64, "which node?");
    refused("clock", &["one", "+5s"], 64, "'one' is no number of a node");
    refused("replica", &["1", "two"], 64, "'two' is no number of a node");
    let of_links: [(&str, &[&str]); 6] = [
        ("cut", &["1", "--answers"]),
        ("mute", &["1"]),
        ("delay", &["1", "50ms"]),
        ("heal", &[]),
        ("clock", &["1", "+5s"]),
        ("replica", &["1", "2"]),
    ];
    for (verb, args) in of_links {
        refused(verb, args, 69, "Start one: cluster/up");
    }
    refused("servers", &["redis-1"], 64, "'redis-1' is none of: redis-6.2.14 ");
    refused("servers", &["--lits"], 64, "unknown option '--lits'");
    for args in [["--list", "valkey"], ["valkey", "--list"]] {
        refused("servers", &args, 69, "Fetch them: cluster/servers valkey");
    }
    refused("test", &["--servers", "valkey"], 69, "Fetch them: cluster/servers valkey");
    refused("test", &["--servers", "redis-1"], 64, "'redis-1' is none of");
    refused("test", &["--servers", "--lib"], 64, "'--lib' cannot be used with --servers");
    refused("test", &["--servers", "--test"], 64, "--test needs the name of a suite");
    refused("up", &["--lag", "3"], 64, "unknown option '--lag'");
    for args in [&["test", "--help"][..], &["test", "--peers", "--help"], &["test", "--servers", "-h"], &["up", "-h"]] {
        let help = place.succeed(args[0], &args[1..]);
        assert!(help.starts_with("usage: cluster/"), "{args:?}: {help}");
    }
    refused("replica", &["1", "1"], 64, "replica of itself");
    refused("delay", &["1", "soon"], 64, "'soon' is no duration");
    refused("clock", &["1", "soon"], 64, "'soon' is none of");
    for (verb, arg) in [("status", "1"), ("nodes", "1"), ("down", "--now"), ("demo", "5")] {
        refused(verb, &[arg], 64, "unexpected argument");
    }
    for number in ["0", "2", "-1", "1x", "65", "101", "03", "$(id)", "a[$(id)]"] {
        refused("up", &[number], 64, "is not an odd number from 1 to 63");
    }
    for verb in ["status", "nodes"] {
        refused(verb, &[], 69, "Start one: cluster/up");
    }
    place.succeed("down", &[]);
    place.assert_nothing("wrong use");

    place.succeed("up", &["3"]);
    for verb in of_nodes {
        for number in ["4", "99"] {
            refused(verb, &["1", number], 64, "this cluster has nodes 1 to 3");
        }
    }
    for (verb, args) in &of_links[..5] {
        refused(verb, args, 69, "neither links nor clocks");
    }
    for tool in ["cargo", "cc"] {
        place.tool(tool, "exit 1");
    }
    for args in [&["5"][..], &["--lab", "3"], &["--lab", "5"], &["--lab"]] {
        let other = place.run("up", args);
        assert_eq!(other.code, 64, "{args:?}: {}", other.stderr);
        assert!(other.stderr.contains("run cluster/down first"), "{args:?}: {}", other.stderr);
        assert!(!other.stderr.contains("building"), "{args:?}: {}", other.stderr);
    }
    place.assert_whole("refused calls change nothing");
}

/// stdout has what another program reads, and stderr has what people read.
#[test]
fn a_shell_evaluates_what_up_prints() {
    let place = Place::new();
    let script = r#"eval "$("$1/up" 3)"; printf '%s\n' "$QUORLOCK_NODES""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(scripts()).env_remove("QUORLOCK_NODES");
    command.env("QUORLOCK_CLUSTER_DIR", &place.dir).stdin(Stdio::null()).process_group(0);
    let evaluated = finish(place.call(command));
    assert_eq!((evaluated.code, evaluated.stdout), (0, place.succeed("nodes", &[])), "{}", evaluated.stderr);
    for node in 1..=NODES {
        assert!(evaluated.stderr.contains(&format!("node {node} ")), "{}", evaluated.stderr);
    }
    for (verb, args) in
        [("pause", &["1"][..]), ("resume", &["1"]), ("flush", &["1"]), ("restart", &["2", "--empty"]), ("kill", &["3"])]
    {
        let outcome = place.run(verb, args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""), "{verb}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("node {} ", args[0])), "{verb}: {}", outcome.stderr);
    }
    let down = place.run("down", &[]);
    assert_eq!((down.code, down.stdout.as_str()), (0, ""), "{}", down.stderr);
}

#[test]
fn calls_at_the_same_time_wait_for_each_other() {
    let place = Place::new();
    for _ in 0..2 {
        let calls: Vec<Call> = (0..3).map(|_| place.spawn("up", &["3"])).collect();
        for outcome in calls.into_iter().map(finish) {
            assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        }
        place.assert_whole("three calls of up");
        let calls: Vec<Call> = (0..3).map(|_| place.spawn("down", &[])).collect();
        for outcome in calls.into_iter().map(finish) {
            assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        }
        place.assert_nothing("three calls of down");
    }
    let (down, up) = (place.spawn("down", &[]), place.spawn("up", &["3"]));
    assert_eq!((finish(down).code, finish(up).code), (0, 0));
}

/// A pid that belongs to another process by now: with the old start time, or with that process's own.
#[test]
fn processes_of_others_are_never_signalled() {
    let place = Place::new();
    let mut other = Command::new("sleep").arg("100").spawn().expect("a process of no cluster");
    let (_, start) = stat(other.id()).expect("it is there");
    place.succeed("up", &["3"]);
    for forged in [format!("{} 1", other.id()), format!("{} {start}", other.id()), other.id().to_string()] {
        for (node, verb) in [(1, "kill"), (2, "restart"), (3, "down")] {
            let server = place.pid(node);
            place.succeed("kill", &[&node.to_string()]);
            assert_eq!(stat(server), None);
            replace(&place.node(node, "pid"), &forged);
            assert!(place.succeed("status", &[]).contains(" down"), "{forged}");
            place.succeed(verb, if verb == "down" { &[] } else { &["1", "2", "3"][node - 1..node] });
            assert!(other.try_wait().expect("our child").is_none(), "{verb} has killed another process: '{forged}'");
        }
        place.assert_nothing(&forged);
        place.succeed("up", &["3"]);
    }
    other.kill().expect("our child");
    other.wait().expect("our child");
}

#[test]
fn damaged_folders_are_mended_or_refused() {
    let place = Place::new();
    let proof = place.root.join("proof");
    let refused = |verb: &str, args: &[&str], words: &str| {
        let outcome = place.run(verb, args);
        assert_eq!(outcome.code, 69, "{verb}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(words), "{verb}: {}", outcome.stderr);
    };
    place.succeed("up", &["3"]);
    let code = format!("X[$(touch '{}')]", proof.display());
    for size in [&code, "", "-1", "100", "3 x\n3"] {
        replace(&place.dir.join("size"), size);
        refused("status", &[], "cluster/down, then cluster/up");
        refused("kill", &["1"], "cluster/down, then cluster/up");
    }
    replace(&place.dir.join("size"), "0");
    refused("status", &[], "To finish that: cluster/down");
    place.succeed("up", &["3"]);
    place.assert_whole("a cluster that was taken down in part");

    place.succeed("kill", &["3"]);
    fs::remove_dir_all(place.dir.join("node-3")).expect("its folder");
    refused("restart", &["3", "--empty"], "node 3 has never started");
    refused("start", &["1", "3"], "node 3 has never started");
    place.succeed("up", &[]);
    place.assert_whole("a cluster without the folder of a node");

    // As left by a `cargo clean` that was interrupted.
    fs::remove_file(place.dir.join("size")).expect("the file");
    place.succeed("down", &[]);
    place.assert_nothing("a cluster without its size");

    place.succeed("up", &["3"]);
    replace(&place.node(1, "port"), &code);
    replace(&place.node(1, "pid"), &code);
    place.succeed("status", &[]);
    assert!(!proof.exists(), "what a file says was executed");

    let kept = place.root.join("kept");
    replace(&kept, "precious");
    for file in ["declared.draft", "run_id.draft", "declared", "redis.log"] {
        let link = place.node(2, file);
        let _ = fs::remove_file(&link);
        symlink(&kept, &link).expect("a link");
        let outcome = place.run("restart", &["2", "--empty"]);
        assert_eq!(fs::read_to_string(&kept).expect("the file"), "precious", "{file} {}", outcome.stderr);
        let _ = fs::remove_file(&link);
    }

    let notes = place.node(3, "notes");
    replace(&notes, "of the user");
    let outcome = place.run("down", &[]);
    assert!(outcome.stderr.contains("not the cluster's"), "{}", outcome.stderr);
    assert!(notes.exists(), "a file of the user is gone");
    let other = place.run("up", &["3"]);
    assert_eq!(other.code, 64, "{}", other.stderr);
    assert!(other.stderr.contains("holds other files"), "{}", other.stderr);
    fs::remove_file(notes).expect("our file");
    place.succeed("down", &[]);
    // Node 1 ran on when its pid file was damaged. No script knows its process then, and none is signalled.
    for pid in place.processes() {
        kill("KILL", &pid.to_string());
    }
    place.assert_nothing("damaged folders");

    fs::create_dir_all(&place.dir).expect("a folder");
    fs::set_permissions(&place.dir, Permissions::from_mode(0o777)).expect("rights");
    refused("up", &["3"], "other users can write to");
}
