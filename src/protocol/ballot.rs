use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How far a proposal may lie from a node's own clock, in either direction.
///
/// A node forgets a resource's ballot some time after the last use (at least twice this window). A proposal that is not
/// further behind the node's clock than the window, from a client whose earlier proposal was not further ahead than it,
/// is then larger than any that was forgotten: see "Why may a node forget a ballot?" in DESIGN.md.
pub(crate) const CLOCK_WINDOW: Duration = Duration::from_secs(30 * 60);

/// Ballots stay below 2^53, where a Lua number (a double) still counts by ones.
const LIMIT: u64 = 1 << 53;

/// A proposal number: larger than every one seen before, and about the wall clock in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ballot(u64);

impl Ballot {
    pub(crate) const ZERO: Self = Self(0);

    /// A ballot as a node or an exported lease wrote it; `None` for a number that no ballot can be.
    pub(crate) fn from_wire(number: u64) -> Option<Self> {
        (number < LIMIT).then_some(Self(number))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hybrid logical clock: one more than the last number seen, or the wall clock in microseconds if that is more.
pub(crate) fn propose(last: u64, wall_micros: u64) -> u64 {
    (last + 1).max(wall_micros)
}

/// The smallest ballot that at least `quorum` of the nodes with these floors would not call stale.
///
/// It deliberately does not chase the largest floor: one node with a broken clock would otherwise drag every proposal to
/// where all the other nodes refuse it.
pub(crate) fn ballot_beating_a_quorum(mut floors: Vec<Ballot>, quorum: usize) -> Option<Ballot> {
    floors.sort_unstable();
    floors.get(quorum.checked_sub(1)?).map(|floor| floor.next())
}

/// A fencing token: grows with every acquisition of a resource, by whomever.
///
/// Hand it to whatever the lock protects and let that refuse a smaller token than the largest it has seen; then a holder
/// that slept through the end of its lease can do no harm. Re-entry and extension keep the token. Tokens of one resource
/// are unique and strictly increasing; between resources they mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// The number itself: positive and below 2^53, so exact in JSON, in Lua and in a signed 64-bit column.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<Ballot> for Token {
    fn from(ballot: Ballot) -> Self {
        Self(ballot.0)
    }
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Token {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_exceeds_the_last_one_and_follows_the_wall_clock() {
        assert_eq!(propose(10, 5), 11);
        assert_eq!(propose(10, 10), 11);
        assert_eq!(propose(10, 11), 11);
        assert_eq!(propose(10, 500), 500);
    }

    #[test]
    fn stale_answers_raise_the_next_proposal_just_past_a_quorum() {
        let floors = |numbers: &[u64]| numbers.iter().map(|n| Ballot(*n)).collect::<Vec<_>>();
        assert_eq!(ballot_beating_a_quorum(floors(&[7, 7, 7]), 2), Some(Ballot(8)));
        assert_eq!(ballot_beating_a_quorum(floors(&[3, 900_000, 5]), 2), Some(Ballot(6)));
        assert_eq!(ballot_beating_a_quorum(floors(&[0, 0, 9, 4, 2]), 3), Some(Ballot(3)));
        assert_eq!(ballot_beating_a_quorum(floors(&[9]), 2), None);
        assert_eq!(ballot_beating_a_quorum(floors(&[]), 1), None);
    }

    #[test]
    fn numbers_that_lua_cannot_count_by_ones_are_no_ballots() {
        assert_eq!(Ballot::from_wire(LIMIT - 1), Some(Ballot(LIMIT - 1)));
        assert_eq!(Ballot::from_wire(LIMIT), None);
        assert_eq!(Ballot::from_wire(0), Some(Ballot::ZERO));
    }

    #[test]
    fn a_token_reads_back_what_it_prints() {
        let token = Token::from(Ballot(1_790_000_000_000_000));
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!((token.get(), u64::from(token)), (1_790_000_000_000_000, 1_790_000_000_000_000));
        assert!("12x".parse::<Token>().is_err());
    }
}
