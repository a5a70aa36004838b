//! Carries out the plan, and collects what happens.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::fault::{Fault, Kind};
use super::history::{Event, What, now};
use super::node::CLIENT_PAUSE_MORE_MS;
use super::nodes::Nodes;
use super::plan::apart;
use super::workers::{WorkerReport, Workers};

/// A fault that is later than planned by this much is left out: the limits of the plan hold for its own times.
const LATEST: Duration = Duration::from_millis(250);

pub struct Conductor {
    pub nodes: Nodes,
    pub workers: Workers,
    pub reports: mpsc::UnboundedSender<WorkerReport>,
    /// ms.
    lease: u64,
    /// One for each worker: a fault of its process holds it from beginning to end.
    alone: Vec<tokio::sync::Mutex<()>>,
    /// When the last fault that makes a node lose its memory ended.
    forgot: Mutex<Option<Instant>>,
    /// Whether no further fault begins.
    closed: watch::Sender<bool>,
}

impl Conductor {
    pub fn new(nodes: Nodes, workers: Workers, reports: mpsc::UnboundedSender<WorkerReport>, lease: u64) -> Self {
        let alone = (0..workers.count()).map(|_| tokio::sync::Mutex::default()).collect();
        Self { nodes, workers, reports, lease, alone, forgot: Mutex::default(), closed: watch::Sender::new(false) }
    }

    /// Starts to carry out these faults. Each runs in its own task, which returns the fault if it could not be done as
    /// planned.
    pub fn play(self: &Arc<Self>, faults: &[Fault]) -> JoinSet<io::Result<Option<Fault>>> {
        let mut playing = JoinSet::new();
        let start = Instant::now();
        for fault in faults.iter().cloned() {
            let this = Arc::clone(self);
            playing.spawn(async move {
                let due = start + Duration::from_millis(fault.at);
                let mut closed = this.closed.subscribe();
                tokio::select! {
                    biased;
                    () = sleep_until(due) => {}
                    _ = async { closed.wait_for(|closed| *closed).await.is_ok() } => return Ok(None),
                }
                if this.is_too_late(&fault, due) {
                    return Ok(Some(fault));
                }
                let done = if fault.kind.is_of_workers() && fault.kind != Kind::Isolate {
                    let worker = fault.worker.unwrap_or_default();
                    // A fault before this one may last longer than planned.
                    let Ok(_alone) = this.alone[worker].try_lock() else { return Ok(Some(fault)) };
                    this.trouble_worker(worker, &fault).await
                } else {
                    this.trouble_nodes(&fault).await
                };
                done.map(|()| None).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}, fault {}: {error}", fault.kind, fault.id))
                })
            });
        }
        playing
    }

    /// Lets no further fault begin. Those that have begun end as planned.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    fn is_too_late(&self, fault: &Fault, due: Instant) -> bool {
        // A fault before this one may have taken longer than planned.
        let forgot = *self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = Duration::from_millis(apart(self.lease));
        let forgets_too_soon = self.nodes.forgets(fault) && forgot.is_some_and(|at| at.elapsed() < apart);
        fault.disturbs() && (due.elapsed() > LATEST || forgets_too_soon)
    }

    async fn trouble_nodes(&self, fault: &Fault) -> io::Result<()> {
        self.note_forgetting(fault);
        let from = now();
        // What ends by itself lasts from its beginning on, however late this task is.
        let ends = (fault.kind == Kind::ClientPause).then(|| from + (fault.lasts + CLIENT_PAUSE_MORE_MS) * 1000);
        let begun = self.nodes.begin(fault).await;
        let doubt = begun.as_ref().ok().and_then(Clone::clone);
        self.say_begun(fault, from, doubt);
        begun?;
        sleep(Duration::from_millis(fault.lasts)).await;
        let from = ends.map_or(now(), |ends| ends.min(now()));
        let ended = self.nodes.end(fault).await;
        let doubt = ended.as_ref().ok().and_then(Clone::clone);
        self.say_healed(fault, from, doubt);
        self.note_forgetting(fault);
        ended.map(drop)
    }

    fn note_forgetting(&self, fault: &Fault) {
        if self.nodes.forgets(fault) {
            *self.forgot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    async fn trouble_worker(&self, worker: usize, fault: &Fault) -> io::Result<()> {
        let lasts = Duration::from_millis(fault.lasts);
        if fault.kind == Kind::WorkerPause {
            let (from, doubt) = self.workers.pause(worker, Duration::from_millis(2 * self.lease)).await?;
            self.say_begun(fault, from, doubt);
            sleep(lasts).await;
            let from = now();
            self.workers.resume(worker).await?;
            self.say_healed(fault, from, None);
        } else {
            let from = now();
            self.workers.kill(worker).await?;
            self.say_begun(fault, from, None);
            sleep(lasts).await;
            let from = now();
            self.workers.start(worker).await?;
            self.say_healed(fault, from, None);
        }
        Ok(())
    }

    fn say_begun(&self, fault: &Fault, from: u64, doubt: Option<String>) {
        self.say(What::Fault {
            id: fault.id,
            kind: fault.kind,
            scale: fault.scale,
            nodes: fault.nodes.clone(),
            worker: fault.worker,
            amount: fault.amount,
            forgets: self.nodes.begins_quarantine(fault),
            tail: fault.tail(self.lease) * 1000,
            from,
            doubt,
        });
    }

    /// Counts the commands of the nodes.
    pub async fn count_commands(&self) {
        let from = now();
        for (node, total) in self.nodes.count_commands().await {
            self.say(What::Commands { node, from, total });
        }
    }

    fn say_healed(&self, fault: &Fault, from: u64, doubt: Option<String>) {
        self.say(What::Heal { id: fault.id, from, doubt });
    }

    pub fn say(&self, what: What) {
        // The collector outlives all senders.
        drop(self.reports.send(WorkerReport::Event(Event { at: now(), what })));
    }
}
