//! What must always hold, under the names that docs/evidence.md and every output use.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

macro_rules! invariants {
    ($($(#[doc = $meaning:literal])+ $name:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Invariant {
            $($(#[doc = $meaning])+ $name,)*
            /// Not the lock but the simulation went wrong: it panicked, or lost track of a hold.
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
    /// A release takes away what is its own and says the truth; late, twice, or after a loss.
    ReleaseSafe,
    /// What was granted was voted for by a quorum and has validity left.
    NoFalseGrant,
    /// What was lost stays lost.
    NoResurrection,
    /// A loss is signalled when the validity is over, neither before nor long after.
    LossOnTime,
    /// Nothing on a node blocks a request once its owner has released it.
    NoOrphan,
    /// Neither the validity nor what a node keeps of a lease gets shorter.
    LeaseNeverShrinks,
    /// What a crashed holder had is free when its lease is over.
    FreeAfterTtl,
    /// A minority of nodes that is down, hung or cut off blocks no request.
    MinorityFaultLive,
    /// No quorum for a new acquisition needs a node that may have forgotten a vote of a lease that still runs.
    QuarantineHolds,
    /// No vote comes from a node whose record is another one than the message says.
    RecordHolds,
    /// Requests that wait for a majority ask the other nodes seldom, and are served soon when it is back.
    NoStorm,
    /// A request that is dropped, at any await, leaves nothing that blocks another request.
    CancelSafe,
    /// The same seed does the same.
    Deterministic,
    /// The history of each resource is one of a re-entrant fenced mutex.
    Linearizable,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// How often each invariant was put to the test.
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
    /// So many commands had the nodes executed.
    pub commands: u64,
    pub what: String,
}

/// What all judges of a run share.
#[derive(Debug, Default)]
pub struct Watch {
    /// Makes clients' clocks show the truth while a judge looks.
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

/// What one judge has found.
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
