//! `quorlock-lab chaos`, as its users meet it: short runs on real servers.

mod place;
mod program;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use place::{Place, ended, said, within};

#[test]
fn a_short_run_holds_every_invariant_and_reports_it() {
    let place = Place::new("short");
    let output = place.end("--for 8s --seed 3 --nodes-count 3 --workers 4 --lease 1s --json");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = place.results();
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(printed, results);
    assert_eq!(results["verdict"], "held");
    assert_eq!((&results["seeds"][0], &results["violations"]), (&3.into(), &0.into()));
    for figure in ["commands", "grants", "reentries", "extensions", "seconds"] {
        assert!(results[figure].as_f64() > Some(0.0), "{figure}: {results}");
    }
    let faults = results["faults"].as_object().expect("faults by kind");
    assert!(faults.len() >= 3, "{faults:?}");
    for invariant in ["MutualExclusion", "ReentrantDepth", "TokenUnique", "TokenMonotonic", "NoOrphan"] {
        assert_eq!(results["invariants"][invariant]["verdict"], "held", "{invariant}");
        assert!(results["invariants"][invariant]["checks"].as_u64() > Some(0), "{invariant}");
    }
    assert_eq!(results["ledger"]["opened_with"], results["ledger"]["closed_with"]);

    let history = fs::read_to_string(place.out().join("history.jsonl")).expect("a history");
    let events: Vec<Value> = history.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(events.iter().all(|event| event["at"].is_u64() && event["event"].is_string()));
    let count = |kind: &str| events.iter().filter(|event| event["event"] == kind).count() as u64;
    let grants = results["grants"].as_u64().zip(results["reentries"].as_u64()).map(|(outer, inner)| outer + inner);
    assert_eq!(Some(count("grant")), grants);
    assert_eq!((count("up") > 4, count("scan"), count("calm")), (count("down") > 0, 3, 4));

    let report = fs::read_to_string(place.out().join("report.html")).expect("a report");
    assert!(report.contains("Every promise held") && report.contains("--seed 3"));
    for outside in ["http://", "https://", "src=", "@import"] {
        assert!(!report.contains(outside), "the report must not contain {outside}");
    }
    place.is_clean();
}

/// A request falls into a quarantine by chance, and a busy machine excuses much, so other seeds are tried until everything was
/// seen. No run may show a violation.
#[test]
fn memory_loss_and_clock_steps_violate_no_invariant() {
    let place = Place::new("forgetting");
    let mut unseen = vec!["MutualExclusion", "FencedStore", "NoResurrection", "QuarantineHolds", "MinorityFaultLive"];
    let mut undone = vec!["flush", "swap", "replica", "promote", "replace", "forget", "step", "leap"];
    for seed in 11..=13 {
        let output = place.end(&format!("--for 45s --seed {seed} --nodes-count 3 --workers 4 --lease 1s"));
        assert!(matches!(output.status.code(), Some(0 | 81)), "{}", said(&output));
        let results = place.results();
        unseen.retain(|invariant| results["invariants"][invariant]["verdict"] != "held");
        undone.retain(|kind| results["faults"][kind].as_u64().is_none_or(|count| count == 0));
        if unseen.is_empty() && undone.is_empty() {
            break;
        }
    }
    assert!(unseen.is_empty() && undone.is_empty(), "{unseen:?} {undone:?} in none of the runs: {}", place.results());
    place.is_clean();
}

/// A clock fault that does nothing must not count as done.
#[test]
fn a_server_without_the_clock_library_is_found_before_the_run() {
    let place = Place::new("clockless");
    let server = place.dir.path().join("server");
    fs::write(&server, "#!/bin/sh\nunset LD_PRELOAD\nexec redis-server \"$@\"\n").expect("a script");
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = place.chaos("--for 6s --seed 1 --nodes-count 3 --workers 2 --lease 1s");
    let output =
        command.env("QUORLOCK_TEST_SERVER", &server).output().expect("the command that was built for this test");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("no clock will be touched: a server does not take"), "{}", said(&output));
    let results = place.results();
    assert!(results["notes"][0].as_str().is_some_and(|note| note.contains("no clock was touched")), "{results}");
    for kind in ["step", "leap", "clock_rate"] {
        assert!(results["faults"][kind].is_null(), "{kind}: {results}");
    }
    place.is_clean();
}

/// The faults that lose updates occur by chance, so the test makes several tries.
#[test]
fn without_fencing_updates_are_lost() {
    let place = Place::new("unfenced");
    let lost = (1..=6).find(|seed| {
        let run = format!("--no-fencing --for 6s --seed {seed} --nodes-count 1 --workers 5 --lease 500ms --quiet");
        let output = place.end(&run);
        let code = output.status.code();
        assert!(matches!(code, Some(81 | 82)), "{}", said(&output));
        // An update is also lost when a stopped holder writes between the reading and the writing of the next one. No store
        // that compares tokens at the write alone sees that.
        code == Some(82) && place.results()["ledger"]["stale_accepted"].as_u64() > Some(0)
    });
    assert!(lost.is_some(), "in none of the runs");
    let results = place.results();
    assert!(results["ledger"]["lost_updates"].as_u64() > Some(0), "{results}");
    assert!(results["ledger"]["stale_accepted"].as_u64() > Some(0), "{results}");
    assert_eq!((&results["ledger"]["sound"], &results["violations"]), (&false.into(), &0.into()));
    let report = fs::read_to_string(place.out().join("report.html")).expect("a report");
    assert!(report.contains("This was the demonstration"));
    place.is_clean();
}

#[test]
fn an_interrupted_run_leaves_a_report_and_nothing_else() {
    let place = Place::new("interrupted");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut command = place.chaos("--for 60s --seed 1 --nodes-count 3 --workers 3 --quiet");
        let child = command.spawn().expect("the command");
        let history = place.out().join("history.jsonl");
        within("some faults", || fs::read_to_string(&history).is_ok_and(|text| text.contains("\"event\":\"fault\"")));
        let output = ended(child, signal);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert_eq!((&place.results()["interrupted"], &place.results()["violations"]), (&true.into(), &0.into()));
        assert!(place.out().join("report.html").is_file());
        fs::remove_file(history).expect("a history");
        place.is_clean();
    }
}

#[test]
fn invalid_options_are_refused() {
    let place = Place::new("refused");
    for (arguments, reason) in [
        ("--nodes-count 0", "choose from 1 to 63"),
        ("--workers 1", "choose from 2 to 64"),
        ("--for 10ms", "choose from 1s"),
        ("--for soon", "--for"),
        ("--lease 1ms", "choose from 500ms"),
        ("--seed many", "--seed"),
        ("--ledger mysql://me:hunter2@host/db", "write user@host/database behind postgres://"),
    ] {
        let output = place.end(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments}: {}", said(&output));
        assert!(said(&output).contains(reason) && !said(&output).contains("hunter2"), "{}", said(&output));
    }
    let output = place.chaos("--controls").output().expect("the command");
    assert_eq!(output.status.code(), Some(64), "the folder of a run is no folder of the controls: {}", said(&output));
    fs::create_dir_all(place.out()).expect("a folder");
    fs::write(place.out().join("thesis.txt"), "a task without an end").expect("a file");
    let output = place.end("--for 1s");
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("not of a run"), "{}", said(&output));
    assert_eq!(fs::read_dir(place.out()).expect("the folder").count(), 1);
    place.is_clean();
}

/// A PostgreSQL server of the test's own.
struct Postgres {
    dir: tempfile::TempDir,
    port: u16,
    tools: PathBuf,
}

impl Postgres {
    /// Starts a server, or returns why there is none.
    fn start() -> Result<Self, String> {
        let tools = tools().ok_or("PostgreSQL's initdb is not installed")?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let server = Self { dir, port: port.map_err(|error| error.to_string())?.port(), tools };
        // It refuses to run as root.
        let own = format!("chown postgres {}", server.dir.path().display());
        if rustix::process::geteuid().is_root() && !shell(&own) {
            return Err("this is root, and there is no user postgres to run PostgreSQL as".to_owned());
        }
        server.tool("initdb", "-A trust -U postgres --no-sync")?;
        let options = format!("-w -l log -o '-p {} -c listen_addresses=127.0.0.1 -k /tmp -F' start", server.port);
        server.tool("pg_ctl", &options)?;
        Ok(server)
    }

    fn tool(&self, name: &str, options: &str) -> Result<(), String> {
        let dir = self.dir.path().display();
        let run =
            format!("cd {dir} && {}/{name} -D {dir}/data {options} >/dev/null 2>&1 </dev/null", self.tools.display());
        let run = match rustix::process::geteuid().is_root() {
            true => format!("runuser -u postgres -- sh -c \"{run}\""),
            false => run,
        };
        shell(&run).then_some(()).ok_or(format!("{name} failed"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.tool("pg_ctl", "-m immediate stop"));
    }
}

fn shell(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().is_ok_and(|status| status.success())
}

/// Returns the path of a PostgreSQL program, which Debian does not put on PATH.
fn tools() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = versions.map(|version| version.path().join("bin"));
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    installed.chain(on_path.unwrap_or_default()).find(|dir| dir.join("initdb").exists() && dir.join("pg_ctl").exists())
}

#[test]
fn postgres_can_store_the_ledger() {
    let place = Place::new("postgres");
    let server = match Postgres::start() {
        Ok(server) => server,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    let output = place.end(&format!("--for 4s --seed 2 --nodes-count 3 --workers 3 --lease 1s --quiet --ledger {url}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let ledger = &place.results()["ledger"];
    assert_eq!((&ledger["database"], &ledger["sound"]), (&"PostgreSQL".into(), &true.into()));
    assert!(ledger["transfers"].as_u64() > Some(0), "{ledger}");
    place.is_clean();
}
