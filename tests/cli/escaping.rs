//! The display of foreign text: keys, labels, messages of nodes, names and commands.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;
use quorlock_testkit::Cluster;
use serde_json::Value;

use crate::sandbox::{Ended, Sandbox, finish};

/// Colours, a forged line, cursor movements, and marks that change the direction of writing.
const NASTY: &str = "\u{1b}[31m\r\nquorlock: forged \u{9b}2J\u{7f}\u{202e}\u{2066}\u{200f}";

/// Returns whether a text has only lines of printable characters.
fn is_printable(text: &str) -> bool {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    text.split('\n').all(|line| !line.contains(|c: char| c.is_control() || turns(c)))
}

fn assert_printable(ended: &Ended) {
    assert!(is_printable(&ended.stdout) && is_printable(&ended.stderr), "{ended:?}");
    assert!(!ended.stderr.contains("\nquorlock: forged"), "{ended:?}");
}

fn set(sandbox: &Sandbox, name: &str, value: &[u8]) {
    sandbox.cluster.each::<()>(redis::cmd("SET").arg(Cluster::lock_key(name)).arg(value));
}

#[test]
fn key_content_is_escaped_in_every_output() {
    let sandbox = Sandbox::new(1);
    let label = NASTY.replace(' ', "_");
    let words = [
        format!("ql1 7 {label} {label} {label}:1"),
        format!("ql1 7 日本日本日本日本 {} a:1", "é".repeat(100_000)),
        format!("ql1 7 0123456789abcdef0123456789abcdef {label} a/1:1"),
        NASTY.to_owned(),
    ];
    for value in words {
        set(&sandbox, "job", value.as_bytes());
        let table = sandbox.end(&["inspect", "job"]);
        assert_eq!(table.code, Some(0), "{table:?}");
        assert_printable(&table);
        assert!(table.stdout.lines().all(|line| line.chars().count() < 400), "{table:?}");
        let json = sandbox.end(&["inspect", "--json", "job"]);
        assert_printable(&json);
        let json: Value = serde_json::from_str(&json.stdout).expect("one JSON object");
        assert!(json["nodes"][0]["label"].as_str().is_none_or(|label| label.len() <= 120), "{json}");
        let refused = sandbox.end(&["run", "-v", "--wait=3s", "job", "--", "true"]);
        assert_eq!(refused.code, Some(75), "{refused:?}");
        assert_printable(&refused);
    }
}

/// Generates the content of a key: any bytes, or nearly what quorlock writes.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![any::<String>(), "[0-9a-f]{0,40}", "[ -~]{0,9}:[0-9]{1,20}", Just("日本語:1".to_owned())];
    let near = (prop_oneof!["ql1", "ql2"], any::<u64>(), vec(word, 0..5));
    let near = near.prop_map(|(kind, token, words)| format!("{kind} {token} {}", words.join(" ")).into_bytes());
    prop_oneof![vec(any::<u8>(), 0..60), near]
}

#[test]
fn inspect_shows_a_key_of_any_content() {
    let sandbox = Sandbox::new(1);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) }, |(content in contents())| {
        set(&sandbox, "job", &content);
        let table = sandbox.end(&["inspect", "job"]);
        prop_assert!(table.code == Some(0) && is_printable(&table.stdout), "{table:?}");
        let json = sandbox.end(&["inspect", "--json", "job"]);
        prop_assert!(is_printable(&json.stdout), "{json:?}");
        prop_assert!(serde_json::from_str::<Value>(&json.stdout).is_ok(), "{json:?}");
    });
}

/// Starts a server that answers every connection with these words.
fn impostor(words: &'static [u8]) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let answer = move |mut stream: TcpStream| {
        let _ = stream.write_all(words);
        while let Ok(1..) = stream.read(&mut [0; 1024]) {}
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    format!("redis://me:hunter2@127.0.0.1:{port}")
}

#[test]
fn node_messages_are_escaped_and_hide_the_password() {
    let sandbox = Sandbox::new(1);
    let servers: [&[u8]; 5] = [
        b"-ERR \x1b[31mred\xc2\x9b2J\r\n-ERR\r\n-ERR\r\n-ERR\r\n-ERR\r\n",
        b"!32\r\nEVIL a\nquorlock: forged \x1b[31m\xe2\x80\xae\r\n-ERR\r\n-ERR\r\n-ERR\r\n-ERR\r\n",
        b"HTTP/1.1 400 \x1b[31m\r\n\r\nyou said: AUTH me hunter2",
        b"-ERR what is AUTH me hunter2\r\n-ERR\r\n-ERR\r\n-ERR\r\n-ERR\r\n",
        b"500 unknown: HELLO 3 AUTH me hunter2\r\n",
    ];
    for server in servers {
        let url = impostor(server);
        for args in
            [&["run", "--wait=300ms", "job", "--", "true"][..], &["inspect", "job"], &["inspect", "--json", "job"]]
        {
            let ended = finish(sandbox.quorlock(args).env("QUORLOCK_NODES", &url).spawn().expect("quorlock"));
            assert_eq!(ended.code, Some(69), "{ended:?}");
            assert_printable(&ended);
            assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
        }
    }
}

#[test]
fn names_and_commands_are_escaped() {
    let sandbox = Sandbox::new(1);
    let name = format!("job {NASTY}");
    let hold = "echo > $DIR/held; until [ -e $DIR/end ]; do sleep 0.01; done";
    let holder = sandbox.start(&["run", "--label", NASTY, &name, "--", "sh", "-c", hold]);
    sandbox.wait_for("held");
    let wait = format!("--wait={NASTY}");
    let cases: &[(&[&str], i32)] = &[
        (&["run", "--try", "--node-timeout", "5s", &name, "--", "true"], 75),
        (&["run", "-v", "--wait=3s", &name, "--", "true"], 75),
        (&["run", "-v", "free", "--", &name], 127),
        (&["inspect", &name], 0),
        (&["inspect", "--json", &name], 0),
        (&["run", &wait, &name, "--", "true"], 64),
        (&["run", "--no-such-flag", &name, "--", "true"], 64),
        (&[&name], 64),
        (&["inspect", "--nodes", NASTY, "job"], 64),
        (&["inspect", "--nodes-file", NASTY, "job"], 64),
    ];
    for (args, code) in cases {
        let ended = sandbox.end(args);
        assert_eq!(ended.code, Some(*code), "{ended:?}");
        assert_printable(&ended);
    }
    sandbox.touch("end");
    assert_eq!(finish(holder).code, Some(0));
}
