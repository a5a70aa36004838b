//! The judge of what clients see. It is told of every hold when it is granted and before it is given back, looks at all of
//! them again and again, and knows nothing of how the lock works.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::figures::Figures;
use crate::oracle::Violation;

/// The watchdog naps at most this long, so this late may a loss be noticed after a pause.
const NAP_US: u64 = 250_000;
/// Timers have whole milliseconds, and a deadline is known as it was when the checker last looked.
const TICK_US: u64 = 3_000 + LOOK_EVERY_US;
/// So often must [`Ledger::observe`] be called.
pub const LOOK_EVERY_US: u64 = 20_000;

/// What a guard says of itself.
pub trait Belief: Send {
    /// Validity left, in µs.
    fn remaining(&self) -> u64;
    fn is_lost(&self) -> bool;
    fn token_of(&self, resource: usize) -> Option<u64>;
    /// Nesting depth on the resource that was named first.
    fn depth(&self) -> u32;
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
    turn: u64,
}

pub struct Hold {
    pub client: usize,
    pub owner: String,
    /// In the order in which they were named.
    pub shares: Vec<Share>,
    belief: Box<dyn Belief>,
    /// The latest end of validity that was seen, by the client's clock.
    deadline: u64,
    was_lost: bool,
    /// Of a joined lease over several resources it is not known which was named first, and so of which the depth is.
    depth_known: bool,
    /// True time that the validity may not reach beyond: somebody else has completed an acquisition.
    cap: u64,
}

/// One resource's history.
#[derive(Default)]
struct Record {
    /// The largest token of a completed acquisition.
    newest: u64,
    /// Whose each token is, and its turn.
    tokens: BTreeMap<u64, (String, u64)>,
    turns: u64,
    store: FencedStore,
}

#[derive(Default)]
struct FencedStore {
    largest: u64,
    latest_turn: u64,
}

/// What was known of one resource when somebody asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub resource: usize,
    newest: u64,
    /// The token that this owner already holds in this client.
    held: Option<u64>,
    lost: bool,
}

pub struct Ledger {
    pub violations: Vec<Violation>,
    pub figures: Figures,
    holds: BTreeMap<u64, Hold>,
    ids: u64,
    records: Vec<Record>,
    /// Acquisitions under way, by client, owner and resource.
    asking: BTreeMap<(usize, String, usize), u32>,
    /// Exclusion is promised: clocks are bounded.
    strict: bool,
    longest_lease: u64,
    /// Makes clients' clocks show the truth while a checker looks.
    truth: Arc<AtomicBool>,
}

impl Ledger {
    pub fn new(resources: usize, strict: bool, longest_lease: u64, truth: Arc<AtomicBool>) -> Self {
        Self {
            violations: Vec::new(),
            figures: Figures::default(),
            holds: BTreeMap::new(),
            ids: 0,
            records: (0..resources).map(|_| Record::default()).collect(),
            asking: BTreeMap::new(),
            strict,
            longest_lease,
            truth,
        }
    }

    pub fn violated(&mut self, invariant: &'static str, at: u64, what: String) {
        self.violations.push(Violation { invariant, at, what });
    }

    fn truly<T>(&self, look: impl FnOnce() -> T) -> T {
        self.truth.store(true, Relaxed);
        let seen = look();
        self.truth.store(false, Relaxed);
        seen
    }

    fn share_of(&self, client: usize, owner: &str, resource: usize) -> impl Iterator<Item = (&Hold, Share)> {
        let mine = self.holds.values().filter(move |hold| hold.client == client && hold.owner == owner);
        mine.flat_map(|hold| hold.shares.iter().map(move |share| (hold, *share)))
            .filter(move |(_, share)| share.resource == resource)
    }

    fn depth(&self, client: usize, owner: &str, resource: usize) -> u32 {
        u32::try_from(self.share_of(client, owner, resource).count()).unwrap_or(u32::MAX)
    }

    /// Somebody asks for these resources. `owner` is empty when it is to be a new one.
    pub fn asks(&mut self, client: usize, owner: &str, resources: &[usize]) -> Vec<Asked> {
        let asked = |resource: &usize| {
            let held: Vec<(&Hold, Share)> = self.share_of(client, owner, *resource).collect();
            Asked {
                resource: *resource,
                newest: self.records[*resource].newest,
                held: held.first().map(|(_, share)| share.token),
                // A guard over several resources does not tell which of them it lost.
                lost: held.iter().any(|(hold, _)| hold.shares.len() == 1 && hold.belief.is_lost()),
            }
        };
        let asked = resources.iter().map(asked).collect();
        for resource in resources {
            *self.asking.entry((client, owner.to_owned(), *resource)).or_default() += 1;
        }
        asked
    }

    /// The request is over, one way or another.
    pub fn asked(&mut self, client: usize, owner: &str, resources: &[usize]) {
        for resource in resources {
            let key = (client, owner.to_owned(), *resource);
            match self.asking.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.asking.remove(&key)),
            }
        }
    }

    /// The request gave a guard. `joined` are the tokens of an exported lease that it entered; `votes` says how many nodes
    /// ever voted for a share, of which `quorum` are needed.
    #[expect(clippy::too_many_arguments, reason = "one call says all about a grant")]
    pub fn granted(
        &mut self,
        at: u64,
        client: usize,
        owner: &str,
        asked: &[Asked],
        joined: Option<&[(usize, u64)]>,
        belief: Box<dyn Belief>,
        votes: impl Fn(usize, u64) -> u32,
        quorum: u32,
    ) -> u64 {
        let mut shares = Vec::new();
        if belief.remaining() == 0 {
            self.violated("NoFalseGrant", at, format!("c{client} {owner} was granted a spent lease"));
        }
        for asked in asked {
            let resource = asked.resource;
            let name = format!("c{client} {owner} r{resource}");
            let token = belief.token_of(resource).unwrap_or_default();
            let exported =
                joined.and_then(|leases| leases.iter().find(|(r, _)| *r == resource)).map(|(_, token)| *token);
            let held_now = self.share_of(client, owner, resource).next().map(|(_, share)| share.token);
            let given = votes(resource, token);
            if given < quorum {
                self.violated("NoFalseGrant", at, format!("{name} token {token} with {given} votes of {quorum}"));
            }
            if asked.lost && asked.held == held_now {
                self.violated("NoResurrection", at, format!("{name} re-entered a lost lease"));
            }
            if let Some(expected) = exported.or(asked.held).or(held_now) {
                if expected != token {
                    self.violated("TokenStable", at, format!("{name} entered token {expected} and got {token}"));
                }
                if exported.is_some() && self.strict && asked.newest > token {
                    self.violated("NoResurrection", at, format!("{name} joined {token} after {}", asked.newest));
                }
                let count = if exported.is_some() { &mut self.figures.joins } else { &mut self.figures.reentries };
                *count += 1;
            } else if self.is_held_elsewhere(owner, resource, token) {
                self.figures.joins += 1; // What the owner had inherited further up was entered on the way.
            } else {
                self.acquired(at, &name, owner, *asked, token);
            }
            let record = &self.records[resource];
            shares.push(Share { resource, token, turn: record.tokens.get(&token).map_or(0, |(_, turn)| *turn) });
            self.exclude(at, &name, owner, resource, token);
        }
        let hold = Hold {
            client,
            owner: owner.to_owned(),
            shares,
            deadline: belief.clock() + belief.remaining(),
            belief,
            was_lost: false,
            depth_known: joined.is_none() || asked.len() == 1,
            cap: u64::MAX,
        };
        self.ids += 1;
        self.holds.insert(self.ids, hold);
        self.ids
    }

    /// Does somebody hold this very lease of this owner now?
    fn is_held_elsewhere(&self, owner: &str, resource: usize, token: u64) -> bool {
        let same = |share: &Share| share.resource == resource && share.token == token;
        self.holds.values().any(|hold| hold.owner == owner && hold.shares.iter().any(same))
    }

    /// An outermost acquisition.
    fn acquired(&mut self, at: u64, name: &str, owner: &str, asked: Asked, token: u64) {
        self.figures.grants += 1;
        let record = &mut self.records[asked.resource];
        let known = record.tokens.get(&token).cloned();
        record.turns += 1;
        record.tokens.insert(token, (owner.to_owned(), record.turns));
        record.newest = record.newest.max(token);
        if let Some((other, _)) = known {
            self.violated("TokenUnique", at, format!("{name} token {token} was {other}'s already"));
        }
        if token <= asked.newest {
            let newest = asked.newest;
            self.violated("TokenMonotonic", at, format!("{name} token {token}, begun after {newest} was granted"));
        }
    }

    /// Nobody else may believe to hold the resource now, nor ever for longer than what was under way allows.
    fn exclude(&mut self, at: u64, name: &str, owner: &str, resource: usize, token: u64) {
        let limit = at + self.longest_lease + self.longest_lease / 200;
        let mut overlaps = Vec::new();
        self.truth.store(true, Relaxed);
        for hold in self.holds.values_mut() {
            let Some(share) = hold.shares.iter().find(|share| share.resource == resource) else { continue };
            if hold.owner == owner && share.token == token {
                continue;
            }
            if share.token < token {
                hold.cap = hold.cap.min(limit);
            }
            let left = hold.belief.remaining();
            if left > 0 {
                overlaps.push(format!(
                    "{name} token {token} while c{} {} holds {} for {left} µs",
                    hold.client, hold.owner, share.token
                ));
            }
        }
        self.truth.store(false, Relaxed);
        if self.strict {
            overlaps.into_iter().for_each(|what| self.violated("MutualExclusion", at, what));
        }
    }

    /// Before a hold is given back, whichever way. The guard's last other reference goes with it.
    pub fn given_back(&mut self, id: u64) -> Option<Hold> {
        self.holds.remove(&id)
    }

    /// How deep a release must find this owner nested still.
    pub fn depth_after(&self, hold: &Hold) -> (u32, u32) {
        if !hold.depth_known {
            return (0, u32::MAX);
        }
        let first = hold.shares[0].resource;
        let depth = self.depth(hold.client, &hold.owner, first);
        let asking = self.asking.get(&(hold.client, hold.owner.clone(), first)).copied().unwrap_or(0);
        (depth, depth + asking)
    }

    pub fn ids(&self) -> Vec<u64> {
        self.holds.keys().copied().collect()
    }

    /// The process is gone, and with it what it believed.
    pub fn forget_client(&mut self, client: usize) -> Vec<Hold> {
        let gone: Vec<u64> = self.holds.iter().filter(|(_, hold)| hold.client == client).map(|(id, _)| *id).collect();
        gone.into_iter().filter_map(|id| self.holds.remove(&id)).collect()
    }

    /// A write to a store that refuses a token smaller than the largest it has seen.
    pub fn write(&mut self, at: u64, id: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let share = hold.shares[0];
        let name = format!("c{} {} r{} token {}", hold.client, hold.owner, share.resource, share.token);
        let valid = self.truly(|| hold.belief.remaining() > 0);
        let store = &mut self.records[share.resource].store;
        let accepted = share.token >= store.largest;
        let stale = share.turn < store.latest_turn;
        if accepted {
            store.largest = share.token;
            store.latest_turn = store.latest_turn.max(share.turn);
            self.figures.writes += 1;
        } else {
            self.figures.stale_writes_rejected += 1;
        }
        if self.strict && accepted && stale {
            self.violated("FencedStore", at, format!("{name}: a stale write was accepted"));
        }
        if self.strict && valid && !accepted {
            self.violated("FencedStore", at, format!("{name}: a holder's write was rejected"));
        }
    }

    /// Looks at every hold.
    pub fn observe(&mut self, at: u64) {
        for id in self.ids() {
            self.observe_one(at, id);
        }
    }

    fn observe_one(&mut self, at: u64, id: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let (remaining, clock, lost) =
            self.truly(|| (hold.belief.remaining(), hold.belief.clock(), hold.belief.is_lost()));
        let seen_lost = hold.belief.is_lost();
        let first = hold.shares[0].resource;
        let depth = self.depth(hold.client, &hold.owner, first);
        let asking = self.asking.get(&(hold.client, hold.owner.clone(), first)).copied().unwrap_or(0);
        let nested = hold.belief.depth();
        let mut wrong: Vec<(&'static str, String)> = Vec::new();
        let deadline = clock + remaining;
        if remaining > 0 && deadline < hold.deadline {
            wrong.push(("LeaseNeverShrinks", format!("by {} µs", hold.deadline - deadline)));
        }
        if remaining > 0 && at + remaining - remaining / 200 > hold.cap {
            wrong.push(("NoResurrection", format!("{remaining} µs left, {} after a newer acquisition", hold.cap)));
        }
        if (remaining > 0) == lost {
            wrong.push(("LossOnTime", format!("{remaining} µs left and lost {lost}")));
        }
        if hold.was_lost && !lost {
            wrong.push(("NoResurrection", "lost and held again".to_owned()));
        }
        if hold.depth_known && !(depth..=depth + asking).contains(&nested) {
            wrong.push(("ReentrantDepth", format!("{nested} and not {depth}")));
        }
        for share in &hold.shares {
            if hold.belief.token_of(share.resource) != Some(share.token) {
                wrong.push(("TokenStable", format!("r{} changed from {}", share.resource, share.token)));
            }
        }
        let who = format!("c{} {} {:?}", hold.client, hold.owner, hold.shares);
        wrong.into_iter().for_each(|(invariant, what)| self.violated(invariant, at, format!("{who}: {what}")));
        let Some(hold) = self.holds.get_mut(&id) else { return };
        if remaining > 0 && deadline > hold.deadline {
            self.figures.extensions += 1;
            hold.deadline = deadline;
        }
        if seen_lost && !hold.was_lost {
            self.figures.losses += 1;
            hold.was_lost = true;
        }
    }

    /// The signal `lost` has come, or had not come when the lease was over: by how much was it late?
    pub fn loss_noticed(&mut self, at: u64, id: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let due = hold.deadline.max(hold.belief.paused_until());
        let late = hold.belief.clock().saturating_sub(due);
        if !hold.belief.is_lost() {
            let who = format!("c{} {} {:?}", hold.client, hold.owner, hold.shares);
            self.violated("LossOnTime", at, format!("{who}: a loss was signalled that is none"));
        } else if late > NAP_US + TICK_US {
            let who = format!("c{} {} {:?}", hold.client, hold.owner, hold.shares);
            self.violated("LossOnTime", at, format!("{who}: {late} µs late"));
        }
    }
}
