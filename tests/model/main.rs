//! The ballot protocol, explored exhaustively with no clock at all.
//!
//! **What it proves.** In every history within the scope, with any timing, the invariants of `properties.rs` hold:
//! TokenUnique, TokenMonotonic, TokenStable, NoResurrection, JoinSafe, ReleaseSafe, ShareKept. MutualExclusion (a lease
//! ends in time at its holder, and not before that on the nodes) needs clocks. The simulation checks it.
//!
//! **What may happen.** Any lock key may expire at any moment. Any message that was sent may arrive at any node at any
//! later moment, in any order, several times (releases are sent again after a reconnect) or never. Any answer may be
//! lost: a client may know of a majority as soon as there is one, or only of an older one. A client may pick any number
//! above the earlier ones of its share: equal to another's, between two others, or above all. It may stop or release at
//! any moment, and does not wait for the outcome of one extension before it sends the next.
//!
//! **Shares.** A lease has one share for each client that takes part in it. The client that acquires has the first.
//! Once the acquisition has completed, the lease can be handed over: any client may join it at any later moment, also one
//! that has released a share of it, and also when all others have been released. Each join is a new share. Shares are
//! extended and released independently of each other, and each has late and doubled messages of its own. An owner may
//! acquire again as soon as the share of its previous acquisition is released, while other shares of the old lease go on.
//!
//! **Revocation.** In some scopes the first lease of one owner is revoked at any moment, with any ballot above its token.
//! It counts when a majority of nodes had honoured only lower ballots before it arrived there.
//!
//! **The rules** are in `node.rs`. What clients do is in `model.rs`.
//!
//! **What is not modelled.** Time: leases, validity, and the time after which ballots are forgotten. The answer *early*
//! of a node that waits for the asker's clock: for the asker it is a refusal that changes nothing, and every acquisition
//! may stay without effect on any node, so it leads to no state that is not explored. The end of the last lease honoured
//! is not kept for the same reason; its owner, token, and shares are, because repair needs them. Hold counts: they are
//! written, never incremented, so a share is here or not. Several resources in one message, waiters, and the node
//! record: nodes forget nothing.
//!
//! **The scope** is three nodes, two owners, and for each owner the numbers in [`SCOPES`]. To enlarge it, add lines
//! there, or run the larger ones that are kept out of everyday runs (with 2 cores: some minutes):
//! `cargo test --release --test model -- --ignored --nocapture`. For more than three shares of an owner or two
//! extensions of a share, raise the constants in `state.rs` and widen the sets in `Node`.
//!
//! **Reductions.**
//! - Ballots are places in an order, as the rules only compare them.
//! - The nodes are interchangeable, and so are owners of equal scope. Shares do not change that: the rules compare owners
//!   and words only for equality, so an exchange of the owners exchanges the two halves of every set of shares. The
//!   shares of one owner are not interchanged.
//! - Clients are not distinguished. A join may pick any ballot above the token, which includes all that a client would pick
//!   that remembers its earlier shares, or the ballots in the export.
//! - A message that would be refused now, or would change nothing, leads to no new state.
//! - A release that would change nothing at a node counts as processed there. This only makes ReleaseSafe and
//!   NoResurrection stricter.
//! - Once a share is released, what its client knew and which of its messages were late is dropped. It sends no more
//!   holds, and counts no more votes.
//!
//! Nothing else is left out. States are distinguished by a hash of 64 bits, so there is a chance of less than one in
//! ten thousand that two of the largest scope were taken for one, and less than one in a million in everyday runs.
//!
//! **Why believe it.** A run counts only if every state that was found was also expanded, and if all of the sights in
//! `properties.rs` were met. Each rule is broken in turn, and that must be found, with the reductions and without them;
//! each invariant is shown a state that violates it (`broken.rs`).

mod action;
mod broken;
mod model;
mod node;
mod properties;
mod state;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use stateright::{Checker, Model};

use crate::model::{Ballots, Scope};
use crate::node::Rules;
use crate::properties::{INVARIANTS, SIGHTS};

type Scopes = [Scope; 2];

const SCOPES: [Scopes; 8] = [
    [scope(1, 1, 1), scope(1, 0, 0)],
    [scope(1, 1, 0), scope(1, 1, 0)],
    [scope(1, 2, 0), NOTHING],
    [scope(2, 1, 0), NOTHING],
    [scope(1, 0, 2), scope(1, 0, 1)],
    [scope(2, 0, 1), scope(1, 0, 0)],
    [revoked(scope(1, 0, 2)), NOTHING],
    [revoked(scope(1, 1, 1)), NOTHING],
];
const LARGER_SCOPES: [Scopes; 11] = [
    [scope(1, 1, 2), scope(1, 0, 0)],
    [scope(1, 1, 1), scope(1, 0, 1)],
    [scope(1, 1, 1), scope(1, 1, 0)],
    [scope(1, 2, 0), scope(1, 0, 0)],
    [scope(1, 2, 1), NOTHING],
    [scope(2, 1, 0), scope(1, 0, 0)],
    [scope(2, 1, 1), scope(1, 0, 0)],
    [scope(1, 0, 2), scope(1, 0, 2)],
    [scope(2, 0, 1), scope(1, 0, 1)],
    [scope(2, 0, 0), scope(2, 0, 0)],
    [revoked(scope(1, 0, 2)), scope(1, 0, 0)],
];
const NOTHING: Scope = scope(0, 0, 0);

/// A scope that is too large fails here before it takes all memory.
const MOST_TRANSITIONS: usize = 400_000_000;

const fn scope(acquisitions: usize, joins: usize, extensions: usize) -> Scope {
    Scope { acquisitions, joins, extensions, revocation: false }
}

const fn revoked(scope: Scope) -> Scope {
    Scope { revocation: true, ..scope }
}

#[test]
fn the_invariants_hold_in_every_history() {
    explore_all(&SCOPES);
}

/// The same rules with more joins and extensions: too many states for every run of the tests.
#[test]
#[ignore = "40 million states: some minutes with --release"]
fn the_invariants_hold_in_every_longer_history() {
    explore_all(&LARGER_SCOPES);
}

/// Clients pick growing ballots because it is easiest. The rules only need that an owner uses none twice.
#[test]
fn the_invariants_hold_with_any_unused_ballots() {
    explore(Rules::AcquireWithAnyUnusedBallot, [scope(2, 0, 0), scope(1, 0, 0)], &all_sights());
    explore(Rules::AcquireWithAnyUnusedBallot, [scope(2, 1, 0), NOTHING], &all_sights());
}

/// Where each attempt has a word of its own, not even that is needed.
#[test]
fn a_ballot_may_be_used_twice_for_different_shares() {
    explore(Rules::ReuseABallotForAnotherShare, [scope(2, 0, 1), scope(1, 0, 0)], &all_sights());
    explore(Rules::ReuseABallotForAnotherShare, [scope(2, 1, 0), NOTHING], &all_sights());
}

/// A lease with one share may be replaced by a newer one of its owner. With several shares that is a broken rule.
#[test]
fn replacing_an_older_lease_is_safe_without_joins() {
    explore(Rules::ReplaceAnOlderLease, [scope(2, 0, 0), scope(1, 0, 0)], &all_sights());
}

/// A release just above `known` suffices for a lease with one share. With several shares it is a broken rule.
#[test]
fn releasing_just_above_known_is_safe_without_joins() {
    explore(Rules::ReleaseJustAboveKnown, [scope(1, 0, 2), scope(1, 0, 0)], &all_sights());
}

fn all_sights() -> BTreeSet<&'static str> {
    SIGHTS.iter().map(|(name, _)| *name).collect()
}

fn explore_all(scopes: &[Scopes]) {
    let mut met = BTreeSet::new();
    for scopes in scopes {
        met.extend(explore(Rules::AsShipped, *scopes, &met));
    }
    let missed: Vec<_> = all_sights().into_iter().filter(|name| !met.contains(name)).collect();
    assert!(missed.is_empty(), "no history in scope shows {missed:?}");
}

/// Visits every state, and returns the sights that it met. It does not look for those that were `met` before.
fn explore(rules: Rules, scopes: Scopes, met: &BTreeSet<&str>) -> BTreeSet<&'static str> {
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let model = Ballots::new(rules, scopes, true);
    for (index, (name, _)) in SIGHTS.iter().enumerate() {
        model.first(INVARIANTS.len() + index, || met.contains(name));
    }
    let checker = model.checker().threads(threads).target_state_count(MOST_TRANSITIONS).spawn_dfs().join();

    let (unique, expanded) = (checker.unique_state_count(), checker.model().expanded.load(Ordering::Relaxed));
    println!(
        "{rules:?} {scopes:?}: {unique} states, {} transitions, histories of up to {} steps, {:.1?}",
        checker.state_count(),
        checker.max_depth() - 1,
        began.elapsed()
    );
    // Replays the histories, so `expanded` had to be read before.
    let found = checker.discoveries();
    for (name, _) in INVARIANTS {
        if let Some(history) = found.get(name) {
            panic!("{name} is violated: {:#?}", history.clone().into_actions());
        }
    }
    assert!(checker.is_done() && checker.state_count() < MOST_TRANSITIONS, "not all states were visited");
    assert_eq!(expanded, unique, "every state that was found is to be expanded, once");
    found.into_keys().collect()
}
