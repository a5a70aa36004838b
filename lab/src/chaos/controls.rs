//! Negative controls: the client is broken in one place, and a run must detect that by an expected invariant.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use quorlock_testkit::breaks::{Copy, VARIANT_VARIABLE};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::code;
use super::interrupts::Interrupts;
use super::options::Flags;
use crate::exit::{Exit, Failure, ended_by};
use crate::messages::Verbosity;

mod table;

use table::{ALL, Control};

/// How long each run has faults.
const LASTS: Duration = Duration::from_secs(60);
/// The first seed. Each control has the next one.
const SEED: u64 = 100;
const NODES: [usize; 2] = [3, 5];
/// A run takes a tenth of a processor, and waits for the rest of the time.
const RUNS_PER_PROCESSOR: usize = 4;

/// The verdict of a run without a violation.
const HELD: &str = "held";
const RESULTS: &str = "results.json";

/// A run of one control on one number of nodes.
#[derive(Clone, Copy)]
struct Trial {
    control: &'static Control,
    nodes: usize,
    seed: u64,
}

/// The result of a trial.
enum Judged {
    /// The invariants that were violated, the first one first, with seconds and checks until then.
    Violated(Vec<(String, f64, u64)>),
    /// Nothing was violated; the verdict of the run.
    Held(String),
    /// The run was not carried out; its last message.
    Failed(String),
}

pub fn run(flags: &Flags) -> Result<u8, Failure> {
    if !ALL.iter().any(|control| is_chosen(control, flags)) {
        let only = &flags.controls.only;
        return Err(Failure::new(Exit::Usage, format!("--only: no broken client's name has {only:?} in it")));
    }
    let failed = |error: io::Error| Failure::new(Exit::NotRunnable, format!("chaos --controls: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(try_all(flags)).map_err(failed)
}

async fn try_all(flags: &Flags) -> io::Result<u8> {
    let mut interrupts = Interrupts::register()?;
    let trials = trials(flags);
    let say = |text: &str| if flags.is_quiet() { Verbosity::Quiet } else { Verbosity::Normal }.notice(text);
    say("building a copy of this repository with broken clients in it");
    let program = tokio::task::spawn_blocking(build).await.map_err(io::Error::other)??;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let at_once = flags.controls.at_a_time.unwrap_or(RUNS_PER_PROCESSOR * processors).max(1);
    let dir = tempfile::Builder::new().prefix("quorlock-controls-").tempdir()?;
    say(&format!("{} runs, {at_once} at a time, in {}", trials.len(), dir.path().display()));
    let (interrupted, interruption) = watch::channel(None);
    let places = Arc::new(Semaphore::new(at_once));
    let mut running = JoinSet::new();
    for (index, trial) in trials.iter().copied().enumerate() {
        let (places, program, out) = (Arc::clone(&places), program.clone(), dir.path().join(index.to_string()));
        let (lasts, interruption) = (flags.lasts.unwrap_or(LASTS), interruption.clone());
        running.spawn(async move {
            let _place = places.acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((index, trial.judged(&program, lasts, &out, interruption).await?))
        });
    }
    let mut results: Vec<Option<Judged>> = trials.iter().map(|_| None).collect();
    loop {
        tokio::select! {
            signal = interrupts.next() => drop(interrupted.send_replace(Some(signal))),
            done = running.join_next() => {
                let Some(done) = done else { break };
                let (index, judged) = done.map_err(io::Error::other)??;
                let Trial { control, nodes, .. } = trials[index];
                say(&format!("{}, {nodes} nodes: {}", control.name, judged.text()));
                results[index] = Some(judged);
            }
        }
    }
    let signal: Option<Signal> = *interrupted.borrow();
    if let Some(signal) = signal {
        return Ok(ended_by(signal.as_raw()));
    }
    let (table, is_sound) = report(flags, &trials, &results);
    print!("{table}");
    Ok(if is_sound { Exit::Success.code() } else { code::NOT_CAUGHT })
}

/// Builds the copy. Returns its program.
fn build() -> io::Result<PathBuf> {
    let mut command = Copy::write()?.cargo("build");
    command.args([
        "-p",
        "quorlock-lab",
        "--bin",
        "quorlock-lab-controls",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let built = command.stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8_lossy(&built.stdout);
    let mut parsed = messages.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executable = parsed.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let executable = executable.filter(|_| built.status.success());
    executable.ok_or_else(|| io::Error::other("the copy with the broken clients was not built (see above)"))
}

fn trials(flags: &Flags) -> Vec<Trial> {
    let first = flags.seed.unwrap_or(SEED);
    let chosen = ALL.iter().zip(first..).filter(|(control, _)| is_chosen(control, flags) && control.beyond.is_none());
    let nodes: Vec<usize> = flags.nodes_count.map_or_else(|| NODES.to_vec(), |nodes| vec![nodes]);
    chosen
        .flat_map(|(control, seed)| {
            nodes.iter().map(move |nodes| Trial { control, nodes: *nodes, seed }).collect::<Vec<_>>()
        })
        .collect()
}

fn is_chosen(control: &Control, flags: &Flags) -> bool {
    control.name.contains(&flags.controls.only)
}

impl Trial {
    async fn judged(
        self,
        program: &Path,
        lasts: Duration,
        out: &Path,
        mut interruption: watch::Receiver<Option<Signal>>,
    ) -> io::Result<Judged> {
        if interruption.borrow().is_some() {
            return Ok(Judged::Failed("interrupted".to_owned()));
        }
        let spawned = Command::new(program)
            .args(["chaos", "--quiet", "--for", &humantime::format_duration(lasts).to_string()])
            .args(["--seed", &self.seed.to_string(), "--nodes-count", &self.nodes.to_string(), "--out"])
            .arg(out)
            .env(VARIANT_VARIABLE, self.control.variant())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        // The others go on: killed, they would leave their servers.
        let child = match spawned {
            Ok(child) => child,
            Err(error) => return Ok(Judged::Failed(error.to_string())),
        };
        let pid = pid(&child);
        let ended = child.wait_with_output();
        let mut ended = std::pin::pin!(ended);
        let output = tokio::select! {
            output = &mut ended => output?,
            signal = signalled(&mut interruption) => {
                if let (Some(pid), Some(signal)) = (pid, signal) {
                    // It has ended, or ends by the signal that the whole group has got.
                    let _ = kill_process(pid, signal);
                }
                ended.await?
            }
        };
        let results = std::fs::read(out.join(RESULTS)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Some(results) = results else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Ok(Judged::Failed(said.trim().lines().last().unwrap_or("no message").to_owned()));
        };
        Ok(Judged::of(&results))
    }
}

async fn signalled(interruption: &mut watch::Receiver<Option<Signal>>) -> Option<Signal> {
    interruption.wait_for(Option::is_some).await.ok().and_then(|signal| *signal)
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
}

impl Judged {
    fn of(results: &Value) -> Self {
        let invariants = results["invariants"].as_object().into_iter().flatten();
        let mut violated: Vec<(String, f64, u64)> = invariants
            .filter(|(_, verdict)| verdict["verdict"] == "violated")
            .map(|(name, verdict)| {
                let first = &verdict["first"];
                (name.clone(), first["seconds"].as_f64().unwrap_or(0.0), first["checks"].as_u64().unwrap_or(0))
            })
            .collect();
        violated.sort_by(|a, b| a.1.total_cmp(&b.1));
        if violated.is_empty() {
            return Self::Held(results["verdict"].as_str().unwrap_or_default().to_owned());
        }
        Self::Violated(violated)
    }

    /// Returns whether one of the expected invariants was violated.
    fn is_caught(&self, control: &Control) -> bool {
        match self {
            Self::Violated(violated) => violated.iter().any(|(name, ..)| control.by.contains(&name.as_str())),
            Self::Held(_) | Self::Failed(_) => false,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Violated(violated) => {
                let one = |(name, seconds, checks): &(String, f64, u64)| format!("{name} ({seconds:.1} s, {checks})");
                violated.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            Self::Held(verdict) if verdict == HELD => "nothing violated".to_owned(),
            Self::Held(verdict) => format!("nothing violated, but {verdict}"),
            Self::Failed(why) => format!("the run failed: {why}"),
        }
    }
}

/// Returns the table, and whether every control was judged as expected.
fn report(flags: &Flags, trials: &[Trial], results: &[Option<Judged>]) -> (String, bool) {
    let mut nodes: Vec<usize> = trials.iter().map(|trial| trial.nodes).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let mut text = String::from("| broken |");
    let mut is_sound = true;
    for nodes in &nodes {
        let _ = write!(text, " {nodes} nodes |"); // A string takes everything.
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(nodes.len()));
    for row in trials.iter().zip(results).collect::<Vec<_>>().chunks(nodes.len().max(1)) {
        let Some((Trial { control, .. }, _)) = row.first() else { continue };
        let _ = write!(text, "\n| {} |", control.name);
        for (_, judged) in row {
            let Some(judged) = judged else { continue };
            let is_expected = match judged {
                // The shipped client.
                Judged::Held(verdict) => control.by.is_empty() && verdict == HELD,
                judged => judged.is_caught(control),
            };
            is_sound &= is_expected;
            let _ = write!(text, " {}{} |", if is_expected { "" } else { "**not as expected:** " }, judged.text());
        }
    }
    for Control { name, beyond, .. } in ALL.iter().filter(|control| is_chosen(control, flags)) {
        if let Some(why) = beyond {
            let _ = write!(text, "\n| {name} | out of reach: {why} |{}", " |".repeat(nodes.len().saturating_sub(1)));
        }
    }
    text.push('\n');
    (text, is_sound)
}

#[cfg(test)]
mod tests {
    use quorlock_testkit::breaks::has_variant;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_control_has_its_change() {
        for control in ALL.iter().filter(|control| !control.variant().is_empty()) {
            assert!(has_variant(control.variant()), "{}", control.name);
            assert!(control.by.is_empty() == control.beyond.is_some(), "{}", control.name);
        }
    }

    #[test]
    fn only_an_expected_invariant_catches() {
        let control = Control { name: "late", by: &["LossOnTime"], beyond: None };
        let results = |name: &str| json!({ "invariants": { name: { "verdict": "violated", "first": { "seconds": 2.0, "checks": 7 } } } });
        assert!(Judged::of(&results("LossOnTime")).is_caught(&control));
        assert!(!Judged::of(&results("NoStorm")).is_caught(&control));
        let held = json!({ "invariants": { "LossOnTime": { "verdict": "held" } } });
        assert!(!Judged::of(&held).is_caught(&control));
        assert_eq!(Judged::of(&results("NoStorm")).text(), "NoStorm (2.0 s, 7)");
    }
}
