//! Programs that are missing, or that are others than usual.

use std::fs;
use std::os::unix::fs::symlink;

use crate::place::{NODES, Outcome, Place, entries, finish};

/// Calls a script that finds the tools of this place, a few programs of every system, and no others.
fn run_alone(place: &Place, verb: &str, args: &[&str]) -> Outcome {
    let (tools, path) = (place.root.join("tools"), std::env::var_os("PATH").expect("PATH"));
    fs::create_dir_all(&tools).expect("a folder");
    for name in ["env", "bash", "realpath", "dirname", "basename", "sed"] {
        let file = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
        let _ = symlink(file.expect("it is in every system"), tools.join(name)); // It may be there.
    }
    let mut command = place.command(verb, args);
    command.env("PATH", &tools).env_remove("QUORLOCK_TEST_SERVER");
    finish(place.call(command))
}

/// `cluster/test --peers` installs nothing where a program is missing.
#[test]
fn missing_programs_for_the_other_lock_clients_are_named() {
    let place = Place::new();
    let tool = |name: &str, code: i32| place.tool(name, &format!("exit {code}"));
    let missing = |words: &str| {
        let outcome = run_alone(&place, "test", &["--peers"]);
        assert_eq!(outcome.code, 69, "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    };
    for name in ["cargo", "redis-server", "redis-cli"] {
        tool(name, 0);
    }
    missing("node is not on PATH. Install it (Debian, Ubuntu: apt-get install nodejs npm)");
    tool("node", 0);
    missing("npm is not on PATH");
    tool("npm", 0);
    tool("python3", 1);
    missing("apt-get install python3-venv");
    assert_eq!(entries(&place.root), [place.root.join("tools")]);
}

/// Programs start `redis-server` by themselves where the variable is not set.
#[test]
fn programs_start_the_server_that_is_installed() {
    let place = Place::new();
    let lab = place.tool("lab", "echo \"$1 with ${QUORLOCK_TEST_SERVER-the default}\"");
    let words =
        format!("case $1 in build) echo '{{\"executable\":\"{0}\"}}' ;; *) '{0}' \"$@\" ;; esac", lab.display());
    place.tool("cargo", &words);
    let starts = |server: &str| {
        for (verb, args) in [("chaos", &[][..]), ("bench", &[]), ("test", &["--lib"])] {
            let outcome = run_alone(&place, verb, args);
            assert_eq!(outcome.code, 0, "{verb}: {}", outcome.stderr);
            assert!(outcome.stdout.ends_with(&format!("{verb} with {server}\n")), "{verb}: {}", outcome.stdout);
        }
    };
    let valkey = place.tool("valkey-server", "exit 1");
    place.tool("valkey-cli", "exit 1");
    starts(&valkey.display().to_string());
    place.tool("redis-server", "exit 1");
    place.tool("redis-cli", "exit 1");
    starts("the default");
}

/// There is no server, and no way to install one.
#[test]
fn help_and_unknown_arguments_need_no_server() {
    let place = Place::new();
    let lab = place.tool("lab", "case $* in *--lots*) echo unknown >&2; exit 64 ;; *--help) echo \"$*\" ;; esac");
    let cargo = format!("echo '{{\"executable\":\"{}\"}}'", lab.display());
    for verb in ["chaos", "bench"] {
        place.tool("cargo", &cargo);
        for args in [&["--help"][..], &["--for", "1s", "--help"]] {
            let help = run_alone(&place, verb, args);
            assert_eq!(help.code, 0, "{verb}: {}", help.stderr);
            assert!(help.stdout.starts_with(&format!("usage: cluster/{verb}")), "{verb}: {}", help.stdout);
            assert!(help.stdout.ends_with(&format!("\n{verb} {}\n", args.join(" "))), "{verb}: {}", help.stdout);
        }
        let refused = run_alone(&place, verb, &["--lots"]);
        assert_eq!(refused.code, 64, "{verb}: {}", refused.stderr);
        assert!(refused.stderr.ends_with("unknown\n"), "{verb}: {}", refused.stderr);
        // What follows belongs to another program.
        let accepted = run_alone(&place, verb, &["--for", "1s", "--", "program", "--lots", "--help"]);
        assert_eq!((accepted.code, accepted.stdout.as_str()), (69, ""), "{verb}: {}", accepted.stderr);
        assert!(accepted.stderr.contains("no redis-server"), "{verb}: {}", accepted.stderr);
        place.tool("cargo", "exit 1");
        let help = run_alone(&place, verb, &["--help"]);
        assert!(help.stdout.starts_with(&format!("usage: cluster/{verb}")), "{verb} before the build: {}", help.stdout);
    }
}

/// Cargo itself prints nothing for as long as it builds.
#[test]
fn what_takes_minutes_is_said_before() {
    let place = Place::new();
    place.tool("cargo", "echo cargo >&2; exit 1");
    for verb in ["chaos", "bench", "simulate"] {
        let outcome = place.run(verb, &["--help"]);
        let before = outcome.stderr.split("cargo\n").next().expect("the first part");
        let said = before.starts_with(&format!("cluster/{verb}: building ")) && before.contains("takes minutes");
        assert!(said, "{verb}: {}", outcome.stderr);
    }
}

#[test]
fn nodes_that_do_not_say_whether_they_are_empty_are_not_declared() {
    let place = Place::new();
    for name in ["redis-cli", "valkey-cli"] {
        place.tool(name, &format!("case $* in *DBSIZE*) exit 1 ;; esac\nPATH=${{PATH#*:}} exec {name} \"$@\""));
    }
    let outcome = place.run("up", &[&NODES.to_string()]);
    assert_eq!(outcome.code, 69, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("node 1 does not say how many keys it has"), "{}", outcome.stderr);
    assert!(!place.node(1, "declared").exists());
    fs::remove_dir_all(place.root.join("tools")).expect("our folder");
    place.succeed("up", &[]);
    place.assert_whole("the next call of up");
}

/// The first worker prints each of its lines in two parts, with more time between them than the demo waits for one.
#[test]
fn the_demo_joins_the_parts_of_a_line() {
    let place = Place::new();
    let text = r#"[ "$1" != clock ] || exec date +%s%6N
me=$1 start=$3 register=$4 done=${0%/*}/done
report() {
  at=$((start + me * 1000000 + $1))
  shift
  if [ "$me" = 1 ]; then
    printf '%s' "${at%????}"
    sleep 1.1
    at=${at#"${at%????}"}
  fi
  printf '%s\n' "$at $me $*"
}
until [ "$me" = 1 ] || [ -e "$done$((me - 1))" ]; do sleep 0.05; done
report 0 asked
report 100000 acquired "$me"
report 800000 added 2 "$me" $((me * 15))
printf '%s' $((me * 15)) >"$register"
report 900000 released
: >"$done$me"
# The demo kills its nodes before the workers have ended.
while [ -e "/proc/$(cut -d ' ' -f 1 "${register%/*}/cluster/node-4/pid")/cwd/." ]; do sleep 0.05; done"#;
    let worker = place.tool("worker", text);
    place.tool("cargo", &format!("echo '{{\"executable\":\"{}\"}}'", worker.display()));
    let stdout = place.succeed("demo", &[]);
    for line in [
        "  1.00 s  worker 1  asks for the lock, to hold it 1 s\n",
        "  1.10 s  worker 1  holds it after 0.10 s, with token 1\n",
        "  1.80 s  worker 1  its inner function takes it again (depth 2, token 1), adds 15: 15\n",
        "  1.90 s  worker 1  gives it back\n",
    ] {
        assert!(stdout.contains(line), "{line}{stdout}");
    }
}
