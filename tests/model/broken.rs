//! Proof that the exploration detects a wrong rule.

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::Ballots;
use crate::node::{Ballot, Lease, Node, Rules};
use crate::properties::INVARIANTS;
use crate::state::{Extension, Share, ShareId, State};
use crate::{revoked, scope};

/// Each with the invariants that must catch it.
#[test]
fn every_broken_rule_is_caught() {
    let extending = [scope(1, 0, 2), scope(1, 0, 0)];
    let joining = [scope(1, 1, 0), scope(1, 0, 0)];
    let extending_both = [scope(1, 1, 1), scope(0, 0, 0)];
    for (rules, scopes, caught_by) in [
        (Rules::GrantAnEqualBallot, extending, &["TokenUnique", "TokenMonotonic"] as &[_]),
        (Rules::ReplaceAnOlderLease, [scope(2, 1, 0), scope(0, 0, 0)], &["ShareKept"]),
        (Rules::RepairAtAnyBallot, extending, &["NoResurrection", "ReleaseSafe"]),
        (Rules::RepairUnderANewToken, extending, &["TokenStable"]),
        (Rules::RepairWithoutTheOthers, extending_both, &["ShareKept"]),
        (Rules::ExtendWithoutBallot, extending, &["NoResurrection"]),
        (Rules::JoinWithAnyBallot, extending_both, &["ReleaseSafe"]),
        (Rules::JoinAnEmptyNode, joining, &["JoinSafe"]),
        (Rules::JoinThroughAnyShare, [scope(1, 2, 0), scope(0, 0, 0)], &["NoResurrection"]),
        (Rules::ReleaseWithoutBallot, extending, &["ReleaseSafe"]),
        (Rules::ReleaseOnlyTheKey, extending_both, &["ReleaseSafe"]),
        (Rules::ReleaseForgetsTheOthers, joining, &["ShareKept"]),
        (Rules::DeleteTheKeyOfOthers, joining, &["ReleaseSafe"]),
        (Rules::DeleteBlindly, extending, &["ReleaseSafe"]),
        (Rules::QuorumTooSmall, extending, &["TokenUnique", "TokenMonotonic", "NoResurrection"]),
        (Rules::ConfirmBelowQuorum, extending, &["NoResurrection"]),
        (Rules::CreditAnotherRound, extending, &["NoResurrection"]),
        (Rules::ReuseABallot, [scope(2, 0, 0), scope(1, 0, 0)], &["ReleaseSafe"]),
        (Rules::ReuseAWord, joining, &["ReleaseSafe", "ShareKept"]),
        (Rules::JoinWithKnown, joining, &["JoinSafe", "NoResurrection"]),
        (Rules::ReleaseWithKnown, extending, &["ReleaseSafe"]),
        (Rules::ReleaseJustAboveKnown, extending_both, &["ReleaseSafe"]),
        (Rules::RevokeWithoutBallot, [revoked(scope(1, 0, 2)), scope(0, 0, 0)], &["NoResurrection"]),
        (Rules::RevokeOnlyTheKey, [revoked(scope(1, 0, 1)), scope(0, 0, 0)], &["NoResurrection"]),
        (Rules::CountAnyRevocation, [revoked(scope(1, 0, 2)), scope(0, 0, 0)], &["NoResurrection"]),
    ] {
        for symmetry in [true, false] {
            let wanted = HasDiscoveries::AllOf(caught_by.iter().copied().collect());
            // One thread, breadth first: the shortest history comes first.
            let checker = Ballots::new(rules, scopes, symmetry).checker().finish_when(wanted).spawn_bfs().join();
            let mut found = checker.discoveries();
            for name in caught_by {
                let history = found.remove(name).unwrap_or_else(|| panic!("{name} did not catch {rules:?}"));
                // Without the reductions the nodes keep their numbers.
                if !symmetry {
                    let history = history.into_actions();
                    println!("{rules:?} violates {name} after {} steps: {history:?}", history.len());
                }
            }
        }
    }
}

#[test]
fn every_invariant_catches_a_state_made_by_hand() {
    let (a, joined, b) = (ShareId::new(0, 0), ShareId::new(0, 1), ShareId::new(1, 0));
    let (one, two, three) = (Ballot(2), Ballot(4), Ballot(6));
    let share = |token| Share { token, first: token, known: token, completed: true, ..Share::default() };
    let mut legal = State::default();
    *legal.share_mut(a) = share(one);
    *legal.share_mut(joined) = Share { first: three, word: 1, ..share(one) };
    *legal.share_mut(b) = share(two);
    legal.share_mut(a).extensions[0] = Extension { known: one, next: three, confirmed: false, late: true };
    let lease = Some(Lease { owner: 1, token: two, shares: b.bit() });
    legal.nodes[0] = Node { key: lease, last: lease, highest: two, standing: b.bit(), ..Node::default() };
    let violated = |change: fn(&mut State, &mut Share, &mut Node, ShareId)| {
        let (mut state, mut share, mut node) = (legal, *legal.share(joined), legal.nodes[0]);
        change(&mut state, &mut share, &mut node, b);
        *state.share_mut(joined) = share;
        state.nodes[0] = node;
        let violated = INVARIANTS.iter().filter(|(_, holds)| !holds(&state)).map(|(name, _)| *name);
        violated.collect::<Vec<_>>()
    };

    assert_eq!(violated(|_, _, _, _| {}), [""; 0]);
    assert_eq!(violated(|state, _, _, b| state.shares[0] = *state.share(b)), ["TokenUnique"]);
    assert_eq!(violated(|state, _, _, b| state.share_mut(b).behind = true), ["TokenMonotonic"]);
    assert_eq!(
        violated(|_, _, node, b| {
            node.key = Some(Lease { owner: 1, token: Ballot(6), shares: b.bit() });
            node.standing = 0;
        }),
        ["TokenStable"]
    );
    assert_eq!(violated(|state, _, _, _| state.shares[0].extensions[0].confirmed = true), ["NoResurrection"]);
    assert_eq!(violated(|_, joined, _, _| joined.behind = true), ["NoResurrection"]);
    assert_eq!(violated(|state, _, _, _| state.created_by_join = true), ["JoinSafe"]);
    assert_eq!(violated(|_, _, node, b| node.released = b.bit()), ["ReleaseSafe"]);
    assert_eq!(violated(|_, _, node, b| (node.released, node.standing) = (b.bit(), 0)), ["ReleaseSafe"]);
    assert_eq!(violated(|state, _, _, _| state.foreign_release = true), ["ReleaseSafe"]);
    assert_eq!(violated(|_, _, node, _| node.last = None), ["ShareKept"]);
    assert_eq!(violated(|_, _, node, _| node.key = Some(Lease::default())), ["ShareKept"]);
}
