//! The records of the ledger: holds, and the readings of their guards.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::history::History;

/// The readings of a guard.
pub trait Readings: Send {
    /// Validity left, in µs.
    fn remaining(&self) -> u64;
    fn is_lost(&self) -> bool;
    fn token_of(&self, resource: usize) -> Option<u64>;
    /// The nesting depth on the first resource.
    fn depth(&self) -> u32;
    /// The number of further nodes that may fail.
    fn margin(&self) -> u32;
    /// How many nodes ever gave a vote that counts, by their answers: the least of its resources.
    fn counted(&self, claim: &Claim) -> u32;
    /// The client's monotonic clock in µs.
    fn clock(&self) -> u64;
    /// The client's clock at the end of its latest pause.
    fn paused_until(&self) -> u64;
}

#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub resource: usize,
    pub token: u64,
    /// The number of the acquisition of the resource that it belongs to.
    pub turn: u64,
}

/// The owner and the resources of a hold.
#[derive(Clone)]
pub struct Claim {
    pub client: usize,
    pub owner: Arc<str>,
    /// The resources in the order of the request.
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
    pub readings: Box<dyn Readings>,
    /// The latest end of validity that was seen, by the client's clock.
    pub deadline: u64,
    pub was_lost: bool,
    /// Whether the depth is known. A joined lease over several resources does not show which of them is the first.
    pub depth_known: bool,
    /// The true time at which the validity must end: another owner has completed an acquisition.
    pub cap: u64,
    /// The same: the lease was revoked.
    pub revoked_cap: u64,
}

/// One resource's history.
#[derive(Default)]
pub struct Record {
    /// The largest token of a completed acquisition.
    pub newest: u64,
    /// The owner and the turn of each token.
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

/// The state of one resource at the time of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub resource: usize,
    pub newest: u64,
    /// The token that this owner already holds in this client.
    pub held: Option<u64>,
    pub lost: bool,
    pub when: u64,
}

/// A grant, as returned to the client and as stored on the nodes.
pub struct Grant<'a> {
    pub at: u64,
    pub client: usize,
    pub owner: &'a str,
    pub asked: &'a [Asked],
    /// The tokens of an exported lease that it entered.
    pub joined: Option<&'a [(usize, u64)]>,
    /// For each resource and token: how many nodes ever voted for it, and how many of them certainly had all their votes.
    pub votes: &'a dyn Fn(usize, u64) -> (u32, u32),
}

/// A hold that is being released, until the outcome is known.
pub struct PendingRelease {
    pub claim: Claim,
    /// The depths that a release may return for this owner.
    pub left: (u32, u32),
    /// Its places in the histories.
    pub ops: Vec<(usize, usize)>,
}

/// The result of a release.
#[derive(Clone, Copy, Debug)]
pub enum ReleaseResult {
    /// The number of remaining holds.
    Released(u32),
    NotHeld,
    /// The outcome is unknown, or no caller awaited it.
    Nothing,
}
