//! Clients that are broken on purpose. The shipped crate holds no code for that: these are changes to the text of a copy of the
//! workspace, in `target/controls`, all at once and each behind a switch. The copy is built once. Its simulation and its
//! `quorlock-lab` try the variants one by one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The variable with the variant that a process of the copy is. The simulation sets it for each thread instead.
pub const VARIANT_VARIABLE: &str = "QUORLOCK_BROKEN";

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

/// The variant of the whole process.
static CHOSEN: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| std::env::var(\"QUORLOCK_BROKEN\").unwrap_or_default());

/// Breaks what this thread runs.
#[doc(hidden)]
pub fn choose_variant(variant: &'static str) {
    VARIANT.set(variant);
}

pub(crate) fn broken(variant: &str) -> bool {
    VARIANT.get() == variant || *CHOSEN == variant
}
",
    },
    Change {
        file: "tests/simulation/variant.rs",
        old: "pub fn choose(_variant: &'static str) -> bool {\n    false\n",
        new: "pub fn choose(variant: &'static str) -> bool {\n    quorlock::choose_variant(variant);\n    true\n",
    },
    // Another name for the program, so that the copy does not take the place of the one that is shipped.
    Change {
        file: "lab/Cargo.toml",
        old: "name = \"quorlock-lab\"\npath = \"src/main.rs\"\n",
        new: "name = \"quorlock-lab-controls\"\npath = \"src/main.rs\"\n",
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
        old: "            Due::Loss => return over(&self, state, LossCause::Expired),\n",
        new: "            Due::Loss if crate::broken(\"no watch over the deadline\") => return,
            Due::Loss => return over(&self, state, LossCause::Expired),
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
        old: "        let ballot = (!free.is_empty()).then(|| {\n",
        new: "        let used = self.owner.last_ballot().load(std::sync::atomic::Ordering::Relaxed);
        let reused = Ballot::from_wire(used).filter(|ballot| *ballot > Ballot::ZERO);
        let reused = reused.filter(|_| crate::broken(\"owner reused without a fresh ballot\"));
        let ballot = (!free.is_empty()).then(|| {
",
    },
    Change {
        file: "src/coordinator/attempt.rs",
        old: "            let (token, known) = exported.map_or((fresh.into(), fresh), |lease| (lease.token, Ballot::ZERO));\n",
        new: "            let reused = reused.filter(|_| exported.is_none());
            let first = reused.unwrap_or(fresh);
            let (token, known) = exported.map_or((first.into(), fresh), |lease| (lease.token, Ballot::ZERO));
",
    },
    Change {
        file: "src/coordinator/attempt.rs",
        old: "lease, exported.map(|lease| lease.share), ticket)\n",
        new: "lease, exported.map(|lease| lease.share).or(reused.map(|_| \
              crate::protocol::Share { client: 0, lease: 0 })), ticket)\n",
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
        file: "src/guard/release.rs",
        old: "        if let Some(resource) = pending_release.lost {\n",
        new: "        let honest = !crate::broken(\"release says yes after a loss\");
        if let Some(resource) = pending_release.lost.filter(|_| honest) {
",
    },
    Change {
        file: "src/coordinator/holds.rs",
        old: "        if !self.leases.is_empty() {\n            self.give_back();\n",
        new: "        let pending = self.leases.iter().any(|lease| lease.phase() == Phase::Pending);
        let granted = !pending && !self.leases.is_empty();
        if granted && crate::broken(\"a dropped guard releases nothing\") {
            for lease in mem::take(&mut self.leases) {
                let (mut state, now) = lease.state_now();
                state.lease.holds -= 1;
                if state.lease.holds == 0 {
                    state.lease.released(now);
                    lease.reschedule(&mut state);
                    self.handle.registry.remove(&lease);
                    let turn = state.turn.take();
                    drop(state);
                    drop(turn);
                }
            }
        }
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
        file: "src/coordinator/attempt/offer.rs",
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
    Change {
        file: "src/coordinator/attempt.rs",
        old: "                Phase::Held | Phase::Endangered => {}",
        new: "                Phase::Held | Phase::Endangered if crate::broken(\"a re-entry is refused\") => {
                    return Err(lost(&lease.resource, lease.reports(state)));
                }
                Phase::Held | Phase::Endangered => {}",
    },
    // Nodes, as the client sees them.
    Change {
        file: "src/protocol/record.rs",
        old: "record.is_of(process) ||",
        new: "crate::broken(\"run id not compared\") || record.is_of(process) ||",
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
        old: "            && let Some(longest) = told_lease(value)\n",
        new: "            && let Some(longest) = told_lease(value)
            && !crate::broken(\"a refusal teaches no longer lease\")
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
    // What a process can see of its guard, and what happens in time: cluster/chaos --controls judges these.
    Change {
        file: "src/coordinator/follow.rs",
        old: "        if extend && !is_under_way && !state.is_left(now) {
",
        new: "        let extend = extend && !crate::broken(\"extensions are never sent\");
        if extend && !is_under_way && !state.is_left(now) {
",
    },
    Change {
        file: "src/guard.rs",
        old: "        self.holds.first().state().lease.token
",
        new: "        if crate::broken(\"token() is constant\") {
            return Token::from(crate::protocol::Ballot::from_wire(1).unwrap_or_default());
        }
        self.holds.first().state().lease.token
",
    },
    Change {
        file: "src/guard.rs",
        old: "        self.holds.first().state().lease.holds
",
        new: "        if crate::broken(\"hold_count() is always 1\") {
            return 1;
        }
        self.holds.first().state().lease.holds
",
    },
    Change {
        file: "src/guard.rs",
        old: "        self.holds.remaining()
    }

    /// Returns how many nodes may yet fail",
        new: "        if crate::broken(\"remaining() is too long\") {
            return self.holds.remaining() + Duration::from_millis(100);
        }
        if crate::broken(\"remaining() ends early\") {
            return self.holds.remaining().saturating_sub(self.holds.first().state().lease.length / 2);
        }
        self.holds.remaining()
    }

    /// Returns how many nodes may yet fail",
    },
    Change {
        file: "src/guard.rs",
        old: "        votes.saturating_sub(self.core().settings.quorum)
",
        new: "        if crate::broken(\"margin() is always 0\") {
            return 0;
        }
        if crate::broken(\"margin() counts every node\") {
            return self.core().nodes.len() - self.core().settings.quorum;
        }
        votes.saturating_sub(self.core().settings.quorum)
",
    },
    Change {
        file: "src/guard/loss.rs",
        old: "        self.leases().iter().any(|lease| lease.phase() == Phase::Lost)
    }

    /// Returns whether the lease is near",
        new: "        let is_lost = self.leases().iter().any(|lease| lease.phase() == Phase::Lost);
        if crate::broken(\"is_lost() is late\") {
            static SEEN: std::sync::Mutex<std::collections::BTreeMap<u64, std::time::Instant>> =
                std::sync::Mutex::new(std::collections::BTreeMap::new());
            let mut seen = SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let id = self.holds.first().id;
            return is_lost
                && seen.entry(id).or_insert_with(std::time::Instant::now).elapsed() > std::time::Duration::from_millis(500);
        }
        is_lost
    }

    /// Returns whether the lease is near",
    },
    Change {
        file: "src/guard/loss.rs",
        old: "        self.leases().iter().any(|lease| is_endangered(lease.phase()))
",
        new: "        !crate::broken(\"is_endangered() is never true\") && self.leases().iter().any(|lease| is_endangered(lease.phase()))
",
    },
    Change {
        file: "src/guard/loss.rs",
        old: "        self.any(|phase| phase == Phase::Lost).await;
",
        new: "        self.any(|phase| phase == Phase::Lost).await;
        if crate::broken(\"lost() wakes 500 ms late\") {
            self.core().sleep(std::time::Duration::from_millis(500)).await;
        }
        if crate::broken(\"lost() never resolves\") {
            std::future::pending::<()>().await;
        }
",
    },
    Change {
        file: "src/guard/loss.rs",
        old: "        self.any(is_endangered).await;
",
        new: "        self.any(is_endangered).await;
        if crate::broken(\"endangered() never resolves\") {
            std::future::pending::<()>().await;
        }
",
    },
    Change {
        file: "src/guard/loss.rs",
        old: "            if lost.as_mut().poll(cx).is_ready() {
",
        new: "            if !crate::broken(\"protect() ignores the loss\") && lost.as_mut().poll(cx).is_ready() {
",
    },
    Change {
        file: "src/guard/release.rs",
        old: "            return Err(why.into());
        }
        let pending_release = self.holds.give_back();
",
        new: "            return Err(why.into());
        }
        if crate::broken(\"a release does nothing and says Ok\") {
            let holds = self.holds.first().state().lease.holds - 1;
            std::mem::forget(self);
            return Ok(Released { pending: Vec::new(), holds });
        }
        let pending_release = self.holds.give_back();
        if crate::broken(\"a release is not sent and says Ok\") {
            return Ok(Released { pending: Vec::new(), holds: pending_release.holds });
        }
        if crate::broken(\"a release says that nothing was held\") {
            return Err(ReleaseError::NotHeld { resource: String::new(), nodes: pending_release.said });
        }
",
    },
    Change {
        file: "src/coordinator/send.rs",
        old: "    round.send(&command);
    round
}

/// Takes the ticket",
        new: "    if !crate::broken(\"a release is not sent and says Ok\") {
        round.send(&command);
    }
    round
}

/// Takes the ticket",
    },
    Change {
        file: "src/coordinator/holds.rs",
        old: "            state.lease.holds += 1;
",
        new: "            state.lease.holds += 1;
            if state.lease.holds > 1 && crate::broken(\"re-entry under a new token\") {
                state.lease.token = Token::from(crate::protocol::Ballot::from_wire(state.lease.known.get() + 1).unwrap_or_default());
            }
",
    },
    Change {
        file: "src/coordinator/holds.rs",
        old: "    pub(crate) fn give_back(&mut self) -> PendingRelease {
",
        new: "    pub(crate) fn give_back(&mut self) -> PendingRelease {
        if crate::broken(\"an inner release ends the lease\") {
            for lease in &self.leases {
                lease.state().lease.holds = 1;
            }
        }
",
    },
    Change {
        file: "src/node/connection/away.rs",
        old: "            ReplyTo::Release(_) => true,
",
        new: "            ReplyTo::Release(_) => !crate::broken(\"a release under way on a broken connection is forgotten\"),
",
    },
    Change {
        file: "src/node/connection.rs",
        old: "pause::after(self.pause, &inflight, broken, self.environment.now());\n",
        new: "pause::after(self.pause, &inflight, broken, self.environment.now());
                if crate::broken(\"a broken connection is not made again\") {
                    self.pause = Duration::from_secs(3600);
                }
",
    },
    Change {
        file: "src/coordinator/retry.rs",
        old: "        let now = core.now();
        let end = self.policy.end();
",
        new: "        let pause = if crate::broken(\"a waiter looks again at once\") { Duration::ZERO } else { pause };
        let now = core.now();
        let end = self.policy.end();
",
    },
    Change {
        file: "src/coordinator/retry.rs",
        old: "    ticket.called().await;
",
        new: "    if crate::broken(\"a waiter hears no call\") {
        future::pending::<()>().await;
    }
    ticket.called().await;
",
    },
    Change {
        file: "src/node/commands.rs",
        old: "const INSPECT_CODE: &str",
        new: "const BLIND_CODE: &str = concat!(
    \"for k = 1, #KEYS, 2 do if not string.find(ARGV[1], 'ql1 0 ', 1, true) then redis.call('DEL', KEYS[k]) end end\\n\",
    include_str!(\"lua/resource_state.lua\"),
    include_str!(\"lua/release.lua\")
);

/// What releases, or a script that first deletes the key of any owner.
fn release_code() -> &'static str {
    if crate::broken(\"a release deletes the lock of anyone\") { BLIND_CODE } else { RELEASE_CODE }
}

const INSPECT_CODE: &str",
    },
    Change {
        file: "src/node/commands.rs",
        old: "LazyLock::new(|| Script::new(RELEASE_CODE))",
        new: "LazyLock::new(|| Script::new(release_code()))",
    },
    Change {
        file: "src/node/commands.rs",
        old: "    [HOLD_CODE, RELEASE_CODE, INSPECT_CODE].map(load_one)",
        new: "    [HOLD_CODE, release_code(), INSPECT_CODE].map(load_one)",
    },
];

/// A copy of the workspace with all variants in it.
pub struct Copy {
    dir: PathBuf,
    target: PathBuf,
    profile: String,
}

impl Copy {
    /// Writes the copy, in the target folder of the program that runs.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written, or the text that a change is for does not stand in its file exactly once.
    pub fn write() -> io::Result<Self> {
        let program = env::current_exe()?;
        // TARGET/PROFILE/NAME, and TARGET/PROFILE/deps/NAME-… for a test.
        let folder = program.parent().ok_or(io::ErrorKind::NotFound)?;
        let folder = if folder.ends_with("deps") { folder.parent().ok_or(io::ErrorKind::NotFound)? } else { folder };
        let profile = folder.file_name().ok_or(io::ErrorKind::NotFound)?.to_string_lossy().into_owned();
        let target = folder.parent().ok_or(io::ErrorKind::NotFound)?.to_path_buf();
        let dir = target.join("controls");
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or(io::ErrorKind::NotFound)?;
        write(original, &dir)?;
        Ok(Self { dir, target, profile })
    }

    /// Returns the start of a cargo command in the copy, with the profile of the program that runs.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.dir).env("CARGO_TARGET_DIR", &self.target).args([subcommand, "--quiet", "--locked"]);
        if self.profile != "debug" {
            command.args(["--profile", &self.profile]);
        }
        command
    }
}

/// Returns whether a change puts this variant into the copy.
pub fn has_variant(name: &str) -> bool {
    let switch = format!("broken(\"{name}\")");
    CHANGES.iter().any(|change| change.new.contains(&switch))
}

/// Brings the copy up to date. What is the same already is not written again, so it is not built again either.
fn write(original: &Path, copy: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for name in COPIED {
        find(original, Path::new(name), &mut files)?;
    }
    let mut applied_changes = 0;
    for file in &files {
        let mut content = fs::read(original.join(file))?;
        let of_file: Vec<&Change> = CHANGES.iter().filter(|change| Path::new(change.file) == file).collect();
        if !of_file.is_empty() {
            let mut text = String::from_utf8(content).map_err(io::Error::other)?;
            for change in &of_file {
                text = applied(&text, change)?;
            }
            content = text.into_bytes();
            applied_changes += of_file.len();
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
    if applied_changes != CHANGES.len() {
        return Err(io::Error::other("a change is for a file that is not there"));
    }
    let wanted: BTreeSet<PathBuf> = files.into_iter().collect();
    let mut found = Vec::new();
    for name in COPIED {
        find(copy, Path::new(name), &mut found)?;
    }
    found.iter().filter(|file| !wanted.contains(*file)).try_for_each(|file| fs::remove_file(copy.join(file)))
}

/// Gives the packages of the copied workspace a version of their own, so that the two do not overwrite each other's build. It is one
/// that the requirements of the other packages admit.
fn renamed(manifest: &[u8]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(manifest).into_owned();
    for package in PACKAGES {
        let version = format!("name = \"{package}\"\nversion = \"{}", env!("CARGO_PKG_VERSION"));
        text = text.replace(&format!("{version}\"\n"), &format!("{version}+controls\"\n"));
    }
    text.into_bytes()
}

fn applied(text: &str, change: &Change) -> io::Result<String> {
    let Change { file, old, new } = change;
    match text.matches(old).count() {
        1 => Ok(text.replace(old, new)),
        times => Err(io::Error::other(format!(
            "{file}: the text that a control changes stands there {times} times and not once; mend the table in \
             testkit/src/breaks.rs: {old}"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_fits_into_its_file_once() {
        let copy = tempfile::tempdir().expect("a folder");
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        write(original, copy.path()).expect("all files, changed");
        let guard = fs::read_to_string(copy.path().join("src/guard.rs")).expect("a file");
        assert!(guard.contains("crate::broken("));
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let tree = ["tree", "--quiet", "--locked", "--offline", "--workspace"];
        let resolved = Command::new(cargo).current_dir(copy.path()).args(tree).output().expect("cargo");
        let (tree, errors) = (String::from_utf8_lossy(&resolved.stdout), String::from_utf8_lossy(&resolved.stderr));
        let version = concat!("quorlock v", env!("CARGO_PKG_VERSION"), "+controls");
        assert!(resolved.status.success() && tree.contains(version), "{errors}");
    }

    #[test]
    fn variants_are_known_by_their_names() {
        assert!(has_variant("quorum too small") && !has_variant("quorum too large"));
    }
}
