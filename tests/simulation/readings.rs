//! The readings of guards by the ledger, and the writes of their holders.

use crate::history::What;
use crate::invariant::Invariant;
use crate::ledger::Ledger;

/// The watchdog sleeps at most this long, so a loss may be signalled this late after a pause.
const NAP_US: u64 = 250_000;
/// The resolution of timers, and the age of the deadline at the last reading of the checker.
const TICK_US: u64 = 3_000 + READ_EVERY_US;
/// The interval at which [`Ledger::observe`] must be called.
pub const READ_EVERY_US: u64 = 20_000;

/// Commands for each waiting request, living node and second.
const MOST_IN_OUTAGE: u64 = 20;

impl Ledger {
    /// A write to a store that refuses a token smaller than the largest it has seen.
    pub fn write(&mut self, at: u64, id: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let share = hold.claim.shares[0];
        let name = || format!("c{} {} r{} token {}", hold.claim.client, hold.claim.owner, share.resource, share.token);
        let valid = self.findings.watch.truly(|| hold.readings.remaining() > 0);
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
        self.findings.judge(Invariant::FencedStore, at, !(accepted && stale), || {
            format!("{}: a stale write was accepted", name())
        });
        self.findings.judge(Invariant::FencedStore, at, accepted || !valid, || {
            format!("{}: a holder's write was rejected", name())
        });
    }

    /// Reads every hold.
    pub fn observe(&mut self, at: u64) {
        let ids: Vec<u64> = self.holds.keys().copied().collect();
        for id in ids {
            self.observe_one(at, id);
        }
    }

    fn observe_one(&mut self, at: u64, id: u64) {
        let Some(mut hold) = self.holds.remove(&id) else { return };
        let readings = &hold.readings;
        let (remaining, clock, lost) =
            self.findings.watch.truly(|| (readings.remaining(), readings.clock(), readings.is_lost()));
        let (seen_lost, nested, deadline) = (readings.is_lost(), readings.depth(), clock + remaining);
        let (mut least, mut most) = self.depths(hold.claim.client, &hold.claim.owner, hold.claim.shares[0].resource);
        (least, most) = (least + 1, most + 1); // This one itself.
        let findings = &mut self.findings;
        let who = || hold.claim.who();
        findings.judge(Invariant::LossOnTime, at, (remaining > 0) != lost, || {
            format!("{}: {remaining} µs left and lost {lost}", who())
        });
        findings
            .judge(Invariant::NoResurrection, at, lost || !hold.was_lost, || format!("{}: lost and held again", who()));
        if remaining > 0 {
            findings.judge(Invariant::LeaseNeverShrinks, at, deadline >= hold.deadline, || {
                format!("{}: by {} µs", who(), hold.deadline - deadline)
            });
            findings.judge(Invariant::NoResurrection, at, at + remaining - remaining / 200 <= hold.cap, || {
                format!("{}: {remaining} µs left, {} after a newer acquisition", who(), hold.cap)
            });
        }
        if remaining > 0 && hold.revoked_cap < u64::MAX {
            let over = at + remaining - remaining / 200 <= hold.revoked_cap;
            findings.judge(Invariant::RevocationHolds, at, over, || {
                format!("{}: {remaining} µs left, {} after its revocation", who(), hold.revoked_cap)
            });
        }
        if hold.depth_known {
            findings.judge(Invariant::ReentrantDepth, at, (least..=most).contains(&nested), || {
                format!("{}: {nested} and not {least}", who())
            });
        }
        if remaining > 0 {
            let (margin, counted) = (hold.readings.margin(), hold.readings.counted(&hold.claim));
            findings.judge(Invariant::QuarantineHolds, at, margin + self.quorum <= counted, || {
                format!("{}: a margin of {margin}, and {counted} nodes with their votes", who())
            });
        }
        for share in &hold.claim.shares {
            let token = hold.readings.token_of(share.resource);
            findings.judge(Invariant::TokenStable, at, token == Some(share.token), || {
                format!("{}: r{} changed from {} to {token:?}", who(), share.resource, share.token)
            });
        }

        if remaining > 0 {
            let depth = Some(nested).filter(|_| hold.depth_known && least == most);
            let now = self.moment();
            self.record(&hold.claim, now, now, &|i| What::Holds { depth: depth.filter(|_| i == 0) });
        }
        if remaining > 0 && deadline > hold.deadline {
            self.figures.extensions += 1;
            hold.deadline = deadline;
        }
        if seen_lost && !hold.was_lost {
            self.figures.losses += 1;
            hold.was_lost = true;
            // A guard over several resources does not show which of them it lost.
            if hold.claim.shares.len() == 1 {
                let now = self.moment();
                self.record(&hold.claim, now, now, &|_| What::Lost);
            }
        }
        self.holds.insert(id, hold);
    }

    /// Checks how late the signal `lost` is, when it has come or the lease is over.
    pub fn loss_noticed(&mut self, at: u64, id: u64) {
        let Some(hold) = self.holds.get(&id) else { return };
        let due = hold.deadline.max(hold.readings.paused_until());
        let late = hold.readings.clock().saturating_sub(due);
        let lost = hold.readings.is_lost();
        self.findings
            .judge(Invariant::LossOnTime, at, lost, || format!("{}: a false loss was signalled", hold.claim.who()));
        self.findings.judge(Invariant::LossOnTime, at, !lost || late <= NAP_US + TICK_US, || {
            format!("{}: {late} µs late", hold.claim.who())
        });
    }

    /// Checks how long a request for a free lock took. `None` stands for a request that failed.
    pub fn waited(
        &mut self,
        at: u64,
        invariant: Invariant,
        took: Option<u64>,
        limit: u64,
        who: impl FnOnce() -> String,
    ) {
        self.findings.judge(invariant, at, took.is_some_and(|took| took <= limit), || match took {
            Some(took) => format!("{}: {took} µs, and not {limit}", who()),
            None => who(),
        });
    }

    /// Checks the number of commands that the remaining nodes got during an outage. `requests` is the number of waiting requests
    /// times the number of these nodes.
    pub fn waited_out(&mut self, at: u64, commands: u64, requests: u64, duration: u64) {
        let most = MOST_IN_OUTAGE * requests * duration / 1_000_000;
        let what = || format!("{commands} commands in {} ms, from {requests} requests times nodes", duration / 1000);
        if requests > 0 {
            self.findings.judge(Invariant::NoStorm, at, commands <= most, what);
        }
    }

    /// Checks that no lock key is left on a node after every hold was released.
    pub fn left_over(&mut self, at: u64, node: usize, locks: &[(String, String)]) {
        self.findings.judge(Invariant::NoOrphan, at, locks.is_empty(), || format!("node {node} still has {locks:?}"));
    }
}
