//! What the command says of itself: completions, the manual page, messages for programs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::sandbox::{Sandbox, finish, signal};

#[test]
fn completions_are_scripts_of_their_shell() {
    let sandbox = Sandbox::new(1);
    for (shell, says) in
        [("bash", "complete -F _quorlock"), ("zsh", "#compdef quorlock"), ("fish", "complete -c quorlock")]
    {
        let ended = sandbox.end(&["completions", shell]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{shell}: {ended:?}");
        assert!(ended.stdout.contains(says) && ended.stdout.contains("node-timeout"), "{shell}: {}", ended.stdout);
    }
    let script = sandbox.end(&["completions", "bash"]).stdout;
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("bash");
    bash.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("a script");
    assert!(bash.wait().expect("an end").success());
    assert_eq!(sandbox.end(&["completions", "tcl"]).code, Some(64));
}

#[test]
fn the_manual_page_has_every_subcommand() {
    let sandbox = Sandbox::new(1);
    let page = sandbox.end(&["man"]);
    assert_eq!((page.code, page.stderr.as_str()), (Some(0), ""));
    let help = sandbox.end(&["--help"]).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split(' ').next())
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(page.stdout.contains(&format!(".TH quorlock-{name}")), "{name}");
    }
    for (title, option) in [("quorlock-nodes-declare-new", "ballot"), ("quorlock-nodes-set-list", "adopt")] {
        let own = page.stdout.split(".TH ").find(|page| page.starts_with(title));
        assert!(own.is_some_and(|page| page.contains(option)), "{title}");
    }
    assert!(page.stdout.contains("QUORLOCK_NODES") && page.stdout.contains("Exit codes"));
}

#[test]
fn messages_may_be_one_json_object_in_each_line() {
    let sandbox = Sandbox::new(3);
    let ended = sandbox.end(&["run", "--log", "json", "-v", "job", "--", "true"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().any(|line| line["message"].as_str().is_some_and(|text| text.starts_with("acquired job"))));
    assert!(lines.iter().all(|line| line["level"] == "detail" && line["time"].is_string()), "{lines:?}");
    let failed = sandbox.end(&["run", "--log", "json", "job", "--", "no-such-command"]);
    let line: Value = serde_json::from_str(failed.stderr.trim_end()).expect("JSON");
    assert_eq!((failed.code, &line["level"]), (Some(127), &"error".into()), "{failed:?}");
    // Of this message clap makes several lines.
    for log in [&["--log", "json"][..], &["--log=json"]] {
        let wrong = sandbox.end(&[&["run"], log, &["--leese", "3s", "job", "--", "true"]].concat());
        let line: Value = serde_json::from_str(wrong.stderr.trim_end()).expect("JSON");
        assert_eq!((wrong.code, wrong.stderr.lines().count()), (Some(64), 1), "{wrong:?}");
        assert!(line["message"].as_str().is_some_and(|text| text.contains("'--lease'")), "{line}");
    }
}

#[test]
fn a_wait_of_ten_seconds_names_the_holder() {
    let sandbox = Sandbox::new(3);
    let holder =
        sandbox.start(&["run", "--label", "first", "job", "--", "sh", "-c", "echo > $DIR/ready; exec sleep 60"]);
    sandbox.wait_for("ready");
    let waiter = sandbox.start(&["run", "--wait", "11s", "job", "--", "true"]);
    let quiet = sandbox.start(&["run", "-q", "--wait", "11s", "job", "--", "true"]);
    let (ended, quiet) = (finish(waiter), finish(quiet));
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(
        ended.stderr.starts_with("quorlock: waiting: job is held by ") && ended.stderr.contains(":first"),
        "{ended:?}"
    );
    assert!(!quiet.stderr.contains("waiting: "), "{quiet:?}");
    signal(&holder, Signal::TERM);
    finish(holder);
}
