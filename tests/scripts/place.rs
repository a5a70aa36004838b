//! A place for one cluster, and the scripts at work there.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No call of a script takes longer, on a busy machine either.
pub const LIMIT: Duration = Duration::from_secs(60);
pub const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];
pub const NODES: usize = 3;

/// A folder with a space in its name, for the state folder of one cluster and for all other files of a test.
pub struct Place {
    pub root: PathBuf,
    pub dir: PathBuf,
}

/// A script at work. Its output goes to files without a name: the end of a pipe would wait for processes that are left.
pub struct Call {
    pub child: Child,
    pub stdout: File,
    pub stderr: File,
}

pub struct Outcome {
    /// As a shell shows it: 128 and the number of a signal that ended the script.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

pub fn interruptions() -> u32 {
    std::env::var("QUORLOCK_INTERRUPTIONS").map_or(10, |text| text.parse().expect("a number of interruptions"))
}

pub fn unique() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Sends a signal to a process, or to a process group when `target` begins with a minus.
pub fn kill(signal: &str, target: &str) {
    let status = Command::new("kill").args(["-s", signal, "--", target]).stderr(Stdio::null()).status();
    status.expect("kill is in every system"); // The process may have ended before.
}

/// Parent and start time of a process that is not a zombie.
pub fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| (fields[1].parse().expect("a pid"), fields[19].parse().expect("a time")))
}

impl Place {
    pub fn new() -> Self {
        let name = format!("quorlock scripts {}.{}", std::process::id(), unique());
        let root = fs::canonicalize(std::env::temp_dir()).expect("a temporary folder").join(name);
        DirBuilder::new().mode(0o700).create(&root).expect("a folder of our own");
        Self { dir: root.join("state folder"), root }
    }

    pub fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        // A terminal lets all of these end a script, also signals that the caller of this test ignores. Many logins let the
        // group write to new files.
        let script = "umask 002 && exec env --default-signal=HUP,INT,QUIT,TERM,PIPE \"$@\"";
        command.args(["-c", script, "bash"]).arg(scripts().join(verb)).args(args);
        command.env("QUORLOCK_CLUSTER_DIR", &self.dir).env("TMPDIR", &self.root).current_dir(&self.root);
        command.env("QUORLOCK_SERVERS_DIR", self.root.join("servers folder"));
        let (tools, path) = (self.root.join("tools"), std::env::var("PATH").expect("PATH"));
        command.env("PATH", format!("{}:{path}", tools.display()));
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// Makes a shell script that is found before the program of this name.
    pub fn tool(&self, name: &str, text: &str) -> PathBuf {
        fs::create_dir_all(self.root.join("tools")).expect("a folder");
        let file = self.root.join("tools").join(name);
        replace(&file, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("a program");
        file
    }

    pub fn spawn(&self, verb: &str, args: &[&str]) -> Call {
        self.call(self.command(verb, args))
    }

    pub fn call(&self, mut command: Command) -> Call {
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

    pub fn run(&self, verb: &str, args: &[&str]) -> Outcome {
        finish(self.spawn(verb, args))
    }

    pub fn succeed(&self, verb: &str, args: &[&str]) -> String {
        let outcome = self.run(verb, args);
        assert_eq!(outcome.code, 0, "{verb} {args:?}: {}", outcome.stderr);
        outcome.stdout
    }

    /// Sends a signal after a while, to the process group as a terminal does, or to the script alone as a supervisor does.
    pub fn interrupt(&self, verb: &str, args: &[&str], after: Duration, round: u32) -> Interrupted {
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
    pub fn processes(&self) -> Vec<u32> {
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
    pub fn assert_no_process(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            assert!(Instant::now() < end, "{words}: processes {:?} are left", self.processes());
            sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub fn assert_nothing(&self, words: &str) {
        self.assert_no_process(words);
        assert!(!self.dir.exists(), "{words}: the state folder is left: {:?}", entries(&self.dir));
    }

    pub fn node(&self, node: usize, file: &str) -> PathBuf {
        self.dir.join(format!("node-{node}")).join(file)
    }

    pub fn pid(&self, node: usize) -> u32 {
        let text = fs::read_to_string(self.node(node, "pid")).expect("a pid file");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    /// Every node is up, answers, and has a record of its own.
    #[track_caller]
    pub fn assert_whole(&self, words: &str) {
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

pub struct Interrupted {
    pub was: bool,
    pub words: String,
}

pub fn finish(call: Call) -> Outcome {
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

pub fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

pub fn replace(file: &Path, text: &str) {
    fs::write(file, text).expect("a file of ours");
}
