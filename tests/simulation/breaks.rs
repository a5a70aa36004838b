//! Clients that are broken on purpose. The shipped crate holds no code for that: these are changes to the text of a copy,
//! in `target/controls`, all at once and each behind a switch. The copy is built once, and its simulation tries them all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What is copied.
const COPIED: [&str; 7] = ["Cargo.toml", "Cargo.lock", "src", "tests", "examples", "lab", "testkit"];

/// The packages of the workspace.
const PACKAGES: [&str; 4] = ["quorlock", "quorlock-examples", "quorlock-lab", "quorlock-testkit"];

/// One change: `old` must stand in the file exactly once.
struct Change {
    file: &'static str,
    old: &'static str,
    new: &'static str,
}

const CHANGES: &[Change] = &[
    // The switch.
    Change {
        file: "src/lib.rs",
        old: "mod waiting;\n",
        new: "mod waiting;

std::thread_local! {
    static VARIANT: std::cell::Cell<&'static str> = const { std::cell::Cell::new(\"\") };
}

/// Breaks what this thread runs.
#[doc(hidden)]
pub fn choose_variant(variant: &'static str) {
    VARIANT.set(variant);
}

pub(crate) fn broken(variant: &str) -> bool {
    VARIANT.get() == variant
}
",
    },
    Change {
        file: "tests/simulation/variant.rs",
        old: "pub fn choose(_variant: &'static str) -> bool {\n    false\n",
        new: "pub fn choose(variant: &'static str) -> bool {\n    quorlock::choose_variant(variant);\n    true\n",
    },
    // The rules.
    Change {
        file: "src/protocol/tally.rs",
        old: "    nodes / 2 + 1\n",
        new: "    if crate::broken(\"quorum too small\") {
        return (nodes / 2).max(1);
    }
    nodes / 2 + 1
",
    },
    Change {
        file: "src/protocol/lease.rs",
        old: "let deadline = self.schedule.validity.deadline(started, length);",
        new: "let from = if crate::broken(\"validity ignoring elapsed\") { now } else { started };
                let deadline = self.schedule.validity.deadline(from, length);",
    },
    Change {
        file: "src/protocol/validity.rs",
        old: "        started + lease.saturating_sub(self.drift(lease))\n",
        new: "        if crate::broken(\"validity ignoring drift\") {
            return started + lease;
        }
        started + lease.saturating_sub(self.drift(lease))
",
    },
    Change {
        file: "src/protocol/lease.rs",
        old: "let over = matches!(phase, Phase::Lost | Phase::Released);",
        new: "let broken = crate::broken(\"extension after expiry\");
        let over = phase == Phase::Released || (phase == Phase::Lost && !broken);",
    },
    Change {
        file: "src/protocol/lease.rs",
        old: "if deadline > self.valid_until {",
        new: "if deadline > self.valid_until || crate::broken(\"validity set, not raised\") {",
    },
    Change {
        file: "src/protocol/lease.rs",
        old: "self.known = self.known.max(ballot);",
        new: "self.known = self.known.max(ballot);
                    if crate::broken(\"extension under a new token\") {
                        self.token = ballot.into();
                    }",
    },
    // Rounds.
    Change {
        file: "src/coordinator/round.rs",
        old: "        match counted.effect {\n",
        new: "        let votes = self.tally().votes();
        let enough = self.purpose == Purpose::Hold && !self.facts.acquires && votes > 0;
        let effect = match counted.effect {
            Effect::Nothing | Effect::Over(_) | Effect::Failed
                if enough && crate::broken(\"extension confirmed below quorum\") =>
            {
                Effect::Honoured { is_new: true, votes, awaited: 0, is_contested: false, repairable: 0 }
            }
            effect => effect,
        };
        match effect {
",
    },
    Change {
        file: "src/protocol/round.rs",
        old: "            (VoteResult::Pending, _) if !self.tally.is_complete() => None,
",
        new: "            _ if crate::broken(\"waiting for every node\") && !self.tally.is_complete() => None,
            (VoteResult::Pending, _) if !self.tally.is_complete() => None,
",
    },
    Change {
        file: "src/coordinator/follow.rs",
        old: "        let vote = match (reply, self.purpose) {\n",
        new: "        if let Ok(Value::Array(fields)) = &reply
            && let [Value::Int(11), Value::Int(_), Value::Int(counter)] = fields.as_slice()
        {
            for lease in &self.leases {
                lease.counter.fetch_max(counter.cast_unsigned(), std::sync::atomic::Ordering::Relaxed);
            }
        }
        let vote = match (reply, self.purpose) {
",
    },
    Change {
        file: "src/coordinator/lease.rs",
        old: "    sent_to: AtomicU64,\n",
        new: "    sent_to: AtomicU64,\n    /// Of the variant \"token = max of per-node counters\".\n    pub(crate) counter: AtomicU64,\n",
    },
    Change {
        file: "src/coordinator/lease.rs",
        old: "            sent_to: AtomicU64::new(0),\n",
        new: "            sent_to: AtomicU64::new(0),\n            counter: AtomicU64::new(0),\n",
    },
    Change {
        file: "src/node/replies.rs",
        old: "        Value::Array(fields) => fields,
        _ => return None,
",
        new: "        Value::Array(fields) if matches!(fields.as_slice(), [Value::Int(11), Value::Int(_), Value::Int(_)]) => {
            return Some(Vote::Yes);
        }
        Value::Array(fields) => fields,
        _ => return None,
",
    },
    Change {
        file: "src/coordinator/holds.rs",
        old: "        Some(lease.state().lease.token)\n",
        new: "        if crate::broken(\"token = max of per-node counters\") {
            let counter = lease.counter.load(std::sync::atomic::Ordering::Relaxed);
            return crate::protocol::Ballot::from_wire(counter).map(Token::from);
        }
        Some(lease.state().lease.token)
",
    },
    // Leases.
    Change {
        file: "src/coordinator/follow.rs",
        old: "            Due::Loss => return over(&self, state),\n",
        new: "            Due::Loss if crate::broken(\"no watch over the deadline\") => return,
            Due::Loss => return over(&self, state),
",
    },
    Change {
        file: "src/coordinator/lease.rs",
        old: "            match left {\n",
        new: "            match left.filter(|_| !crate::broken(\"no watch over the deadline\")) {\n",
    },
    Change {
        file: "src/coordinator/attempt.rs",
        old: "if verdict == VoteResult::Won && !holds.remaining().is_zero() {",
        new: "let spent = holds.remaining().is_zero() && !crate::broken(\"validity not checked last\");
        if verdict == VoteResult::Won && !spent {",
    },
    Change {
        file: "src/coordinator/attempt.rs",
        old: "        let ballot = core.propose_above(&self.owner, known.fold(above, Ballot::max));\n",
        new: "        let used = self.owner.last_ballot().load(std::sync::atomic::Ordering::Relaxed);
        let reused = Ballot::from_wire(used).filter(|ballot| *ballot > Ballot::ZERO);
        let reused = reused.filter(|_| crate::broken(\"owner reused without a fresh ballot\"));
        let ballot = core.propose_above(&self.owner, known.fold(above, Ballot::max));
",
    },
    Change {
        file: "src/coordinator/attempt.rs",
        old: "                None => (ballot.into(), ballot, true),\n",
        new: "                None if reused.is_some() => (reused.unwrap_or(ballot).into(), ballot, false),
                None => (ballot.into(), ballot, true),
",
    },
    Change {
        file: "src/coordinator/send.rs",
        old: "    let ballot = largest_sent(states);\n",
        new: "    let known = crate::broken(\"release carries what is known\");
    let known = states.iter().map(|state| state.lease.known).max().filter(|_| known);
    let ballot = known.unwrap_or_else(|| largest_sent(states));
",
    },
    Change {
        file: "src/guard.rs",
        old: "        if let Some(resource) = pending_release.lost {\n",
        new: "        let honest = !crate::broken(\"release says yes after a loss\");
        if let Some(resource) = pending_release.lost.filter(|_| honest) {
",
    },
    Change {
        file: "src/coordinator/holds.rs",
        old: "        if !self.leases.is_empty() {\n            self.give_back();\n",
        new: "        let pending = self.leases.iter().any(|lease| lease.phase() == Phase::Pending);
        if !self.leases.is_empty() && !(pending && crate::broken(\"dropped request not released\")) {
            self.give_back();
",
    },
    Change {
        file: "src/waiting/reachability.rs",
        old: "        let _waiting = Waiting::new(&self.waiting);\n",
        new: "        if crate::broken(\"requests that no majority answers ask again at once\") {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return false;
        }
        let _waiting = Waiting::new(&self.waiting);
",
    },
    // Two clocks.
    Change {
        file: "src/coordinator/attempt.rs",
        old: "self.ends.iter().filter(|(_, over)| *over < now)",
        new: "self.ends.iter().filter(|(_, over)| *over < now || crate::broken(\"an end is named without waiting\"))",
    },
    // Shares.
    Change {
        file: "src/coordinator/lease.rs",
        old: "Share { client: self.core.common.client, lease: self.id }",
        new: "Share {
            client: self.core.common.client,
            lease: if crate::broken(\"one word for all shares of a client\") { 0 } else { self.id },
        }",
    },
    // Nodes, as the client sees them.
    Change {
        file: "src/protocol/record.rs",
        old: "record.run_id == process.run_id ||",
        new: "crate::broken(\"run id not compared\") || record.run_id == process.run_id ||",
    },
    Change {
        file: "src/node/common.rs",
        old: "        self.learnt_lease.fetch_max(micros(longest), Ordering::SeqCst);\n",
        new: "        if !crate::broken(\"the longest lease of others is not learnt\") {
            self.learnt_lease.fetch_max(micros(longest), Ordering::SeqCst);
        }
",
    },
    Change {
        file: "src/node/connection/answers.rs",
        old: "            Standing::Unchanged => {}\n",
        new: "            Standing::Unchanged => {}
            Standing::Young(_) if crate::broken(\"a yes of a young node counts\") => {
                sent.request.reply_to.answer(self.index, Ok(Value::Int(1)));
                return Ok(());
            }
",
    },
    Change {
        file: "src/node/connection/answers.rs",
        old: "            inflight.silent = false;\n            settled += 1;\n",
        new: "            let mut sent = sent;
            if let Some(next) = inflight.unanswered.front_mut()
                && crate::broken(\"late reply credited to another round\")
                && let (ReplyTo::Hold(mine), ReplyTo::Hold(other)) = (&mut sent.request.reply_to, &mut next.request.reply_to)
            {
                std::mem::swap(mine, other);
            }
            inflight.silent = false;
            settled += 1;
",
    },
    Change {
        file: "src/node/commands.rs",
        old: "command.arg(ballot_value).arg(millis(lease))",
        new: "let longer = if crate::broken(\"keys that outlive the lease\") { 3 } else { 1 };
    command.arg(ballot_value).arg(longer * millis(lease))",
    },
    Change {
        file: "src/environment/timing.rs",
        old: "    environment.fill(&mut bytes);\n",
        new: "    if crate::broken(\"randomness from elsewhere\") {
        crate::environment::System::default().fill(&mut bytes);
    } else {
        environment.fill(&mut bytes);
    }
",
    },
];

/// Makes the copy, builds it and runs its simulation with these arguments. Gives what it wrote, and whether all went well.
pub fn run(arguments: &[&str], capture: bool) -> io::Result<(bool, String)> {
    let target = target()?;
    let copy = target.join("controls");
    write(Path::new(env!("CARGO_MANIFEST_DIR")), &copy)?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&copy).env("CARGO_TARGET_DIR", &target).args(["test", "--quiet", "--locked"]);
    match profile()?.as_str() {
        "debug" => {}
        profile => drop(command.args(["--profile", profile])),
    }
    command.args(["--test", "simulation", "--"]).args(arguments);
    if capture {
        let output = command.stderr(std::process::Stdio::inherit()).output()?;
        return Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    Ok((command.status()?.success(), String::new()))
}

/// `TARGET/PROFILE/deps/simulation-…` is where this program is.
fn target() -> io::Result<PathBuf> {
    env::current_exe()?.ancestors().nth(3).map(Path::to_path_buf).ok_or(io::ErrorKind::NotFound.into())
}

fn profile() -> io::Result<String> {
    let program = env::current_exe()?;
    let profile = program.ancestors().nth(2).and_then(Path::file_name).ok_or(io::ErrorKind::NotFound)?;
    Ok(profile.to_string_lossy().into_owned())
}

/// Brings the copy up to date. What is the same already is not written again, so it is not built again either.
fn write(original: &Path, copy: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for name in COPIED {
        find(original, Path::new(name), &mut files)?;
    }
    let mut changed = 0;
    for file in &files {
        let mut content = fs::read(original.join(file))?;
        let changes: Vec<&Change> = CHANGES.iter().filter(|change| Path::new(change.file) == file).collect();
        if !changes.is_empty() {
            let mut text = String::from_utf8(content).map_err(io::Error::other)?;
            for change in &changes {
                text = applied(&text, change)?;
            }
            content = text.into_bytes();
            changed += changes.len();
        }
        if file.file_name().is_some_and(|name| name == "Cargo.toml" || name == "Cargo.lock") {
            content = renamed(&content);
        }
        let path = copy.join(file);
        if fs::read(&path).ok().as_ref() != Some(&content) {
            fs::create_dir_all(path.parent().unwrap_or(copy))?;
            fs::write(path, content)?;
        }
    }
    if changed != CHANGES.len() {
        return Err(io::Error::other("a change is for a file that is not there"));
    }
    let wanted: BTreeSet<PathBuf> = files.into_iter().collect();
    let mut found = Vec::new();
    for name in COPIED {
        find(copy, Path::new(name), &mut found)?;
    }
    found.iter().filter(|file| !wanted.contains(*file)).try_for_each(|file| fs::remove_file(copy.join(file)))
}

/// Gives the packages of the copied workspace a version of their own, so that the two do not overwrite each other's build.
fn renamed(manifest: &[u8]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(manifest).into_owned();
    for package in PACKAGES {
        let version = format!("name = \"{package}\"\nversion = \"{}", env!("CARGO_PKG_VERSION"));
        text = text.replace(&format!("{version}\"\n"), &format!("{version}-controls\"\n"));
    }
    text.into_bytes()
}

fn applied(text: &str, change: &Change) -> io::Result<String> {
    let Change { file, old, new } = change;
    match text.matches(old).count() {
        1 => Ok(text.replace(old, new)),
        times => Err(io::Error::other(format!(
            "{file}: the text that a control changes stands there {times} times and not once; mend the table in \
             tests/simulation/breaks.rs: {old}"
        ))),
    }
}

/// All files below a path.
fn find(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let path = root.join(below);
    if path.is_file() {
        files.push(below.to_path_buf());
    } else if path.is_dir() {
        for entry in fs::read_dir(&path)? {
            find(root, &below.join(entry?.file_name()), files)?;
        }
    }
    Ok(())
}
