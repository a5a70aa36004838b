//! The rules of a node: `src/node/lua/hold.lua`, `release.lua` and `revoke.lua`, without their clock, hold counts, and layout.

use std::fmt;

/// A ballot's place among all the ballots of a state.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot(pub u8);

impl Ballot {
    pub const ZERO: Self = Self(0);
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The value of the lock key: which lease the node honours, and with which shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    pub owner: u8,
    pub token: Ballot,
    /// A set of words.
    pub shares: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// The lock key.
    pub key: Option<Lease>,
    /// A copy of the lease honoured last. It outlives the lock key, and ends with the release of its last share.
    pub last: Option<Lease>,
    /// The ballot key: F.
    pub highest: Ballot,
    /// The following is not stored on the node. It records the node's past, as sets of shares and of extensions:
    /// votes for acquisitions and joins that are still to be counted.
    pub granted: u8,
    /// Votes for extensions that are still to be counted.
    pub honoured: u16,
    /// Releases that the node has processed.
    pub released: u8,
    /// Shares that the node has honoured and not released, since it honoured another lease.
    pub standing: u8,
    /// What it has done about the revocation.
    pub revocation: Processed,
}

/// What a node has done about a revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Processed {
    #[default]
    No,
    /// It has honoured a newer ballot before, so its answer does not count.
    Uncounted,
    Counted,
}

/// In a lock key in the place of an owner: the lease was revoked.
pub const REVOKED: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Held,
    Stale,
    Gone,
}

/// The rules as required, or with one of them broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    AsShipped,
    // Broken on the nodes.
    GrantAnEqualBallot,
    ReplaceAnOlderLease,
    RepairAtAnyBallot,
    RepairUnderANewToken,
    RepairWithoutTheOthers,
    ExtendWithoutBallot,
    JoinWithAnyBallot,
    JoinAnEmptyNode,
    JoinThroughAnyShare,
    ReleaseWithoutBallot,
    ReleaseOnlyTheKey,
    ReleaseForgetsTheOthers,
    RevokeWithoutBallot,
    RevokeOnlyTheKey,
    DeleteTheKeyOfOthers,
    DeleteBlindly,
    // Broken at the clients.
    QuorumTooSmall,
    ConfirmBelowQuorum,
    CreditAnotherRound,
    ReuseABallot,
    ReuseAWord,
    JoinWithKnown,
    ReleaseWithKnown,
    ReleaseJustAboveKnown,
    CountAnyRevocation,
    // Not broken. The ballots of an owner need not grow from one lease to the next as long as they are different.
    AcquireWithAnyUnusedBallot,
    // The words of the shares distinguish two attempts with one ballot, and no node grants it twice.
    ReuseABallotForAnotherShare,
}

/// The sender of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    pub owner: u8,
    /// The lease's. An acquisition proposes it.
    pub token: Ballot,
    /// The share's word, as a set of one.
    pub word: u8,
    /// Of a join: the word of the share that was exported, as a set of one.
    pub exporter: u8,
}

impl Lease {
    pub fn is_of(&self, sender: Sender) -> bool {
        self.owner == sender.owner && self.token == sender.token
    }

    fn with(self, shares: u8) -> Self {
        Self { shares: self.shares | shares, ..self }
    }

    /// Without the share, or `None` when no share is left.
    fn without(self, share: u8) -> Option<Self> {
        let shares = self.shares & !share;
        (shares != 0).then_some(Self { shares, ..self })
    }
}

impl Node {
    /// Returns whether the last lease honoured here is the sender's, with its share not released.
    fn is_last(&self, from: Sender) -> bool {
        self.last.is_some_and(|last| last.is_of(from) && last.shares & from.word != 0)
    }

    /// hold.lua for a new lease.
    pub fn acquire(&mut self, rules: Rules, from: Sender) -> Answer {
        if let Some(key) = self.key
            && (key.owner != from.owner || rules != Rules::ReplaceAnOlderLease)
        {
            return Answer::Held;
        }
        if from.token < self.highest || from.token == self.highest && rules != Rules::GrantAnEqualBallot {
            return Answer::Stale;
        }
        self.honour(Lease { owner: from.owner, token: from.token, shares: from.word });
        self.highest = from.token;
        Answer::Granted
    }

    /// hold.lua for an existing lease: extension, re-entry, repair, and join.
    pub fn hold(&mut self, rules: Rules, from: Sender, known: Ballot, next: Ballot) -> Answer {
        let highest = self.highest;
        let lease = match self.key {
            Some(key) if !key.is_of(from) => return Answer::Held,
            Some(key) => {
                let is_new = key.shares & from.word == 0;
                // While a majority has not honoured the join, it goes by the share that was exported.
                let is_exported = key.shares & from.exporter != 0 || rules == Rules::JoinThroughAnyShare;
                if is_new && known == Ballot::ZERO && !is_exported {
                    return Answer::Gone;
                }
                if is_new && next <= highest && rules != Rules::JoinWithAnyBallot {
                    return Answer::Stale;
                }
                key.with(from.word)
            }
            // A join knows no ballot. A node without a ballot key takes now − W for F, so zero never reaches it.
            None if known == Ballot::ZERO && rules != Rules::JoinAnEmptyNode => return Answer::Gone,
            None if known < highest && !self.is_last(from) && rules != Rules::RepairAtAnyBallot => return Answer::Gone,
            None => {
                let token = if rules == Rules::RepairUnderANewToken { next } else { from.token };
                let last = self.last.filter(|last| last.is_of(from) && rules != Rules::RepairWithoutTheOthers);
                Lease { owner: from.owner, token, shares: last.map_or(0, |last| last.shares) | from.word }
            }
        };
        self.honour(lease);
        if rules != Rules::ExtendWithoutBallot {
            self.highest = highest.max(next);
        }
        Answer::Granted
    }

    fn honour(&mut self, lease: Lease) {
        self.key = Some(lease);
        self.last = Some(lease);
    }

    /// revoke.lua, for this lease of owner 0.
    pub fn revoke(&mut self, rules: Rules, token: Ballot, ballot: Ballot) {
        let is_meant = |lease: &Lease| lease.token == token && (lease.owner == 0 || lease.owner == REVOKED);
        if self.key.is_some_and(|key| !is_meant(&key)) {
            return;
        }
        let revoked = |lease: Lease| Lease { owner: REVOKED, ..lease };
        self.key = self.key.map(revoked);
        if rules != Rules::RevokeOnlyTheKey {
            self.last = self.last.map(|last| if is_meant(&last) { revoked(last) } else { last });
        }
        let counts = self.highest < ballot || rules == Rules::CountAnyRevocation;
        self.revocation = if counts { Processed::Counted } else { Processed::Uncounted };
        if rules != Rules::RevokeWithoutBallot {
            self.highest = self.highest.max(ballot);
        }
    }

    /// release.lua.
    pub fn release(&mut self, rules: Rules, from: Sender, sent: Ballot) {
        if let Some(key) = self.key {
            if rules == Rules::DeleteBlindly || key.is_of(from) && rules == Rules::DeleteTheKeyOfOthers {
                self.key = None;
            } else if key.is_of(from) {
                self.key = key.without(from.word);
            }
        }
        if let Some(last) = self.last
            && last.is_of(from)
            && rules != Rules::ReleaseOnlyTheKey
        {
            self.last = last.without(from.word).filter(|_| rules != Rules::ReleaseForgetsTheOthers);
        }
        if rules != Rules::ReleaseWithoutBallot {
            self.highest = self.highest.max(sent);
        }
    }
}
