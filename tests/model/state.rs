//! A state: three nodes, what each owner has sent, and the history that the properties need.

use std::hash::{Hash, Hasher};

use crate::node::{Ballot, Lease, Node, Processed, Sender};

pub const NODES: usize = 3;
pub const OWNERS: usize = 2;
/// The room that a state has for the shares of each owner and the extensions of each share.
/// [`Scope`](crate::model::Scope) limits how much of it is used.
pub const SHARES: usize = 3;
pub const EXTENSIONS: usize = 2;

/// One client's part in one lease of its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShareId(pub u8);

impl ShareId {
    pub const ALL: [Self; OWNERS * SHARES] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5)];

    pub fn new(owner: usize, index: usize) -> Self {
        Self::ALL[owner * SHARES + index]
    }

    pub fn owner(self) -> usize {
        usize::from(self.0) / SHARES
    }

    /// Among the shares of its owner, in the order in which they began.
    pub fn index(self) -> usize {
        usize::from(self.0) % SHARES
    }

    /// In a set of shares.
    pub fn bit(self) -> u8 {
        1 << self.0
    }

    /// In a set of extensions.
    pub fn extension_bit(self, extension: usize) -> u16 {
        1 << (usize::from(self.0) * EXTENSIONS + extension)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// The lease's token: the ballot of the acquisition. Zero before the share begins.
    pub token: Ballot,
    /// The ballot of the first message: the token of an acquisition, and a larger one of a join.
    pub first: Ballot,
    /// The ballot that the client's latest message called confirmed; zero while no majority has honoured a join.
    pub known: Ballot,
    /// The release's ballot; zero before it is sent.
    pub released_with: Ballot,
    /// Its name in the lock key, as a place among its owner's shares: its own, unless that rule is broken.
    pub word: u8,
    /// Of a join: the share that was exported, as a place among its owner's shares.
    pub exporter: u8,
    /// A majority honoured the first message before the share was released.
    pub completed: bool,
    /// It began too late. An acquisition: after one with the same or a larger token had completed. A join: after one
    /// with a larger token had completed, or after a majority had processed the release of the exported share.
    pub behind: bool,
    pub extensions: [Extension; EXTENSIONS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extension {
    pub known: Ballot,
    /// Zero before it is sent.
    pub next: Ballot,
    /// A majority honoured it before the share was released.
    pub confirmed: bool,
    /// It began after an acquisition with a larger token had completed.
    pub late: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// By [`ShareId`].
    pub shares: [Share; OWNERS * SHARES],
    pub nodes: [Node; NODES],
    /// A release took another share out of a lock key.
    pub foreign_release: bool,
    /// A share's first message created a lock key, and it was a join.
    pub created_by_join: bool,
    /// The revocation of the first lease of owner 0: its token, zero before it is sent, and the ballot.
    pub revocation: (Ballot, Ballot),
}

impl Share {
    pub fn is_begun(&self) -> bool {
        self.token != Ballot::ZERO
    }

    pub fn is_join(&self) -> bool {
        self.first != self.token
    }

    pub fn is_acquisition(&self) -> bool {
        self.is_begun() && !self.is_join()
    }

    pub fn is_released(&self) -> bool {
        self.released_with != Ballot::ZERO
    }

    /// The extensions that were sent.
    pub fn extensions(&self) -> &[Extension] {
        let mut sent = 0;
        while sent < EXTENSIONS && self.extensions[sent].next != Ballot::ZERO {
            sent += 1;
        }
        &self.extensions[..sent]
    }

    /// A majority has honoured one of its messages.
    pub fn is_confirmed(&self) -> bool {
        self.completed || self.extensions().iter().any(|extension| extension.confirmed)
    }

    pub fn has_sent(&self, ballot: Ballot) -> bool {
        self.first == ballot || self.extensions().iter().any(|extension| extension.next == ballot)
    }

    /// Drops what only matters while the client may send holds and count votes, unless it already is a violation.
    pub fn forget(&mut self) {
        self.known = self.token;
        self.behind &= self.completed;
        for extension in &mut self.extensions {
            let is_violation = extension.confirmed && extension.late;
            (extension.confirmed, extension.late) = (is_violation, is_violation);
        }
    }

    /// The largest ballot that was sent for it, except in a release.
    pub fn sent(&self) -> Ballot {
        self.extensions().last().map_or(self.first, |extension| extension.next)
    }
}

impl State {
    pub fn share(&self, id: ShareId) -> &Share {
        &self.shares[usize::from(id.0)]
    }

    pub fn share_mut(&mut self, id: ShareId) -> &mut Share {
        &mut self.shares[usize::from(id.0)]
    }

    /// All that have begun.
    pub fn shares(&self) -> impl Iterator<Item = (ShareId, &Share)> {
        ShareId::ALL.into_iter().zip(&self.shares).filter(|(_, share)| share.is_begun())
    }

    /// Those of the owner that have begun.
    pub fn shares_of(&self, owner: usize) -> &[Share] {
        let shares = &self.shares[owner * SHARES..][..SHARES];
        &shares[..shares.iter().filter(|share| share.is_begun()).count()]
    }

    /// All shares of a lease, as a set.
    pub fn shares_of_lease(&self, owner: usize, token: Ballot) -> u8 {
        let of_lease = |(id, share): &(ShareId, &Share)| id.owner() == owner && share.token == token;
        self.shares().filter(of_lease).fold(0, |set, (id, _)| set | id.bit())
    }

    pub fn sender(&self, id: ShareId) -> Sender {
        let share = self.share(id);
        let word = |share: &Share| ShareId::new(id.owner(), usize::from(share.word)).bit();
        let exporter = word(self.share(ShareId::new(id.owner(), usize::from(share.exporter))));
        Sender { owner: u8::try_from(id.owner()).expect("two owners"), token: share.token, word: word(share), exporter }
    }

    /// The node's lock key names this share.
    pub fn is_in_key(&self, id: ShareId, node: &Node) -> bool {
        let sender = self.sender(id);
        node.key.is_some_and(|key| key.is_of(sender) && key.shares & sender.word != 0)
    }

    /// A majority has processed the release of this share.
    pub fn is_over(&self, id: ShareId) -> bool {
        self.nodes.iter().filter(|node| node.released & id.bit() != 0).count() > NODES / 2
    }

    /// Returns whether the release of `of` removed another share from the lock key.
    pub fn lost_another(&self, of: ShareId, before: &Node, after: &Node) -> bool {
        let others = self.shares().filter(|(id, _)| *id != of && before.standing & id.bit() != 0);
        others.into_iter().any(|(id, _)| self.is_in_key(id, before) && !self.is_in_key(id, after))
    }

    /// A majority has confirmed the revocation of this share's lease.
    pub fn is_revoked(&self, id: ShareId) -> bool {
        let is_meant =
            id.owner() == 0 && self.revocation.0 != Ballot::ZERO && self.share(id).token == self.revocation.0;
        is_meant && self.nodes.iter().filter(|node| node.revocation == Processed::Counted).count() > NODES / 2
    }

    pub fn tokens_completed(&self) -> impl Iterator<Item = Ballot> {
        self.shares.iter().filter(|share| share.is_acquisition() && share.completed).map(|share| share.token)
    }

    fn each_ballot(&mut self, mut change: impl FnMut(&mut Ballot)) {
        for share in &mut self.shares {
            if share.is_begun() {
                change(&mut share.token);
                change(&mut share.first);
                change(&mut share.known);
                change(&mut share.released_with);
                for extension in &mut share.extensions {
                    change(&mut extension.known);
                    change(&mut extension.next);
                }
            }
        }
        change(&mut self.revocation.0);
        change(&mut self.revocation.1);
        for node in &mut self.nodes {
            change(&mut node.highest);
            for lease in [&mut node.key, &mut node.last].into_iter().flatten() {
                change(&mut lease.token);
            }
        }
    }

    /// Makes room for one ballot between any two: n becomes 2n.
    pub fn spread_ballots(&mut self) {
        self.each_ballot(|ballot| ballot.0 *= 2);
    }

    /// Removes the room that is not used. The rules only compare ballots, so only their order matters.
    pub fn close_up_ballots(&mut self) {
        let mut used = 1_u64;
        self.each_ballot(|ballot| used |= 1 << ballot.0);
        self.each_ballot(|ballot| {
            let smaller = (used & ((1 << ballot.0) - 1)).count_ones();
            ballot.0 = u8::try_from(smaller).expect("a few ballots");
        });
    }

    pub fn largest_proposal(&self) -> Ballot {
        self.shares.iter().map(Share::sent).max().unwrap_or_default().max(self.revocation.1)
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
        let (one, other) = self.shares.split_at_mut(SHARES);
        if one < other {
            self.swap_owners();
        }
    }

    fn swap_owners(&mut self) {
        let (one, other) = self.shares.split_at_mut(SHARES);
        one.swap_with_slice(other);
        let halves = |set: u16, bits: usize| (set >> bits) | (set & ((1 << bits) - 1)) << bits;
        let of_shares = |set: &mut u8| *set = u8::try_from(halves(u16::from(*set), SHARES)).expect("as many bits");
        for node in &mut self.nodes {
            for lease in [&mut node.key, &mut node.last].into_iter().flatten() {
                debug_assert!(lease.owner < 2, "no revocation where owners are interchanged");
                lease.owner = 1 - lease.owner;
                of_shares(&mut lease.shares);
            }
            of_shares(&mut node.granted);
            of_shares(&mut node.released);
            of_shares(&mut node.standing);
            node.honoured = halves(node.honoured, SHARES * EXTENSIONS);
        }
    }
}

/// The whole state in few words: a good part of the time goes into this.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for (id, share) in self.shares() {
            let mut word = u128::from(id.0) << 2 | u128::from(share.completed) << 1 | u128::from(share.behind);
            word = word << 4 | u128::from(share.word) << 2 | u128::from(share.exporter);
            for ballot in [share.token, share.first, share.known, share.released_with] {
                word = word << 8 | u128::from(ballot.0);
            }
            for extension in &share.extensions {
                word = word << 18 | u128::from(extension.known.0) << 10 | u128::from(extension.next.0) << 2;
                word |= u128::from(extension.confirmed) << 1 | u128::from(extension.late);
            }
            hasher.write_u128(word);
        }
        let packed = |lease: &Option<Lease>| {
            let lease = lease.unwrap_or_default();
            u128::from(lease.owner) << 16 | u128::from(lease.token.0) << 8 | u128::from(lease.shares)
        };
        for node in &self.nodes {
            let mut word = packed(&node.key) << 24 | packed(&node.last);
            for set in [node.highest.0, node.granted, node.released, node.standing] {
                word = word << 8 | u128::from(set);
            }
            hasher.write_u128((word << 16 | u128::from(node.honoured)) << 2 | node.revocation as u128);
        }
        hasher.write_u16(u16::from(self.revocation.0.0) << 8 | u16::from(self.revocation.1.0));
        hasher.write_u8(u8::from(self.foreign_release) << 1 | u8::from(self.created_by_join));
    }
}
