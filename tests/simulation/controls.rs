//! Negative controls: the lock, or what it may rely on, broken in one place. The simulation must notice each of them.

use crate::plan::Broken;
use crate::rules::Rules;
use crate::run::run;

pub struct Control {
    pub name: &'static str,
    broken: Broken,
    /// One of these must be violated; a violation of something else proves nothing.
    by: &'static [&'static str],
}

const NONE: Broken = Broken {
    rules: RULES,
    forgets_at_once: false,
    drifts_beyond_allowance: false,
    clock_is_set_back: false,
    swaps_answers: false,
    steps_under_locks: false,
};

const RULES: Rules = Rules {
    grants_equal_ballots: false,
    repairs_over_newer: false,
    releases_without_mark: false,
    releases_blindly: false,
    shrinks_leases: false,
    increments_counts: false,
    grants_over_others: false,
    ignores_ballots: false,
};

/// So many seeds may it take.
pub const BUDGET: u64 = 400;

pub const ALL: [Control; 10] = [
    Control {
        name: "ballots ignored",
        broken: Broken { rules: Rules { ignores_ballots: true, ..RULES }, ..NONE },
        by: &["TokenMonotonic", "TokenUnique", "FencedStore"],
    },
    Control {
        name: "repair ignoring F",
        broken: Broken { rules: Rules { repairs_over_newer: true, ..RULES }, ..NONE },
        by: &["NoResurrection", "NoOrphan", "MutualExclusion"],
    },
    Control {
        name: "release without mark",
        broken: Broken { rules: Rules { releases_without_mark: true, ..RULES }, ..NONE },
        by: &["NoOrphan"],
    },
    Control {
        name: "blind DEL on release",
        broken: Broken { rules: Rules { releases_blindly: true, ..RULES }, ..NONE },
        by: &["MutualExclusion", "ReleaseSafe"],
    },
    Control {
        name: "TTL set, not raised",
        broken: Broken { rules: Rules { shrinks_leases: true, ..RULES }, ..NONE },
        by: &["LeaseNeverShrinks"],
    },
    Control {
        name: "count by increment",
        broken: Broken { rules: Rules { increments_counts: true, ..RULES }, ..NONE },
        by: &["ReentrantDepth"],
    },
    Control {
        name: "votes over another's key",
        broken: Broken { rules: Rules { grants_over_others: true, ..RULES }, ..NONE },
        by: &["MutualExclusion"],
    },
    Control {
        name: "empty restart without quarantine",
        broken: Broken { forgets_at_once: true, ..NONE },
        by: &["MutualExclusion"],
    },
    Control {
        name: "wall clock in the client",
        broken: Broken { clock_is_set_back: true, ..NONE },
        by: &["MutualExclusion"],
    },
    Control {
        name: "answer credited to another request",
        broken: Broken { swaps_answers: true, ..NONE },
        by: &["NoFalseGrant", "MutualExclusion", "TokenUnique", "TokenMonotonic"],
    },
];

impl Control {
    /// Which invariant caught it, and at which seed.
    pub fn caught(&self) -> Option<(&'static str, u64)> {
        (0..BUDGET).find_map(|seed| {
            let outcome = run(seed, self.broken, false);
            let caught =
                self.by.iter().find(|by| outcome.violations.iter().any(|violation| violation.invariant == **by));
            caught.map(|by| (*by, seed))
        })
    }
}
