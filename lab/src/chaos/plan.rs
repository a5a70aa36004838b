//! The faults of a run and their times, which a seed decides in advance. Pure: the same seed gives the same plan.
//!
//! The plan stays within the limits that the lock must tolerate:
//! - At most a minority of the nodes is disturbed at a time, except in outages of a majority.
//! - Nodes lose their memory one at a time: the next one no earlier than two longest leases after the previous one is back.
//! - The clocks of any number of nodes, also of all, are set ahead or back at any time, while leases are held. Steps beyond
//!   the window within which nodes take ballots cost a node its use while they last, so they count as disturbances; such
//!   steps ahead hit one node at a time, as ballots that follow them are too far ahead when the clock is right again. In the
//!   end all clocks go ahead by ten minutes and stay so.
//! - While a server counts the time of CLIENT PAUSE by its wall clock, that clock is not set.

mod nodes;
mod workers;

use quorlock_testkit::rng::Rng;

use super::fault::{Fault, Kind};

/// The random streams of the seed.
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
    /// How long there are faults, in ms.
    pub lasts: u64,
    /// Whether node clocks can be set.
    pub clocks: bool,
}

impl Settings {
    /// Returns how many nodes may fail.
    pub fn spare(&self) -> usize {
        spare(self.nodes)
    }

    /// Returns the kinds of faults that this cluster must tolerate.
    pub fn palette(&self) -> Vec<Kind> {
        let possible = |kind: &Kind| match kind {
            kind if kind.is_of_clocks() && !self.clocks => false,
            Kind::Leap => self.leaps_at().is_some(),
            // Of one or two nodes, each loss of memory is too much. They may be silent only.
            Kind::Restart | Kind::Reset | Kind::Delay => self.spare() > 0,
            kind => !kind.forgets() || self.spare() > 0,
        };
        Kind::ALL.into_iter().filter(possible).collect()
    }

    /// Returns when all clocks go ahead, in ms: near the end, because they stay ahead.
    fn leaps_at(&self) -> Option<u64> {
        const BEFORE_THE_END: u64 = 3;
        const LEASES_AT_LEAST: u64 = 6;
        (self.clocks && self.lasts >= LEASES_AT_LEAST * self.lease).then(|| self.lasts - BEFORE_THE_END * self.lease)
    }
}

/// Returns how many of this number of nodes may fail.
pub fn spare(nodes: usize) -> usize {
    nodes - (nodes / 2 + 1)
}

/// Returns the time from the end of a fault with memory loss until another node may lose its memory, in ms.
pub fn apart(lease: u64) -> u64 {
    2 * lease
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which nodes log every write before they answer.
    pub durable: Vec<bool>,
    /// In the order of their starts.
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

/// The cards of the deck.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Card {
    /// A kind of fault that leaves a majority well.
    One(Kind),
    /// One node's clock goes beyond the window.
    Away,
    /// More nodes are useless than the lock tolerates.
    Outage,
    /// One node has lost its memory, and only its vote could complete a majority, because others are silent.
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

/// Deals every card once before it repeats one.
struct Deck {
    cards: Vec<Card>,
    left: Vec<Card>,
}

impl Deck {
    fn new(cards: Vec<Card>) -> Self {
        Self { cards, left: Vec::new() }
    }

    /// Deals a card that need not be deferred, if there is one.
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
