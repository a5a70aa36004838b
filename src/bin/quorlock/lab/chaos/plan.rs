//! What a seed decides before anything happens: which faults come when. Pure: the same seed, the same plan.
//!
//! Everything here stays within what the lock promises to bear (PROMISES in the comments): at most a minority of nodes is
//! disturbed, except in outages of a majority, in which no more than a minority forgets; a clock leaps ahead only while
//! all other nodes are well, and have been for longer than the longest lease.

use super::super::rng::Rng;
use super::fault::{Fault, Kind, Scale};

/// Streams of the seed.
const NODES: u64 = 1;
const WORKERS: u64 = 2;
const SERVERS: u64 = 3;

/// The largest rate, in millionths: less than half of the drift allowance of 1 %, from where a client takes a clock for
/// one that leaps.
const LARGEST_RATE_PPM: u64 = 4000;

/// In the first so many leases, faults are short.
const LEASES_IN_A_HURRY: u64 = 28;

/// A delay of all nodes, in ms: small against the time that a client gives a node.
const SLOW_MS: std::ops::Range<u64> = 2..25;
const DELAY_MS: std::ops::Range<u64> = 20..300;

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
            // Of one or two nodes, one is a majority already. They may be silent, but not forget.
            Kind::Restart | Kind::Forget | Kind::Reset | Kind::Delay | Kind::ClockForward | Kind::ClockBack => {
                self.spare() > 0
            }
            _ => true,
        };
        Kind::ALL.into_iter().filter(possible).collect()
    }
}

/// How many of so many nodes may fail.
pub fn spare(nodes: usize) -> usize {
    nodes - (nodes / 2 + 1)
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
            // One of each, so that every kind of restart occurs.
            let first = rng.below(settings.nodes);
            durable[first] = true;
            durable[(first + 1 + rng.below(settings.nodes - 1)) % settings.nodes] = false;
        }
        let mut faults = NodeFaults::new(settings, &durable).plan();
        let leaps: Vec<u64> =
            faults.iter().filter(|fault| fault.kind == Kind::ClockForward).map(|fault| fault.at).collect();
        faults.extend(plan_workers(settings, &leaps));
        faults.sort_by_key(|fault| fault.at);
        for (id, fault) in faults.iter_mut().enumerate() {
            fault.id = id;
        }
        Self { durable, faults }
    }
}

/// Deals every kind once before any comes again.
struct Deck {
    kinds: Vec<Card>,
    left: Vec<Card>,
}

/// What a deck deals: a kind for one node, or one of the two ways to leave no majority.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Card {
    One(Kind),
    /// More nodes are silent than may be.
    Outage,
    /// Some nodes have forgotten, and so many others are silent that only votes of the former could make a majority.
    Quarantine,
}

impl Deck {
    fn deal(&mut self, rng: &mut Rng) -> Option<Card> {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let index = rng.below(self.left.len().max(1));
        (index < self.left.len()).then(|| self.left.swap_remove(index))
    }
}

struct NodeFaults<'a> {
    settings: &'a Settings,
    durable: &'a [bool],
    rng: Rng,
    faults: Vec<Fault>,
    /// Until when each node is disturbed, in ms.
    disturbed: Vec<u64>,
    /// How far each node's clock is ahead, in ms.
    ahead: Vec<u64>,
    now: u64,
}

impl<'a> NodeFaults<'a> {
    fn new(settings: &'a Settings, durable: &'a [bool]) -> Self {
        let rng = Rng::new(settings.seed, NODES);
        let (disturbed, ahead) = (vec![0; settings.nodes], vec![0; settings.nodes]);
        Self { settings, durable, rng, faults: Vec::new(), disturbed, ahead, now: settings.lease / 4 }
    }

    fn plan(mut self) -> Vec<Fault> {
        let of_nodes = self.settings.palette().into_iter().filter(|kind| !kind.is_of_workers());
        let mut kinds: Vec<Card> = of_nodes
            .filter(|kind| self.settings.spare() > 0 || !kind.disturbs())
            .filter(|kind| *kind != Kind::ClockBack) // Comes after a leap.
            .map(Card::One)
            .chain([Card::Outage])
            .collect();
        if self.settings.spare() > 0 {
            kinds.push(Card::Quarantine);
        }
        let mut deck = Deck { kinds, left: Vec::new() };
        // A card that does not fit in before the end is no reason to leave out a shorter one.
        let mut misfits = 0;
        while misfits < deck.kinds.len() {
            let Some(card) = deck.deal(&mut self.rng) else { break };
            let planned = match card {
                Card::Outage => self.outage(),
                Card::Quarantine => self.quarantine(),
                Card::One(Kind::ClockForward) => self.leap(),
                Card::One(kind) if kind.disturbs() => self.minority(kind),
                Card::One(kind) => self.harmless(kind),
            };
            if planned {
                if card == Card::One(Kind::ClockForward) {
                    deck.left.push(Card::One(Kind::ClockBack));
                }
                misfits = 0;
                self.now += self.share(5, 30);
            } else {
                misfits += 1;
            }
        }
        self.faults
    }

    /// Between these shares of a lease, in hundredths.
    fn share(&mut self, from: u64, to: u64) -> u64 {
        self.rng.between(self.settings.lease * from / 100..self.settings.lease * to / 100)
    }

    fn fits(&self, fault: &Fault) -> bool {
        fault.ends() <= self.settings.lasts
    }

    /// Appends it, and remembers how long it is felt.
    fn add(&mut self, fault: Fault) {
        let felt = fault.ends() + fault.tail(self.settings.lease);
        if fault.kind.disturbs() {
            for node in &fault.nodes {
                self.disturbed[*node] = self.disturbed[*node].max(felt);
            }
        }
        self.faults.push(fault);
    }

    /// From when on all nodes are well.
    fn all_well(&self) -> u64 {
        self.disturbed.iter().copied().max().unwrap_or(0).max(self.now)
    }

    fn minority(&mut self, kind: Kind) -> bool {
        // PROMISE: no more than the spare nodes are disturbed at any time.
        let mut ends = self.disturbed.clone();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let mut at = self.now.max(ends[self.settings.spare() - 1]);
        if kind == Kind::ClockBack {
            // That one is waited for.
            let ahead = (0..self.settings.nodes).filter(|node| self.ahead[*node] > 0);
            at = at.max(ahead.map(|node| self.disturbed[node]).min().unwrap_or(0));
        }
        let is_well = |node: &usize| self.disturbed[*node] <= at;
        let fits_kind = |node: &usize| match kind {
            Kind::ClockBack => self.ahead[*node] > 0,
            Kind::Restart => self.durable[*node],
            _ => true,
        };
        let well: Vec<usize> = (0..self.settings.nodes).filter(is_well).collect();
        let mut candidates: Vec<usize> = well.iter().copied().filter(fits_kind).collect();
        if candidates.is_empty() && kind == Kind::Restart {
            candidates = well;
        }
        if candidates.is_empty() {
            return false;
        }
        let node = self.rng.pick(&candidates);
        let lasts = match kind {
            Kind::Reset | Kind::ClockBack => 0,
            Kind::Restart | Kind::Forget => self.share(5, 45),
            // All kinds are to fit into a minute.
            _ if at < LEASES_IN_A_HURRY * self.settings.lease => self.share(12, 45),
            // Longer than a lease now and then: what was under way arrives when all is over.
            _ if self.rng.chance(0.3) => self.share(90, 160),
            _ => self.share(15, 70),
        };
        let amount = match kind {
            Kind::Delay => self.rng.between(DELAY_MS).cast_signed(),
            Kind::ClockBack => -self.ahead[node].cast_signed(),
            _ => 0,
        };
        let lossy = self.rng.chance(0.4);
        let fault =
            Fault { id: 0, at, lasts, kind, scale: Scale::Minority, nodes: vec![node], worker: None, amount, lossy };
        if !self.fits(&fault) {
            return false;
        }
        if kind == Kind::ClockBack {
            self.ahead[node] = 0;
        }
        self.now = at;
        self.add(fault);
        true
    }

    fn harmless(&mut self, kind: Kind) -> bool {
        let (nodes, amount) = if kind == Kind::Slow {
            ((0..self.settings.nodes).collect(), self.rng.between(SLOW_MS).cast_signed())
        } else {
            let amount = self.rng.signed(LARGEST_RATE_PPM);
            (vec![self.rng.below(self.settings.nodes)], amount)
        };
        let lasts = self.share(30, 200);
        let fault = Fault {
            id: 0,
            at: self.now,
            lasts,
            kind,
            scale: Scale::Harmless,
            nodes,
            worker: None,
            amount,
            lossy: false,
        };
        let fits = self.fits(&fault);
        if fits {
            self.add(fault);
        }
        fits
    }

    fn leap(&mut self) -> bool {
        // PROMISE: all others have been well for more than one lease, so every lock is held on all nodes and not on a bare
        // quorum; and nothing else is disturbed before the next lease is over.
        let lease = self.settings.lease;
        let at = self.all_well() + lease;
        let node = self.rng.below(self.settings.nodes);
        let step = self.share(60, 150);
        let fault = Fault {
            id: 0,
            at,
            lasts: 0,
            kind: Kind::ClockForward,
            scale: Scale::Minority,
            nodes: vec![node],
            worker: None,
            amount: step.cast_signed(),
            lossy: false,
        };
        if !self.fits(&fault) {
            return false;
        }
        self.ahead[node] += step;
        self.add(fault);
        self.now = self.all_well();
        true
    }

    fn shuffled(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.settings.nodes).collect();
        for i in (1..nodes.len()).rev() {
            nodes.swap(i, self.rng.below(i + 1));
        }
        nodes
    }

    fn outage(&mut self) -> bool {
        const SILENT: [Kind; 6] =
            [Kind::Pause, Kind::ClientPause, Kind::Cut, Kind::CutRequests, Kind::CutReplies, Kind::Mute];
        let at = self.all_well();
        let lasts = self.share(60, 170);
        let mut nodes = self.shuffled();
        let spare = self.settings.spare();
        nodes.truncate(spare + 1 + self.rng.below(self.settings.nodes - spare));
        let lossy = self.rng.chance(0.4);
        let kind = self.rng.pick(&SILENT);
        let fault = Fault { id: 0, at, lasts, kind, scale: Scale::Majority, nodes, worker: None, amount: 0, lossy };
        if !self.fits(&fault) {
            return false;
        }
        self.add(fault);
        self.now = self.all_well();
        true
    }

    fn quarantine(&mut self) -> bool {
        // PROMISE: no more than the spare nodes forget within one lease.
        let at = self.all_well();
        let spare = self.settings.spare();
        let nodes = self.shuffled();
        let (forget, cut) = nodes.split_at(1 + self.rng.below(spare));
        let silent = spare + 1 - forget.len() + self.rng.below(forget.len());
        let down = self.share(5, 15);
        let fault = |kind, nodes: &[usize], lasts| Fault {
            id: 0,
            at,
            lasts,
            kind,
            scale: Scale::Majority,
            nodes: nodes.to_vec(),
            worker: None,
            amount: 0,
            lossy: false,
        };
        let forgets = fault(Kind::Forget, forget, down);
        let lasts = self.share(75, 95);
        let cuts = fault(Kind::Cut, &cut[..silent], lasts);
        if !self.fits(&cuts) {
            return false;
        }
        self.add(forgets);
        self.add(cuts);
        self.now = self.all_well();
        true
    }
}

/// Workers are paused, killed and cut off beside whatever happens to the nodes. `leaps` says when clocks leap ahead.
fn plan_workers(settings: &Settings, leaps: &[u64]) -> Vec<Fault> {
    const KINDS: [Kind; 3] = [Kind::WorkerPause, Kind::WorkerKill, Kind::Isolate];
    let mut rng = Rng::new(settings.seed, WORKERS);
    let lease = settings.lease;
    let mut deck = Deck { kinds: KINDS.into_iter().map(Card::One).collect(), left: Vec::new() };
    let mut free = vec![0; settings.workers];
    let mut faults = Vec::new();
    let mut now = lease / 2;
    while now < settings.lasts {
        let Some(Card::One(kind)) = deck.deal(&mut rng) else { break };
        let worker = rng.below(settings.workers);
        let lasts = match kind {
            Kind::WorkerPause => rng.between(lease * 130 / 100..lease * 220 / 100),
            Kind::WorkerKill => rng.between(0..lease / 2),
            _ => rng.between(lease * 70 / 100..lease * 150 / 100),
        };
        let lossy = rng.chance(0.4);
        let nodes = if kind == Kind::Isolate { (0..settings.nodes).collect() } else { Vec::new() };
        let fault = Fault {
            id: 0,
            at: now.max(free[worker]),
            lasts,
            kind,
            scale: Scale::Harmless,
            nodes,
            worker: Some(worker),
            amount: 0,
            lossy,
        };
        let felt = fault.ends() + fault.tail(lease);
        // PROMISE: when a clock leaps, no worker has just been cut off in the middle of an acquisition.
        let meets_leap = |leap: &u64| fault.at < leap + lease * 3 / 2 && leap.saturating_sub(lease) < felt;
        let allowed = kind != Kind::Isolate || !leaps.iter().any(meets_leap);
        if allowed && fault.ends() <= settings.lasts {
            free[worker] = felt + lease / 4;
            faults.push(fault);
        }
        now += rng.between(lease * 40 / 100..lease * 130 / 100);
    }
    faults
}

#[cfg(test)]
mod tests;
