//! The run of one seed, from start to verdict.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorlock::Quorlock;
use quorlock_testkit::rng::Rng;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::faults;
use crate::figures::Figures;
use crate::invariant::{Invariant, Violation, Watch};
use crate::ledger::Ledger;
use crate::machine::{Clock, Machine, Turns, Weakly};
use crate::plan::{Broken, ClientPlan, Longest, Plan};
use crate::readings::READ_EVERY_US;
use crate::recovery;
use crate::time::{Time, micros};
use crate::user::{Client, Scene, User};
use crate::world::{World, lock, network};

pub struct Outcome {
    pub figures: Figures,
    pub violations: Vec<Violation>,
    pub digest: u64,
    pub trace: Option<String>,
}

impl Outcome {
    /// Returns the difference from another run of the same seed.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let traces = || {
            self.trace.iter().flat_map(|trace| trace.bytes()).zip(other.trace.iter().flat_map(|trace| trace.bytes()))
        };
        if let Some(at) = traces().position(|(one, another)| one != another) {
            return Some(format!("the traces differ at byte {at}"));
        }
        let same = (self.digest, &self.figures) == (other.digest, &other.figures);
        (!same).then(|| format!("digest {:x} and then {:x}", self.digest, other.digest))
    }
}

/// A client with its users.
pub struct ClientRun {
    pub client: Client,
    pub plan: ClientPlan,
    users: Vec<JoinHandle<()>>,
}

pub struct Stage {
    pub scene: Scene,
    pub clients: Vec<ClientRun>,
    watch: Arc<Watch>,
}

/// The limit of a whole seed, in simulated time.
const LONGEST_RUN: Duration = Duration::from_secs(1800);

pub fn run(seed: u64, broken: Broken, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let plan = Arc::new(Plan::new(seed, broken));
    runtime.block_on(async {
        let time = Time::start();
        let watch = Arc::new(Watch::default());
        let ledger = Ledger::new(
            plan.resources + recovery::EXTRA_RESOURCES,
            plan.quorum(),
            micros(plan.longest_lease().max(recovery::LEASE)),
            Arc::clone(&watch),
        );
        let scene = Scene {
            world: Arc::new(Mutex::new(World::new(Arc::clone(&plan), time, Arc::clone(&watch), traced))),
            ledger: Arc::new(Mutex::new(ledger)),
            mail: Arc::new(Mutex::new(VecDeque::new())),
            stop: Arc::new(AtomicBool::new(false)),
            plan,
        };
        let described = scene.plan.described();
        lock(&scene.world).note(format_args!("{described}"));
        let network = tokio::spawn(network(Arc::clone(&scene.world)));
        let looking = tokio::spawn(look(scene.clone()));
        let mut stage = Stage { scene: scene.clone(), clients: Vec::new(), watch };
        if timeout(LONGEST_RUN, stage.play()).await.is_err() {
            let what = "the run does not end".to_owned();
            lock(&scene.ledger).findings.violated(Invariant::MinorityFaultLive, time.now(), what);
        }
        looking.abort();
        network.abort();
        let mut world = lock(&scene.world);
        let mut ledger = lock(&scene.ledger);
        ledger.close(time.now());
        let mut figures = world.figures.clone();
        figures.add(&ledger.figures);
        figures.checks.add(&ledger.findings.checks);
        figures.checks.add(&world.oracle.findings.checks);
        figures.seeds = 1;
        figures.simulated_us = time.now();
        let mut violations = std::mem::take(&mut ledger.findings.violations);
        violations.append(&mut world.oracle.findings.violations);
        violations.sort_by_key(|violation| violation.commands);
        Outcome { figures, violations, digest: world.digest, trace: world.trace.take() }
    })
}

/// Reads all holds, again and again.
async fn look(scene: Scene) {
    loop {
        sleep(Duration::from_micros(READ_EVERY_US)).await;
        let now = scene.now();
        lock(&scene.ledger).observe(now);
    }
}

impl Stage {
    async fn play(&mut self) {
        let plan = Arc::clone(&self.scene.plan);
        for (place, client) in plan.clients.iter().enumerate() {
            self.start_client(place, client.clone()).await;
        }
        // A first connection takes a few round trips.
        sleep(20 * plan.longest_latency()).await;
        lock(&self.scene.world).faulty = true;
        let until = self.scene.now() + micros(plan.safety);
        faults::cause(self, until).await;
        lock(&self.scene.world).heal();
        self.scene.stop.store(true, Relaxed);
        recovery::judge(self).await;
    }

    /// Starts the client at this place, also after a crash of the previous one.
    pub async fn start_client(&mut self, place: usize, plan: ClientPlan) {
        let scene = &self.scene;
        let time = lock(&scene.world).time;
        let clock = Arc::new(Clock::new(time, &plan, Arc::clone(&self.watch)));
        let index = lock(&scene.world).add_client(Arc::clone(&clock));
        let machine = Machine {
            client: index,
            clock: Arc::clone(&clock),
            rng: Mutex::new(Rng::new(scene.plan.seed, 1000 + index as u64)),
            world: Weakly(Arc::clone(&scene.world)),
        };
        let mut builder = Quorlock::builder()
            .nodes((0..scene.plan.nodes.len()).map(|node| format!("redis://node{node}")))
            .lease(plan.lease)
            .auto_extend(plan.extends)
            .ballot_ttl(scene.plan.ballot_ttl)
            .environment(Arc::new(machine));
        if scene.plan.longest == Longest::Told {
            builder = builder.longest_lease(scene.plan.longest_lease());
        }
        if let Some(timeout) = plan.node_timeout {
            builder = builder.node_timeout(timeout);
        }
        let locks = builder.connect().await.expect("settings that work");
        // A node timeout that is set must fit into it.
        let shorter = plan.lease / if plan.node_timeout.is_some() { 2 } else { 6 };
        let client = Client { index, locks, clock, shorter };
        let users = (0..plan.actors).map(|i| {
            let rng = Rng::new(scene.plan.seed, 10_000 + 100 * index as u64 + i as u64);
            let user = User { scene: scene.clone(), client: client.clone(), rng };
            tokio::spawn(Turns { world: Arc::clone(&scene.world), client: index, task: Box::pin(user.run()) })
        });
        let client_run = ClientRun { users: users.collect(), client, plan };
        if place < self.clients.len() {
            self.clients[place] = client_run;
        } else {
            self.clients.push(client_run);
        }
    }

    /// Kills the process of a client.
    pub fn crash(&mut self, place: usize) {
        let client_run = &self.clients[place];
        lock(&self.scene.world).crash_client(client_run.client.index);
        let gone = lock(&self.scene.ledger).forget_client(client_run.client.index);
        drop(gone);
        client_run.users.iter().for_each(JoinHandle::abort);
    }

    /// Waits until all users have released their holds.
    pub async fn users_finish(&mut self) {
        for client_run in &mut self.clients {
            for user in std::mem::take(&mut client_run.users) {
                if let Err(error) = user.await
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }

    pub fn user(&self, place: usize, number: u64) -> User {
        let rng = Rng::new(self.scene.plan.seed, 50_000 + number);
        User { scene: self.scene.clone(), client: self.clients[place].client.clone(), rng }
    }
}
