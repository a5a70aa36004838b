//! What can be said of a lock by looking at its nodes alone.
//!
//! A node is read at one moment, the nodes are read one after the other, and between two readings a lock may be released and
//! acquired again. So no verdict compares the times of two readings. A node keeps the last lease that it has honoured, until
//! that is released there, in another key than the lock: where the two differ, the node has two holders at one moment. Of
//! tokens only the order of the readings is used.

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use super::model::{Model, Sight};
use crate::chaos::sight::{Key, Lease};

/// How long after its quarantine a node may show an old lease that its holder gave up: a message that a cut held back, and the
/// lease that follows from it. In longest leases.
const LEASES_AFTER_QUARANTINE: u64 = 3;

/// A lease that a majority of the nodes showed, from its first reading to the last one.
#[derive(Clone, Debug)]
pub struct Grant {
    pub name: String,
    pub lease: Lease,
    pub from: u64,
    pub until: u64,
}

/// What the nodes have had at a reading.
struct Nodes<'a> {
    /// `None` for a node that did not answer.
    keys: Vec<(bool, BTreeMap<&'a str, &'a Key>)>,
    quorum: usize,
}

impl<'a> Nodes<'a> {
    fn new(model: &Model) -> Self {
        let nodes = model.setting.nodes;
        Self { keys: vec![Default::default(); nodes], quorum: nodes / 2 + 1 }
    }

    fn see(&mut self, sight: &'a Sight) {
        for shown in &sight.nodes {
            let (answers, keys) = &mut self.keys[shown.node];
            *answers = !shown.blind;
            for key in &shown.keys {
                if key.held.is_some() || key.last.is_some() {
                    keys.insert(&key.name, key);
                } else {
                    keys.remove(key.name.as_str());
                }
            }
        }
    }

    /// Returns the names that a node has, or had until this reading.
    fn names(&self, sight: &'a Sight) -> BTreeSet<&'a str> {
        let changed = sight.nodes.iter().flat_map(|shown| shown.keys.iter().map(|key| key.name.as_str()));
        self.keys.iter().flat_map(|(_, keys)| keys.keys().copied()).chain(changed).collect()
    }

    /// Returns what a majority shows of a name in the same way. `show` has the number of a node and its key.
    fn most<T: Ord>(&self, name: &str, show: impl Fn(usize, &'a Key) -> Option<T>) -> Option<T> {
        let mut counts: BTreeMap<T, usize> = BTreeMap::new();
        for (node, (answers, keys)) in self.keys.iter().enumerate() {
            let shown = keys.get(name).filter(|_| *answers).and_then(|key| show(node, key));
            if let Some(shown) = shown {
                *counts.entry(shown).or_default() += 1;
            }
        }
        counts.into_iter().find(|(_, count)| *count >= self.quorum).map(|(shown, _)| shown)
    }
}

/// Calls `look` with every reading, and every name that a node has then or has just lost.
fn each<'a>(model: &'a Model, mut look: impl FnMut(&'a Sight, &Nodes<'a>, &'a str)) {
    let mut nodes = Nodes::new(model);
    for sight in &model.sights {
        nodes.see(sight);
        for name in nodes.names(sight) {
            look(sight, &nodes, name);
        }
    }
}

fn held(_: usize, key: &Key) -> Option<&Lease> {
    key.held.as_ref()
}

/// Returns the leases that a majority showed, in their order. One that is hidden for a while comes again.
pub fn grants(model: &Model) -> Vec<Grant> {
    let (mut over, mut open): (Vec<Grant>, BTreeMap<&str, Grant>) = Default::default();
    each(model, |sight, nodes, name| {
        let lease = nodes.most(name, held).filter(|lease| lease.is_own());
        if let Some(grant) = open.get_mut(name) {
            grant.until = sight.from;
            if lease == Some(&grant.lease) {
                return;
            }
            over.extend(open.remove(name));
        }
        if let Some(lease) = lease.cloned() {
            open.insert(name, Grant { name: name.to_owned(), lease, from: sight.at, until: sight.at });
        }
    });
    over.extend(open.into_values());
    over.sort_by_key(|grant| grant.from);
    over
}

/// Checks that no majority has another holder than the lease that it granted last, before that lease is over.
pub fn one_holder(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("MutualExclusion", "no majority of nodes has two holders of a lock at one moment");
    let mut before: BTreeMap<&str, (&Lease, Option<&Lease>)> = BTreeMap::new();
    each(model, |sight, nodes, name| {
        let Some(lease) = nodes.most(name, held) else { return };
        let other = nodes.most(name, |_, key| {
            let (last, end) = key.last.as_ref()?;
            let differs = key.held.as_ref() == Some(lease) && !same(last, lease);
            (differs && *end > sight.wall).then_some(last)
        });
        if before.insert(name, (lease, other)) == Some((lease, other)) {
            return;
        }
        verdict.check(sight.at, other.is_none(), || {
            let last = other.map(described).unwrap_or_default();
            format!("{name}: a majority has the key of {}, while the lease of {last} goes on", described(lease))
        });
    });
    verdict
}

/// Checks that a lock that a majority has was granted there: it is the last lease that these nodes have honoured, and its token is
/// no larger than their ballots.
pub fn granted_by_vote(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("GrantedByVote", "the lock that a majority of nodes has was granted by these nodes");
    let mut before: BTreeMap<&str, (&Lease, bool)> = BTreeMap::new();
    each(model, |sight, nodes, name| {
        let Some(lease) = nodes.most(name, held).filter(|lease| lease.is_own()) else { return };
        let forged = nodes.most(name, |_, key| {
            let is_last = key.last.as_ref().is_some_and(|(last, _)| same(last, lease));
            let granted = is_last && key.ballot >= lease.token;
            (key.held.as_ref() == Some(lease) && !granted).then_some(())
        });
        if before.insert(name, (lease, forged.is_none())) != Some((lease, forged.is_none())) {
            verdict.check(sight.at, forged.is_none(), || {
                format!("{name}: a majority has the key of {}, which it has not granted", described(lease))
            });
        }
    });
    verdict
}

/// Checks that the tokens that majorities show only grow, and that each has one owner. A node that may have lost its memory
/// does not count.
pub fn tokens_grow(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("TokenMonotonic", "the tokens of a lock only grow, and no two owners have the same");
    let mut largest: BTreeMap<&str, &Lease> = BTreeMap::new();
    let lost = lost_memories(model);
    each(model, |sight, nodes, name| {
        let remembers = |node| !lost.iter().any(|(of, from, to)| *of == node && *from <= sight.at && sight.from <= *to);
        let shown = nodes.most(name, |node, key| key.held.as_ref().filter(|_| remembers(node)));
        let Some(lease) = shown.filter(|lease| lease.is_own()) else { return };
        match largest.get(name) {
            Some(before) if *before == lease => return,
            Some(before) => {
                let grows = before.token < lease.token || same(before, lease);
                verdict.check(sight.at, grows, || {
                    format!("{name}: {} was seen after {}", described(lease), described(before))
                });
                if before.token > lease.token {
                    return;
                }
            }
            None => verdict.check(sight.at, true, String::new),
        }
        largest.insert(name, lease);
    });
    verdict
}

/// Returns the nodes that lost their memory, and from when to when each may show leases that count for nothing.
fn lost_memories(model: &Model) -> Vec<(usize, u64, u64)> {
    let forgot = model.troubles.iter().filter(|trouble| trouble.forgets);
    let until = |trouble| model.felt_until(trouble).saturating_add(LEASES_AFTER_QUARANTINE * model.setting.lease);
    forgot.flat_map(|trouble| trouble.nodes.iter().map(move |node| (*node, trouble.from, until(trouble)))).collect()
}

/// Returns whether these are the same lease. A lease that is revoked has another owner.
fn same(one: &Lease, other: &Lease) -> bool {
    one.token == other.token && (one.owner == other.owner || one.is_revoked() || other.is_revoked())
}

fn described(lease: &Lease) -> String {
    match lease.token {
        0 => format!("a client without the lock ({})", lease.label),
        token => format!("{} (token {token})", lease.label),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::test_history::{TestHistory, ms};
    use super::*;
    use crate::chaos::fault::Kind;

    fn lease(owner: &str, token: u64) -> Lease {
        Lease { token, owner: owner.to_owned(), label: format!("host:{owner}") }
    }

    /// As the lock writes it: the lease ends at 1 s by the wall clock.
    fn granted(owner: &str, token: u64) -> Key {
        let lease = lease(owner, token);
        Key { name: "x".to_owned(), held: Some(lease.clone()), ballot: token, last: Some((lease, 1000)) }
    }

    fn states(history: &TestHistory) -> [State; 3] {
        let model = history.model();
        [one_holder(&model), granted_by_vote(&model), tokens_grow(&model)].map(|verdict| verdict.state)
    }

    const HELD: [State; 3] = [State::Held; 3];

    #[test]
    fn one_owner_after_the_other_is_well() {
        let mut history = TestHistory::new(3);
        history.sight(ms(100), &[0, 1, 2], &granted("a", 10));
        history.sight(ms(200), &[0, 2], &granted("b", 11));
        history.sight(ms(300), &[0, 1, 2], &Key { name: "x".to_owned(), ballot: 12, ..Key::default() });
        assert_eq!(states(&history), HELD);
        let grants = grants(&history.model());
        let seen: Vec<_> = grants.iter().map(|grant| (grant.lease.token, grant.from, grant.until)).collect();
        assert_eq!(seen, [(10, ms(100), ms(200)), (11, ms(200), ms(300))]);
    }

    #[test]
    fn a_key_over_a_lease_that_goes_on_is_a_second_holder() {
        let over = |by: Lease| Key { held: Some(by), ballot: 20, ..granted("a", 10) };
        for by in [lease("b", 11), Lease { token: 0, ..lease("", 0) }] {
            for (at, nodes, expected) in [
                (ms(200), &[0, 2][..], State::Violated),
                (ms(200), &[0], State::Held),
                (ms(1000), &[0, 2], State::Held),
            ] {
                let mut history = TestHistory::new(3);
                history.sight(ms(100), &[0, 1, 2], &granted("a", 10));
                history.sight(at, nodes, &over(by.clone()));
                assert_eq!(states(&history)[0], expected, "{by:?} on {nodes:?} at {at}");
            }
        }
    }

    #[test]
    fn a_lease_without_a_ballot_was_not_granted() {
        let mut history = TestHistory::new(3);
        let forged = Key { ballot: 9, last: None, ..granted("a", 10) };
        history.sight(ms(100), &[0], &forged);
        assert_eq!(states(&history)[1], State::NotExercised, "one node is no majority");
        history.sight(ms(150), &[1], &forged);
        assert_eq!(states(&history), [State::Held, State::Violated, State::Held]);
        let mut history = TestHistory::new(3);
        history.sight(ms(100), &[0, 1], &Key { last: None, ..granted("a", 10) });
        assert_eq!(states(&history)[1], State::Violated, "another lease was released there");
    }

    #[test]
    fn a_smaller_token_and_a_second_owner_are_violations() {
        for second in [granted("b", 9), granted("b", 10)] {
            let mut history = TestHistory::new(3);
            history.sight(ms(100), &[0, 1], &granted("a", 10));
            history.sight(ms(200), &[1, 2], &second);
            assert_eq!(states(&history)[2], State::Violated, "{second:?}");
        }
    }

    #[test]
    fn a_revoked_lease_is_the_same_lease() {
        let mut history = TestHistory::new(3);
        history.sight(ms(100), &[0, 1, 2], &granted("a", 10));
        history.sight(ms(200), &[0, 1, 2], &granted(&"0".repeat(32), 10));
        assert_eq!(states(&history), HELD);
    }

    #[test]
    fn a_node_in_quarantine_may_show_an_old_lease() {
        for (flushed, expected) in [(true, State::Held), (false, State::Violated)] {
            let mut history = TestHistory::new(3);
            if flushed {
                history.fault(0, Kind::Flush, &[1], ms(150)..ms(150));
            }
            history.sight(ms(100), &[1, 2], &granted("b", 11));
            history.sight(ms(200), &[0, 1], &granted("a", 10));
            assert_eq!(states(&history)[2], expected);
        }
    }

    #[test]
    fn a_node_that_does_not_answer_counts_for_nothing() {
        let mut history = TestHistory::new(3);
        history.sight(ms(100), &[0], &granted("a", 10));
        history.blind(ms(150), 0);
        history.sight(ms(200), &[1], &granted("a", 10));
        assert_eq!(grants(&history.model()).len(), 0);
    }
}
