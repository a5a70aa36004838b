//! The judge of what clients observe. It records every hold at its grant and before its release, reads all of them again
//! and again (`readings.rs`), and is independent of how the lock works.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::figures::Figures;
use crate::history::{NEVER, Op, What};
use crate::holds::{Asked, Claim, Grant, Hold, PendingRelease, Readings, Record, ReleaseResult, Share};
use crate::invariant::{Findings, Invariant, Watch};
use crate::linear::{self, Verdict};
use crate::porcupine;

pub struct Ledger {
    pub findings: Findings,
    pub figures: Figures,
    pub holds: BTreeMap<u64, Hold>,
    ids: u64,
    pub records: Vec<Record>,
    /// Acquisitions in progress, by client, owner and resource.
    asking: BTreeMap<(usize, Arc<str>, usize), u32>,
    /// The numbers of owners in histories, and of an owner's holds in one client until all of these are released.
    owners: BTreeMap<Arc<str>, u32>,
    share_numbers: BTreeMap<(usize, Arc<str>, usize), u32>,
    last_share: u32,
    moments: u64,
    pub quorum: u32,
    longest_lease: u64,
    /// Confirmed revocations, by resource and token: the moment, and the true time.
    revoked: BTreeMap<(usize, u64), (u64, u64)>,
}

impl Ledger {
    pub fn new(resources: usize, quorum: usize, longest_lease: u64, watch: Arc<Watch>) -> Self {
        Self {
            findings: Findings::new(watch),
            figures: Figures::default(),
            holds: BTreeMap::new(),
            ids: 0,
            records: (0..resources).map(|_| Record::default()).collect(),
            asking: BTreeMap::new(),
            owners: BTreeMap::new(),
            share_numbers: BTreeMap::new(),
            last_share: 0,
            moments: 0,
            quorum: u32::try_from(quorum).unwrap_or(u32::MAX),
            longest_lease,
            revoked: BTreeMap::new(),
        }
    }

    fn shares_of(&self, client: usize, owner: &str, resource: usize) -> impl Iterator<Item = (&Hold, Share)> {
        let mine = self.holds.values().filter(move |hold| hold.claim.is_of(client, owner));
        mine.filter_map(move |hold| Some((hold, hold.claim.share_of(resource)?)))
    }

    /// Returns how deep an owner may be nested: at least its grants, and at most its grants and open requests.
    pub fn depths(&self, client: usize, owner: &Arc<str>, resource: usize) -> (u32, u32) {
        let depth = u32::try_from(self.shares_of(client, owner, resource).count()).unwrap_or(u32::MAX);
        let asking =
            if self.asking.is_empty() { None } else { self.asking.get(&(client, Arc::clone(owner), resource)) };
        (depth, depth + asking.copied().unwrap_or(0))
    }

    pub fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    fn share_number(&mut self, client: usize, owner: &Arc<str>, resource: usize) -> u32 {
        let known = self.share_numbers.get(&(client, Arc::clone(owner), resource));
        known.copied().unwrap_or_else(|| self.begin_share(client, owner, resource))
    }

    fn begin_share(&mut self, client: usize, owner: &Arc<str>, resource: usize) -> u32 {
        self.last_share += 1;
        self.share_numbers.insert((client, Arc::clone(owner), resource), self.last_share);
        self.last_share
    }

    /// Appends an operation of this hold to the histories. Returns its places.
    pub fn record(
        &mut self,
        claim: &Claim,
        invoked: u64,
        returned: u64,
        what: &dyn Fn(usize) -> What,
    ) -> Vec<(usize, usize)> {
        let next = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        let owner = *self.owners.entry(Arc::clone(&claim.owner)).or_insert(next);
        let shares = claim.shares.iter().enumerate();
        let written = shares.map(|(i, Share { resource, token, .. })| {
            let share = self.share_number(claim.client, &claim.owner, *resource);
            let op = Op { share, owner, token: *token, what: what(i), invoked, returned };
            (*resource, self.records[*resource].history.push(op))
        });
        written.collect()
    }

    /// Records a request for these resources. `owner` is empty for a new owner.
    pub fn begin_request(&mut self, client: usize, owner: &Arc<str>, resources: &[usize]) -> Vec<Asked> {
        let when = self.moment();
        let asked = |resource: &usize| {
            let mut held = self.shares_of(client, owner, *resource).peekable();
            Asked {
                resource: *resource,
                newest: self.records[*resource].newest,
                held: held.peek().map(|(_, share)| share.token),
                // A guard over several resources does not show which of them it lost.
                lost: held.any(|(hold, _)| hold.claim.shares.len() == 1 && hold.readings.is_lost()),
                when,
            }
        };
        let asked = resources.iter().map(asked).collect();
        for resource in resources {
            *self.asking.entry((client, Arc::clone(owner), *resource)).or_default() += 1;
        }
        asked
    }

    /// Records the end of a request.
    pub fn end_request(&mut self, client: usize, owner: &Arc<str>, resources: &[usize]) {
        for resource in resources {
            let key = (client, Arc::clone(owner), *resource);
            match self.asking.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.asking.remove(&key)),
            }
        }
    }

    /// Records a request that returned no guard, or whose future was dropped.
    pub fn failed(&mut self, client: usize, owner: &Arc<str>, asked: &[Asked], joined: Option<&[(usize, u64)]>) {
        for Asked { resource, held, when, .. } in asked {
            let exported =
                joined.and_then(|leases| leases.iter().find(|(r, _)| r == resource)).map(|(_, token)| *token);
            let Some(token) = exported.or(*held) else { continue };
            let share = Share { resource: *resource, token, turn: 0 };
            let claim = Claim { client, owner: Arc::clone(owner), shares: vec![share] };
            self.record(&claim, *when, NEVER, &|_| What::UnansweredEnter);
        }
    }

    /// Records a request that returned a guard.
    pub fn granted(&mut self, grant: &Grant<'_>, readings: Box<dyn Readings>) -> u64 {
        let Grant { at, client, owner, joined, .. } = *grant;
        let remaining = readings.remaining();
        self.findings.judge(Invariant::NoFalseGrant, at, remaining > 0, || {
            format!("c{client} {owner} was granted a spent lease")
        });
        let owner: Arc<str> = owner.into();
        let mut shares = Vec::new();
        for asked in grant.asked {
            let token = readings.token_of(asked.resource).unwrap_or_default();
            self.grant_one(grant, &owner, *asked, token);
            let turn = self.records[asked.resource].tokens.get(&token).map_or(0, |(_, turn)| *turn);
            shares.push(Share { resource: asked.resource, token, turn });
        }
        let claim = Claim { client, owner, shares };
        let revoked_cap = claim.shares.iter().filter_map(|share| self.revoked.get(&(share.resource, share.token)));
        let revoked_cap = revoked_cap.map(|(_, at)| self.latest_end(*at)).min().unwrap_or(u64::MAX);
        let (invoked, returned) = (grant.asked.iter().map(|asked| asked.when).min().unwrap_or(0), self.moment());
        self.record(&claim, invoked, returned, &|_| What::Enter);
        let hold = Hold {
            claim,
            deadline: readings.clock() + remaining,
            readings,
            was_lost: false,
            depth_known: joined.is_none() || grant.asked.len() == 1,
            cap: u64::MAX,
            revoked_cap,
        };
        self.ids += 1;
        self.holds.insert(self.ids, hold);
        self.ids
    }

    fn grant_one(&mut self, grant: &Grant<'_>, owner: &Arc<str>, asked: Asked, token: u64) {
        let (at, client, resource, quorum) = (grant.at, grant.client, asked.resource, self.quorum);
        let name = || format!("c{client} {owner} r{resource}");
        let exported =
            grant.joined.and_then(|leases| leases.iter().find(|(r, _)| *r == resource)).map(|(_, token)| *token);
        let held_now = self.shares_of(client, owner, resource).next().map(|(_, share)| share.token);
        if held_now.is_none() {
            self.begin_share(client, owner, resource);
        }
        let (given, sound) = (grant.votes)(resource, token);
        self.findings.judge(Invariant::NoFalseGrant, at, given >= quorum, || {
            format!("{} token {token} with {given} votes of {quorum}", name())
        });
        self.findings.judge(Invariant::NoResurrection, at, !asked.lost || asked.held != held_now, || {
            format!("{} re-entered a lost lease", name())
        });
        // Another user of the same owner may have released the lease while the request waited: then it has acquired a new one.
        let held_then = asked.held.filter(|held| *held == token);
        if let Some(expected) = exported.or(held_now).or(held_then) {
            self.findings.judge(Invariant::TokenStable, at, expected == token, || {
                format!("{} entered token {expected} and got {token}", name())
            });
            if exported.is_some() {
                self.joined(at, &name(), asked, token);
            } else {
                self.figures.reentries += 1;
            }
        } else if self.is_held_elsewhere(owner, resource, token) {
            self.joined(at, &name(), asked, token); // The request also entered a lease that the owner had inherited.
        } else {
            self.findings.judge(Invariant::QuarantineHolds, at, sound >= quorum, || {
                format!("{} token {token}: only {sound} of {given} votes are of nodes with their memory", name())
            });
            self.acquired(at, &name(), owner, asked, token);
        }
        self.not_revoked(at, &name(), resource, token, asked.when);
        self.exclude(at, &name(), owner, resource, token);
    }

    /// Returns when a validity is over whose last round began at this time.
    fn latest_end(&self, at: u64) -> u64 {
        at + self.longest_lease + self.longest_lease / 200
    }

    /// Records that a majority has revoked a lease.
    pub fn revoked(&mut self, at: u64, resource: usize, token: u64) {
        let moment = self.moment();
        self.revoked.entry((resource, token)).or_insert((moment, at));
        let limit = self.latest_end(at);
        for hold in self.holds.values_mut() {
            if hold.claim.share_of(resource).is_some_and(|share| share.token == token) {
                hold.revoked_cap = hold.revoked_cap.min(limit);
            }
        }
        self.figures.revocations += 1;
    }

    /// Checks that a message which a majority honoured began before the revocation of its lease.
    fn not_revoked(&mut self, at: u64, name: &str, resource: usize, token: u64, began: u64) {
        let revoked = self.revoked.get(&(resource, token)).map(|(moment, _)| *moment);
        self.findings.judge(Invariant::RevocationHolds, at, revoked.is_none_or(|moment| began < moment), || {
            format!("{name}: a majority honoured token {token} after its revocation")
        });
    }

    /// Records an extension that began at this moment and was confirmed.
    pub fn extended(&mut self, at: u64, id: u64, began: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let (who, shares) = (hold.claim.who(), hold.claim.shares.clone());
        for share in shares {
            self.not_revoked(at, &who, share.resource, share.token, began);
        }
    }

    fn joined(&mut self, at: u64, name: &str, asked: Asked, token: u64) {
        self.figures.joins += 1;
        self.findings.judge(Invariant::NoResurrection, at, asked.newest <= token, || {
            format!("{name} joined {token} after {}", asked.newest)
        });
    }

    /// Returns whether another hold of this lease exists, or may still exist: an unconfirmed release may still be on its way
    /// to the nodes.
    fn is_held_elsewhere(&self, owner: &str, resource: usize, token: u64) -> bool {
        let same = |share: Share| share.token == token;
        let held = self
            .holds
            .values()
            .any(|hold| *hold.claim.owner == *owner && hold.claim.share_of(resource).is_some_and(same));
        let number = self.owners.get(owner);
        let parting = |op: &Op| op.token == token && op.what == What::UnconfirmedRelease && op.returned == NEVER;
        held || self.records[resource].history.0.iter().any(|op| Some(&op.owner) == number && parting(op))
    }

    /// Records an outermost acquisition.
    fn acquired(&mut self, at: u64, name: &str, owner: &Arc<str>, asked: Asked, token: u64) {
        self.figures.grants += 1;
        let record = &mut self.records[asked.resource];
        let known = record.tokens.get(&token).map(|(other, _)| Arc::clone(other));
        record.turns += 1;
        record.tokens.insert(token, (Arc::clone(owner), record.turns));
        record.newest = record.newest.max(token);
        self.findings.judge(Invariant::TokenUnique, at, known.is_none(), || {
            format!("{name} token {token} was {known:?}'s already")
        });
        self.findings.judge(Invariant::TokenMonotonic, at, token > asked.newest, || {
            format!("{name} token {token}, begun after {} was granted", asked.newest)
        });
    }

    /// Checks that no other owner believes to hold the resource now. Messages in transit may extend an older hold up to a limit.
    fn exclude(&mut self, at: u64, name: &str, owner: &str, resource: usize, token: u64) {
        let limit = at + self.longest_lease + self.longest_lease / 200;
        let watch = Arc::clone(&self.findings.watch);
        let mut overlaps = Vec::new();
        for hold in self.holds.values_mut() {
            let Some(share) = hold.claim.share_of(resource) else { continue };
            if *hold.claim.owner == *owner && share.token == token {
                continue;
            }
            if share.token < token {
                hold.cap = hold.cap.min(limit);
            }
            let left = watch.truly(|| hold.readings.remaining());
            if left > 0 {
                let who = format!("c{} {} holds {}", hold.claim.client, hold.claim.owner, share.token);
                overlaps.push(format!("{name} token {token} while {who} for {left} µs"));
            }
        }
        self.findings.checks.count(Invariant::MutualExclusion, 1);
        overlaps.into_iter().for_each(|what| self.findings.violated(Invariant::MutualExclusion, at, what));
    }

    /// Records the start of a release, of any kind. Drops the ledger's reference to the guard.
    pub fn begin_release(&mut self, id: u64) -> Option<PendingRelease> {
        let Hold { claim, depth_known, .. } = self.holds.remove(&id)?;
        let now = self.moment();
        let ops = self.record(&claim, now, NEVER, &|_| What::UnconfirmedRelease);
        let first = claim.shares[0].resource;
        let left = if depth_known { self.depths(claim.client, &claim.owner, first) } else { (0, u32::MAX) };
        Some(PendingRelease { claim, left, ops })
    }

    /// Records the result of a release. `lost` is whether the guard had signalled the loss before.
    pub fn end_release(&mut self, at: u64, pending: &PendingRelease, lost: bool, said: ReleaseResult) {
        let PendingRelease { claim, left, ops } = pending;
        let who = || claim.who();
        match said {
            ReleaseResult::Nothing => {}
            ReleaseResult::Released(holds) => {
                self.findings.judge(Invariant::ReleaseSafe, at, !lost, || {
                    format!("{}: lost, and the release said that {holds} are left", who())
                });
                self.findings.judge(Invariant::ReentrantDepth, at, (left.0..=left.1).contains(&holds), || {
                    format!("{}: {holds} holds are left and not {}", who(), left.0)
                });
                let left = Some(holds).filter(|_| left.0 == left.1);
                let now = self.moment();
                for (i, (resource, place)) in ops.iter().enumerate() {
                    let op = &mut self.records[*resource].history.0[*place];
                    (op.what, op.returned) = (What::Leave { left: left.filter(|_| i == 0) }, now);
                }
            }
            ReleaseResult::NotHeld => {
                self.findings.checks.count(Invariant::ReleaseSafe, 1);
                // A guard over several resources does not show which of them was lost.
                if claim.shares.len() == 1 {
                    let now = self.moment();
                    self.record(claim, now, now, &|_| What::Lost);
                }
            }
        }
    }

    /// Removes the holds of a crashed process.
    pub fn forget_client(&mut self, client: usize) -> Vec<Hold> {
        let gone: Vec<u64> =
            self.holds.iter().filter(|(_, hold)| hold.claim.client == client).map(|(id, _)| *id).collect();
        gone.into_iter().filter_map(|id| self.holds.remove(&id)).collect()
    }

    /// Judges the histories at the end of a run.
    pub fn close(&mut self, at: u64) {
        for resource in 0..self.records.len() {
            let history = std::mem::take(&mut self.records[resource].history);
            let verdict = linear::judge(&history.0);
            if let Some(difference) = porcupine::contradicts(&verdict, &history.0) {
                self.findings.violated(Invariant::Linearizable, at, format!("r{resource}: {difference}"));
            }
            self.findings.checks.count(Invariant::Linearizable, history.0.len() as u64);
            if verdict != Verdict::Legal {
                self.findings.violated(Invariant::Linearizable, at, format!("r{resource}: {verdict:?}"));
            }
        }
    }
}
