//! A state: three nodes, what each owner has sent, and what the properties need to remember.

use std::hash::{Hash, Hasher};

use crate::node::{Ballot, Node};

pub const NODES: usize = 3;
pub const OWNERS: usize = 2;
/// The room that a state has for each owner's leases and each lease's extensions. [`Scope`](crate::model::Scope) says how
/// much of it is used.
pub const LEASES: usize = 2;
pub const EXTENSIONS: usize = 2;

/// One attempt of one owner to acquire, and the lease that may come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(pub u8);

impl LeaseId {
    pub const ALL: [Self; OWNERS * LEASES] = [Self(0), Self(1), Self(2), Self(3)];

    pub fn new(owner: usize, index: usize) -> Self {
        Self::ALL[owner * LEASES + index]
    }

    pub fn owner(self) -> usize {
        usize::from(self.0) / LEASES
    }

    /// Among its owner's.
    pub fn index(self) -> usize {
        usize::from(self.0) % LEASES
    }

    /// In a node's set of leases.
    pub fn bit(self) -> u8 {
        1 << self.0
    }

    /// In a node's set of extensions.
    pub fn extension_bit(self, extension: usize) -> u8 {
        1 << (usize::from(self.0) * EXTENSIONS + extension)
    }

    fn swapped(self) -> Self {
        Self::new(1 - self.owner(), self.index())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    /// The acquisition's ballot; zero before it begins.
    pub token: Ballot,
    /// The ballot that the client's latest message called confirmed.
    pub known: Ballot,
    /// The release's ballot; zero before it is sent.
    pub mark: Ballot,
    /// A majority granted it, before it was released.
    pub completed: bool,
    /// It began after an acquisition with the same or a larger token had completed.
    pub behind: bool,
    pub extensions: [Extension; EXTENSIONS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extension {
    pub known: Ballot,
    /// Zero before it is sent.
    pub next: Ballot,
    /// A majority honoured it, before the lease was released.
    pub confirmed: bool,
    /// It began after an acquisition with a larger token had completed.
    pub late: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// By [`LeaseId`].
    pub leases: [Lease; OWNERS * LEASES],
    pub nodes: [Node; NODES],
    /// A release took away another lease's vote.
    pub foreign_release: bool,
}

impl Lease {
    pub fn is_begun(&self) -> bool {
        self.token != Ballot::ZERO
    }

    pub fn is_released(&self) -> bool {
        self.mark != Ballot::ZERO
    }

    /// Those that were sent.
    pub fn extensions(&self) -> &[Extension] {
        let mut sent = 0;
        while sent < EXTENSIONS && self.extensions[sent].next != Ballot::ZERO {
            sent += 1;
        }
        &self.extensions[..sent]
    }

    pub fn has_sent(&self, ballot: Ballot) -> bool {
        self.token == ballot || self.extensions().iter().any(|extension| extension.next == ballot)
    }

    /// The largest ballot that was sent for it, except in a release.
    pub fn sent(&self) -> Ballot {
        self.extensions().last().map_or(self.token, |extension| extension.next)
    }
}

impl State {
    pub fn lease(&self, id: LeaseId) -> &Lease {
        &self.leases[usize::from(id.0)]
    }

    pub fn lease_mut(&mut self, id: LeaseId) -> &mut Lease {
        &mut self.leases[usize::from(id.0)]
    }

    /// All that have begun.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        LeaseId::ALL.into_iter().zip(&self.leases).filter(|(_, lease)| lease.is_begun())
    }

    /// How many the owner has begun.
    pub fn begun(&self, owner: usize) -> usize {
        self.leases[owner * LEASES..][..LEASES].iter().filter(|lease| lease.is_begun()).count()
    }

    pub fn tokens_completed(&self) -> impl Iterator<Item = Ballot> {
        self.leases.iter().filter(|lease| lease.completed).map(|lease| lease.token)
    }

    fn each_ballot(&mut self, mut change: impl FnMut(&mut Ballot)) {
        for lease in &mut self.leases {
            if lease.is_begun() {
                change(&mut lease.token);
                change(&mut lease.known);
                change(&mut lease.mark);
                for extension in &mut lease.extensions {
                    change(&mut extension.known);
                    change(&mut extension.next);
                }
            }
        }
        for node in &mut self.nodes {
            change(&mut node.highest);
            if let Some(vote) = &mut node.vote {
                change(&mut vote.token);
            }
        }
    }

    /// Makes room for one ballot between any two: n becomes 2n.
    pub fn spread_ballots(&mut self) {
        self.each_ballot(|ballot| ballot.0 *= 2);
    }

    /// Takes out the room that is not used. The rules only compare ballots, so only their order matters.
    pub fn close_up_ballots(&mut self) {
        let mut used = 1_u64;
        self.each_ballot(|ballot| used |= 1 << ballot.0);
        self.each_ballot(|ballot| {
            let smaller = (used & ((1 << ballot.0) - 1)).count_ones();
            ballot.0 = u8::try_from(smaller).expect("a few ballots");
        });
    }

    pub fn largest_proposal(&self) -> Ballot {
        self.leases.iter().map(Lease::sent).max().unwrap_or_default()
    }

    /// Nodes differ only in their state, so any order of them is as good as another.
    pub fn sort_nodes(&mut self) {
        let nodes = &mut self.nodes;
        for (a, b) in [(0, 1), (1, 2), (0, 1)] {
            if nodes[a] > nodes[b] {
                nodes.swap(a, b);
            }
        }
    }

    /// Owners differ only in their state when their scopes are the same.
    pub fn sort_owners(&mut self) {
        let (one, other) = self.leases.split_at_mut(LEASES);
        if one < other {
            one.swap_with_slice(other);
            for node in &mut self.nodes {
                if let Some(vote) = &mut node.vote {
                    vote.by = vote.by.swapped();
                }
                let halves = |set: u8, bits: usize| (set >> bits) | (set & ((1 << bits) - 1)) << bits;
                node.granted = halves(node.granted, LEASES);
                node.released = halves(node.released, LEASES);
                node.honoured = halves(node.honoured, LEASES * EXTENSIONS);
            }
        }
    }
}

/// Everything in it, in few words: a good part of the time goes into this.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for lease in &self.leases {
            let mut word = u128::from(lease.completed) << 1 | u128::from(lease.behind);
            word = word << 24 | u128::from(lease.token.0) << 16 | u128::from(lease.known.0) << 8;
            word |= u128::from(lease.mark.0);
            for extension in &lease.extensions {
                word = word << 18 | u128::from(extension.known.0) << 10 | u128::from(extension.next.0) << 2;
                word |= u128::from(extension.confirmed) << 1 | u128::from(extension.late);
            }
            hasher.write_u128(word);
        }
        for node in &self.nodes {
            let (by, token) = node.vote.map_or((u8::MAX, 0), |vote| (vote.by.0, vote.token.0));
            let mut word = u64::from(by) << 40 | u64::from(token) << 32 | u64::from(node.highest.0) << 24;
            word |= u64::from(node.granted) << 16 | u64::from(node.honoured) << 8 | u64::from(node.released);
            hasher.write_u64(word);
        }
        hasher.write_u64(u64::from(self.foreign_release));
    }
}
