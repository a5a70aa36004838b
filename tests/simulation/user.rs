//! What a client's users do: lock, nest, write, extend, hand over, give back, or none of it in time.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use quorlock::{AcquireError, Guard, LockRequest, Owner, Quorlock, ReleaseError};
use tokio::time::{sleep, timeout};

use crate::figures::Fault;
use crate::ledger::{Belief, Ledger};
use crate::machine::Clock;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::{Shared, lock};

const DEEPEST: usize = 5;
/// Exported leases that wait for somebody to join.
const MOST_MAIL: usize = 8;

pub fn name_of(resource: usize) -> String {
    format!("r{resource}")
}

/// An exported lease on its way to another client.
pub struct Mail {
    from: usize,
    owner: String,
    leases: Vec<(usize, u64)>,
    export: String,
}

/// What users of one client share.
#[derive(Clone)]
pub struct Client {
    pub index: usize,
    pub locks: Quorlock,
    pub clock: Arc<Clock>,
}

/// What everybody shares.
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

/// A guard as the ledger sees it.
struct Held {
    guard: Arc<Guard>,
    clock: Arc<Clock>,
    client: usize,
    world: Shared,
}

impl Belief for Held {
    fn remaining(&self) -> u64 {
        u64::try_from(self.guard.remaining().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    fn token_of(&self, resource: usize) -> Option<u64> {
        self.guard.token_of(name_of(resource)).map(quorlock::Token::get)
    }

    fn depth(&self) -> u32 {
        self.guard.holds()
    }

    fn clock(&self) -> u64 {
        self.clock.now()
    }

    fn paused_until(&self) -> u64 {
        let world = lock(&self.world);
        let since = world.time.now().saturating_sub(world.last_pause(self.client));
        self.clock.now().saturating_sub(since - since / 200)
    }
}

/// A request under way; the ledger hears of its end even when it is dropped.
struct Asking<'a> {
    ledger: &'a Mutex<Ledger>,
    client: usize,
    owner: String,
    resources: &'a [usize],
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        lock(self.ledger).asked(self.client, &self.owner, self.resources);
    }
}

/// A guard and its number in the ledger.
pub struct Holding {
    pub id: u64,
    pub guard: Arc<Guard>,
    resources: Vec<usize>,
}

/// How a request is made.
#[derive(Clone, Copy)]
pub enum How {
    Try,
    Wait(Option<Duration>),
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

    /// Asks and tells the ledger.
    pub async fn ask(
        &self,
        resources: &[usize],
        owner: Option<&Owner>,
        lease: Option<Duration>,
        how: How,
    ) -> Result<Holding, AcquireError> {
        let names: Vec<String> = resources.iter().map(|resource| name_of(*resource)).collect();
        let mut request: LockRequest = self.client.locks.lock_all(&names);
        if let Some(owner) = owner {
            request = request.owner(owner);
        }
        if let Some(lease) = lease {
            request = request.lease(lease);
        }
        let acquired = async move {
            match how {
                How::Try => request.try_acquire().await,
                How::Wait(None) => request.acquire().await,
                How::Wait(Some(limit)) => request.wait(limit).acquire().await,
            }
        };
        self.verified(resources, owner.map(Owner::id).unwrap_or_default(), None, acquired).await
    }

    async fn verified(
        &self,
        resources: &[usize],
        owner: String,
        joined: Option<&[(usize, u64)]>,
        request: impl Future<Output = Result<Guard, AcquireError>>,
    ) -> Result<Holding, AcquireError> {
        let ledger = &self.scene.ledger;
        let client = self.client.index;
        let asked = lock(ledger).asks(client, &owner, resources);
        let asking = Asking { ledger, client, owner: owner.clone(), resources };
        let result = request.await;
        drop(asking);
        let guard = match result {
            Ok(guard) => Arc::new(guard),
            Err(error) => {
                lock(ledger).figures.refusals += 1;
                return Err(error);
            }
        };
        let held = Held {
            guard: Arc::clone(&guard),
            clock: Arc::clone(&self.client.clock),
            client,
            world: Arc::clone(&self.scene.world),
        };
        let owner = guard.owner().id();
        let votes = |resource: usize, token: u64| {
            let key = format!("{}{}", quorlock::DEFAULT_PREFIX, name_of(resource));
            lock(&self.scene.world).oracle.votes(&key, &owner, token)
        };
        let quorum = u32::try_from(self.scene.plan.quorum()).unwrap_or(u32::MAX);
        let at = self.scene.now();
        let id = lock(ledger).granted(at, client, &owner, &asked, joined, Box::new(held), votes, quorum);
        let told =
            format_args!("c{client} has {resources:?} of {owner} as hold {id}, token {}", guard.token()).to_string();
        lock(&self.scene.world).note(format_args!("{told}"));
        Ok(Holding { id, guard, resources: resources.to_vec() })
    }

    /// Gives a hold back, in one of several ways.
    pub async fn give_back(&mut self, holding: Holding) {
        let Holding { id, guard, .. } = holding;
        let way = self.rng.between(0..10);
        let at = self.scene.now();
        let Some(hold) = lock(&self.scene.ledger).given_back(id) else { return };
        let expected = lock(&self.scene.ledger).depth_after(&hold);
        let who = format!("c{} {} {:?}", hold.client, hold.owner, hold.shares);
        drop(hold);
        lock(&self.scene.world).note(format_args!("{who} hold {id} given back"));
        let Some(guard) = Arc::into_inner(guard) else {
            return lock(&self.scene.ledger).violated("Simulation", at, format!("{who}: somebody still looks at it"));
        };
        match way {
            0 | 1 => drop(guard),
            2 => {
                lock(&self.scene.world).figures.fault(Fault::DroppedFuture);
                drop(timeout(Duration::from_millis(self.rng.between(0..4)), guard.release()).await);
            }
            3 => {
                lock(&self.scene.world).figures.fault(Fault::DroppedFuture);
                let polls = self.rng.below(3);
                drop(Dropped { future: Some(Box::pin(guard.release())), polls }.await);
            }
            _ => {
                let lost = guard.is_lost();
                let released = guard.release().await;
                let mut ledger = lock(&self.scene.ledger);
                ledger.figures.releases += 1;
                match released {
                    Ok(released) if lost => {
                        let what = format!("{who}: lost, and the release said {released:?}");
                        ledger.violated("ReleaseSafe", at, what);
                    }
                    Ok(released) if !(expected.0..=expected.1).contains(&released.holds) => {
                        let what = format!("{who}: {} holds are left and not {}", released.holds, expected.0);
                        ledger.violated("ReentrantDepth", at, what);
                    }
                    Ok(_) | Err(ReleaseError::NotHeld { .. } | ReleaseError::Unconfirmed { .. }) => {}
                    Err(other) => ledger.violated("ReleaseSafe", at, format!("{who}: {other}")),
                }
            }
        }
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

    /// Lives until the scene is over.
    pub async fn run(mut self) {
        while !self.scene.is_over() {
            self.pause(25).await;
            let resources = self.some_resources();
            let holding = match self.rng.between(0..100) {
                0..15 => self.join().await,
                15..30 => self.change_of_mind(&resources, None).await,
                30..33 => {
                    drop(self.client.locks.inspect(name_of(resources[0])).await);
                    None
                }
                _ => {
                    let how = self.how();
                    self.ask(&resources, None, None, how).await.ok()
                }
            };
            if let Some(holding) = holding {
                self.hold(holding).await;
            }
        }
    }

    /// Asks, and drops the request at some point.
    async fn change_of_mind(&mut self, resources: &[usize], owner: Option<&Owner>) -> Option<Holding> {
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

    async fn join(&mut self) -> Option<Holding> {
        let mail = {
            let mut mail = lock(&self.scene.mail);
            let i = mail.iter().position(|mail| mail.from != self.client.index)?;
            mail.remove(i)?
        };
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
            owner: holding.guard.owner().id(),
            leases: leases.collect(),
            export: holding.guard.export(),
        };
        let mut mails = lock(&self.scene.mail);
        mails.push_back(mail);
        if mails.len() > MOST_MAIL {
            mails.pop_front();
        }
    }

    /// What is done while a lock is held.
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
                        self.change_of_mind(&resources, Some(&owner)).await
                    } else {
                        let limit = Duration::from_millis(self.rng.between(0..400));
                        self.ask(&resources, Some(&owner), None, How::Wait(Some(limit))).await.ok()
                    };
                    holdings.extend(entered);
                }
                25..60 => {
                    let holding = holdings.swap_remove(which);
                    self.give_back(holding).await;
                }
                60..68 => {
                    if holdings[which].guard.extend().await.is_ok() && holdings[which].guard.is_lost() {
                        lock(&self.scene.ledger).violated(
                            "LossOnTime",
                            at,
                            format!("hold {id} was extended and is lost"),
                        );
                    }
                }
                68..74 => {
                    let wanted = Duration::from_millis(self.rng.between(10..3000));
                    drop(holdings[which].guard.ensure(wanted).await);
                }
                74..82 => {
                    let holding = holdings.swap_remove(which);
                    self.export(&holding);
                    holdings.push(holding);
                }
                82..86 => self.stay(&holdings[which], 3000).await,
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
            self.give_back(holding).await;
        }
    }

    /// Holds on for a while, listening for the loss.
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

/// A future that is polled so many times, and then dropped.
pub struct Dropped<F> {
    pub future: Option<Pin<Box<F>>>,
    pub polls: usize,
}

impl<F: Future> Future for Dropped<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let this = &mut *self;
        if this.polls == 0 {
            this.future = None;
        }
        let Some(future) = &mut this.future else { return Poll::Ready(None) };
        this.polls -= 1;
        future.as_mut().poll(cx).map(Some)
    }
}
