//! Exit codes, variables, standard streams.

use std::io::Write;
use std::process::Stdio;

use crate::sandbox::{Sandbox, finish};

#[test]
fn the_exit_code_is_the_commands_or_128_plus_its_signal() {
    let sandbox = Sandbox::new(3);
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("kill -40 $$", 168),
    ] {
        let ended = sandbox.end(&["run", "job", "--", "sh", "-c", script]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(code), ""), "{script}");
        assert_eq!(sandbox.lock_keys("job"), 0, "it must be released after: {script}");
    }
    sandbox.is_clean();
}

#[test]
fn a_command_that_cannot_be_run_has_its_own_codes() {
    let sandbox = Sandbox::new(3);
    let missing = sandbox.end(&["run", "job", "--", "no-such-command-anywhere"]);
    assert_eq!(missing.code, Some(127));
    assert!(missing.stderr.starts_with("quorlock: there is no command no-such-command-anywhere"), "{missing:?}");
    let folder = sandbox.end(&["run", "job", "--", "/"]);
    assert_eq!(folder.code, Some(126));
    assert!(folder.stderr.starts_with("quorlock: cannot run /: "), "{folder:?}");
    assert_eq!(sandbox.lock_keys("job"), 0, "the lock must be released");
    // The operators of a shell are plain arguments.
    let line = sandbox.end(&["run", "job", "--", "echo", "a;", "exit", "3"]);
    assert_eq!((line.code, line.stdout.as_str()), (Some(0), "a; exit 3\n"));
}

#[test]
fn wrong_usage_has_exit_code_64() {
    let sandbox = Sandbox::new(1);
    let nodes = sandbox.cluster.urls().join(",");
    let twice = format!("{nodes},{nodes}/1");
    let cases: &[(&[&str], &str)] = &[
        (&[], "quorlock run NAME -- COMMAND"),
        (&["walk"], "unrecognized subcommand"),
        (&["run", "job"], "stands behind two dashes"),
        (&["run", "job", "true"], "stands behind two dashes"),
        (&["run", "job", "--"], "stands behind two dashes"),
        (&["run", "--", "true"], "<NAME>"),
        (&["run", "", "--", "true"], "is a shell variable not set?"),
        (&["run", "--leese", "3s", "job", "--", "true"], "'--lease'"),
        (&["run", "--lease", "10", "job", "--", "true"], "--lease"),
        (&["run", "--lease", "0s", "job", "--", "true"], "choose a longer --lease"),
        (&["run", "--lease", "9days", "job", "--", "true"], "choose a shorter --lease"),
        (&["run", "--lease", "3s", "--grace", "2s", "job", "--", "true"], "shorter --grace"),
        (&["run", "--at-least", "9223372036854775807s", "job", "--", "true"], "a duration is 36500 days at most"),
        (&["run", "--wait", "18446744073709551615s", "job", "--", "true"], "a duration is 36500 days at most"),
        (&["status", "--watch=9223372036854775807s"], "a duration is 36500 days at most"),
        (&["nodes", "declare-new", "--longest-lease", "18446744073709551615s"], "a duration is 36500 days at most"),
        (&["nodes", "declare-new", "--longest-lease", "36500days", "--yes"], "--longest-lease"),
        #[cfg(feature = "tui")]
        (&["top", "-b", "--interval", "18446744073709551615s"], "a duration is 36500 days at most"),
        (&["run", "--wait", "soon", "job", "--", "true"], "write a duration as in 500ms, 10s"),
        (&["run", "--wait", "1s", "--try", "job", "--", "true"], "cannot be used with"),
        (&["run", "-E", "256", "job", "--", "true"], "--conflict-exit-code"),
        (&["run", "-q", "-v", "job", "--", "true"], "cannot be used with"),
        (&["run", "--nodes", "", "job", "--", "true"], "; see --nodes"),
        (&["run", "--nodes", "localhost:6379", "job", "--", "true"], "write it as a URL"),
        (&["run", "--nodes", &twice, "job", "--", "true"], "the same server"),
        (&["run", "--prefix", "", "quorlock:ballot:x", "--", "true"], "choose another NAME"),
        (&["run", "--lease", "1s", "--node-timeout", "2s", "job", "--", "true"], "the node timeout of 2s"),
        (&["inspect"], "<NAME>"),
        (&["inspect", "--node-timeout", "2h", "job"], "2h"),
        (&["run", "--longest-lease", "8days", "job", "--", "true"], "or --longest-lease where that was given"),
        (&["nodes", "declare-new", "--longest-lease", "1ms", "--yes"], "or --longest-lease where that was given"),
        (&["status", "--node-timeout", "4days"], "a node timeout of 4days cannot work"),
        (&["status", "--node-timeout", "0s"], "a node timeout of 0s cannot work"),
        (&["inspect", "--nodes", "nonsense", "job"], "write it as a URL"),
    ];
    for (args, said) in cases {
        let ended = sandbox.end(args);
        assert_eq!(ended.code, Some(64), "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with("quorlock: ") && ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn help_names_every_exit_code() {
    let sandbox = Sandbox::new(1);
    for args in [&["--help"][..], &["run", "--help"], &["run", "-h"]] {
        let help = sandbox.end(args);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
        for code in ["  N  ", "  128+N  ", "  64  ", "  69  ", "  75  ", "  78  ", "  79  ", "  126  ", "  127  "] {
            assert!(help.stdout.contains(code), "{args:?} does not explain {code}");
        }
    }
    for (args, absent) in [
        (&["inspect", "--help"][..], &["  75  ", "  79  ", "  126  ", "  127  "][..]),
        (&["nodes", "--help"], &["  79  ", "  126  ", "  127  "]),
        (&["nodes", "declare-new", "--help"], &["  75  ", "  79  "]),
    ] {
        let help = sandbox.end(args);
        assert!(help.stdout.contains("  69  ") && help.stdout.contains("  78  "), "{args:?}");
        assert!(absent.iter().all(|code| !help.stdout.contains(code)), "{args:?} explains a code that cannot occur");
    }
    let version = sandbox.end(&["--version"]);
    assert_eq!((version.code, version.stdout), (Some(0), format!("quorlock {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn no_quorum_has_its_own_exit_code() {
    let mut sandbox = Sandbox::new(3);
    sandbox.cluster.kill(0);
    assert_eq!(sandbox.end(&["run", "job", "--", "true"]).code, Some(0), "two of three are a quorum");
    sandbox.cluster.kill(1);
    for patience in [&["--try"][..], &["--wait", "100ms"], &["--lease", "1s"]] {
        let args = [&["run"], patience, &["job", "--", "touch", "started"]].concat();
        let mut command = sandbox.quorlock(&args);
        let ended = finish(command.current_dir(sandbox.cluster.dir()).spawn().expect("quorlock"));
        assert_eq!(ended.code, Some(69), "{patience:?}: {ended:?}");
        assert!(ended.stderr.contains("2 of 3 nodes are needed"), "{}", ended.stderr);
        assert!(ended.stderr.contains("Check that these nodes are up"), "{}", ended.stderr);
        assert!(ended.stderr.contains(&sandbox.cluster.ports()[1].to_string()), "{}", ended.stderr);
    }
    assert!(!sandbox.path("started").exists());
}

#[test]
fn the_environment_of_the_command_describes_the_lock() {
    let sandbox = Sandbox::new(3);
    let script =
        "echo $QUORLOCK_NAME; echo $QUORLOCK_TOKEN; echo $QUORLOCK_LEASE; echo $QUORLOCK_NODES; echo $QUORLOCK_PREFIX";
    let ended = sandbox.end(&["run", "-v", "--prefix", "p:", "b b", "a", "--", "sh", "-c", script]);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [names, token, lease, nodes, prefix] = lines.as_slice() else { panic!("{ended:?}") };
    assert_eq!((*names, *prefix), ("b b a", "p:"));
    assert_eq!(*nodes, sandbox.cluster.urls().join(","));
    assert!(token.parse::<u64>().is_ok_and(|token| token > 0), "{token}");
    quorlock::Owner::import(lease).expect("an exported lease");
    let said: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(said, [format!("quorlock: acquired b b a with token {token}"), "quorlock: released b b a".to_owned()]);
    assert_eq!(sandbox.end(&["run", "a", "--", "true"]).stderr, "", "without -v there is no message");
}

#[test]
fn an_empty_prefix_in_the_environment_is_used() {
    let sandbox = Sandbox::new(1);
    let holding = sandbox
        .quorlock(&["run", "plain", "--", "sh", "-c", "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done"])
        .env("QUORLOCK_PREFIX", "")
        .spawn()
        .expect("quorlock");
    sandbox.wait_for("held");
    assert_eq!(sandbox.cluster.count_keys("plain"), 1);
    sandbox.touch("end");
    assert_eq!(finish(holding).code, Some(0));
}

#[test]
fn the_command_has_the_standard_streams() {
    let sandbox = Sandbox::new(3);
    let mut command = sandbox.quorlock(&["run", "job", "--", "sh", "-c", "cat; echo err >&2"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("quorlock");
    let sent = "many lines\n".repeat(20_000);
    let mut stdin = child.stdin.take().expect("it is piped");
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(sent.as_bytes()).expect("the command reads it all")
    });
    let output = child.wait_with_output().expect("its output");
    writer.join().expect("all was written");
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == sent.as_bytes(), "stdin must arrive as it is");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
}

/// Each variable of the command is limited to 128 KiB on Linux. A byte of a name may take three bytes in the lease.
#[test]
#[cfg(target_os = "linux")]
fn names_too_long_for_the_environment_are_refused_early() {
    let sandbox = Sandbox::new(3);
    let names: Vec<String> = ["a", "b", "c"].map(|letter| letter.repeat(50_000)).into();
    let spaces = " ".repeat(60_000);
    let fits = "x".repeat(130_000);
    let [many, some] = [500, 440].map(|count| (0..count).map(|number| format!("{number:0211}")).collect::<Vec<_>>());
    let [many, some] = [&many, &some].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
    let cases: &[(&[&str], Option<&str>)] = &[
        (&[&names[0], &names[1], &names[2]], Some("QUORLOCK_NAME would have 150")),
        (&[&spaces], Some("QUORLOCK_LEASE would have 180")),
        (&["--no-export", &spaces], None),
        (&["--no-export", &names[0], &names[1], &names[2]], Some("QUORLOCK_NAME would have 150")),
        (&[&fits], None),
        (&many, Some("QUORLOCK_LEASE would have 14")),
        (&some, None),
    ];
    for (args, refused) in cases {
        let ballots = || sandbox.cluster.each::<Vec<String>>(redis::cmd("KEYS").arg("quorlock:ballot:*"));
        let before = ballots();
        let ended = sandbox.end(&[&["run"], *args, &["--", "echo", "ran"]].concat());
        let Some(said) = refused else {
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "ran\n"), "{}", ended.stderr);
            continue;
        };
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains(said) && ended.stderr.len() < 1000, "{}", ended.stderr);
        assert_eq!(ballots(), before, "no request reached the nodes");
    }
}

/// The arguments and all variables together are limited to a quarter of the stack limit.
#[test]
#[cfg(target_os = "linux")]
fn names_and_arguments_too_long_together_are_refused_early() {
    let sandbox = Sandbox::new(1);
    let many = "a=$(printf %0105000d 0); set -- $a $a $a $a $a $a $a $a $a; ulimit -s 4096; \
                exec \"$QUORLOCK\" run \"$(printf %060000d 0)\" -- touch $DIR/ran \"$@\"";
    let ended = finish(sandbox.command("bash", &["-c", many]).spawn().expect("bash"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("its arguments and its environment would have"), "{}", ended.stderr);
    let ballots: Vec<Vec<String>> = sandbox.cluster.each(redis::cmd("KEYS").arg("quorlock:ballot:*"));
    assert!(ballots.iter().all(Vec::is_empty), "no request reached the nodes");
}

#[test]
#[cfg(target_os = "linux")]
fn a_result_that_cannot_be_written_is_a_failure() {
    let sandbox = Sandbox::new(1);
    let cases: &[(&str, &str)] = &[
        ("status", "74"),
        ("status -o prometheus", "74"),
        ("status --watch", "74"),
        ("list --json", "74"),
        ("inspect job", "74"),
        ("release job --force --yes", "74"),
        ("completions bash", "74"),
        ("man", "74"),
        ("--help", "74"),
        ("--version", "74"),
        #[cfg(feature = "tui")]
        ("top -b -n 1", "74"),
        ("doctor --format nagios", "3"),
    ];
    for (args, code) in cases {
        let full = finish(
            sandbox.command("sh", &["-c", &format!("\"$QUORLOCK\" {args} > /dev/full; echo $?")]).spawn().expect("sh"),
        );
        assert_eq!(full.stdout.trim_end(), *code, "{args}: {full:?}");
        assert!(full.stderr.contains("cannot write the result: No space left on device"), "{args}: {full:?}");
        let closed = format!("(\"$QUORLOCK\" {args}; echo $? >&2) | :");
        if *args != "doctor --format nagios" {
            let closed = finish(sandbox.command("sh", &["-c", &closed]).spawn().expect("sh"));
            assert_eq!(closed.stderr, "0\n", "{args}: {closed:?}");
        }
    }
    let unknown = finish(
        sandbox
            .command("sh", &["-c", "\"$QUORLOCK\" status > /dev/full; echo $?"])
            .env("QUORLOCK_NODES", "redis://127.0.0.1:1")
            .spawn()
            .expect("sh"),
    );
    assert_eq!(unknown.stdout, "69\n", "what the nodes have is worse: {unknown:?}");
    assert!(unknown.stderr.contains("cannot write the result"), "{unknown:?}");
}
