//! What a seed decides before anything happens: which faults come when. Pure: the same seed, the same plan.
//!
//! The plan stays within what the lock is to bear:
//! - At most a minority of the nodes is disturbed at a time, except in outages of a majority.
//! - Nodes forget one at a time: the next one does so no earlier than two longest leases after the one before is back.
//! - The clocks of any number of nodes, also of all, are set ahead or back at any time, while leases are held. Steps beyond
//!   the window within which nodes take ballots cost a node its use while they last, so they count as disturbances; such
//!   steps ahead hit one node at a time, as ballots that follow them are too far ahead when the clock is right again. In the
//!   end all clocks go ahead by ten minutes and stay so.
//! - While a server counts the time of CLIENT PAUSE by its wall clock, that clock is not set.

mod nodes;
mod workers;

use quorlock_testkit::rng::Rng;

use super::fault::{Fault, Kind};

/// Streams of the seed.
const NODES: u64 = 1;
const WORKERS: u64 = 2;
const SERVERS: u64 = 3;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub seed: u64,
    pub nodes: usize,
    pub workers: usize,
    /// The longest lease, in ms.
    pub lease: u64,
    /// For how long there are faults, in ms.
    pub lasts: u64,
    /// Node clocks can be set.
    pub clocks: bool,
}

impl Settings {
    /// How many nodes may fail.
    pub fn spare(&self) -> usize {
        spare(self.nodes)
    }

    /// The kinds that this cluster can be given without leaving what is promised.
    pub fn palette(&self) -> Vec<Kind> {
        let possible = |kind: &Kind| match kind {
            kind if kind.is_of_clocks() && !self.clocks => false,
            Kind::Leap => self.leaps_at().is_some(),
            // Of one or two nodes, one is a majority already. They may be silent, but not forget.
            Kind::Restart | Kind::Reset | Kind::Delay => self.spare() > 0,
            kind => !kind.forgets() || self.spare() > 0,
        };
        Kind::ALL.into_iter().filter(possible).collect()
    }

    /// When all clocks go ahead, in ms: near the end, as they do not come back.
    fn leaps_at(&self) -> Option<u64> {
        const BEFORE_THE_END: u64 = 3;
        const LEASES_AT_LEAST: u64 = 6;
        (self.clocks && self.lasts >= LEASES_AT_LEAST * self.lease).then(|| self.lasts - BEFORE_THE_END * self.lease)
    }
}

/// How many of so many nodes may fail.
pub fn spare(nodes: usize) -> usize {
    nodes - (nodes / 2 + 1)
}

/// From the end of a fault that makes a node forget until another node may, in ms.
pub fn apart(lease: u64) -> u64 {
    2 * lease
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which nodes log every write before they answer.
    pub durable: Vec<bool>,
    /// In the order of their beginnings.
    pub faults: Vec<Fault>,
}

impl Plan {
    pub fn new(settings: &Settings) -> Self {
        let mut rng = Rng::new(settings.seed, SERVERS);
        let mut durable: Vec<bool> = (0..settings.nodes).map(|_| rng.chance(0.3)).collect();
        if settings.spare() > 0 {
            // One of each, so that nodes of both sorts are restarted and replaced.
            let first = rng.below(settings.nodes);
            durable[first] = true;
            durable[(first + 1 + rng.below(settings.nodes - 1)) % settings.nodes] = false;
        }
        let mut faults = nodes::plan(settings, &durable);
        faults.extend(workers::plan(settings));
        faults.sort_by_key(|fault| fault.at);
        for (id, fault) in faults.iter_mut().enumerate() {
            fault.id = id;
        }
        Self { durable, faults }
    }
}

/// What a deck deals.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Card {
    /// A kind of fault that leaves a majority well.
    One(Kind),
    /// One node's clock goes beyond the window.
    Away,
    /// More nodes are of no use than may be.
    Outage,
    /// One node has forgotten, and so many others are silent that only its vote could make the majority.
    Quarantine,
}

impl Card {
    fn forgets(self) -> bool {
        match self {
            Self::One(kind) => kind.forgets(),
            Self::Quarantine => true,
            Self::Away | Self::Outage => false,
        }
    }
}

/// Deals every card once before any comes again.
struct Deck {
    cards: Vec<Card>,
    left: Vec<Card>,
}

impl Deck {
    fn new(cards: Vec<Card>) -> Self {
        Self { cards, left: Vec::new() }
    }

    /// One that need not be deferred, if there is one.
    fn deal(&mut self, rng: &mut Rng, is_deferred: impl Fn(Card) -> bool) -> Option<Card> {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
        }
        let mut places: Vec<usize> = (0..self.left.len()).filter(|place| !is_deferred(self.left[*place])).collect();
        if places.is_empty() {
            places = (0..self.left.len()).collect();
        }
        (!places.is_empty()).then(|| self.left.swap_remove(rng.pick(&places)))
    }
}

#[cfg(test)]
mod tests;
