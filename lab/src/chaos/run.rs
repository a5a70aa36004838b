//! A run from its beginning to its report.

mod program;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use quorlock_testkit::clock::Shim;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::conductor::Conductor;
use super::fault::Fault;
use super::history::{Ending, Event, What};
use super::interrupts::Interrupts;
use super::ledger::{Audit, Entry, Place, StoreThread};
use super::nodes::Nodes;
use super::options::{Options, new_file};
use super::outcome::{self, Outcome};
use super::plan::{Plan, Settings};
use super::progress::{Progress, named};
use super::stalls;
use super::worker::{CALM, Job};
use super::workers::{WorkerReport, Workers};
use crate::exit::{Exit, Failure, ended_by};

pub const LOCKS: usize = 3;
/// The number of accounts, so small that any two transfers have one in common.
pub const ACCOUNTS: usize = 3;
/// The number of concurrent tasks of each worker.
const TASKS: u64 = 2;

/// Workers' leases, in hundredths of the longest one.
const LEASE_SHARES: [u64; 3] = [100, 75, 50];

const STARTING: Duration = Duration::from_secs(30);
const CALMING: Duration = Duration::from_secs(120);
/// The delay between the effect of a signal on other processes of the group and its receipt here.
const INTERRUPTING: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The raw result of a run, before the checks.
pub struct Raw {
    pub settings: Settings,
    pub plan: Plan,
    pub events: Vec<Event>,
    pub commands: u64,
    /// `None` when the database could not be read.
    pub audit: Option<Audit>,
    /// Faults that were too late to be carried out.
    pub skipped: Vec<Fault>,
    /// How the program ended that was tested.
    pub ending: Option<Ending>,
    /// Errors that no fault explains.
    pub problems: Vec<String>,
    /// The signal that ended it early.
    pub interrupted: Option<Signal>,
    /// Why no clock was set.
    pub no_clocks: Option<String>,
    pub elapsed: Duration,
}

pub async fn run(options: &Options) -> Result<u8, Failure> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(Exit::NotRunnable, format!("chaos (seed {}): {error}", options.seed))
    };
    let raw = Box::pin(Run::perform(options)).await;
    if raw.is_err() {
        // Only an empty folder is removed: a run that did not begin leaves nothing.
        let _ = fs::remove_dir(&options.out);
    }
    let raw = raw.map_err(failed)?;
    let outcome = Outcome::of(options, &raw);
    outcome::write(options, &raw, &outcome).map_err(|error| failed(error.into()))?;
    Ok(raw.interrupted.map_or(outcome.code(), |signal| ended_by(signal.as_raw())))
}

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Run<'a> {
    options: &'a Options,
    progress: Progress,
    conductor: Arc<Conductor>,
    reports: mpsc::UnboundedReceiver<WorkerReport>,
    history: BufWriter<fs::File>,
    events: Vec<Event>,
    ending: Option<Ending>,
    problems: Vec<String>,
    interrupts: Interrupts,
    interrupted: Option<Signal>,
}

impl<'a> Run<'a> {
    async fn perform(options: &'a Options) -> Result<Raw, Error> {
        let interrupts = Interrupts::register()?;
        let dir = tempfile::Builder::new().prefix("quorlock-chaos-").tempdir()?;
        let no_clocks = why_no_clocks(dir.path()).await;
        let settings = Settings {
            seed: options.seed,
            nodes: options.nodes,
            workers: options.workers,
            lease: options.lease_ms(),
            lasts: options.lasts_ms(),
            clocks: no_clocks.is_none(),
        };
        let plan = Plan::new(&settings);
        let place = ledger_place(options, dir.path());
        let ledger = StoreThread::open(place.clone()).await.map_err(no_ledger)?;
        ledger.ask(|store| store.create(ACCOUNTS)).await.map_err(no_ledger)?;
        let begun = Self::begin(options, &settings, &plan, &place, dir.path(), no_clocks.as_deref(), interrupts).await;
        let done = match begun {
            Ok(mut run) => {
                let mut done = run.carry_out(&plan).await;
                // Ctrl-C reaches the whole process group: servers and workers may end before it is received here.
                if done.is_err()
                    && let Ok(signal) = tokio::time::timeout(INTERRUPTING, run.interrupts.next()).await
                {
                    run.interrupted = Some(signal);
                    done = Ok((Vec::new(), run.progress.elapsed()));
                }
                run.conductor.workers.dismiss().await;
                run.conductor.nodes.stop();
                done.map(|skipped| (run, skipped))
            }
            Err(error) => Err(error),
        };
        let audited = ledger.ask(|store| store.audit()).await;
        let removed = ledger.ask(|store| store.remove()).await;
        let (mut run, (skipped, elapsed)) = done?;
        run.drain();
        run.progress.end();
        run.history.flush()?;
        if let Err(error) = &audited {
            run.problems.push(format!("the ledger cannot be read: {error}"));
        }
        if let Err(error) = removed {
            run.problems.push(format!("the ledger's tables are left: {error}"));
        }
        let audit = audited.ok().map(|(balances, journal): (Vec<i64>, Vec<Entry>)| Audit::of(&balances, &journal));
        Ok(Raw {
            settings,
            plan,
            commands: run.conductor.nodes.commands(),
            events: run.events,
            audit,
            skipped,
            ending: run.ending,
            problems: run.problems,
            interrupted: run.interrupted,
            no_clocks,
            elapsed,
        })
    }

    async fn begin(
        options: &'a Options,
        settings: &Settings,
        plan: &Plan,
        place: &Place,
        dir: &std::path::Path,
        no_clocks: Option<&str>,
        interrupts: Interrupts,
    ) -> Result<Self, Error> {
        let counted = if options.program.is_empty() { "grants" } else { "lines of output" };
        let progress = Progress::new(options.quiet, options.lasts, counted);
        progress.say(&format!(
            "chaos with seed {} on {} nodes; to repeat: {}",
            options.seed,
            options.nodes,
            options.command()
        ));
        if let Some(why) = no_clocks {
            progress.say(&format!("no clock will be touched: {why}"));
        }
        let nodes = Nodes::start(dir, &plan.durable, options.workers, settings.lease, settings.clocks).await?;
        let (sender, reports) = mpsc::unbounded_channel();
        let job = |worker: usize| Job {
            worker,
            life: 0,
            nodes: nodes.urls(worker),
            lease: settings.lease * LEASE_SHARES[worker % LEASE_SHARES.len()] / 100,
            longest_lease: settings.lease,
            seed: settings.seed,
            tasks: TASKS,
            locks: LOCKS,
            accounts: ACCOUNTS,
            fencing: options.fencing,
        };
        let jobs = (0..options.workers).map(job).collect();
        let workers = Workers::new(jobs, place.clone(), sender.clone());
        let [own, servers] = [(); 2].map(|()| sender.clone());
        tokio::spawn(stalls::watch_runtime(0, move |stall| own.send(WorkerReport::Event(stall)).is_ok()));
        stalls::watch(0, nodes.pids(), move |stall| servers.send(WorkerReport::Event(stall)).is_ok());
        let history = BufWriter::new(new_file(&options.out.join("history.jsonl"))?);
        let run = Self {
            options,
            progress,
            conductor: Arc::new(Conductor::new(nodes, workers, sender, settings.lease)),
            reports,
            history,
            events: Vec::new(),
            ending: None,
            problems: Vec::new(),
            interrupts,
            interrupted: None,
        };
        for worker in 0..options.workers {
            run.conductor.workers.start(worker).await?;
        }
        Ok(run)
    }

    /// Runs the faults, and the calm after them. Returns the faults that were left out, and how long there were faults.
    async fn carry_out(&mut self, plan: &Plan) -> Result<(Vec<Fault>, Duration), Error> {
        if !self.options.program.is_empty() {
            return self.carry_out_program(plan).await;
        }
        let workers = self.options.workers;
        self.until(STARTING, "all workers are there", |what| matches!(what, What::Up { .. }), workers).await?;
        let start = Instant::now();
        let mut playing = self.conductor.play(&plan.faults);
        let mut skipped = Vec::new();
        self.watch(start + self.options.lasts, &mut playing, &mut skipped).await?;
        // A fault that waited for its worker ends a little later than planned.
        self.end_faults(&mut playing, &mut skipped).await?;
        let elapsed = start.elapsed();
        if self.interrupted.is_none() {
            self.calm_down(plan).await?;
        }
        Ok((skipped, elapsed))
    }

    /// Waits for the end of all faults that have begun or are to begin.
    async fn end_faults(
        &mut self,
        playing: &mut JoinSet<io::Result<Option<Fault>>>,
        skipped: &mut Vec<Fault>,
    ) -> Result<(), Error> {
        while self.interrupted.is_none() && !playing.is_empty() {
            self.watch(Instant::now() + LOOK_EVERY, playing, skipped).await?;
        }
        playing.shutdown().await;
        Ok(())
    }

    /// Collects events until then.
    async fn watch(
        &mut self,
        until: Instant,
        playing: &mut JoinSet<io::Result<Option<Fault>>>,
        skipped: &mut Vec<Fault>,
    ) -> Result<(), Error> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        while self.interrupted.is_none() {
            tokio::select! {
                biased;
                signal = self.interrupts.next() => self.interrupted = Some(signal),
                Some(report) = self.reports.recv() => self.take(report).await?,
                Some(played) = playing.join_next(), if !playing.is_empty() => skipped.extend(played??),
                _ = looks.tick() => {
                    self.progress.draw();
                    let conductor = Arc::clone(&self.conductor);
                    tokio::spawn(async move { conductor.count_commands().await });
                }
                () = sleep_until(until) => return Ok(()),
            }
        }
        Ok(())
    }

    /// The phase after all faults: every lock must be available, and at the end no node may have a lock key.
    async fn calm_down(&mut self, plan: &Plan) -> Result<(), Error> {
        self.wait(self.longest_tail(plan)).await?;
        self.conductor.workers.say(CALM).await;
        let workers = self.options.workers;
        self.until(
            CALMING,
            "every worker has acquired every lock again",
            |what| matches!(what, What::Calm { .. }),
            workers,
        )
        .await?;
        // Every name was requested on every node since the last clock step, so no key lives longer.
        self.scan_after_a_lease().await
    }

    /// Returns for how long the effects of faults may outlast them.
    fn longest_tail(&self, plan: &Plan) -> Duration {
        let lease = self.options.lease_ms();
        Duration::from_millis(plan.faults.iter().map(|fault| fault.tail(lease)).max().unwrap_or(0))
    }

    /// Reads the lock keys of all nodes when no key may be left.
    async fn scan_after_a_lease(&mut self) -> Result<(), Error> {
        self.wait(self.options.lease + self.options.lease / 50).await?;
        if self.interrupted.is_some() {
            return Ok(());
        }
        self.conductor.count_commands().await;
        for (node, found) in self.conductor.nodes.scan(&self.options.prefix).await.into_iter().enumerate() {
            match found {
                Ok(keys) => self.conductor.say(What::Scan { node, keys }),
                Err(error) => self.problems.push(format!("node {} cannot be scanned: {error}", node + 1)),
            }
        }
        Ok(())
    }

    async fn wait(&mut self, time: Duration) -> Result<(), Error> {
        self.watch(Instant::now() + time, &mut JoinSet::new(), &mut Vec::new()).await
    }

    /// Collects until this number of events of a kind has arrived.
    async fn until(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&What) -> bool,
        times: usize,
    ) -> Result<(), Error> {
        let limit = Instant::now() + limit;
        let mut left = times;
        while left > 0 && self.interrupted.is_none() {
            tokio::select! {
                signal = self.interrupts.next() => self.interrupted = Some(signal),
                Some(report) = self.reports.recv() => {
                    if matches!(&report, WorkerReport::Event(event) if wanted(&event.what)) {
                        left -= 1;
                    }
                    self.take(report).await?;
                }
                () = sleep_until(limit) => return Err(format!("it is not so that {what}; {left} of {times} are missing").into()),
            }
        }
        Ok(())
    }

    async fn take(&mut self, report: WorkerReport) -> Result<(), Error> {
        match report {
            WorkerReport::Event(event) => Ok(self.keep(event)?),
            WorkerReport::Ended { worker, life } if self.conductor.workers.was_ended(worker, life).await => Ok(()),
            WorkerReport::Ended { .. } if self.interrupted.is_some() => Ok(()),
            WorkerReport::Ended { worker, .. } => {
                Err(format!("worker {} ended by itself (see above)", worker + 1).into())
            }
        }
    }

    fn keep(&mut self, event: Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.history, &event)?;
        self.history.write_all(b"\n")?;
        self.progress.note(&event.what);
        self.events.push(event);
        Ok(())
    }

    /// Drains events that were sent but not received yet.
    fn drain(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            if let WorkerReport::Event(event) = report
                && let Err(error) = self.keep(event)
            {
                self.problems.push(format!("the history is not complete: {error}"));
                return;
            }
        }
    }
}

/// Compiles the library for clocks into this folder, and tries it.
async fn why_no_clocks(dir: &std::path::Path) -> Option<String> {
    let dir = dir.to_owned();
    let tried = tokio::task::spawn_blocking(move || {
        let shim = Shim::build(&dir).map_err(|error| {
            format!("the clock library could not be compiled ({error}); that needs a C compiler, as `cc` on PATH")
        })?;
        shim.prove().map_err(|error| error.to_string())
    });
    tried.await.map_err(|error| error.to_string()).and_then(|tried| tried).err()
}

fn ledger_place(options: &Options, dir: &std::path::Path) -> Place {
    match &options.postgres {
        // A schema of the run's own: other programs may use the database at the same time.
        Some(url) => {
            let schema = format!("quorlock_chaos_{}_{}", options.seed, std::process::id());
            Place::Postgres { url: url.clone(), schema }
        }
        None => Place::Sqlite(dir.join("ledger.sqlite")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn no_ledger(error: Error) -> Error {
    format!("the ledger cannot be made: {error}").into()
}

/// Returns the description of a fault that was left out.
pub fn left_out(fault: &Fault) -> String {
    format!("{} at {} ms", named(fault.kind, &fault.nodes, fault.worker), fault.at)
}
