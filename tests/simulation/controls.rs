//! Negative controls: the lock, or its environment, is broken in one place. The simulation must detect each of them by an
//! expected invariant.

use std::fmt::Write as _;
use std::sync::Mutex;

use crate::invariant::Invariant::{self, *};
use crate::plan::Broken;
use crate::simulate::outcome;
use crate::variant;
use crate::world::lock;
use quorlock_testkit::node::rules::Rules;

/// The number of seeds within which a control must be caught.
pub const BUDGET: u64 = 600;

pub struct Control {
    pub name: &'static str,
    broken: Broken,
    /// The client is broken, by the change of this name in `breaks.rs` of the testkit.
    client: bool,
    /// One of these must be violated; a violation of something else proves nothing.
    by: &'static [Invariant],
    /// It takes many seeds, so it is left out of everyday runs.
    rare: bool,
}

pub struct Caught {
    /// The expected invariants that did not hold.
    pub by: Vec<Invariant>,
    pub seed: u64,
    /// The number of commands that the nodes had executed until then, in all seeds.
    pub commands: u64,
}

const fn client(name: &'static str, by: &'static [Invariant]) -> Control {
    Control { name, broken: NONE, client: true, by, rare: false }
}

const fn node(name: &'static str, rules: Rules, by: &'static [Invariant]) -> Control {
    Control { name, broken: Broken { rules, ..NONE }, client: false, by, rare: false }
}

const fn world(name: &'static str, broken: Broken, by: &'static [Invariant]) -> Control {
    Control { name, broken, client: false, by, rare: false }
}

const NONE: Broken = Broken {
    rules: RULES,
    forgets_at_once: false,
    clock_is_set_back: false,
    swaps_answers: false,
    steps_clocks: false,
    forgets: false,
};

const STEPS: Broken = Broken { steps_clocks: true, ..NONE };
const FORGETS: Broken = Broken { forgets: true, steps_clocks: true, ..NONE };

const RULES: Rules = Rules {
    grants_equal_ballots: false,
    repairs_over_newer: false,
    releases_without_ballot: false,
    releases_blindly: false,
    shrinks_leases: false,
    increments_counts: false,
    grants_over_others: false,
    ignores_ballots: false,
    counts_grants: false,
    one_clock: false,
    any_release_forgets: false,
    forgets_other_shares: false,
    lowers_ends: false,
    ends_without_lease: false,
    repairs_alone: false,
    ignores_record: false,
    no_quarantine: false,
    quarantine_by_node_clock: false,
    forgets_ballots: false,
    revokes_by_deletion: false,
    revokes_without_ballot: false,
    revokes_any_token: false,
    remembers_small_ballots: false,
};

pub const ALL: [Control; 48] = [
    // Votes and numbers.
    client("quorum too small", &[MutualExclusion, Linearizable]),
    node("p >= F for p > F", Rules { grants_equal_ballots: true, ..RULES }, &[TokenUnique, TokenMonotonic]),
    node("ballots ignored", Rules { ignores_ballots: true, ..RULES }, &[TokenMonotonic, TokenUnique]),
    Control {
        broken: Broken { rules: Rules { counts_grants: true, ..RULES }, ..NONE },
        ..client("token = max of per-node counters", &[TokenMonotonic, TokenUnique])
    },
    client("owner reused without a fresh ballot", &[TokenMonotonic, TokenUnique]),
    client("extension under a new token", &[TokenStable]),
    node("votes over another's key", Rules { grants_over_others: true, ..RULES }, &[MutualExclusion]),
    // Later messages.
    client("extension confirmed below quorum", &[MutualExclusion, NoResurrection]),
    client("extension after expiry", &[NoResurrection, Linearizable]),
    node("repair ignoring F", Rules { repairs_over_newer: true, ..RULES }, &[NoResurrection, NoOrphan]),
    node("TTL set, not raised", Rules { shrinks_leases: true, ..RULES }, &[LeaseNeverShrinks]),
    client("validity set, not raised", &[LeaseNeverShrinks]),
    node("count by increment, with a resend", Rules { increments_counts: true, ..RULES }, &[ReentrantDepth]),
    client("late reply credited to another round", &[NoFalseGrant, MutualExclusion, NoResurrection]),
    world(
        "answers of a node change places",
        Broken { swaps_answers: true, ..NONE },
        &[NoFalseGrant, MutualExclusion, NoResurrection],
    ),
    // Releases.
    node("release without the ballot", Rules { releases_without_ballot: true, ..RULES }, &[NoOrphan]),
    client("release carries what is known", &[NoOrphan]),
    node("blind DEL on release", Rules { releases_blindly: true, ..RULES }, &[ReleaseSafe, MutualExclusion]),
    client("release says yes after a loss", &[ReleaseSafe]),
    client("dropped request not released", &[CancelSafe]),
    // Time.
    rare(client("validity ignoring elapsed", &[MutualExclusion])),
    rare(client("validity ignoring drift", &[MutualExclusion])),
    client("validity not checked last", &[NoFalseGrant]),
    client("no watch over the deadline", &[LossOnTime]),
    client("keys that outlive the lease", &[FreeAfterTtl]),
    rare(world("wall clock in the client", Broken { clock_is_set_back: true, ..NONE }, &[MutualExclusion])),
    // Nodes that are down or lose their memory.
    client("waiting for every node", &[MinorityFaultLive]),
    client("requests that no majority answers ask again at once", &[NoStorm]),
    Control {
        broken: Broken { forgets_at_once: true, ..NONE },
        ..rare(node("empty restart declared to be new", RULES, &[MutualExclusion]))
    },
    // Two clocks.
    in_world(
        STEPS,
        node("a vote ends by the node's clock alone", Rules { one_clock: true, ..RULES }, &[MutualExclusion]),
    ),
    in_world(
        STEPS,
        node("any release forgets the end", Rules { any_release_forgets: true, ..RULES }, &[MutualExclusion]),
    ),
    in_world(
        STEPS,
        rare(node(
            "a release forgets the end of other shares",
            Rules { forgets_other_shares: true, ..RULES },
            &[MutualExclusion],
        )),
    ),
    in_world(STEPS, rare(node("an end is set, not raised", Rules { lowers_ends: true, ..RULES }, &[MutualExclusion]))),
    in_world(STEPS, client("an end is named without waiting", &[MutualExclusion])),
    in_world(STEPS, node("an end without the lease", Rules { ends_without_lease: true, ..RULES }, &[MutualExclusion])),
    // Shares.
    client("one word for all shares of a client", &[NoOrphan, ReleaseSafe, MutualExclusion]),
    // The node record.
    in_world(FORGETS, node("hold does not carry the record", Rules { ignores_record: true, ..RULES }, &[RecordHolds])),
    in_world(
        FORGETS,
        node(
            "no quarantine after forgetting",
            Rules { no_quarantine: true, ..RULES },
            &[QuarantineHolds, MutualExclusion],
        ),
    ),
    in_world(
        FORGETS,
        node(
            "a quarantine ends by the node's clock alone",
            Rules { quarantine_by_node_clock: true, ..RULES },
            &[QuarantineHolds, MutualExclusion],
        ),
    ),
    in_world(FORGETS, client("run id not compared", &[QuarantineHolds, MutualExclusion])),
    in_world(FORGETS, client("a yes of a young node counts", &[QuarantineHolds])),
    in_world(FORGETS, client("the longest lease of others is not learnt", &[QuarantineHolds, MutualExclusion])),
    in_world(FORGETS, client("a refusal teaches no longer lease", &[QuarantineHolds, MutualExclusion])),
    // How long ballots are kept.
    node(
        "ballots are forgotten too early",
        Rules { forgets_ballots: true, ..RULES },
        &[TokenMonotonic, TokenUnique, NoOrphan],
    ),
    // Revocation.
    node("a revocation deletes the lease", Rules { revokes_by_deletion: true, ..RULES }, &[MutualExclusion]),
    rare(node("a revocation leaves the ballot", Rules { revokes_without_ballot: true, ..RULES }, &[RevocationHolds])),
    node("a revocation by name alone", Rules { revokes_any_token: true, ..RULES }, &[RevocationHolds]),
    node("a release lowers the floor", Rules { remembers_small_ballots: true, ..RULES }, &[TokenMonotonic]),
];

const fn in_world(broken: Broken, control: Control) -> Control {
    Control { broken: Broken { rules: control.broken.rules, ..broken }, ..control }
}

const fn rare(control: Control) -> Control {
    Control { rare: true, ..control }
}

/// The control of the simulation itself.
pub const RANDOM: Control = client("randomness from elsewhere", &[Deterministic]);

impl Control {
    fn caught(&self) -> Option<Caught> {
        let mut commands = 0;
        (0..BUDGET).find_map(|seed| {
            variant::choose(if self.client { self.name } else { "" });
            let twice = self.by.contains(&Deterministic);
            let outcome = outcome(seed, self.broken, false, twice);
            variant::choose("");
            let expected = |invariant: &Invariant| outcome.violations.iter().any(|found| found.invariant == *invariant);
            let by: Vec<Invariant> = self.by.iter().copied().filter(expected).collect();
            let first = outcome.violations.iter().find(|found| by.contains(&found.invariant));
            commands += first.map_or(outcome.figures.commands, |found| found.commands);
            (!by.is_empty()).then_some(Caught { by, seed, commands })
        })
    }
}

/// The results of the controls, in order.
pub struct Results(Vec<(&'static str, Option<Caught>)>);

/// Runs all controls, or those that are caught soon, on this number of threads.
pub fn run(threads: usize, soon: bool, only: &str) -> Results {
    let all: Vec<&Control> =
        ALL.iter().chain([&RANDOM]).filter(|control| !(soon && control.rare) && control.name.contains(only)).collect();
    let results = Mutex::new(all.iter().map(|control| (control.name, None)).collect::<Vec<_>>());
    let next = Mutex::new(0..all.len());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(i) = { lock(&next).next() } {
                    let caught = all[i].caught();
                    match &caught {
                        Some(caught) => eprintln!("control: {}: caught at seed {}", all[i].name, caught.seed),
                        None => eprintln!("control: {}: NOT CAUGHT", all[i].name),
                    }
                    lock(&results)[i].1 = caught;
                }
            });
        }
    });
    Results(results.into_inner().unwrap_or_default())
}

impl Results {
    pub fn all_caught(&self) -> bool {
        self.0.iter().all(|(_, caught)| caught.is_some())
    }

    /// Returns the table of docs/evidence.md.
    pub fn table(&self) -> String {
        let mut text = String::from("| broken | caught by | seed | commands until then |\n|---|---|---|---|\n");
        for (name, caught) in &self.0 {
            match caught {
                Some(Caught { by, seed, commands }) => {
                    let by: Vec<String> = by.iter().map(ToString::to_string).collect();
                    writeln!(text, "| {name} | {} | {seed} | {commands} |", by.join(", ")).expect("a string");
                }
                None => writeln!(text, "| {name} | NOT CAUGHT in {BUDGET} seeds | | |").expect("a string"),
            }
        }
        text
    }

    pub fn json(&self) -> String {
        let one = |(name, caught): &(&str, Option<Caught>)| match caught {
            None => format!("\"{name}\":null"),
            Some(Caught { by, seed, commands }) => {
                let by: Vec<String> = by.iter().map(|by| format!("\"{by}\"")).collect();
                format!("\"{name}\":{{\"by\":[{}],\"seed\":{seed},\"commands\":{commands}}}", by.join(","))
            }
        };
        format!("{{{}}}", self.0.iter().map(one).collect::<Vec<_>>().join(","))
    }
}
