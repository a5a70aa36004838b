//! What must always hold, named as in DESIGN.md, and what must be met on the way.

use stateright::Property;

use crate::model::{Ballots, Message};
use crate::node::{Answer, Node};
use crate::state::{Extension, Lease, LeaseId, State};

type Invariant = fn(&State) -> bool;

/// "Completed" is when a majority has granted it, which is the earliest that the owner can know; likewise "confirmed".
pub const INVARIANTS: [(&str, Invariant); 5] = [
    ("TokenUnique", token_unique),
    ("TokenMonotonic", token_monotonic),
    ("TokenStable", token_stable),
    ("NoResurrection", no_resurrection),
    ("ReleaseSafe", release_safe),
];

/// No two completed acquisitions have the same token.
fn token_unique(state: &State) -> bool {
    state.tokens_completed().enumerate().all(|(i, token)| state.tokens_completed().skip(i + 1).all(|t| t != token))
}

/// An acquisition that begins after another completed completes only with a larger token.
fn token_monotonic(state: &State) -> bool {
    !state.leases.iter().any(|lease| lease.completed && lease.behind)
}

/// Whatever a lease's messages did to a node, its vote there bears the token of the acquisition.
fn token_stable(state: &State) -> bool {
    state.nodes.iter().filter_map(|node| node.vote).all(|vote| vote.token == state.lease(vote.by).token)
}

/// No extension that begins after an acquisition with a larger token completed is honoured by a majority.
///
/// One that began before may be: its votes on some nodes were given, and expired, before the other acquisition was
/// granted there. Its validity runs from its beginning, so it is spent by then; but that takes a clock.
fn no_resurrection(state: &State) -> bool {
    !state.leases.iter().flat_map(|lease| &lease.extensions).any(|of| of.confirmed && of.late)
}

/// Once a node has processed a lease's release it has no vote of that lease; and no release takes another lease's vote.
fn release_safe(state: &State) -> bool {
    let back = |node: &Node| node.vote.is_some_and(|vote| node.released & vote.by.bit() != 0);
    !state.foreign_release && !state.nodes.iter().any(back)
}

type Sight = fn(&Ballots, &State) -> bool;

/// What an exploration must have met to be worth anything.
pub const SIGHTS: [(&str, Sight); 9] = [
    // An acquisition completes.
    ("completed", |_, state| state.tokens_completed().next().is_some()),
    // Another owner completes after the votes of one that has not released expired.
    ("succeeded", |_, state| {
        let completed = || state.leases().filter(|(_, lease)| lease.completed);
        completed().any(|(of, lease)| {
            let newer = |(other, newer): (LeaseId, &Lease)| other.owner() != of.owner() && newer.token > lease.token;
            !lease.is_released() && completed().any(newer)
        })
    }),
    // An extension is confirmed, and the next one builds on it.
    ("built on", |_, state| {
        state.leases().any(|(_, lease)| lease.extensions().iter().any(|extension| extension.known > lease.token))
    }),
    // An extension repairs a node without a key.
    ("repaired", |model, state| {
        arrival(model, state, |at| at.extension().is_some() && at.is_free() && at.answer == Answer::Granted)
    }),
    // An acquisition is stale at a free node.
    ("stale", |model, state| {
        arrival(model, state, |at| !at.lease.is_released() && at.is_free() && at.answer == Answer::Stale)
    }),
    // An acquisition that arrives after its release is refused because of that.
    ("late acquire", |model, state| {
        arrival(model, state, |at| at.extension().is_none() && at.only_its_release_forbids())
    }),
    // An extension that arrives after its release is refused because of that.
    ("late extend", |model, state| {
        arrival(model, state, |at| at.extension().is_some() && at.only_its_release_forbids())
    }),
    // An extension is refused by a free node because somebody newer was there.
    ("superseded", |model, state| {
        arrival(model, state, |at| {
            let late = at.extension().is_some_and(|extension| extension.late);
            late && !at.lease.is_released() && at.is_free() && at.answer == Answer::Gone
        })
    }),
    // A minority honours an extension that began after a newer acquisition completed.
    ("minority", |model, state| {
        arrival(model, state, |at| {
            at.extension().is_some_and(|extension| extension.late) && at.answer == Answer::Granted
        })
    }),
];

/// A message that may arrive now, and what the node would answer.
struct Arrival<'a> {
    lease: &'a Lease,
    of: LeaseId,
    message: Message,
    node: &'a Node,
    answer: Answer,
}

impl Arrival<'_> {
    fn extension(&self) -> Option<&Extension> {
        match self.message {
            Message::Extend(index) => Some(&self.lease.extensions[index]),
            Message::Acquire | Message::Release => None,
        }
    }

    fn is_free(&self) -> bool {
        self.node.vote.is_none()
    }

    fn only_its_release_forbids(&self) -> bool {
        let processed = self.node.released & self.of.bit() != 0 && self.node.highest == self.lease.mark;
        processed && self.is_free() && self.answer != Answer::Granted
    }
}

/// Is there one that fits, other than of a release?
fn arrival(model: &Ballots, state: &State, fits: impl Fn(&Arrival) -> bool) -> bool {
    state.leases().any(|(of, lease)| {
        let extensions = (0..lease.extensions().len()).map(Message::Extend);
        [Message::Acquire].into_iter().chain(extensions).any(|message| {
            state.nodes.iter().any(|node| {
                let (answer, _) = model.answer(lease, of, message, node);
                fits(&Arrival { lease, of, message, node, answer })
            })
        })
    })
}

fn always<const I: usize>() -> Property<Ballots> {
    Property::always(INVARIANTS[I].0, |model: &Ballots, state| !model.first(I, || !INVARIANTS[I].1(state)))
}

fn sometimes<const I: usize>() -> Property<Ballots> {
    let found = |model: &Ballots, state: &State| model.first(INVARIANTS.len() + I, || SIGHTS[I].1(model, state));
    Property::sometimes(SIGHTS[I].0, found)
}

/// The checker wants plain functions, hence the numbers.
pub fn all() -> Vec<Property<Ballots>> {
    let always = [always::<0>(), always::<1>(), always::<2>(), always::<3>(), always::<4>()];
    let sometimes = [
        sometimes::<0>(),
        sometimes::<1>(),
        sometimes::<2>(),
        sometimes::<3>(),
        sometimes::<4>(),
        sometimes::<5>(),
        sometimes::<6>(),
        sometimes::<7>(),
        sometimes::<8>(),
    ];
    assert_eq!((always.len(), sometimes.len()), (INVARIANTS.len(), SIGHTS.len()), "one for each");
    always.into_iter().chain(sometimes).collect()
}
