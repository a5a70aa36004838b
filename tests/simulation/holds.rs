//! What the ledger keeps: who holds what, and what was said about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::history::History;

/// What a guard says of itself.
pub trait Belief: Send {
    /// Validity left, in µs.
    fn remaining(&self) -> u64;
    fn is_lost(&self) -> bool;
    fn token_of(&self, resource: usize) -> Option<u64>;
    /// Nesting depth on the resource that was named first.
    fn depth(&self) -> u32;
    /// How many more nodes may fail.
    fn margin(&self) -> u32;
    /// How many nodes ever gave a vote for it that counts, by what the nodes say: the least of its resources.
    fn counted(&self, claim: &Claim) -> u32;
    /// The client's monotonic clock in µs.
    fn clock(&self) -> u64;
    /// The client's clock when it last had been paused.
    fn paused_until(&self) -> u64;
}

#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub resource: usize,
    pub token: u64,
    /// The how manieth acquisition of the resource it belongs to.
    pub turn: u64,
}

/// Who holds what.
#[derive(Clone)]
pub struct Claim {
    pub client: usize,
    pub owner: Arc<str>,
    /// In the order in which they were named.
    pub shares: Vec<Share>,
}

impl Claim {
    pub fn who(&self) -> String {
        format!("c{} {} {:?}", self.client, self.owner, self.shares)
    }

    pub fn is_of(&self, client: usize, owner: &str) -> bool {
        self.client == client && *self.owner == *owner
    }

    pub fn share_of(&self, resource: usize) -> Option<Share> {
        self.shares.iter().find(|share| share.resource == resource).copied()
    }
}

pub struct Hold {
    pub claim: Claim,
    pub belief: Box<dyn Belief>,
    /// The latest end of validity that was seen, by the client's clock.
    pub deadline: u64,
    pub was_lost: bool,
    /// Of a joined lease over several resources it is not known which was named first, and so of which the depth is.
    pub depth_known: bool,
    /// The true time at which the validity must end: another owner has completed an acquisition.
    pub cap: u64,
}

/// One resource's history.
#[derive(Default)]
pub struct Record {
    /// The largest token of a completed acquisition.
    pub newest: u64,
    /// Whose each token is, and its turn.
    pub tokens: BTreeMap<u64, (Arc<str>, u64)>,
    pub turns: u64,
    pub store: FencedStore,
    pub history: History,
}

#[derive(Default)]
pub struct FencedStore {
    pub largest: u64,
    pub latest_turn: u64,
}

/// What was known of one resource when a client requested it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub resource: usize,
    pub newest: u64,
    /// The token that this owner already holds in this client.
    pub held: Option<u64>,
    pub lost: bool,
    pub when: u64,
}

/// A grant, as the client was told of it and as the nodes know it.
pub struct Grant<'a> {
    pub at: u64,
    pub client: usize,
    pub owner: &'a str,
    pub asked: &'a [Asked],
    /// The tokens of an exported lease that it entered.
    pub joined: Option<&'a [(usize, u64)]>,
    /// For each resource and token: how many nodes ever voted for it, and how many of them surely knew all their votes.
    pub votes: &'a dyn Fn(usize, u64) -> (u32, u32),
}

/// A hold that is being given back, until it is known how that went.
pub struct Leaving {
    pub claim: Claim,
    /// How deep a release may find this owner nested still.
    pub left: (u32, u32),
    /// Where the histories have it.
    pub ops: Vec<(usize, usize)>,
}

/// What a release said.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// So many holds are left.
    Released(u32),
    NotHeld,
    /// The outcome is unknown, or no caller awaited it.
    Nothing,
}
