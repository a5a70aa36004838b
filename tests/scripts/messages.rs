//! Output that cannot be written: it is closed, its reader has ended, or the disk is full.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::place::{NODES, Outcome, Place, finish};

const NO_READER: &str = "2>&4 4>&-";

/// Calls a script with these redirections. The file descriptor 4 is a pipe without a reader.
fn redirected(place: &Place, verb: &str, args: &[&str], redirections: &str) -> Outcome {
    let inner = place.command(verb, args);
    let script = format!("mkfifo pipe && exec 3<>pipe 4>pipe 3<&- && rm pipe && \"$@\" {redirections}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(&place.root).stdin(Stdio::null()).process_group(0);
    finish(place.call(command))
}

#[test]
fn lost_messages_stop_no_verb_half_way() {
    let place = Place::new();
    for redirections in [NO_READER, "2>&-", "2>/dev/full"] {
        let states = |state: &str| {
            let table = place.succeed("status", &[]);
            assert_eq!(table.matches(state).count(), NODES, "{redirections}: {table}");
        };
        let succeed = |verb: &str, args: &[&str]| {
            let outcome = redirected(&place, verb, args, redirections);
            assert_eq!(outcome.code, 0, "{verb} {args:?} {redirections}: {}", outcome.stderr);
        };
        succeed("up", &["3"]);
        succeed("restart", &["1", "2"]);
        succeed("restart", &["3", "--empty"]);
        states(" up ");
        succeed("pause", &["1", "2", "3"]);
        states(" paused ");
        succeed("resume", &["1", "2", "3"]);
        states(" up ");
        succeed("flush", &["1", "2"]);
        succeed("swap", &["3"]);
        succeed("kill", &["1", "2", "3"]);
        states(" down ");
        succeed("start", &["1", "2", "3"]);
        succeed("down", &[]);
        place.assert_nothing(redirections);
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let place = Place::new();
    place.succeed("up", &["3"]);
    for redirection in [">&-", ">/dev/full"] {
        for (verb, args) in
            [("status", &[][..]), ("nodes", &[]), ("up", &[]), ("kill", &["--help"]), ("chaos", &["--help"])]
        {
            let outcome = redirected(&place, verb, args, redirection);
            let last = format!("cluster/{verb}: cannot write to stdout (is it closed, or the disk full?)\n");
            assert_eq!(outcome.code, 74, "{verb} {redirection}: {}", outcome.stderr);
            assert!(outcome.stderr.ends_with(&last), "{verb} {redirection}: {}", outcome.stderr);
            assert!(verb == "up" || outcome.stderr == last, "{verb} {redirection}: {}", outcome.stderr);
        }
    }
    place.assert_whole("nothing is undone");
}
