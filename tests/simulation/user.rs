//! The users of a client: they lock, nest, write, extend, hand over and release, or act too late.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorlock::{Owner, Quorlock};
use quorlock_testkit::rng::Rng;
use tokio::time::{sleep, timeout};

use crate::figures::Fault;
use crate::invariant::Invariant;
use crate::ledger::Ledger;
use crate::machine::Clock;
use crate::plan::{Longest, Plan};
use crate::recovery::LEASE;
use crate::requests::{Dropped, Holding, How, left_unpolled};
use crate::servers::Forgets;
use crate::time::micros;
use crate::world::{Shared, lock};

/// Leases grow no longer than this: than those of the time after the faults.
const LONGEST_GROWN: Duration = LEASE;
const DEEPEST: usize = 5;
/// The most exported leases that wait for a client to join.
const MOST_MAIL: usize = 4;

pub fn name_of(resource: usize) -> String {
    format!("r{resource}")
}

/// An exported lease on its way to another client.
pub struct Mail {
    from: usize,
    owner: Arc<str>,
    leases: Vec<(usize, u64)>,
    export: String,
}

/// The state that the users of one client share.
#[derive(Clone)]
pub struct Client {
    pub index: usize,
    pub locks: Quorlock,
    pub clock: Arc<Clock>,
    /// A lease that is shorter than its usual one.
    pub shorter: Duration,
}

/// The state that all clients share.
#[derive(Clone)]
pub struct Scene {
    pub plan: Arc<Plan>,
    pub world: Shared,
    pub ledger: Arc<Mutex<Ledger>>,
    pub mail: Arc<Mutex<VecDeque<Mail>>>,
    pub stop: Arc<AtomicBool>,
}

impl Scene {
    pub fn now(&self) -> u64 {
        lock(&self.world).time.now()
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

#[derive(Clone)]
pub struct User {
    pub scene: Scene,
    pub client: Client,
    pub rng: Rng,
}

impl User {
    fn pause(&mut self, most_ms: u64) -> tokio::time::Sleep {
        sleep(Duration::from_micros(self.rng.between(0..most_ms * 1000)))
    }

    /// One or several resources.
    fn some_resources(&mut self) -> Vec<usize> {
        let all = self.scene.plan.resources;
        let mut some = vec![self.rng.below(all)];
        while all > 1 && self.rng.chance(0.2) {
            let other = self.rng.below(all);
            if !some.contains(&other) {
                some.push(other);
            }
        }
        some
    }

    fn how(&mut self) -> How {
        match self.rng.between(0..10) {
            0..3 => How::Try,
            3..5 => How::Wait(None),
            _ => How::Wait(Some(Duration::from_millis(self.rng.between(0..1500)))),
        }
    }

    /// Asks for a lease that is much longer than any before. This client does not reach one of the nodes. When it has the lease,
    /// another node forgets it, and not all clients have heard of it.
    async fn ask_for_long(&mut self, resources: &[usize], how: How) -> Option<Holding> {
        let nodes = self.scene.plan.nodes.len();
        let (away, forgetful) = (self.rng.below(nodes), 1 + self.rng.below(nodes - 1));
        let (lease, began) = {
            let mut world = lock(&self.scene.world);
            world.longest_asked = (world.longest_asked * 4).min(LONGEST_GROWN);
            world.last_forgot = world.time.now();
            let time = world.longest_asked.mul_f64(self.rng.between(30..100) as f64 / 100.0);
            world.cut(self.client.index, away, true, true, true, micros(time));
            (world.longest_asked, world.last_forgot)
        };
        let granted = self.ask(resources, None, Some(lease), how).await.ok()?;
        let mut world = lock(&self.scene.world);
        if world.faulty && world.last_forgot == began {
            world.forget((away + forgetful) % nodes, self.rng.pick(&[Forgets::Flush, Forgets::Replaced]));
            if self.rng.chance(0.7) {
                // Its extensions would tell of the lease.
                world.pause_client(self.client.index, micros(lease) * 9 / 10);
            }
        }
        Some(granted)
    }

    /// Returns whether this user is to ask for a longer lease than any before.
    fn asks_for_long(&mut self) -> bool {
        if self.scene.plan.longest != Longest::Grows || !self.rng.chance(0.3) {
            return false;
        }
        let world = lock(&self.scene.world);
        world.faulty && world.longest_asked < LONGEST_GROWN && world.may_forget_one()
    }

    /// Lives until the scene is over.
    pub async fn run(mut self) {
        while !self.scene.is_over() {
            // A quiet client does not hear of longer leases.
            let is_quiet = self.scene.plan.longest == Longest::Grows && self.client.index % 2 == 1;
            self.pause(if is_quiet { 5000 } else { 25 }).await;
            let resources = self.some_resources();
            let mail = if self.rng.chance(0.5) { self.mail() } else { None };
            let holding = match self.rng.between(0..100) {
                _ if mail.is_some() => self.join(mail).await,
                0..18 => self.request_and_drop(&resources, None).await,
                18..23 => self.request_and_rest(&resources).await,
                23..26 => {
                    drop(self.client.locks.inspect(name_of(resources[0])).await);
                    None
                }
                26..28 => {
                    self.revoke(resources[0]).await;
                    None
                }
                _ => {
                    let how = self.how();
                    if self.asks_for_long() {
                        self.ask_for_long(&resources, how).await
                    } else {
                        self.ask(&resources, None, None, how).await.ok()
                    }
                }
            };
            if let Some(holding) = holding {
                self.hold(holding).await;
            }
        }
    }

    /// Revokes a lease as an operator does: the present one, or one that may be over.
    async fn revoke(&mut self, resource: usize) {
        let known = lock(&self.scene.ledger).records[resource].tokens.keys().next_back().copied();
        let token = known.filter(|_| self.rng.chance(0.4)).and_then(|token| token.to_string().parse().ok());
        let revocation = self.client.locks.revoke(name_of(resource), token);
        if let Ok(revoked) = revocation.await {
            lock(&self.scene.ledger).revoked(self.scene.now(), resource, revoked.token.get());
        }
    }

    /// Sends a request, and drops it at some point.
    async fn request_and_drop(&mut self, resources: &[usize], owner: Option<&Owner>) -> Option<Holding> {
        lock(&self.scene.world).figures.fault(Fault::DroppedFuture);
        let how = self.how();
        let (by_polls, polls, limit) = (self.rng.chance(0.5), self.rng.below(6), self.rng.between(0..60));
        let request = self.ask(resources, owner, None, how);
        if by_polls {
            Dropped { future: Some(Box::pin(request)), polls }.await?.ok()
        } else {
            timeout(Duration::from_millis(limit), request).await.ok()?.ok()
        }
    }

    /// Sends a request, and does not poll it for a while.
    async fn request_and_rest(&mut self, resources: &[usize]) -> Option<Holding> {
        lock(&self.scene.world).figures.fault(Fault::IdleFuture);
        let lease = self.scene.plan.longest_lease();
        let (how, polls, rest) =
            (self.how(), self.rng.between(1..4), lease.mul_f64(self.rng.between(0..200) as f64 / 100.0));
        left_unpolled(self.ask(resources, None, None, how), polls as usize, rest).await.ok()
    }

    /// Returns the latest lease that another client has handed over: an older one has probably ended.
    fn mail(&mut self) -> Option<Mail> {
        let mut mail = lock(&self.scene.mail);
        let i = mail.iter().rposition(|mail| mail.from != self.client.index)?;
        mail.remove(i)
    }

    async fn join(&mut self, mail: Option<Mail>) -> Option<Holding> {
        let mail = mail?;
        let resources: Vec<usize> = mail.leases.iter().map(|(resource, _)| *resource).collect();
        let locks = self.client.locks.clone();
        self.verified(&resources, mail.owner, Some(&mail.leases), locks.join(&mail.export)).await.ok()
    }

    fn export(&mut self, holding: &Holding) {
        let leases = holding
            .resources
            .iter()
            .filter_map(|resource| Some((*resource, holding.guard.token_of(name_of(*resource))?.get())));
        let mail = Mail {
            from: self.client.index,
            owner: holding.guard.owner().id().into(),
            leases: leases.collect(),
            export: holding.guard.export(),
        };
        let mut mails = lock(&self.scene.mail);
        mails.push_back(mail);
        if mails.len() > MOST_MAIL {
            mails.pop_front();
        }
    }

    /// Runs random actions while a lock is held.
    async fn hold(&mut self, outermost: Holding) {
        let owner = outermost.guard.owner().clone();
        let mut holdings = vec![outermost];
        let steps = self.rng.between(0..9);
        for _ in 0..steps {
            if holdings.is_empty() || self.scene.is_over() {
                break;
            }
            let which = self.rng.below(holdings.len());
            let (at, id) = (self.scene.now(), holdings[which].id);
            match self.rng.between(0..100) {
                0..25 => lock(&self.scene.ledger).write(at, id),
                25..50 if holdings.len() < DEEPEST => {
                    let mut resources =
                        if self.rng.chance(0.8) { holdings[which].resources.clone() } else { self.some_resources() };
                    if self.rng.chance(0.1) {
                        resources.extend(self.some_resources());
                        resources.dedup();
                        let mut seen = Vec::new();
                        resources.retain(|resource| {
                            !seen.contains(resource) && {
                                seen.push(*resource);
                                true
                            }
                        });
                    }
                    let entered = if self.rng.chance(0.1) {
                        self.request_and_drop(&resources, Some(&owner)).await
                    } else {
                        let limit = Duration::from_millis(self.rng.between(0..400));
                        // The inner request may be shorter, and does not shorten the lease.
                        let lease = self.rng.chance(0.3).then_some(self.client.shorter);
                        self.ask(&resources, Some(&owner), lease, How::Wait(Some(limit))).await.ok()
                    };
                    holdings.extend(entered);
                }
                25..60 => {
                    let holding = holdings.swap_remove(which);
                    self.release(holding).await;
                }
                60..68 => {
                    let began = lock(&self.scene.ledger).moment();
                    let extended = holdings[which].guard.extend().await.is_ok();
                    if extended {
                        lock(&self.scene.ledger).extended(at, id, began);
                    }
                    let lost = extended && holdings[which].guard.is_lost();
                    let mut ledger = lock(&self.scene.ledger);
                    ledger
                        .findings
                        .judge(Invariant::LossOnTime, at, !lost, || format!("hold {id} was extended and is lost"));
                }
                68..74 => {
                    let wanted = Duration::from_millis(self.rng.between(10..3000));
                    drop(holdings[which].guard.ensure(wanted).await);
                }
                74..82 => {
                    self.export(&holdings[which]);
                    // Time for a client to join; sometimes only just enough.
                    self.stay(&holdings[which], 200).await;
                }
                82..86 => self.stay(&holdings[which], 3000).await,
                // A user that ignores the loss.
                86..90 => self.pause(800).await,
                _ => self.stay(&holdings[which], 30).await,
            }
            lock(&self.scene.ledger).observe(self.scene.now());
        }
        while !holdings.is_empty() {
            let which = self.rng.below(holdings.len());
            if self.rng.chance(0.7) {
                lock(&self.scene.ledger).write(self.scene.now(), holdings[which].id);
            }
            let holding = holdings.swap_remove(which);
            self.release(holding).await;
        }
    }

    /// Holds the lock for a while, and waits for the loss.
    async fn stay(&mut self, holding: &Holding, most_ms: u64) {
        if holding.guard.is_lost() {
            return;
        }
        let nap = self.pause(most_ms);
        tokio::select! {
            biased;
            () = holding.guard.lost() => {}
            () = nap => {
                if !holding.guard.is_lost() {
                    return;
                }
            }
        }
        lock(&self.scene.ledger).loss_noticed(self.scene.now(), holding.id);
    }
}
