//! Tests of the checkers: histories that violate an invariant, made by hand. A checker that accepts one of them is useless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::holds::{Claim, Grant, Readings, ReleaseResult};
use crate::invariant::Invariant::{self, *};
use crate::invariant::Watch;
use crate::ledger::Ledger;
use crate::linear::{Verdict, judge};
use crate::mutexes;
use crate::oracle::{Oracle, Place};
use crate::porcupine;
use crate::run::Outcome;
use quorlock_testkit::node::rules::Rules;
use quorlock_testkit::node::{Node, Script};

const SECOND: u64 = 1_000_000;
/// How far a ballot may be from a node's clock.
const WINDOW_MS: u64 = 300_000;

/// A guard with settable readings.
#[derive(Clone)]
struct Puppet {
    remaining: Arc<AtomicU64>,
    lost: Arc<AtomicBool>,
    token: Arc<AtomicU64>,
    depth: Arc<AtomicU32>,
    margin: Arc<AtomicU32>,
    clock: Arc<AtomicU64>,
}

impl Puppet {
    fn new(token: u64) -> Self {
        Self {
            remaining: Arc::new(AtomicU64::new(SECOND)),
            lost: Arc::default(),
            token: Arc::new(AtomicU64::new(token)),
            depth: Arc::new(AtomicU32::new(1)),
            margin: Arc::default(),
            clock: Arc::default(),
        }
    }

    fn lose(&self) {
        self.remaining.store(0, Relaxed);
        self.lost.store(true, Relaxed);
    }
}

impl Readings for Puppet {
    fn remaining(&self) -> u64 {
        self.remaining.load(Relaxed)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    fn token_of(&self, _: usize) -> Option<u64> {
        Some(self.token.load(Relaxed))
    }

    fn depth(&self) -> u32 {
        self.depth.load(Relaxed)
    }

    fn margin(&self) -> u32 {
        self.margin.load(Relaxed)
    }

    fn counted(&self, _: &Claim) -> u32 {
        QUORUM
    }

    fn clock(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn paused_until(&self) -> u64 {
        0
    }
}

const QUORUM: u32 = 2;

fn ledger() -> Ledger {
    Ledger::new(1, QUORUM as usize, SECOND, Arc::default())
}

fn grant_with(ledger: &mut Ledger, at: u64, client: usize, owner: &str, puppet: &Puppet, votes: (u32, u32)) -> u64 {
    let asked = ledger.begin_request(client, &owner.into(), &[0]);
    ledger.end_request(client, &owner.into(), &[0]);
    let grant = Grant { at, client, owner, asked: &asked, joined: None, votes: &|_, _| votes };
    ledger.granted(&grant, Box::new(puppet.clone()))
}

fn grant(ledger: &mut Ledger, at: u64, client: usize, owner: &str, puppet: &Puppet) -> u64 {
    grant_with(ledger, at, client, owner, puppet, (QUORUM, QUORUM))
}

type History = fn(&mut Ledger);

/// Each with the invariant that it breaks.
const ILLEGAL: [(Invariant, &str, History); 32] = [
    (MutualExclusion, "two owners at once", |ledger| {
        grant(ledger, 1, 0, "a", &Puppet::new(7));
        grant(ledger, 2, 1, "b", &Puppet::new(8));
    }),
    (MutualExclusion, "one owner twice, with two tokens", |ledger| {
        grant(ledger, 1, 0, "a", &Puppet::new(7));
        grant(ledger, 2, 1, "a", &Puppet::new(8));
    }),
    (ReentrantDepth, "a hold too many", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        puppet.depth.store(2, Relaxed);
        ledger.observe(2);
    }),
    (ReentrantDepth, "a release that leaves one too many", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        let Some(pending) = ledger.begin_release(id) else { return };
        ledger.end_release(2, &pending, false, ReleaseResult::Released(1));
    }),
    (TokenUnique, "a token for the second time", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        ledger.begin_release(id);
        grant(ledger, 2, 1, "b", &Puppet::new(7));
    }),
    (TokenUnique, "an owner's token for the second time, after a release that was confirmed", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        let Some(pending) = ledger.begin_release(id) else { return };
        ledger.end_release(2, &pending, false, ReleaseResult::Released(0));
        grant(ledger, 3, 1, "a", &Puppet::new(7));
    }),
    (TokenMonotonic, "a smaller token", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        ledger.begin_release(id);
        grant(ledger, 2, 1, "b", &Puppet::new(6));
    }),
    (TokenStable, "another token on re-entry", |ledger| {
        grant(ledger, 1, 0, "a", &Puppet::new(7));
        grant(ledger, 2, 0, "a", &Puppet::new(8));
    }),
    (TokenStable, "a token that changes", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        puppet.token.store(8, Relaxed);
        ledger.observe(2);
    }),
    (FencedStore, "a holder's write rejected", |ledger| {
        let first = Puppet::new(7);
        let a = grant(ledger, 1, 0, "a", &first);
        first.lose();
        let b = grant(ledger, 2, 1, "b", &Puppet::new(6));
        ledger.write(3, a);
        ledger.write(4, b);
    }),
    (FencedStore, "a stale write accepted", |ledger| {
        let first = Puppet::new(7);
        let a = grant(ledger, 1, 0, "a", &first);
        first.lose();
        let b = grant(ledger, 2, 1, "b", &Puppet::new(6));
        ledger.write(3, b);
        ledger.write(4, a);
    }),
    (ReleaseSafe, "a lost lock that is said to be released", |ledger| {
        let puppet = Puppet::new(7);
        let id = grant(ledger, 1, 0, "a", &puppet);
        puppet.lose();
        let Some(pending) = ledger.begin_release(id) else { return };
        ledger.end_release(2, &pending, true, ReleaseResult::Released(0));
    }),
    (NoFalseGrant, "a grant with nothing left of it", |ledger| {
        let puppet = Puppet::new(7);
        puppet.remaining.store(0, Relaxed);
        grant(ledger, 1, 0, "a", &puppet);
    }),
    (NoFalseGrant, "a grant without a quorum of votes", |ledger| {
        grant_with(ledger, 1, 0, "a", &Puppet::new(7), (QUORUM - 1, QUORUM - 1));
    }),
    (QuarantineHolds, "a grant that needs a node that forgot", |ledger| {
        grant_with(ledger, 1, 0, "a", &Puppet::new(7), (QUORUM, QUORUM - 1));
    }),
    (NoResurrection, "lost and held again", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        puppet.lose();
        ledger.observe(2);
        puppet.lost.store(false, Relaxed);
        puppet.remaining.store(5, Relaxed);
        ledger.observe(3);
    }),
    (NoResurrection, "renewed after a newer acquisition", |ledger| {
        let first = Puppet::new(7);
        grant(ledger, 1, 0, "a", &first);
        first.remaining.store(0, Relaxed);
        grant(ledger, 2, 1, "b", &Puppet::new(8));
        first.remaining.store(2 * SECOND, Relaxed);
        ledger.observe(3);
    }),
    (LeaseNeverShrinks, "an earlier end", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        puppet.remaining.store(SECOND / 2, Relaxed);
        ledger.observe(2);
    }),
    (LossOnTime, "a loss that is noticed late", |ledger| {
        let puppet = Puppet::new(7);
        let id = grant(ledger, 1, 0, "a", &puppet);
        puppet.lose();
        puppet.clock.store(2 * SECOND, Relaxed);
        ledger.loss_noticed(2 * SECOND, id);
    }),
    (LossOnTime, "a loss that is none", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        ledger.loss_noticed(2, id);
    }),
    (NoOrphan, "a lock key without a holder", |ledger| {
        ledger.left_over(1, 0, &[("r0".to_owned(), "ql1 7 a x s:1".to_owned())]);
    }),
    (FreeAfterTtl, "a crashed holder's lock that is not to be had", |ledger| {
        ledger.waited(1, FreeAfterTtl, None, SECOND, String::new);
    }),
    (MinorityFaultLive, "a minority that is waited for", |ledger| {
        ledger.waited(1, MinorityFaultLive, Some(SECOND + 1), SECOND, String::new);
    }),
    (RevocationHolds, "renewed after its revocation", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        ledger.revoked(2, 0, 7);
        puppet.remaining.store(2 * SECOND, Relaxed);
        ledger.observe(3);
    }),
    (RevocationHolds, "extended by a message from after its revocation", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        ledger.revoked(2, 0, 7);
        let began = ledger.moment();
        ledger.extended(3, id, began);
    }),
    (RevocationHolds, "entered again after its revocation", |ledger| {
        grant(ledger, 1, 0, "a", &Puppet::new(7));
        ledger.revoked(2, 0, 7);
        grant(ledger, 3, 0, "a", &Puppet::new(7));
    }),
    (NoStorm, "requests that ask 21 times a second", |ledger| {
        ledger.waited_out(1, 21 * 6 * 10, 6, 10 * SECOND);
    }),
    (NoStorm, "a request that is not served after an outage", |ledger| {
        ledger.waited(1, NoStorm, None, SECOND, String::new);
    }),
    (CancelSafe, "a dropped request that stands in the way", |ledger| {
        ledger.waited(1, CancelSafe, Some(SECOND + 1), SECOND, String::new);
    }),
    (Linearizable, "two owners at once, in the history", |ledger| {
        let first = Puppet::new(7);
        grant(ledger, 1, 0, "a", &first);
        grant(ledger, 2, 1, "b", &Puppet::new(8));
        ledger.observe(3);
        ledger.close(4);
    }),
    (Linearizable, "lost and held again, in the history", |ledger| {
        let puppet = Puppet::new(7);
        grant(ledger, 1, 0, "a", &puppet);
        puppet.lose();
        ledger.observe(2);
        puppet.lost.store(false, Relaxed);
        puppet.remaining.store(5, Relaxed);
        ledger.observe(3);
        ledger.close(4);
    }),
    (Linearizable, "a smaller token, in the history", |ledger| {
        let id = grant(ledger, 1, 0, "a", &Puppet::new(7));
        if let Some(pending) = ledger.begin_release(id) {
            ledger.end_release(2, &pending, false, ReleaseResult::Released(0));
        }
        grant(ledger, 3, 1, "b", &Puppet::new(6));
        ledger.close(4);
    }),
];

/// Returns the histories that were judged wrongly.
pub fn unnoticed() -> Vec<String> {
    let mut missed = Vec::new();
    for (invariant, what, history) in ILLEGAL {
        let mut ledger = ledger();
        history(&mut ledger);
        if !ledger.findings.found(invariant) {
            missed.push(format!("{invariant}: {what}: {:?}", ledger.findings.violations));
        }
    }
    for (legal, what, history) in mutexes::histories() {
        let verdict = judge(&history);
        missed.extend(porcupine::contradicts(&verdict, &history).map(|difference| format!("{what}: {difference}")));
        if (verdict == Verdict::Legal) != legal || verdict == Verdict::Unknown {
            missed.push(format!("{Linearizable}: {what}: {verdict:?}"));
        }
    }
    let outcome = |digest| Outcome { figures: Default::default(), violations: Vec::new(), digest, trace: None };
    if outcome(1).difference(&outcome(2)).is_none() || outcome(1).difference(&outcome(1)).is_some() {
        missed.push(format!("{Deterministic}: two runs with different digests"));
    }
    // RecordHolds is about one message to one node: `broken_nodes_unnoticed` has it.
    let others = [Deterministic, RecordHolds];
    let named: Vec<Invariant> = ILLEGAL.iter().map(|(invariant, ..)| *invariant).chain(others).collect();
    missed.extend(Invariant::ALL.iter().filter(|one| !named.contains(one)).map(|one| format!("{one}: no history")));
    missed
}

/// A correct history must not be reported as a violation.
pub fn misjudged_legal_histories() -> Vec<String> {
    let mut ledger = ledger();
    let first = Puppet::new(7);
    let outer = grant(&mut ledger, 1, 0, "a", &first);
    let again = Puppet { depth: Arc::clone(&first.depth), ..first.clone() };
    first.depth.store(2, Relaxed);
    let inner = grant(&mut ledger, 2, 0, "a", &again);
    ledger.observe(3);
    ledger.write(4, inner);
    first.depth.store(1, Relaxed);
    ledger.begin_release(inner);
    ledger.observe(5);
    first.lose();
    ledger.loss_noticed(6, outer);
    let next = grant(&mut ledger, 7, 1, "b", &Puppet::new(9));
    ledger.write(8, next);
    ledger.write(9, outer);
    ledger.observe(10);
    ledger.close(11);
    let mut wrong: Vec<String> = ledger.findings.violations.iter().map(|violation| format!("{violation:?}")).collect();
    if ledger.figures.stale_writes_rejected != 1 {
        wrong.push("the stale write was not rejected".to_owned());
    }
    wrong.extend(a_join_may_race_with_the_last_release());
    wrong
}

/// A client with an export may join the lease until the last release has reached the nodes.
fn a_join_may_race_with_the_last_release() -> Vec<String> {
    let mut ledger = ledger();
    let first = grant(&mut ledger, 1, 0, "a", &Puppet::new(7));
    ledger.begin_release(first);
    let heir = grant(&mut ledger, 2, 1, "a", &Puppet::new(7));
    ledger.observe(3);
    ledger.begin_release(heir);
    ledger.close(4);
    ledger.findings.violations.iter().map(|violation| format!("{violation:?}")).collect()
}

/// Returns the broken nodes that the oracle does not detect, one command after another.
pub fn broken_nodes_unnoticed() -> Vec<String> {
    const NOW: u64 = crate::time::EPOCH_US;
    const WORD: &str = "00000000000000af 1000";
    // One share for each token.
    let share = |token: &str| format!("51/{}", &token[token.len() - 2..]);
    let hold = |next: &str, token: &str, known: &str, lease: &str, owner: &str| -> Vec<String> {
        let end = NOW / 1000 + 1 + lease.parse::<u64>().expect("a lease");
        let share = share(if token == "0" { next } else { token });
        [
            "EVALSHA",
            Script::Hold.hash(),
            "2",
            "quorlock:lock:x",
            "quorlock:ballot:x",
            &format!("{next} {end} ql1 {next} {owner} label {share}:1"),
            lease,
            "0",
            &format!("{token} {known} 1 {share}"),
            WORD,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let release = |next: &str, token: &str, owner: &str| -> Vec<String> {
        let share = share(token);
        [
            "EVALSHA",
            Script::Release.hash(),
            "2",
            "quorlock:lock:x",
            "quorlock:ballot:x",
            &format!("{next} {} ql1 {token} {owner} label {share}:1", NOW / 1000),
            &format!("{token} {token} {share} 0 0"),
            "600000",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let base = NOW;
    let n = |plus: u64| (base + plus).to_string();
    let mut of_another_record = hold(&n(1), "0", &n(1), "5000", "aa");
    if let Some(record) = of_another_record.last_mut() {
        "00000000000000b0 1000".clone_into(record);
    }
    let cases: Vec<(Invariant, Rules, Vec<Vec<String>>)> = vec![
        (
            ReleaseSafe,
            Rules { releases_blindly: true, ..Rules::default() },
            vec![hold(&n(1), "0", &n(1), "5000", "aa"), release(&n(9), &n(5), "bb")],
        ),
        (
            LeaseNeverShrinks,
            Rules { shrinks_leases: true, ..Rules::default() },
            vec![hold(&n(1), "0", &n(1), "5000", "aa"), hold(&n(2), &n(1), &n(1), "1000", "aa")],
        ),
        (
            NoOrphan,
            Rules { releases_without_ballot: true, ..Rules::default() },
            vec![
                hold(&n(1), "0", &n(1), "5000", "aa"),
                release(&n(9), &n(1), "aa"),
                hold(&n(2), &n(1), &n(1), "5000", "aa"),
            ],
        ),
        (
            TokenUnique,
            Rules { grants_equal_ballots: true, ..Rules::default() },
            vec![
                hold(&n(9), "0", &n(9), "5000", "aa"),
                release(&n(9), &n(9), "aa"),
                hold(&n(9), "0", &n(9), "5000", "bb"),
            ],
        ),
        (
            NoFalseGrant,
            Rules { grants_over_others: true, ..Rules::default() },
            vec![hold(&n(1), "0", &n(1), "5000", "aa"), hold(&n(2), "0", &n(2), "5000", "bb")],
        ),
        (
            ReentrantDepth,
            Rules { increments_counts: true, ..Rules::default() },
            vec![hold(&n(1), "0", &n(1), "5000", "aa"), hold(&n(2), &n(1), &n(1), "5000", "aa")],
        ),
        (
            TokenMonotonic,
            Rules { remembers_small_ballots: true, ..Rules::default() },
            vec![release(&(base - 1000 * WINDOW_MS - 1).to_string(), &n(1), "aa")],
        ),
        (RecordHolds, Rules { ignores_record: true, ..Rules::default() }, vec![of_another_record]),
    ];
    let mut missed = Vec::new();
    for (invariant, rules, commands) in cases {
        for (rules, expected) in [(rules, true), (Rules::default(), false)] {
            let (mut oracle, mut node) =
                (Oracle::new(Arc::new(Watch::default())), Node::new(rules, "0123456789abcdef".to_owned()));
            node.declare_new(0xaf, 0xc1, 1, Duration::from_millis(WINDOW_MS), NOW);
            for code in quorlock_testkit::node::SCRIPTS {
                node.execute(&[b"SCRIPT", b"LOAD", code.as_bytes()], 0, NOW);
            }
            for command in &commands {
                let place = Place { node: 0, conn: 0, clock: NOW, at: 0, remembers: true, leaps: false };
                let args: Vec<&[u8]> = command.iter().map(String::as_bytes).collect();
                oracle.execute(place, &mut node, &args);
            }
            if oracle.findings.found(invariant) != expected {
                missed.push(format!("{invariant}, broken {expected}: {:?}", oracle.findings.violations));
            }
        }
    }
    missed
}
