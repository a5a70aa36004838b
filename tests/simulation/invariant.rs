//! The invariants, under the names that docs/evidence.md and every output use.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

macro_rules! invariants {
    ($($(#[doc = $meaning:literal])+ $name:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Invariant {
            $($(#[doc = $meaning])+ $name,)*
            /// The simulation itself failed: it panicked, or has no record of a hold.
            Simulation,
        }

        impl Invariant {
            /// Those of the lock.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }
    };
}

invariants! {
    /// No two owners believe to hold the same lock at the same time.
    MutualExclusion,
    /// A guard shows how deep its owner is nested, and a node stores the count that the message contains.
    ReentrantDepth,
    /// No token is granted twice.
    TokenUnique,
    /// An acquisition that begins after another was granted gets a larger token; a node's ballot never falls.
    TokenMonotonic,
    /// Re-entry, joining and extension keep the token.
    TokenStable,
    /// A store that refuses smaller tokens accepts no stale write, and every write of a holder.
    FencedStore,
    /// A release removes only its own share and returns the true result: also late, repeated, or after a loss.
    ReleaseSafe,
    /// A grant has the votes of a quorum and validity left.
    NoFalseGrant,
    /// A lost lease stays lost.
    NoResurrection,
    /// A loss is signalled at the end of the validity, neither before nor long after.
    LossOnTime,
    /// Nothing on a node blocks a request once its owner has released it.
    NoOrphan,
    /// Neither the validity nor the stored lease on a node gets shorter.
    LeaseNeverShrinks,
    /// A crashed holder's lock is free when its lease is over.
    FreeAfterTtl,
    /// A minority of nodes that is down, hung or cut off blocks no request.
    MinorityFaultLive,
    /// No quorum for a new acquisition needs a node that may have forgotten a vote of a lease that still runs.
    QuarantineHolds,
    /// No vote comes from a node whose record differs from the record in the message.
    RecordHolds,
    /// A revoked lease is never confirmed again, and its lock stays closed until its end; no other lease is touched.
    RevocationHolds,
    /// Requests that wait for a majority send few commands to the other nodes, and are served soon when it is back.
    NoStorm,
    /// A request that is dropped, at any await, leaves nothing that blocks another request.
    CancelSafe,
    /// The same seed gives the same run.
    Deterministic,
    /// The history of each resource is one of a re-entrant fenced mutex.
    Linearizable,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// How often each invariant was checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checks([u64; Invariant::ALL.len() + 1]);

impl Checks {
    pub fn count(&mut self, invariant: Invariant, times: u64) {
        self.0[invariant as usize] += times;
    }

    pub fn of(&self, invariant: Invariant) -> u64 {
        self.0[invariant as usize]
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// An invariant that did not hold, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    /// Simulated time in µs.
    pub at: u64,
    /// The number of commands that the nodes had executed.
    pub commands: u64,
    pub what: String,
}

/// The state that all judges of a run share.
#[derive(Debug, Default)]
pub struct Watch {
    /// Makes the clocks of clients show the true time while a judge reads guards.
    truth: AtomicBool,
    commands: AtomicU64,
}

impl Watch {
    pub fn shows_truth(&self) -> bool {
        self.truth.load(Relaxed)
    }

    pub fn truly<T>(&self, look: impl FnOnce() -> T) -> T {
        self.truth.store(true, Relaxed);
        let seen = look();
        self.truth.store(false, Relaxed);
        seen
    }

    pub fn executed(&self) {
        self.commands.fetch_add(1, Relaxed);
    }

    pub fn commands(&self) -> u64 {
        self.commands.load(Relaxed)
    }
}

/// The findings of one judge.
#[derive(Debug)]
pub struct Findings {
    pub watch: Arc<Watch>,
    pub checks: Checks,
    pub violations: Vec<Violation>,
}

impl Findings {
    pub fn new(watch: Arc<Watch>) -> Self {
        Self { watch, checks: Checks::default(), violations: Vec::new() }
    }

    /// One check.
    pub fn judge(&mut self, invariant: Invariant, at: u64, holds: bool, what: impl FnOnce() -> String) {
        self.checks.count(invariant, 1);
        if !holds {
            self.violated(invariant, at, what());
        }
    }

    pub fn violated(&mut self, invariant: Invariant, at: u64, what: String) {
        self.violations.push(Violation { invariant, at, commands: self.watch.commands(), what });
    }

    pub fn found(&self, invariant: Invariant) -> bool {
        self.violations.iter().any(|violation| violation.invariant == invariant)
    }
}
