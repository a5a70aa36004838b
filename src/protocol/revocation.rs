//! What the nodes' replies to a revocation come to.

use super::ballot::Ballot;

/// One node's reply to a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RevocationReply {
    /// It honours no message of the lease that names a ballot below the sent one as known.
    Done {
        /// The highest ballot that it had honoured before.
        highest: Ballot,
        had_lease: bool,
    },
    /// Another lease is in its place.
    Held,
    /// The ballot is further ahead of the node's clock than ballots may be.
    Ahead,
    /// No answer, or one that does not count.
    Missing,
}

/// What the replies come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// A majority refuses every later message of the lease.
    Revoked,
    /// The same, and none of that majority had anything of the lease: it was over, or never granted.
    Absent,
    /// A majority did as asked, but some have honoured newer ballots than the sent one. A message that names one of those as known
    /// could still be honoured, so the revocation is to be repeated above this one: it exceeds the ballots of a majority. Those of
    /// a minority may be anything.
    Overtaken(Ballot),
    /// The ballot is too far ahead for so many nodes that no majority can do as asked.
    Ahead,
    /// Another lease is in the way at so many nodes that this one can have no majority.
    Held,
    /// Too few nodes have answered.
    NoQuorum,
}

impl Revocation {
    /// Returns what the replies of all nodes to a message with this ballot come to.
    pub(crate) fn of(ballot: Ballot, quorum: usize, replies: &[RevocationReply]) -> Self {
        let done = || {
            replies.iter().filter_map(|reply| match reply {
                RevocationReply::Done { highest, had_lease } => Some((*highest, *had_lease)),
                RevocationReply::Held | RevocationReply::Ahead | RevocationReply::Missing => None,
            })
        };
        let mut ballots: Vec<Ballot> = done().map(|(highest, _)| highest).collect();
        ballots.sort_unstable();
        let count = |kind| replies.iter().filter(|reply| **reply == kind).count();
        if done().filter(|(highest, _)| *highest < ballot).count() >= quorum {
            if done().any(|(_, had_lease)| had_lease) { Self::Revoked } else { Self::Absent }
        } else if let Some(above) = ballots.get(quorum - 1) {
            Self::Overtaken(*above)
        } else if count(RevocationReply::Ahead) > replies.len() - quorum {
            Self::Ahead
        } else if count(RevocationReply::Held) > replies.len() - quorum {
            Self::Held
        } else {
            Self::NoQuorum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RevocationReply::{Ahead, Held, Missing};
    use super::*;

    fn ballot(number: u64) -> Ballot {
        Ballot::from_wire(number).unwrap()
    }

    fn had(highest: u64) -> RevocationReply {
        RevocationReply::Done { highest: ballot(highest), had_lease: true }
    }

    fn absent(highest: u64) -> RevocationReply {
        RevocationReply::Done { highest: ballot(highest), had_lease: false }
    }

    #[test]
    fn a_majority_with_lower_ballots_revokes() {
        let table: [(&[RevocationReply], Revocation); 17] = [
            (&[had(9)], Revocation::Revoked),
            (&[had(10)], Revocation::Overtaken(ballot(10))),
            (&[had(9), had(9), had(9)], Revocation::Revoked),
            (&[had(9), absent(0), Missing], Revocation::Revoked),
            (&[absent(9), absent(0), absent(3)], Revocation::Absent),
            // The lease may be at one node of a set that did not count: it still was there.
            (&[absent(9), absent(0), had(11)], Revocation::Revoked),
            (&[had(9), absent(10), Missing], Revocation::Overtaken(ballot(10))),
            (&[had(12), had(14), had(9)], Revocation::Overtaken(ballot(12))),
            (&[had(12), had(14), had(1 << 52)], Revocation::Overtaken(ballot(14))),
            (&[Ahead, Ahead, had(9)], Revocation::Ahead),
            (&[Ahead, Missing, had(9)], Revocation::NoQuorum),
            (&[had(9), Missing, Missing], Revocation::NoQuorum),
            (&[had(9), Held, Missing], Revocation::NoQuorum),
            (&[had(9), Held, Held], Revocation::Held),
            (&[Missing, Held, Held], Revocation::Held),
            (&[had(9), had(9), Held, Held], Revocation::Held),
            (&[had(9), had(9), had(9), Held, Held], Revocation::Revoked),
        ];
        for (replies, expected) in table {
            assert_eq!(Revocation::of(ballot(10), replies.len() / 2 + 1, replies), expected, "{replies:?}");
        }
    }
}
