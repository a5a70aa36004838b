//! The work of a worker with locks, in a loop: nested locks, overlapping sets, long holds, cancelled requests,
//! and transfers between accounts; beside it, one lock that is entered again all the time, and one that is asked for without a wait.

use std::time::Duration;

use quorlock::{AcquireError, Guard, Holder, LockRequest, Owner, Quorlock, ReleaseError};
use quorlock_testkit::rng::Rng;
use tokio::sync::watch;

use super::Job;
use super::event_log::EventLog;
use super::readings::{self, watched};
use crate::chaos::history::{Leaving, OWN_LOCK, Outcome, Refusal, What, now};
use crate::chaos::ledger::{self, StoreThread, Transfer};

/// The greatest nesting depth.
const DEPTH: usize = 3;

/// How long the work in a critical section takes, in ms.
const STEP_MS: std::ops::Range<u64> = 0..12;
/// The time between the reading and the writing of balances.
const DAWDLE_MS: std::ops::Range<u64> = 10..120;
/// How often a worker enters the lock again that no other worker asks for, and for how long each time.
const TIMES: std::ops::Range<u64> = 10..60;
const EACH_MS: std::ops::Range<u64> = 40..100;
/// The time between two requests for a free lock.
const FREE_MS: std::ops::Range<u64> = 100..200;
const PAUSE_MS: std::ops::Range<u64> = 0..25;
const CANCEL_MS: std::ops::Range<u64> = 0..30;
const FIRST_MESSAGES_US: u64 = 2000;
const LARGEST_AMOUNT: u64 = 50;

/// The shorter lease of some re-entries, in hundredths.
const SHORTER: u64 = 60;

/// How often the nodes are asked for what is held, and for what was given back.
const LOOK_BACK: f64 = 0.2;
/// How long a release that is not awaited may be on its way.
const ON_THE_WAY: Duration = Duration::from_millis(300);

pub struct Workload {
    rng: Rng,
    locks: Quorlock,
    log: EventLog,
    ledger: StoreThread,
    job: Job,
    /// Many requests of the task are this owner's, as in a program that has one for itself.
    owner: Owner,
}

/// A request.
struct Wish<'a> {
    names: &'a [String],
    owner: &'a Owner,
    within: Option<u64>,
    /// `None`: do not wait.
    wait: Option<Duration>,
    /// It asks for a shorter lease than the one around it.
    is_shorter: bool,
}

pub fn lock_name(i: usize) -> String {
    format!("lock-{}", i + 1)
}

pub fn account_name(i: usize) -> String {
    format!("account-{}", i + 1)
}

impl Workload {
    pub fn new(job: &Job, task: u64, locks: Quorlock, log: EventLog, ledger: StoreThread) -> Self {
        let rng = Rng::new(job.seed ^ job.life.rotate_left(32), task);
        Self { rng, locks, log, ledger, job: job.clone(), owner: Owner::new() }
    }

    pub async fn run(mut self, calm: watch::Receiver<bool>) -> Result<(), ledger::Error> {
        while !*calm.borrow() {
            match self.rng.below(20) {
                0..6 => self.nested().await,
                6..9 => self.sets().await,
                9 => self.long().await,
                10..12 => self.given_up().await,
                _ => self.transfer().await?,
            }
            self.nap(PAUSE_MS).await;
        }
        Ok(())
    }

    /// Holds a lock that no other worker asks for, and enters it again all the time: some of these requests are on their way
    /// when a node falls silent.
    pub async fn enter_again(mut self, calm: watch::Receiver<bool>) -> Result<(), ledger::Error> {
        let names = [format!("{OWN_LOCK}{}", self.job.worker + 1)];
        let wait = Some(Duration::from_millis(self.job.lease));
        while !*calm.borrow() {
            let owner = Owner::new();
            let wish = Wish { names: &names, owner: &owner, within: None, wait, is_shorter: false };
            let Some((op, guard)) = self.acquire(&wish).await else { continue };
            let (times, log) = (self.rng.between(TIMES), self.log.clone());
            let again = Wish { within: Some(op), ..wish };
            let work = async {
                for _ in 0..times {
                    let Some((inner, guard)) = self.acquire(&again).await else { return };
                    self.nap(EACH_MS).await;
                    self.step_out(inner, guard).await;
                }
            };
            watched(&guard, op, &names, &log, work).await;
            self.leave(op, guard, &wish).await;
        }
        Ok(())
    }

    /// Asks for a free lock at short intervals and without a wait: some of these requests begin and end while a majority is silent
    /// or in quarantine.
    pub async fn ask_for_a_free_lock(mut self, calm: watch::Receiver<bool>) -> Result<(), ledger::Error> {
        let names = [format!("{OWN_LOCK}{}-free", self.job.worker + 1)];
        while !*calm.borrow() {
            let owner = Owner::new();
            let wish = Wish { names: &names, owner: &owner, within: None, wait: None, is_shorter: false };
            if let Some((op, guard)) = self.acquire(&wish).await {
                self.leave(op, guard, &wish).await;
            }
            self.nap(FREE_MS).await;
        }
        Ok(())
    }

    async fn nap(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_micros(self.rng.between(ms.start * 1000..ms.end * 1000))).await;
    }

    fn owner(&mut self) -> Owner {
        if self.rng.chance(0.5) { self.owner.clone() } else { Owner::new() }
    }

    /// Returns a wait of up to two leases, often shorter than an outage, or none.
    fn patience(&mut self) -> Option<Duration> {
        self.rng.chance(0.75).then(|| Duration::from_millis(self.job.lease * self.rng.between(10..200) / 100))
    }

    fn request(&self, wish: &Wish<'_>) -> LockRequest {
        let request = if let [name] = wish.names { self.locks.lock(name) } else { self.locks.lock_all(wish.names) };
        let request = request.owner(wish.owner).lease(Duration::from_millis(self.asked(wish)));
        if let Some(limit) = wish.wait { request.wait(limit) } else { request }
    }

    /// Returns the lease that this request asks for, in ms.
    fn asked(&self, wish: &Wish<'_>) -> u64 {
        if wish.is_shorter { self.job.lease * SHORTER / 100 } else { self.job.lease }
    }

    fn ask(&self, wish: &Wish<'_>) -> u64 {
        let op = self.log.next_op();
        self.log.write(What::Ask {
            op,
            worker: self.job.worker,
            life: self.job.life,
            lease: self.job.lease * 1000,
            asked: self.asked(wish) * 1000,
            names: wish.names.to_vec(),
            within: wish.within,
            waits: wish.wait.is_some(),
        });
        op
    }

    async fn acquire(&self, wish: &Wish<'_>) -> Option<(u64, Guard)> {
        let op = self.ask(wish);
        let request = self.request(wish);
        let outcome = if wish.wait.is_some() { request.acquire().await } else { request.try_acquire().await };
        match outcome {
            Ok(guard) => {
                let (from, remaining) = readings::left(&guard);
                let (owner, holds) = (guard.owner().id(), guard.hold_count());
                let (tokens, margin) = (readings::tokens(&guard, wish.names), guard.margin());
                self.log.write(What::Grant { op, owner, tokens, holds, margin, from, remaining });
                Some((op, guard))
            }
            Err(error) => {
                let why = reason(&error);
                let detail =
                    (!matches!(why, Refusal::Held | Refusal::Contended | Refusal::Lost)).then(|| error.to_string());
                self.log.write(What::Refuse { op, why, detail });
                None
            }
        }
    }

    /// Gives an outermost hold back. Sometimes asks the nodes whether it is still there.
    async fn leave(&mut self, op: u64, guard: Guard, wish: &Wish<'_>) {
        let how = self.step_out(op, guard).await;
        if self.rng.chance(LOOK_BACK) {
            if how == Leaving::Drop {
                tokio::time::sleep(ON_THE_WAY).await;
            }
            self.look(op, wish.names, wish.owner).await;
        }
    }

    async fn look(&self, op: u64, names: &[String], owner: &Owner) {
        let fingerprint = owner.fingerprint();
        let is_own = |holder: &Holder| matches!(holder, Holder::Owner { id, .. } if **id == *fingerprint);
        for name in names {
            let Ok(seen) = self.locks.inspect(name).await else { continue };
            let answers: Vec<_> = seen.nodes.iter().filter_map(|node| node.state.as_ref().ok()).collect();
            let own: Vec<_> = answers.iter().filter(|state| state.holder.as_ref().is_some_and(is_own)).collect();
            // A key that never ends has no such time.
            let ttl = own.iter().map(|state| state.ttl.map_or(u128::MAX, |ttl| ttl.as_micros())).max().unwrap_or(0);
            let ttl = u64::try_from(ttl).unwrap_or(u64::MAX);
            self.log.write(What::Seen { op, answered: answers.len(), held: own.len(), ttl });
        }
    }

    async fn step_out(&mut self, op: u64, guard: Guard) -> Leaving {
        if self.rng.chance(0.15) {
            self.log.write(What::Leave { op, how: Leaving::Drop });
            drop(guard);
            return Leaving::Drop;
        }
        self.log.write(What::Leave { op, how: Leaving::Release });
        let (outcome, holds) = match guard.release().await {
            Ok(released) => (Outcome::Released, Some(released.holds)),
            Err(ReleaseError::NotHeld { .. }) => (Outcome::NotHeld, None),
            Err(_) => (Outcome::Unconfirmed, None),
        };
        self.log.write(What::Left { op, outcome, holds });
        Leaving::Release
    }

    /// Takes one lock, and re-enters it in nested functions.
    async fn nested(&mut self) {
        let (name, owner) = ([lock_name(self.rng.below(self.job.locks))], self.owner());
        self.descend(&[&name[..]; DEPTH], &owner, None).await;
    }

    /// Takes several locks at once; inside, one of them; inside that, all of them in reverse order.
    async fn sets(&mut self) {
        let first = self.rng.below(self.job.locks);
        let all: Vec<String> = (0..2 + self.rng.below(2)).map(|i| lock_name((first + i) % self.job.locks)).collect();
        let one = [all[self.rng.below(all.len())].clone()];
        let reversed: Vec<String> = all.iter().rev().cloned().collect();
        let owner = self.owner();
        self.descend(&[&all, &one, &reversed], &owner, None).await;
    }

    /// Takes these, one inside the other.
    async fn descend(&mut self, levels: &[&[String]], owner: &Owner, within: Option<u64>) {
        let [names, deeper @ ..] = levels else { return };
        let is_shorter = within.is_some() && self.rng.chance(0.3);
        let wish = Wish { names, owner, within, wait: self.patience(), is_shorter };
        let Some((op, guard)) = self.acquire(&wish).await else { return };
        let log = self.log.clone();
        let work = async {
            self.nap(STEP_MS).await;
            if within.is_none() && self.rng.chance(LOOK_BACK) {
                self.look(op, names, owner).await;
            }
            Box::pin(self.descend(deeper, owner, Some(op))).await;
            self.nap(STEP_MS).await;
        };
        watched(&guard, op, names, &log, work).await;
        match within {
            None => self.leave(op, guard, &wish).await,
            Some(_) => drop(self.step_out(op, guard).await),
        }
    }

    /// Keeps a hold that must be extended, usually more than once.
    async fn long(&mut self) {
        let names = [lock_name(self.rng.below(self.job.locks))];
        let (wait, owner) = (self.patience(), self.owner());
        let wish = Wish { names: &names, owner: &owner, within: None, wait, is_shorter: false };
        let Some((op, guard)) = self.acquire(&wish).await else { return };
        let share = self.rng.between(50..250);
        let time = Duration::from_millis(self.job.lease * share / 100);
        let log = self.log.clone();
        let work = async {
            tokio::time::sleep(time).await;
            // The re-entry of a lost lease must be refused.
            let again = Wish { within: Some(op), wait: None, ..wish };
            if let Some((inner, guard)) = self.acquire(&again).await {
                self.step_out(inner, guard).await;
            }
        };
        watched(&guard, op, &names, &log, work).await;
        self.leave(op, guard, &wish).await;
    }

    /// Drops the future of a request at a random point.
    async fn given_up(&mut self) {
        let (names, owner) = ([lock_name(self.rng.below(self.job.locks))], self.owner());
        let wish =
            Wish { names: &names, owner: &owner, within: None, wait: Some(Duration::from_secs(1)), is_shorter: false };
        let op = self.ask(&wish);
        // Half of them while the first messages are on their way.
        let longest = if self.rng.chance(0.5) { FIRST_MESSAGES_US } else { CANCEL_MS.end * 1000 };
        let limit = Duration::from_micros(self.rng.between(0..longest));
        // A guard that was granted just in time is dropped with its future.
        let _ = tokio::time::timeout(limit, self.request(&wish).acquire()).await;
        self.log.write(What::Cancel { op });
        tokio::time::sleep(ON_THE_WAY).await;
        self.look(op, &names, &owner).await;
    }

    /// Moves money from one account to another. A worker that is stopped here and continues after the end of the lease still
    /// writes. Only the token prevents that write.
    async fn transfer(&mut self) -> Result<(), ledger::Error> {
        let from = self.rng.below(self.job.accounts);
        let to = (from + 1 + self.rng.below(self.job.accounts - 1)) % self.job.accounts;
        let names = [account_name(from), account_name(to)];
        let (wait, owner) = (self.patience(), self.owner());
        let wish = Wish { names: &names, owner: &owner, within: None, wait, is_shorter: false };
        let Some((op, guard)) = self.acquire(&wish).await else { return Ok(()) };
        let dawdle = Duration::from_millis(self.rng.between(DAWDLE_MS));
        let amount = self.rng.between(1..LARGEST_AMOUNT).cast_signed();
        let work = async {
            let (begun, fenced) = (now(), self.job.fencing);
            let tokens = [&names[0], &names[1]].map(|name| guard.token_of(name).map_or(0, u64::from).cast_signed());
            // The read carries the token, too. Without it, a worker whose lease is over could write between this read and
            // our write, and our write would lose that update.
            let read = self.ledger.ask(move |store| store.read([from, to], fenced.then_some(tokens))).await?;
            let Some(balances) = read else {
                self.log.write(What::Write { op, from: begun, accepted: false });
                return Ok(());
            };
            self.log.write(What::Section { op });
            tokio::time::sleep(dawdle).await;
            let transfer = Transfer { op, from, to, amount, balances, tokens };
            let begun = now();
            let accepted = self.ledger.ask(move |store| store.write(&transfer, fenced)).await?;
            self.log.write(What::Write { op, from: begun, accepted });
            Ok(())
        };
        let done = watched(&guard, op, &names, &self.log, work).await;
        self.leave(op, guard, &wish).await;
        done
    }
}

fn reason(error: &AcquireError) -> Refusal {
    match error {
        AcquireError::Held { .. } => Refusal::Held,
        AcquireError::Contended { .. } => Refusal::Contended,
        AcquireError::NoQuorum { .. } => Refusal::NoQuorum,
        AcquireError::TooLate { .. } => Refusal::TooLate,
        AcquireError::Lost { .. } => Refusal::Lost,
        AcquireError::TimedOut { last, .. } => reason(last),
        _ => Refusal::Other,
    }
}
