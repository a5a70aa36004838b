//! A run whose work is done by a program of the user's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Error, Run};
use crate::chaos::conductor::Conductor;
use crate::chaos::fault::Fault;
use crate::chaos::history::{What, now};
use crate::chaos::plan::Plan;
use crate::chaos::program::Program;
use crate::chaos::sight;
use crate::messages::shown;

/// How long the program may take to end after SIGTERM, when the time is over and when the run is interrupted.
const GRACE: Duration = Duration::from_secs(10);
const SHORT_GRACE: Duration = Duration::from_secs(2);

/// The time between two readings of the nodes.
const BETWEEN_SIGHTS: Duration = Duration::from_millis(100);

impl Run<'_> {
    /// Runs the faults beside the program. Returns the faults that were left out, and how long there were faults.
    pub(super) async fn carry_out_program(&mut self, plan: &Plan) -> Result<(Vec<Fault>, Duration), Error> {
        let command = &self.options.program;
        let (urls, reports) = (self.conductor.nodes.urls(0), self.conductor.reports.clone());
        self.conductor.say(What::Start);
        let mut program = Program::start(command, &urls, &reports)
            .map_err(|error| format!("{} cannot be run: {error}", shown(&command[0])))?;
        let longest = Arc::new(AtomicU64::new(0));
        let mut looking = JoinSet::new();
        looking.spawn(look(Arc::clone(&self.conductor), self.options.prefix.clone(), Arc::clone(&longest)));
        let done = self.accompany(&mut program, plan).await;
        // Nothing of it may be left, also after an error.
        program.end(Duration::ZERO).await?;
        looking.shutdown().await;
        self.check_leases(longest.load(Ordering::Relaxed));
        done
    }

    async fn accompany(&mut self, program: &mut Program, plan: &Plan) -> Result<(Vec<Fault>, Duration), Error> {
        let start = Instant::now();
        let (mut playing, mut skipped) = (self.conductor.play(&plan.faults), Vec::new());
        tokio::select! {
            ended = program.wait() => ended?,
            watched = self.watch(start + self.options.lasts, &mut playing, &mut skipped) => watched?,
        }
        self.conductor.close();
        let grace = if self.interrupted.is_some() { SHORT_GRACE } else { GRACE };
        let ended = tokio::select! {
            ended = program.end(grace) => Some(ended?),
            // It returns before the end of the program only when the run is interrupted.
            watched = self.watch(Instant::now() + 2 * GRACE, &mut playing, &mut skipped), if self.interrupted.is_none() => {
                watched?;
                None
            }
        };
        let ending = match ended {
            Some(ending) => ending,
            None => program.end(SHORT_GRACE).await?,
        };
        self.ending = Some(ending);
        self.conductor.say(What::Exit(ending));
        self.end_faults(&mut playing, &mut skipped).await?;
        let elapsed = start.elapsed();
        self.wait(self.longest_tail(plan)).await?;
        self.scan_after_a_lease().await?;
        Ok((skipped, elapsed))
    }

    /// The plan of the faults holds for leases up to --lease.
    fn check_leases(&mut self, longest: u64) {
        if longest > self.options.lease_ms() {
            self.problems.push(format!(
                "the program uses leases of {longest} ms, and the faults were planned for {} ms at most: run again with \
                 --lease {longest}ms",
                self.options.lease_ms()
            ));
        }
    }
}

/// Reads the nodes again and again, and reports what has changed.
async fn look(conductor: Arc<Conductor>, prefix: String, longest: Arc<AtomicU64>) {
    let mut known = Vec::new();
    loop {
        let from = now();
        let views = conductor.nodes.look(&prefix).await;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        longest.fetch_max(views.iter().flatten().map(|view| view.longest).max().unwrap_or(0), Ordering::Relaxed);
        let nodes = sight::changes(&mut known, views);
        if !nodes.is_empty() {
            conductor.say(What::Sight { from, wall, nodes });
        }
        sleep(BETWEEN_SIGHTS).await;
    }
}
