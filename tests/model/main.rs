//! The ballot protocol, explored exhaustively with no clock at all.
//!
//! **What it proves.** In every history within the scope, whatever the timing, the invariants of `properties.rs` hold:
//! TokenUnique, TokenMonotonic, TokenStable, NoResurrection, ReleaseSafe. That a lease ends in time at its holder and not
//! before that on the nodes (MutualExclusion) needs clocks, and is the simulation's business.
//!
//! **What may happen.** Any vote may expire at any moment. Any message that was sent may arrive at any node at any later
//! moment, in any order, several times (releases are sent again after a reconnect) or never. Any answer may be lost: a
//! client may know of a majority as soon as there is one, or of an older one only. A client may pick any number above its
//! earlier ones: equal to another's, between two others, or above all. It may stop, release or begin anew at any moment,
//! and does not wait for the outcome of one extension before it sends the next.
//!
//! **The rules** are in `node.rs`, to be read beside `src/node/lua/hold.lua` and `release.lua`; what clients do is in
//! `model.rs`. One resource, one session for each lease; ballots are never forgotten.
//!
//! **The scope** is three nodes, two owners, and for each owner the numbers in [`SCOPES`]. To enlarge it, add lines there,
//! or run the larger ones that are kept out of everyday runs (with 2 cores: some minutes):
//! `cargo test --release --test model -- --ignored --nocapture`. For more than two leases of an owner or two extensions
//! of a lease, raise the constants in `state.rs` and widen the sets in `Node` too.
//!
//! **Reductions.** Ballots are places in an order, as the rules only compare them. The nodes are interchangeable, and so
//! are owners of equal scope. A message that would be refused now leads nowhere new. Nothing else is left out; states
//! are told apart by a hash of 64 bits, so there is a chance of less than one in a million that two were taken for one.
//!
//! **Why believe it.** A run counts only if every state that was found was also expanded, and if all of the sights in
//! `properties.rs` were met. Each rule is broken in turn, and that must be found; each invariant is shown a state that
//! violates it.

mod model;
mod node;
mod properties;
mod state;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Ballots, Scope};
use crate::node::{Ballot, Node, Rules, Vote};
use crate::properties::{INVARIANTS, SIGHTS};
use crate::state::{Extension, Lease, LeaseId, State};

type Scopes = [Scope; 2];

const SCOPES: [Scopes; 2] = [scopes(1, 2, 1, 1), scopes(2, 1, 1, 0)];
const LARGER_SCOPES: [Scopes; 4] = [scopes(2, 0, 1, 1), scopes(1, 2, 1, 2), scopes(2, 0, 2, 0), scopes(2, 1, 1, 1)];

/// So that a scope that is too large ends in a failure, and not in the last of the memory.
const MOST_TRANSITIONS: usize = 400_000_000;

const fn scopes(acquisitions: usize, extensions: usize, other_acquisitions: usize, other_extensions: usize) -> Scopes {
    [Scope { acquisitions, extensions }, Scope { acquisitions: other_acquisitions, extensions: other_extensions }]
}

#[test]
fn the_invariants_hold_in_every_history() {
    explore_all(&SCOPES);
}

/// The same rules with more acquisitions and extensions: too many states for every run of the tests.
#[test]
#[ignore = "11.7 million states: a minute or two with --release"]
fn the_invariants_hold_in_every_longer_history() {
    explore_all(&LARGER_SCOPES);
}

/// Clients pick growing ballots, but only because it is easiest: what matters is that an owner uses none twice.
#[test]
fn the_invariants_hold_with_any_unused_ballots() {
    explore(Rules::AcquireWithAnyUnusedBallot, scopes(2, 0, 1, 0));
}

fn explore_all(scopes: &[Scopes]) {
    let met: BTreeSet<_> = scopes.iter().flat_map(|scopes| explore(Rules::AsShipped, *scopes)).collect();
    let missed: Vec<_> = SIGHTS.iter().map(|(name, _)| *name).filter(|name| !met.contains(name)).collect();
    assert!(missed.is_empty(), "no history in scope shows {missed:?}");
}

/// Visits every state, and says which sights it met.
fn explore(rules: Rules, scopes: Scopes) -> BTreeSet<&'static str> {
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let model = Ballots::new(rules, scopes, true).checker();
    let checker = model.threads(threads).target_state_count(MOST_TRANSITIONS).spawn_dfs().join();

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

/// Each with the invariants that must catch it.
#[test]
fn every_broken_rule_is_caught() {
    let extending = scopes(1, 2, 1, 0);
    for (rules, scopes, caught_by) in [
        (Rules::GrantAnEqualBallot, extending, &["TokenUnique", "TokenMonotonic"] as &[_]),
        (Rules::RepairWhateverTheBallot, extending, &["NoResurrection", "ReleaseSafe"]),
        (Rules::RepairUnderANewToken, extending, &["TokenStable"]),
        (Rules::ExtendWithoutMark, extending, &["NoResurrection"]),
        (Rules::ReleaseWithoutMark, extending, &["ReleaseSafe"]),
        (Rules::ReleaseWithKnown, extending, &["ReleaseSafe"]),
        (Rules::DeleteBlindly, extending, &["ReleaseSafe"]),
        (Rules::QuorumTooSmall, extending, &["TokenUnique", "TokenMonotonic", "NoResurrection"]),
        (Rules::ConfirmBelowQuorum, extending, &["NoResurrection"]),
        (Rules::CreditAnotherRound, extending, &["NoResurrection"]),
        (Rules::ReuseABallot, scopes(2, 0, 1, 0), &["ReleaseSafe"]),
    ] {
        let wanted = HasDiscoveries::AllOf(caught_by.iter().copied().collect());
        // One thread, breadth first: the shortest history comes first. Nodes keep their numbers.
        let checker = Ballots::new(rules, scopes, false).checker().finish_when(wanted).spawn_bfs().join();
        let mut found = checker.discoveries();
        for name in caught_by {
            let history = found.remove(name).unwrap_or_else(|| panic!("{name} did not catch {rules:?}"));
            let history = history.into_actions();
            println!("{rules:?} violates {name} after {} steps: {history:?}", history.len());
        }
    }
}

#[test]
fn every_invariant_catches_a_state_made_by_hand() {
    let (a, b) = (LeaseId::new(0, 0), LeaseId::new(1, 0));
    let (one, two, three) = (Ballot(2), Ballot(4), Ballot(6));
    let lease = |token| Lease { token, known: token, completed: true, ..Lease::default() };
    let mut legal = State::default();
    *legal.lease_mut(a) = lease(one);
    *legal.lease_mut(b) = lease(two);
    legal.lease_mut(a).extensions[0] = Extension { known: one, next: three, confirmed: false, late: true };
    legal.nodes[0] = Node { vote: Some(Vote { by: b, token: two }), highest: two, ..Node::default() };
    let violated = |change: fn(&mut State, LeaseId)| {
        let mut state = legal;
        change(&mut state, b);
        let violated = INVARIANTS.iter().filter(|(_, holds)| !holds(&state)).map(|(name, _)| *name);
        violated.collect::<Vec<_>>()
    };

    assert_eq!(violated(|_, _| {}), [""; 0]);
    assert_eq!(violated(|state, _| state.leases[0].token = Ballot(4)), ["TokenUnique"]);
    assert_eq!(violated(|state, b| state.lease_mut(b).behind = true), ["TokenMonotonic"]);
    assert_eq!(violated(|state, b| state.nodes[0].vote = Some(Vote { by: b, token: Ballot(6) })), ["TokenStable"]);
    assert_eq!(violated(|state, _| state.leases[0].extensions[0].confirmed = true), ["NoResurrection"]);
    assert_eq!(violated(|state, b| state.nodes[0].released = b.bit()), ["ReleaseSafe"]);
    assert_eq!(violated(|state, _| state.foreign_release = true), ["ReleaseSafe"]);
}
