//! The invariants, named as in docs/evidence.md, and the states that every exploration must meet.

use stateright::Property;

use crate::action::Message;
use crate::model::Ballots;
use crate::node::{Answer, Ballot, Node, Processed};
use crate::state::{Extension, Share, ShareId, State};

type Invariant = fn(&State) -> bool;

/// "Completed" is when a majority has granted it, which is the earliest that the client can know; likewise "confirmed".
pub const INVARIANTS: [(&str, Invariant); 7] = [
    ("TokenUnique", token_unique),
    ("TokenMonotonic", token_monotonic),
    ("TokenStable", token_stable),
    ("NoResurrection", no_resurrection),
    ("JoinSafe", join_safe),
    ("ReleaseSafe", release_safe),
    ("ShareKept", share_kept),
];

/// No two completed acquisitions have the same token.
fn token_unique(state: &State) -> bool {
    state.tokens_completed().enumerate().all(|(i, token)| state.tokens_completed().skip(i + 1).all(|t| t != token))
}

/// An acquisition that begins after another completed completes only with a larger token.
fn token_monotonic(state: &State) -> bool {
    !state.shares.iter().any(|share| share.is_acquisition() && share.completed && share.behind)
}

/// A lock key bears the token of the acquisition, whichever messages of its shares the node has honoured.
fn token_stable(state: &State) -> bool {
    state
        .nodes
        .iter()
        .filter_map(|node| node.key)
        .all(|key| members(key.shares).all(|id| state.share(id).token == key.token))
}

/// No extension or join that begins after an acquisition with a larger token completed, or after the lease was revoked, is
/// honoured by a majority; nor is a join that begins after a majority processed the release of the share through which it
/// joins.
///
/// An extension that began before may be: its votes on some nodes were given, and expired, before the other acquisition
/// was granted there. Its validity runs from its beginning, so it is spent by then; but that takes a clock.
fn no_resurrection(state: &State) -> bool {
    let joined = |share: &Share| share.is_join() && share.completed && share.behind;
    let extended = |share: &Share| share.extensions.iter().any(|of| of.confirmed && of.late);
    !state.shares.iter().any(|share| joined(share) || extended(share))
}

fn members(mut set: u8) -> impl Iterator<Item = ShareId> {
    std::iter::from_fn(move || {
        let smallest = (set != 0).then(|| ShareId::ALL[set.trailing_zeros() as usize]);
        set &= set.wrapping_sub(1);
        smallest
    })
}

/// No join creates a lock key: a join does not revive an ended lease.
fn join_safe(state: &State) -> bool {
    !state.created_by_join
}

/// Once a node has processed a share's release, its lock key has no entry of that share. No release takes another share,
/// or another lease, out of a lock key.
fn release_safe(state: &State) -> bool {
    // When a broken rule uses a word twice, the entry may be of the other share.
    let of_another = |node: &Node, id: ShareId| {
        state.shares().any(|(other, share)| {
            let alike = other.owner() == id.owner() && share.word == state.share(id).word;
            other != id && alike && node.standing & other.bit() != 0
        })
    };
    let is_back = |node: &Node, id: ShareId| state.is_in_key(id, node) && !of_another(node, id);
    !state.foreign_release
        && state
            .nodes
            .iter()
            .all(|node| node.released & node.standing == 0 && !members(node.released).any(|id| is_back(node, id)))
}

/// A share that a node has honoured stands there until its client releases it, or the lock key expires and the node
/// honours another lease. It stands in the lock key and in the copy of the lease honoured last, from which an expired lock
/// key is repaired.
fn share_kept(state: &State) -> bool {
    state.nodes.iter().all(|node| {
        members(node.standing).filter(|id| !state.share(*id).is_released()).all(|id| {
            let from = state.sender(id);
            let in_last = node.last.is_some_and(|last| last.is_of(from) && last.shares & from.word != 0);
            in_last && (node.key.is_none() || state.is_in_key(id, node))
        })
    })
}

type Sight = fn(&Ballots, &State) -> bool;

/// The states that a valid exploration must have met.
pub const SIGHTS: [(&str, Sight); 17] = [
    // An acquisition completes.
    ("completed", |_, state| state.tokens_completed().next().is_some()),
    // Another owner completes after the votes of one that has not released expired.
    ("succeeded", |_, state| {
        let completed = || state.shares().filter(|(_, share)| share.is_acquisition() && share.completed);
        completed().any(|(of, share)| {
            let newer = |(other, newer): (ShareId, &Share)| other.owner() != of.owner() && newer.token > share.token;
            !share.is_released() && completed().any(newer)
        })
    }),
    // An extension is confirmed, and the next one builds on it.
    ("built on", |_, state| {
        state.shares().any(|(_, share)| share.extensions().iter().any(|extension| extension.known > share.first))
    }),
    // An extension repairs a node without a key.
    ("repaired", |model, state| {
        arrival(model, state, |at| at.extension().is_some() && at.is_free() && at.answer == Answer::Granted)
    }),
    // An acquisition is stale at a free node.
    ("stale", |model, state| {
        arrival(model, state, |at| !at.share.is_released() && at.is_free() && at.answer == Answer::Stale)
    }),
    // An acquisition that arrives after its release is refused because of that.
    ("late acquire", |model, state| arrival(model, state, |at| at.is_acquisition() && at.only_its_release_forbids())),
    // An extension that arrives after its release is refused because of that.
    ("late extend", |model, state| {
        arrival(model, state, |at| at.extension().is_some() && at.only_its_release_forbids())
    }),
    // An extension is refused by a free node because a newer lease was there.
    ("superseded", |model, state| {
        arrival(model, state, |at| {
            let late = at.extension().is_some_and(|extension| extension.late);
            late && !at.share.is_released() && at.is_free() && at.answer == Answer::Gone
        })
    }),
    // A minority honours an extension that began after a newer acquisition completed.
    ("minority", |model, state| {
        arrival(model, state, |at| {
            at.extension().is_some_and(|extension| extension.late) && at.answer == Answer::Granted
        })
    }),
    // A client joins the lease of another, which releases it everywhere; a majority still has the second share.
    ("handed over", |_, state| {
        state.shares().any(|(id, share)| {
            let of_lease = state.shares_of_lease(id.owner(), share.token);
            let (mine, others) = (id.bit(), of_lease & !id.bit());
            let keeps = |node: &&Node| state.is_in_key(id, node);
            let all_released = others != 0 && state.nodes.iter().all(|node| node.released & of_lease == others);
            share.is_join() && mine != 0 && all_released && state.nodes.iter().filter(keeps).count() > 1
        })
    }),
    // A share is released, another joins, and the old release arrives at a node that has both.
    ("late release", |_, state| {
        state.shares().any(|(id, old)| {
            let both = |node: &Node| {
                let newer = |(of, share): (ShareId, &Share)| {
                    of != id && share.first > old.released_with && share.is_confirmed()
                };
                node.released & id.bit() == 0
                    && state.is_in_key(id, node)
                    && state.shares().filter(|(of, _)| state.is_in_key(*of, node)).any(newer)
            };
            old.is_released() && state.nodes.iter().any(both)
        })
    }),
    // An extension repairs a node, and gives another share its entry back.
    ("repaired both", |model, state| {
        arrival(model, state, |at| {
            let others = at.node.standing & !at.of.bit();
            let shared = others & state.shares_of_lease(at.of.owner(), at.share.token) != 0;
            shared && at.extension().is_some() && at.is_free() && at.answer == Answer::Granted
        })
    }),
    // A share that joined repairs a node without a key, on the ballot that its join was confirmed with.
    ("repaired by a join", |model, state| {
        arrival(model, state, |at| {
            let joined = at.share.is_join() && at.extension().is_some_and(|extension| extension.known != Ballot::ZERO);
            joined && at.is_free() && at.answer == Answer::Granted
        })
    }),
    // A join is refused by a node whose ballot it exceeds, because the lease is over there.
    ("join refused", |model, state| {
        arrival(model, state, |at| at.is_join() && at.answer == Answer::Gone && at.node.highest < at.share.first)
    }),
    // A late message of a released share finds the key of another share, and is refused.
    ("late hold", |model, state| {
        arrival(model, state, |at| at.node.released & at.of.bit() != 0 && at.answer == Answer::Stale && !at.is_free())
    }),
    // A node without a key refuses an extension only because its lease was revoked there.
    ("revoked", |model, state| {
        arrival(model, state, |at| {
            let known = at.extension().map(|extension| extension.known);
            let by_ballot = at.node.revocation != Processed::No && at.node.highest == state.revocation.1;
            by_ballot && !at.share.is_released() && at.is_free() && known.is_some() && at.answer == Answer::Gone
        })
    }),
    // A share that is in the key is honoured although its ballot is not the largest.
    ("honoured below", |model, state| {
        arrival(model, state, |at| {
            let below = at.extension().is_some_and(|extension| extension.next < at.node.highest);
            below && !at.share.is_released() && at.answer == Answer::Granted
        })
    }),
];

/// A message that may arrive now, and the node's answer to it.
struct Arrival<'a> {
    share: &'a Share,
    of: ShareId,
    message: Message,
    node: &'a Node,
    answer: Answer,
}

impl Arrival<'_> {
    fn extension(&self) -> Option<&Extension> {
        match self.message {
            Message::Extend(index) => Some(&self.share.extensions[index]),
            Message::First | Message::Release => None,
        }
    }

    fn is_acquisition(&self) -> bool {
        self.message == Message::First && !self.share.is_join()
    }

    fn is_join(&self) -> bool {
        self.message == Message::First && self.share.is_join()
    }

    fn is_free(&self) -> bool {
        self.node.key.is_none()
    }

    fn only_its_release_forbids(&self) -> bool {
        let processed = self.node.released & self.of.bit() != 0 && self.node.highest == self.share.released_with;
        processed && self.is_free() && self.answer != Answer::Granted
    }
}

/// Whether a message other than a release fits.
fn arrival(model: &Ballots, state: &State, fits: impl Fn(&Arrival) -> bool) -> bool {
    state.shares().any(|(of, share)| {
        let extensions = (0..share.extensions().len()).map(Message::Extend);
        [Message::First].into_iter().chain(extensions).any(|message| {
            state.nodes.iter().any(|node| {
                let (answer, _) = model.answer(state, of, message, node);
                fits(&Arrival { share, of, message, node, answer })
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

/// The checker takes plain functions, which know their property by a constant.
macro_rules! numbered {
    ($property:ident: $($number:literal)*) => { [$($property::<$number>()),*] };
}

pub fn all() -> Vec<Property<Ballots>> {
    let always = numbered!(always: 0 1 2 3 4 5 6);
    let sometimes = numbered!(sometimes: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
    assert_eq!((always.len(), sometimes.len()), (INVARIANTS.len(), SIGHTS.len()), "one for each");
    always.into_iter().chain(sometimes).collect()
}
