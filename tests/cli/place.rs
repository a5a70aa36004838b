//! The sources of the list of nodes.

use std::fs;

use crate::pty::Pty;
use crate::sandbox::{Ended, Sandbox, finish};

fn without_variable(sandbox: &Sandbox, args: &[&str]) -> Ended {
    let mut command = sandbox.quorlock(args);
    finish(command.env_remove("QUORLOCK_NODES").env_remove("QUORLOCK_NODES_FILE").spawn().expect("quorlock"))
}

/// A server of another program may be on the default port: `inspect` takes no lock there.
#[test]
fn the_local_node_is_used_only_on_request() {
    let sandbox = Sandbox::new(1);
    for args in [&["run", "job", "--", "touch", "/nowhere"][..], &["inspect", "job"], &["inspect", "-q", "job"]] {
        let refused = without_variable(&sandbox, args);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(64), ""), "{args:?}: {refused:?}");
        for words in ["no nodes are named", "QUORLOCK_NODES", "--local", "both get the lock"] {
            assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
        }
    }
    let local = without_variable(&sandbox, &["inspect", "--local", "job"]);
    assert!([Some(0), Some(69)].contains(&local.code), "{local:?}");
    assert!(local.stdout.contains("127.0.0.1:6379"), "{local:?}");
    let both = without_variable(&sandbox, &["inspect", "--local", "--nodes", "redis://a", "job"]);
    assert_eq!(both.code, Some(64), "{both:?}");
    assert!(both.stderr.contains("cannot be used with"), "{both:?}");
}

#[test]
fn the_local_node_is_the_default_on_a_terminal_with_a_notice() {
    let sandbox = Sandbox::new(1);
    let mut terminal = Pty::start(&sandbox, "sh", &["-c", "unset QUORLOCK_NODES; \"$QUORLOCK\" inspect job"]);
    assert!([Some(0), Some(69)].contains(&terminal.end().code()), "{}", terminal.screen());
    assert!(terminal.screen().contains("using redis://127.0.0.1:6379 alone"), "{}", terminal.screen());
}

#[test]
fn nodes_are_read_from_a_file() {
    let sandbox = Sandbox::new(3);
    let text = format!("# our nodes\n\n{}\n", sandbox.cluster.urls().join("\n"));
    fs::write(sandbox.path("nodes"), text).expect("a file");
    let file = sandbox.path("nodes").display().to_string();
    let script = "echo nodes=$QUORLOCK_NODES file=$QUORLOCK_NODES_FILE; \"$QUORLOCK\" run --try --node-timeout 5s job -- echo entered";
    let expected = format!("nodes= file={file}\nentered\n");
    let ended = without_variable(&sandbox, &["run", "--nodes-file", &file, "job", "--", "sh", "-c", script]);
    assert_eq!((ended.code, &ended.stdout), (Some(0), &expected), "{ended:?}");

    // By a variable, relative to a folder that the command leaves.
    let mut command = sandbox.quorlock(&["run", "job", "--", "sh", "-c", &format!("cd /; {script}")]);
    command.env_remove("QUORLOCK_NODES").env("QUORLOCK_NODES_FILE", "nodes").current_dir(sandbox.cluster.dir());
    let ended = finish(command.spawn().expect("quorlock"));
    assert_eq!((ended.code, &ended.stdout), (Some(0), &expected), "{ended:?}");

    // QUORLOCK_NODES has priority over the variable of the file, and the option over QUORLOCK_NODES.
    let mut command = sandbox.quorlock(&["run", "job", "--", "true"]);
    let ended = finish(command.env("QUORLOCK_NODES_FILE", "/nowhere").spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut command = sandbox.quorlock(&["run", "--nodes-file", &file, "job", "--", "true"]);
    let ended = finish(command.env("QUORLOCK_NODES", "redis://127.0.0.1:1").spawn().expect("quorlock"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// What stands between two commas may be a variable that is not set. A lock of fewer nodes than were meant is another lock.
#[test]
fn a_list_of_nodes_with_an_empty_part_is_refused() {
    let sandbox = Sandbox::new(3);
    let urls = sandbox.cluster.urls();
    let [a, b, c] = urls.as_slice() else { panic!("{urls:?}") };
    let lists = [
        (format!("{a},,{b},{c}"), "part 2 of 4"),
        (format!("{a},{b},"), "part 3 of 3"),
        (format!(" ,{a}"), "part 1 of 2"),
        (",".to_owned(), "part 1 of 2"),
    ];
    for (list, part) in &lists {
        let by_option = without_variable(&sandbox, &["inspect", "--nodes", list, "job"]);
        let by_variable = finish(sandbox.quorlock(&["status"]).env("QUORLOCK_NODES", list).spawn().expect("quorlock"));
        for ended in [by_option, by_variable] {
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(64), ""), "{list}: {ended:?}");
            assert!(ended.stderr.contains(part) && ended.stderr.contains("is empty"), "{list}: {ended:?}");
        }
    }
    let spaced = format!(" {a} , {b} , {c} ");
    assert_eq!(without_variable(&sandbox, &["inspect", "--nodes", &spaced, "job"]).code, Some(0));
    let none = without_variable(&sandbox, &["inspect", "--nodes", "", "job"]);
    assert!(none.code == Some(64) && none.stderr.contains("see --nodes"), "{none:?}");
}

#[test]
fn an_unusable_nodes_file_is_refused() {
    let sandbox = Sandbox::new(1);
    fs::write(sandbox.path("empty"), "# none yet\n").expect("a file");
    fs::write(sandbox.path("wrong"), "redis://me:hunter2@host:port\n").expect("a file");
    let cases = [("nowhere", "No such file"), ("empty", "it names none"), (".", "Is a directory"), ("wrong", "node 1")];
    for (file, said) in cases {
        let file = sandbox.path(file).display().to_string();
        let ended = without_variable(&sandbox, &["run", "--nodes-file", &file, "job", "--", "true"]);
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(said) && !ended.stderr.contains("hunter2"), "{ended:?}");
    }
}

#[test]
fn no_export_removes_lease_and_nodes_from_the_environment() {
    let sandbox = Sandbox::new(3);
    let script = "env | grep QUORLOCK_ | grep -v QUORLOCK_TEST_ | sed s/=.*// | sort";
    let mut command = sandbox.quorlock(&["run", "--no-export", "job", "--", "sh", "-c", script]);
    // Inherited variables are removed as well.
    command.env("QUORLOCK_NODES_FILE", "/nowhere").env("QUORLOCK_LEASE_NODES", "x");
    let ended = finish(command.spawn().expect("quorlock"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "QUORLOCK_NAME\nQUORLOCK_TOKEN\n"), "{ended:?}");
}

/// What is read from a pipe cannot be read again by a nested run, and the file of a descriptor is another one there.
#[test]
fn nodes_from_a_pipe_reach_a_nested_run() {
    let sandbox = Sandbox::new(3);
    fs::write(sandbox.path("nodes"), sandbox.cluster.urls().join("\n")).expect("a file");
    let nested = r#"sh -c 'exec < /dev/null 3<&-; "$QUORLOCK" run --try --node-timeout 5s job -- echo entered'"#;
    for script in [
        format!("cat $DIR/nodes | \"$QUORLOCK\" run --nodes-file /dev/stdin job -- {nested}"),
        format!("\"$QUORLOCK\" run --nodes-file <(cat $DIR/nodes) job -- {nested}"),
        format!("\"$QUORLOCK\" run --nodes-file /dev/stdin job -- {nested} < $DIR/nodes"),
        format!("\"$QUORLOCK\" run --nodes-file /proc/self/fd/3 job -- {nested} 3< $DIR/nodes"),
    ] {
        let mut command = sandbox.command("bash", &["-c", &script]);
        let ended = finish(command.env_remove("QUORLOCK_NODES").spawn().expect("bash"));
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "entered\n"), "{script}: {ended:?}");
    }
}
