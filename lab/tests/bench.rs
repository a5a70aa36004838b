//! The form of the output of `quorlock-lab bench`. Its figures need a quiet machine and are not judged here.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use quorlock_testkit::server::{Declaration, Server};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
/// How long a worker holds its leases.
const HELD_FOR: Duration = Duration::from_secs(15);

/// Runs the bench with this folder for its temporary files.
fn bench(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorlock-lab"));
    command.arg("bench").args(arguments).env("TMPDIR", dir).env_remove("QUORLOCK_NODES");
    command.output().expect("the command that was built for this test")
}

/// Returns the processes whose working folder is inside this one: a redis-server hides its command line.
fn processes_in(dir: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|process| process.path());
    processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).expect("the folder").next().is_none()
}

#[test]
fn cycles_are_reported_as_json_for_every_implementation() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pictures = tempfile::tempdir().expect("a temporary folder");
    let plot = pictures.path().join("cycle.svg");
    let plot_argument = plot.to_str().expect("a path that we made");
    let arguments =
        ["--case", "reentry,cycle", "--rounds", "1", "--for", "200ms", "--nodes-count", "3", "--json", "--quiet"];
    let ended = bench(dir.path(), &[arguments.as_slice(), &["--plot", plot_argument]].concat());
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let text = String::from_utf8(ended.stdout).expect("JSON is UTF-8");
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();

    let heads: Vec<_> = objects.iter().map(|object| (object["case"].as_str(), object["impl"].as_str())).collect();
    let cycle = ["floor", "fenced", "scripts", "redis-rs", "redis-rs-scripts", "quorlock"]
        .map(|name| (Some("cycle"), Some(name)));
    assert_eq!(heads, [cycle.as_slice(), &[(Some("reentry"), Some("quorlock"))]].concat());
    for object in &objects {
        assert_eq!((&object["nodes"], &object["failed"]), (&3.into(), &0.into()), "{object}");
        let [p50, p99, per_s, cpu] = ["p50_us", "p99_us", "cycles_per_s", "client_cpu_us_per_cycle"]
            .map(|field| object[field].as_f64().filter(|figure| *figure > 0.0).expect(field));
        assert!(p50 <= p99, "{object}");
        // One task runs one cycle after the other, so their durations limit their number.
        assert!(per_s < 1e6 / p50 * 2.0 && cpu < 1e6, "{object}");
    }
    let quorlock = objects[5]["findings"].as_array().expect("findings");
    assert_eq!(quorlock.len(), 6, "beside the floors and beside redis-rs, and none failed: {quorlock:?}");
    assert!(objects[5]["vs_floor"].as_f64().is_some_and(|ratio| ratio > 0.5), "{}", objects[5]);

    let drawn = fs::read_to_string(&plot).expect("a picture");
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    assert_eq!(drawn.matches("<rect").count(), 1 + objects.len(), "a ground and a bar each: {drawn}");
    assert_eq!(processes_in(dir.path()), Vec::<PathBuf>::new(), "its servers end with it");
    assert!(is_empty(dir.path()), "its folder, too");
}

#[test]
fn wrong_arguments_are_refused_before_any_server_starts() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (arguments, part) in [
        (["--case", "cycles"], "possible values: cycle, block-on, tasks,"),
        (["--rounds", "0"], "--rounds <R>"),
        (["--for", "0s"], "choose a longer --for"),
        (["--nodes-count", "0"], "--nodes-count <N,...>"),
    ] {
        let ended = bench(dir.path(), &arguments);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.contains(part) && ended.stdout.is_empty(), "{arguments:?}: {said}");
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn unreachable_nodes_are_named_without_password() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ended = bench(dir.path(), &["--case", "cycle", "--nodes", "redis://:hunter2@127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(69), "{said}");
    assert!(said.contains("127.0.0.1:1") && !said.contains("hunter2"), "{said}");
}

/// A bench process that ends with its test, also when that fails, and so do its servers.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("a signal to our own child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.0.wait(); // The signal ends it.
        }
    }
}

#[test]
fn an_interrupted_bench_stops_its_servers() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorlock-lab"));
        let running = command
            .args(["bench", "--case", "cycle", "--for", "60s", "--nodes-count", "3", "--quiet"])
            .env("TMPDIR", dir.path())
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut running = Running(running.expect("the command that was built for this test"));
        let begun = Instant::now();
        while processes_in(dir.path()).len() < 3 {
            assert!(begun.elapsed() < LIMIT, "three servers are started");
            std::thread::sleep(Duration::from_millis(10));
        }
        // As a terminal does: the servers get it, too.
        kill_process_group(Pid::from_child(&running.0), signal).expect("a signal to our own children");
        let ended = running.0.wait().expect("an end");
        assert_eq!(ended.code(), Some(code));
        let said = running.0.stderr.take().map(std::io::read_to_string).expect("it is piped").expect("text");
        assert_eq!(said, "", "its servers have ended because of the signal");
        assert_eq!(processes_in(dir.path()), Vec::<PathBuf>::new());
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_worker_ends_with_its_input() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(dir.path().join("node"), &[], &[]).expect("a server");
    server.declare_new(Declaration::new(1)).expect("a node record");
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorlock-lab"));
    command.args(["bench", "--worker", "held"]).env("QUORLOCK_BENCH_NODES", server.url());
    let worker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut worker = Running(worker.expect("the command that was built for this test"));
    let mut ready = String::new();
    let output = worker.0.stdout.as_mut().expect("it is piped");
    BufReader::new(output).read_line(&mut ready).expect("a line");
    assert_eq!(ready, "ready\n");
    worker.0.stdin.as_mut().expect("it is piped").write_all(b"go\n").expect("it waits for this line");
    drop(worker.0.stdin.take());
    let begun = Instant::now();
    while worker.0.try_wait().expect("our own child").is_none() {
        assert!(begun.elapsed() < HELD_FOR, "it works for a bench that has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}
