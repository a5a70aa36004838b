//! Another lock client as a program of its own, which reads commands on standard input.
//!
//! | command | the program |
//! |---|---|
//! | `try NAME MS` | tries once to acquire the lock for so long |
//! | `wait NAME MS` | waits for the lock in the manner of the client |
//! | `extend NAME MS` | extends the lock that it acquired last under the name |
//! | `release NAME` | releases it, also when it has ended or was released before |
//!
//! It answers each with a line: `yes`, or `no` and what the client says.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// The variable with the folder in which `cluster/test --peers` has installed the clients.
const FOLDER_VARIABLE: &str = "QUORLOCK_PEERS";

/// No command takes longer, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(60);

/// The program, which is killed when this is dropped.
pub struct Program {
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

fn folder() -> PathBuf {
    let folder = std::env::var_os(FOLDER_VARIABLE);
    folder.expect("the clients are not installed here: cluster/test --peers installs them and runs this test").into()
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/coexistence").join(file)
}

impl Program {
    /// Starts npm redlock, by the name of the package in `package.json`.
    pub fn node(package: &str, urls: &[String]) -> Self {
        let mut command = Command::new("node");
        command.env("NODE_PATH", folder().join("node_modules")).arg(source("worker.js")).arg(package);
        Self::start(command.args(urls))
    }

    /// Starts `redlock` for redlock-py, or `redis` for the Lock of redis-py.
    pub fn python(client: &str, urls: &[String]) -> Self {
        let mut command = Command::new(folder().join("python/bin/python"));
        Self::start(command.arg(source("worker.py")).arg(client).args(urls))
    }

    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program that runs the client");
        let commands = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { _child: child, commands, answers }
    }

    /// Sends a command, and returns whether the answer is yes.
    pub async fn ask(&mut self, command: &str) -> bool {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("a program that reads");
        let answer = timeout(LIMIT, self.answers.next_line()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to `{command}` within {LIMIT:?}"));
        let answer = answer.expect("text").unwrap_or_else(|| panic!("the program has ended at `{command}`"));
        println!("{command}: {answer}");
        assert!(answer == "yes" || answer.starts_with("no"), "`{answer}` is no answer to `{command}`");
        answer == "yes"
    }
}
