//! Requests and releases, each step of which is recorded in the ledger.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use quorlock::{AcquireError, Guard, LockRequest, Owner, ReleaseError};
use tokio::time::{sleep, timeout};

use crate::figures::Fault;
use crate::holds::{Asked, Claim, Grant, Readings, ReleaseResult};
use crate::invariant::Invariant;
use crate::ledger::Ledger;
use crate::machine::Clock;
use crate::user::{User, name_of};
use crate::world::{Shared, lock};

/// A guard as the ledger reads it.
struct Held {
    guard: Arc<Guard>,
    clock: Arc<Clock>,
    client: usize,
    world: Shared,
}

impl Readings for Held {
    fn remaining(&self) -> u64 {
        // The least time that is left counts as more than zero.
        u64::try_from(self.guard.remaining().as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
    }

    fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    fn token_of(&self, resource: usize) -> Option<u64> {
        self.guard.token_of(name_of(resource)).map(quorlock::Token::get)
    }

    fn depth(&self) -> u32 {
        self.guard.hold_count()
    }

    fn margin(&self) -> u32 {
        u32::try_from(self.guard.margin()).unwrap_or(u32::MAX)
    }

    fn counted(&self, claim: &Claim) -> u32 {
        let world = lock(&self.world);
        let key = |resource: usize| format!("{}{}", quorlock::DEFAULT_PREFIX, name_of(resource));
        let counted = claim.shares.iter();
        let counted = counted.map(|share| world.oracle.counted(&key(share.resource), &claim.owner, share.token));
        counted.min().unwrap_or(0)
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

/// A request in progress. Its end is recorded in the ledger even when it is dropped.
struct PendingRequest<'a> {
    ledger: &'a Mutex<Ledger>,
    client: usize,
    owner: Arc<str>,
    resources: &'a [usize],
    asked: Vec<Asked>,
    joined: Option<&'a [(usize, u64)]>,
    granted: bool,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        let mut ledger = lock(self.ledger);
        ledger.end_request(self.client, &self.owner, self.resources);
        if !self.granted {
            ledger.failed(self.client, &self.owner, &self.asked, self.joined);
        }
    }
}

/// A guard and its number in the ledger.
pub struct Holding {
    pub id: u64,
    pub guard: Arc<Guard>,
    pub resources: Vec<usize>,
}

/// How a request is made.
#[derive(Clone, Copy)]
pub enum How {
    Try,
    Wait(Option<Duration>),
}

impl User {
    /// Sends requests, and records them in the ledger.
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
        self.verified(resources, owner.map(Owner::id).unwrap_or_default().into(), None, acquired).await
    }

    pub async fn verified(
        &self,
        resources: &[usize],
        owner: Arc<str>,
        joined: Option<&[(usize, u64)]>,
        request: impl Future<Output = Result<Guard, AcquireError>>,
    ) -> Result<Holding, AcquireError> {
        let ledger = &self.scene.ledger;
        let client = self.client.index;
        let asked = lock(ledger).begin_request(client, &owner, resources);
        let mut asking =
            PendingRequest { ledger, client, owner, resources, asked: asked.clone(), joined, granted: false };
        let result = request.await;
        asking.granted = result.is_ok();
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
        let at = self.scene.now();
        let grant = Grant { at, client, owner: &owner, asked: &asked, joined, votes: &votes };
        let id = lock(ledger).granted(&grant, Box::new(held));
        let mut world = lock(&self.scene.world);
        if world.trace.is_some() {
            world.note(format_args!("c{client} has {resources:?} of {owner} as hold {id}, token {}", guard.token()));
        }
        Ok(Holding { id, guard, resources: resources.to_vec() })
    }

    /// Releases a hold, in one of several ways.
    pub async fn release(&mut self, holding: Holding) {
        let Holding { id, guard, .. } = holding;
        let way = self.rng.between(0..10);
        let at = self.scene.now();
        let Some(pending) = lock(&self.scene.ledger).begin_release(id) else { return };
        if lock(&self.scene.world).trace.is_some() {
            let who = pending.claim.who();
            lock(&self.scene.world).note(format_args!("{who} hold {id} given back"));
        }
        let Some(guard) = Arc::into_inner(guard) else {
            let what = format!("hold {id} is released while a task still reads it");
            return lock(&self.scene.ledger).findings.violated(Invariant::Simulation, at, what);
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
                let said = match released {
                    Ok(released) => ReleaseResult::Released(released.holds),
                    Err(ReleaseError::NotHeld { .. }) => ReleaseResult::NotHeld,
                    Err(_) => ReleaseResult::Nothing,
                };
                ledger.end_release(at, &pending, lost, said);
            }
        }
    }
}

/// Polls a future several times, leaves it unpolled for a while, as a busy task does, and then awaits it.
pub async fn left_unpolled<F: Future>(future: F, mut polls: usize, rest: Duration) -> F::Output {
    let mut future = pin!(future);
    let begun = poll_fn(|cx| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        future.as_mut().poll(cx).map(Some)
    });
    if let Some(output) = begun.await {
        return output;
    }
    sleep(rest).await;
    future.await
}

/// A future that is polled `polls` times, and then dropped.
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
