//! What a node does: `src/node/lua/hold.lua` and `release.lua`, line by line, without their clock, counts and layout.

use std::fmt;

use crate::state::LeaseId;

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

/// The lock key. A node knows the owner and the token; which lease it is, when one owner has several, is for the
/// properties only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    pub by: LeaseId,
    pub token: Ballot,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// The lock key.
    pub vote: Option<Vote>,
    /// The ballot key: F.
    pub highest: Ballot,
    /// Not on the node: what it has done, as sets of leases and of extensions.
    pub granted: u8,
    pub honoured: u8,
    pub released: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Held,
    Stale,
    Gone,
}

/// The rules as shipped, or with one of them broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    AsShipped,
    // On the nodes.
    GrantAnEqualBallot,
    RepairWhateverTheBallot,
    RepairUnderANewToken,
    ExtendWithoutMark,
    ReleaseWithoutMark,
    DeleteBlindly,
    // At the clients.
    QuorumTooSmall,
    ConfirmBelowQuorum,
    CreditAnotherRound,
    ReuseABallot,
    ReleaseWithKnown,
    // Not broken: a client's ballots need not grow from one lease to the next as long as they are different.
    AcquireWithAnyUnusedBallot,
}

impl Node {
    /// hold.lua. No `token` acquires, any other continues that lease.
    pub fn hold(&mut self, rules: Rules, by: LeaseId, token: Option<Ballot>, known: Ballot, next: Ballot) -> Answer {
        let highest = self.highest;
        let vote = match token {
            // if fresh then
            None => {
                if self.vote.is_some_and(|vote| vote.by.owner() != by.owner()) {
                    return Answer::Held;
                }
                if next < highest || next == highest && rules != Rules::GrantAnEqualBallot {
                    return Answer::Stale;
                }
                Vote { by, token: next }
            }
            Some(token) => match self.vote {
                // elseif value then
                Some(vote) if vote.by.owner() != by.owner() || vote.token != token => return Answer::Held,
                Some(vote) => vote,
                // elseif known < floor then
                None if known < highest && rules != Rules::RepairWhateverTheBallot => return Answer::Gone,
                None if rules == Rules::RepairUnderANewToken => Vote { by, token: next },
                None => Vote { by, token },
            },
        };
        self.vote = Some(vote);
        if token.is_none() || rules != Rules::ExtendWithoutMark {
            self.highest = highest.max(next);
        }
        Answer::Granted
    }

    /// release.lua.
    pub fn release(&mut self, rules: Rules, by: LeaseId, token: Ballot, next: Ballot) {
        let is_ours = |vote: Vote| vote.by.owner() == by.owner() && vote.token == token;
        if self.vote.is_some_and(is_ours) || rules == Rules::DeleteBlindly {
            self.vote = None;
        }
        if rules != Rules::ReleaseWithoutMark {
            self.highest = self.highest.max(next);
        }
    }
}
