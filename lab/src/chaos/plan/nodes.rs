//! Faults of nodes, of their clocks, and of their links.

use quorlock_testkit::rng::Rng;

use super::{Card, Deck, NODES, Settings, apart};
use crate::chaos::fault::{Fault, Kind, LARGEST_HARMLESS_STEP_MS, Scale};

/// The largest rate, in millionths: less than half of the drift allowance of 1 %.
pub const LARGEST_RATE_PPM: u64 = 4000;

/// The number of leases at the start in which faults are short, so that all kinds fit in.
const LEASES_IN_A_HURRY: u64 = 42;

/// A delay of all nodes, in ms: small against the time that a client gives a node.
const SLOW_MS: std::ops::Range<u64> = 2..25;
const DELAY_MS: std::ops::Range<u64> = 20..300;

/// A step beyond the window within which a node accepts ballots, which is five minutes. Ballots are kept for twice the
/// window, so a clock that goes ahead by less than that keeps the ballots in use.
const FAR_MS: std::ops::Range<u64> = 330_000..600_000;
const FAR_AHEAD_MS: std::ops::Range<u64> = 330_000..540_000;
const LEAP_MS: i64 = 600_000;

/// The least harmless step, in ms, and how many times it may be doubled.
const SHORTEST_STEP_MS: u64 = 1000;
const STEP_DOUBLINGS: usize = 8;

/// The time between two faults with memory loss, beside the leases: the delays of a busy machine.
const LATE_MS: u64 = 500;

/// How much later than planned CLIENT PAUSE may end, in ms.
const CLIENT_PAUSE_MORE_MS: u64 = 500;

pub fn plan(settings: &Settings, durable: &[bool]) -> Vec<Fault> {
    NodeFaults::new(settings, durable).plan()
}

struct NodeFaults<'a> {
    settings: &'a Settings,
    durable: &'a [bool],
    rng: Rng,
    faults: Vec<Fault>,
    /// Until when each node is disturbed, in ms.
    disturbed: Vec<u64>,
    /// From when on each node's clock may be set, as far as CLIENT PAUSE is concerned.
    settable: Vec<u64>,
    /// Until when another node may copy this one, which must be well for that.
    copied: Vec<u64>,
    /// Until when each node may have lost its ballots of names that were used before.
    blank: Vec<u64>,
    /// From when until when clocks are wrong, in the last such fault, and the nodes of which.
    wrong: (u64, u64, Vec<usize>),
    /// From when on a node may lose its memory.
    may_forget: u64,
    leap: Option<u64>,
    outages: u64,
    now: u64,
}

impl<'a> NodeFaults<'a> {
    fn new(settings: &'a Settings, durable: &'a [bool]) -> Self {
        let zeros = vec![0; settings.nodes];
        Self {
            settings,
            durable,
            rng: Rng::new(settings.seed, NODES),
            faults: Vec::new(),
            disturbed: zeros.clone(),
            settable: zeros.clone(),
            copied: zeros.clone(),
            blank: zeros,
            wrong: (0, 0, Vec::new()),
            may_forget: 0,
            leap: settings.leaps_at(),
            outages: 0,
            now: settings.lease / 4,
        }
    }

    fn plan(mut self) -> Vec<Fault> {
        if let Some(at) = self.leap {
            let all = (0..self.settings.nodes).collect();
            let lasts = self.settings.lease; // Until a node shows it at the latest.
            self.faults.push(Fault { amount: LEAP_MS, ..Fault::new(Kind::Leap, Scale::Harmless, at, lasts, all) });
        }
        let mut deck = Deck::new(self.cards());
        // A shorter card may fit in where this one does not.
        let mut misfits = 0;
        while misfits < deck.cards.len() {
            let (now, may_forget, wrong) = (self.now, self.may_forget, self.wrong.1);
            let waits = |card: Card| {
                let sets_clocks = matches!(card, Card::Away | Card::One(Kind::Step));
                (card.forgets() && may_forget > now) || (sets_clocks && wrong > now)
            };
            let Some(card) = deck.deal(&mut self.rng, waits) else { break };
            let planned = match card {
                Card::Outage => self.outage(),
                Card::Quarantine => self.quarantine(),
                Card::Away => self.away(),
                Card::One(Kind::Step) => self.step(),
                Card::One(kind) if kind.disturbs(0) => self.minority(kind),
                Card::One(kind) => self.harmless(kind),
            };
            if planned {
                misfits = 0;
                self.now += self.share(3, 20);
            } else {
                misfits += 1;
            }
        }
        self.faults
    }

    fn cards(&self) -> Vec<Card> {
        let has_spare = self.settings.spare() > 0;
        let of_nodes = self.settings.palette().into_iter().filter(|kind| !kind.is_of_workers() && *kind != Kind::Leap);
        let mut cards: Vec<Card> = of_nodes.filter(|kind| has_spare || !kind.disturbs(0)).map(Card::One).collect();
        cards.push(Card::Outage);
        if has_spare {
            cards.push(Card::Quarantine);
            if self.settings.clocks {
                cards.push(Card::Away);
            }
        }
        cards
    }

    /// Returns a random time between these shares of a lease, in hundredths.
    fn share(&mut self, from: u64, to: u64) -> u64 {
        self.rng.between(self.settings.lease * from / 100..self.settings.lease * to / 100)
    }

    /// Appends the fault when it is over before the end, and records how long its effects last.
    fn add(&mut self, fault: Fault) -> bool {
        if fault.ends() > self.settings.lasts {
            return false;
        }
        let lease = self.settings.lease;
        let tail = fault.tail(lease);
        let mut felt = fault.ends() + tail;
        for node in fault.nodes.iter().copied() {
            if fault.kind.sets_clocks() {
                // LIMIT: a clock step may lengthen a quarantine or a lock on its node.
                if fault.disturbs() || self.disturbed[node] > fault.at {
                    self.disturbed[node] = self.disturbed[node].max(felt);
                }
            } else if fault.disturbs() {
                let of_step = lease + tail;
                let (from, until, nodes) = &self.wrong;
                let own = nodes.contains(&node).then_some([*from, *until]);
                for set in own.into_iter().flatten().chain(self.leap) {
                    if (fault.at..=felt).contains(&set) {
                        felt = felt.max(set + of_step);
                    }
                }
                self.disturbed[node] = self.disturbed[node].max(felt);
            }
            if fault.kind == Kind::ClientPause {
                self.settable[node] = fault.ends() + CLIENT_PAUSE_MORE_MS;
            }
            if let Some(source) = fault.source {
                self.copied[source] = felt;
            }
            if fault.kind.forgets() {
                self.may_forget = fault.ends() + apart(lease) + LATE_MS;
                self.blank[node] = fault.ends() + 5 * lease;
            }
        }
        if fault.kind.sets_clocks() {
            self.wrong = (fault.at, fault.ends(), fault.nodes.clone());
        }
        self.faults.push(fault);
        true
    }

    /// Returns the time from which all nodes are well.
    fn all_well(&self) -> u64 {
        self.disturbed.iter().copied().max().unwrap_or(0).max(self.now)
    }

    /// LIMIT: no more than the spare nodes are disturbed at any time.
    fn one_may_fail(&self) -> u64 {
        let mut ends = self.disturbed.clone();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        self.now.max(ends[self.settings.spare() - 1])
    }

    /// Returns whether CLIENT PAUSE can begin on this node at this time.
    fn keeps_time(&self, node: usize, at: u64) -> bool {
        let ends = at + 2 * self.settings.lease + CLIENT_PAUSE_MORE_MS;
        // A clock that was set may be set back later than planned, and would lengthen the pause.
        let is_right = self.wrong.1 + CLIENT_PAUSE_MORE_MS <= at || !self.wrong.2.contains(&node);
        is_right && self.leap.is_none_or(|leap| !(at.saturating_sub(CLIENT_PAUSE_MORE_MS)..=ends).contains(&leap))
    }

    fn is_settable(&self, node: usize, at: u64) -> bool {
        self.settable[node] <= at
    }

    fn minority(&mut self, kind: Kind) -> bool {
        let mut at = self.one_may_fail();
        if kind.forgets() {
            // LIMIT: only one node loses its memory within two longest leases.
            at = at.max(self.may_forget);
        }
        let (all, durable) = (0..self.settings.nodes, self.durable);
        if kind == Kind::Restart {
            let well = all.clone().filter(|node| durable[*node]).map(|node| self.disturbed[node]).min();
            at = at.max(well.unwrap_or(0));
        }
        if kind == Kind::ClientPause {
            at = at.max(self.wrong.1 + CLIENT_PAUSE_MORE_MS);
        }
        let fits_kind = |node: &usize| match kind {
            Kind::Restart => durable[*node],
            Kind::ClientPause => self.keeps_time(*node, at),
            _ => true,
        };
        let well: Vec<usize> = all.filter(|node| self.disturbed[*node].max(self.copied[*node]) <= at).collect();
        let candidates: Vec<usize> = well.iter().copied().filter(fits_kind).collect();
        if candidates.is_empty() {
            return false;
        }
        let node = self.rng.pick(&candidates);
        let others: Vec<usize> = well.into_iter().filter(|other| *other != node).collect();
        if kind.copies() && others.is_empty() {
            return false;
        }
        let source = kind.copies().then(|| self.rng.pick(&others));
        let lasts = self.length(kind, at);
        let amount = if kind == Kind::Delay { self.rng.between(DELAY_MS).cast_signed() } else { 0 };
        let lossy = self.rng.chance(0.4) && !kind.forgets(); // Which happens under living connections.
        self.add_from(Fault { amount, lossy, source, ..Fault::new(kind, Scale::Minority, at, lasts, vec![node]) })
    }

    /// Appends the fault. Later faults do not begin before it.
    fn add_from(&mut self, fault: Fault) -> bool {
        let at = fault.at;
        let added = self.add(fault);
        if added {
            self.now = at;
        }
        added
    }

    fn length(&mut self, kind: Kind, at: u64) -> u64 {
        match kind {
            Kind::Reset | Kind::Flush | Kind::Swap | Kind::Replace => 0,
            Kind::Restart | Kind::Forget => self.share(5, 35),
            Kind::Promote | Kind::Replica => self.share(2, 20),
            _ if at < LEASES_IN_A_HURRY * self.settings.lease => self.share(10, 35),
            // Sometimes longer than a lease: delayed messages arrive when the lease is over.
            _ if self.rng.chance(0.3) => self.share(90, 160),
            _ => self.share(15, 70),
        }
    }

    fn harmless(&mut self, kind: Kind) -> bool {
        let (nodes, amount) = if kind == Kind::Slow {
            ((0..self.settings.nodes).collect(), self.rng.between(SLOW_MS).cast_signed())
        } else {
            let amount = self.rng.signed(LARGEST_RATE_PPM);
            (vec![self.rng.below(self.settings.nodes)], amount)
        };
        let lasts = self.share(30, 200);
        self.add(Fault { amount, ..Fault::new(kind, Scale::Harmless, self.now, lasts, nodes) })
    }

    /// Sets any number of clocks ahead or back.
    fn step(&mut self) -> bool {
        // One step at a time, so that no two clocks are further apart than the window.
        let at = self.now.max(self.wrong.1);
        let mut nodes = self.shuffled();
        nodes.retain(|node| self.is_settable(*node, at));
        nodes.truncate(1 + self.rng.below(nodes.len().max(1)));
        if nodes.is_empty() {
            return false;
        }
        let least = SHORTEST_STEP_MS << self.rng.below(STEP_DOUBLINGS);
        let step = self.rng.between(least..2 * least).min(LARGEST_HARMLESS_STEP_MS).cast_signed();
        let amount = if self.rng.chance(0.5) { step } else { -step };
        let lasts = self.share(10, 120);
        self.add_from(Fault { amount, ..Fault::new(Kind::Step, Scale::Harmless, at, lasts, nodes) })
    }

    /// Sets one clock beyond the window.
    fn away(&mut self) -> bool {
        let at = self.one_may_fail().max(self.wrong.1);
        let lasts = self.share(15, 70);
        let fits = |node: &usize| self.disturbed[*node] <= at && self.is_settable(*node, at);
        let candidates: Vec<usize> = (0..self.settings.nodes).filter(fits).collect();
        if candidates.is_empty() {
            return false;
        }
        let node = self.rng.pick(&candidates);
        // A node without a ballot of a name requires one as far ahead as its clock.
        let around = at.saturating_sub(5 * self.settings.lease)..at + lasts + self.settings.lease;
        let has_ballots = self.blank[node] <= at && self.leap.is_none_or(|leap| !around.contains(&leap));
        let amount = if has_ballots && self.rng.chance(0.5) {
            self.rng.between(FAR_AHEAD_MS).cast_signed()
        } else {
            -self.rng.between(FAR_MS).cast_signed()
        };
        self.add_from(Fault { amount, ..Fault::new(Kind::Step, Scale::Minority, at, lasts, vec![node]) })
    }

    fn shuffled(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.settings.nodes).collect();
        for i in (1..nodes.len()).rev() {
            nodes.swap(i, self.rng.below(i + 1));
        }
        nodes
    }

    fn outage(&mut self) -> bool {
        const SILENT: [Kind; 7] =
            [Kind::Pause, Kind::ClientPause, Kind::Cut, Kind::CutRequests, Kind::CutReplies, Kind::Mute, Kind::Step];
        let at = self.all_well();
        let lasts = self.share(60, 170);
        let mut nodes = self.shuffled();
        let spare = self.settings.spare();
        // In every other one at least one node answers, so that clients can be seen to ask it too often.
        let all = self.outages % 2 == 1 || self.settings.nodes == spare + 1;
        nodes.truncate(spare + 1 + self.rng.below(self.settings.nodes - spare - usize::from(!all)));
        let lossy = self.rng.chance(0.4);
        let kind = match self.rng.pick(&SILENT) {
            Kind::ClientPause if !nodes.iter().all(|node| self.keeps_time(*node, at)) => Kind::Pause,
            Kind::Step if !self.settings.clocks || self.wrong.1 > at => Kind::Cut,
            Kind::Step if !nodes.iter().all(|node| self.is_settable(*node, at)) => Kind::Cut,
            kind => kind,
        };
        let amount = if kind == Kind::Step { -self.rng.between(FAR_MS).cast_signed() } else { 0 };
        let added = self.add(Fault { amount, lossy, ..Fault::new(kind, Scale::Majority, at, lasts, nodes) });
        if added {
            self.outages += 1;
            self.now = self.all_well();
        }
        added
    }

    fn quarantine(&mut self) -> bool {
        const FORGETTING: [Kind; 6] =
            [Kind::Forget, Kind::Replace, Kind::Promote, Kind::Replica, Kind::Flush, Kind::Swap];
        let at = self.all_well().max(self.may_forget);
        let nodes = self.shuffled();
        let (forget, others) = nodes.split_at(1);
        let kind = self.rng.pick(&FORGETTING);
        let down = if kind == Kind::Forget { self.share(5, 15) } else { 0 };
        // Only the links of workers are cut, not those between nodes.
        let source = kind.copies().then(|| self.rng.pick(others));
        let lasts = self.share(75, 95);
        if at + lasts > self.settings.lasts {
            return false;
        }
        let silent = others[..self.settings.spare()].to_vec();
        self.add(Fault { source, ..Fault::new(kind, Scale::Majority, at, down, forget.to_vec()) });
        self.add(Fault::new(Kind::Cut, Scale::Majority, at, lasts, silent));
        self.step_in_quarantine(at + down, at + lasts);
        self.now = self.all_well();
        true
    }

    /// Clocks that are ahead end no quarantine.
    fn step_in_quarantine(&mut self, from: u64, until: u64) {
        let at = from + self.share(10, 25);
        let all: Vec<usize> = (0..self.settings.nodes).collect();
        let may_step = self.settings.clocks && self.wrong.1 <= at && all.iter().all(|node| self.is_settable(*node, at));
        if may_step && at < until && self.rng.chance(0.7) {
            let amount = self.rng.between(self.settings.lease..LARGEST_HARMLESS_STEP_MS).cast_signed();
            self.add(Fault { amount, ..Fault::new(Kind::Step, Scale::Harmless, at, until - at, all) });
        }
    }
}
