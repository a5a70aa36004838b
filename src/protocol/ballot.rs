//! Ballots, and the tokens that come of them.

use std::fmt;
use std::str::FromStr;

/// Ballots stay below 2^53, where a Lua number (a double) still counts by ones.
const LIMIT: u64 = 1 << 53;

/// A proposal number: larger than every one seen before, and about the wall clock in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    #[cfg(test)]
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the next proposal, by a hybrid logical clock: one more than the last number, or the wall clock in µs if that is more.
pub(crate) fn propose(last: u64, wall_micros: u64) -> u64 {
    (last + 1).max(wall_micros)
}

/// What a node's answer says of the ballots that it would take: more than `floor`, and not too far ahead of its clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AcceptedBallots {
    pub(crate) floor: Ballot,
    /// Its clock when it answered, in µs.
    pub(crate) clock: u64,
    /// How far ahead of that clock a ballot may be, in µs.
    pub(crate) window: u64,
}

impl AcceptedBallots {
    fn takes(&self, ballot: u64) -> bool {
        ballot > self.floor.0 && ballot <= self.clock.saturating_add(self.window)
    }
}

/// Returns the smallest floor, from the ballot `used` up, above which `quorum` nodes would take a proposal, as far as their
/// answers tell. Only if the nodes that answered are not enough, each of the others is taken to accept what `assumed` says.
///
/// It deliberately does not chase the largest floor: one node with a broken clock would otherwise drag every proposal to
/// where all the other nodes refuse it.
pub(crate) fn floor_for_a_quorum(
    answered: &[AcceptedBallots],
    unanswered: usize,
    assumed: AcceptedBallots,
    used: Ballot,
    quorum: usize,
) -> Option<Ballot> {
    let mut floors: Vec<Ballot> = answered.iter().map(|node| node.floor.max(used)).collect();
    floors.sort_unstable();
    let answered_take = |ballot| answered.iter().filter(|node| node.takes(ballot)).count();
    let all_take = |ballot| answered_take(ballot) + if assumed.takes(ballot) { unanswered } else { 0 };
    let surely = floors.iter().find(|floor| answered_take(floor.0 + 1) >= quorum);
    surely.or_else(|| floors.iter().find(|floor| all_take(floor.0 + 1) >= quorum)).copied()
}

/// A fencing token: grows with every acquisition of a resource, by any owner.
///
/// Pass it to the store that the lock protects and let that refuse a smaller token than the largest it has seen; then a holder
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

    /// The number for a signed 64-bit column (`BIGINT`, or `INTEGER` of `SQLite`). It is the same number, as it is below 2^53. Read it
    /// back by `Token::try_from`, which checks it.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0.cast_signed()
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

impl From<Token> for i64 {
    fn from(token: Token) -> Self {
        token.as_i64()
    }
}

impl TryFrom<u64> for Token {
    type Error = ParseTokenError;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        if (1..LIMIT).contains(&number) { Ok(Self(number)) } else { Err(ParseTokenError) }
    }
}

impl TryFrom<i64> for Token {
    type Error = ParseTokenError;

    fn try_from(number: i64) -> Result<Self, Self::Error> {
        u64::try_from(number).map_err(|_| ParseTokenError)?.try_into()
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<u64>().map_err(|_| ParseTokenError)?.try_into()
    }
}

/// A string or a number is not a fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a fencing token, which is a number from 1 to 9007199254740991")]
#[non_exhaustive]
pub struct ParseTokenError;

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

    const NOW: u64 = 1_790_000_000_000_000;
    const HOUR: u64 = 3_600_000_000;

    fn accepting(floor: u64, clock: u64) -> AcceptedBallots {
        AcceptedBallots { floor: Ballot(floor), clock, window: HOUR / 2 }
    }

    fn floor(answered: &[AcceptedBallots], unanswered: usize, quorum: usize) -> Option<u64> {
        floor_for_a_quorum(answered, unanswered, accepting(0, NOW), Ballot(NOW - 1), quorum).map(Ballot::get)
    }

    #[test]
    fn a_node_takes_more_than_its_floor_and_up_to_half_an_hour_ahead_of_its_clock() {
        const HALF: u64 = HOUR / 2;
        let table = [
            (accepting(NOW, NOW), NOW - 1, false),
            (accepting(NOW, NOW), NOW, false),
            (accepting(NOW, NOW), NOW + 1, true),
            (accepting(NOW, NOW), NOW + HALF, true),
            (accepting(NOW, NOW), NOW + HALF + 1, false),
            (accepting(0, NOW - HALF), NOW, true),
            (accepting(0, NOW - HALF), NOW + 1, false),
            (accepting(0, u64::MAX), NOW, true),
        ];
        for (accepted, ballot, takes) in table {
            assert_eq!(accepted.takes(ballot), takes, "{accepted:?} and {ballot}");
        }
    }

    #[test]
    fn stale_answers_raise_the_next_proposal_just_past_a_quorum() {
        assert_eq!(floor(&[accepting(NOW, NOW), accepting(NOW, NOW), accepting(NOW, NOW)], 0, 2), Some(NOW));
        assert_eq!(
            floor(&[accepting(NOW + 3, NOW), accepting(NOW + 9, NOW), accepting(NOW + 5, NOW)], 0, 2),
            Some(NOW + 5)
        );
        assert_eq!(floor(&[accepting(0, NOW), accepting(0, NOW), accepting(NOW + 9, NOW)], 0, 3), Some(NOW + 9));
        assert_eq!(floor(&[accepting(NOW, NOW)], 0, 2), None);
        assert_eq!(floor(&[], 0, 1), None);
    }

    #[test]
    fn a_node_that_has_not_answered_may_take_a_sensible_proposal() {
        assert_eq!(floor(&[accepting(NOW + 1, NOW)], 1, 2), Some(NOW + 1));
        assert_eq!(
            floor(&[accepting(NOW + 1, NOW), accepting(NOW + 5, NOW), accepting(NOW + 3, NOW)], 2, 3),
            Some(NOW + 5),
            "those that answered are enough"
        );
        assert_eq!(floor(&[accepting(NOW + HOUR, NOW + HOUR)], 1, 2), None, "but not one of an hour ahead");
    }

    #[test]
    fn a_node_that_is_behind_is_left_behind() {
        let behind = accepting(0, NOW - HOUR);
        assert_eq!(floor(&[behind, accepting(0, NOW), accepting(NOW + 7, NOW)], 0, 2), Some(NOW + 7));
    }

    #[test]
    fn broken_clocks_are_not_chased() {
        let broken = accepting(NOW + HOUR, NOW + HOUR);
        let sound = accepting(0, NOW);
        assert_eq!(floor(&[sound, sound, broken, broken], 0, 3), None);
        assert_eq!(floor(&[sound, sound, sound, broken, broken], 0, 3), Some(NOW - 1));
        assert_eq!(floor(&[broken, broken, broken, sound, sound], 0, 3), Some(NOW + HOUR), "unless a quorum agrees");
    }

    #[test]
    fn numbers_that_lua_cannot_count_by_ones_are_no_ballots() {
        assert_eq!(Ballot::from_wire(LIMIT - 1), Some(Ballot(LIMIT - 1)));
        assert_eq!(Ballot::from_wire(LIMIT), None);
        assert_eq!(Ballot::from_wire(0), Some(Ballot::ZERO));
    }

    #[test]
    fn ballots_and_tokens_are_written_in_decimals() {
        let ballot = Ballot(1_790_000_000_000_000);
        assert_eq!(ballot.to_string(), "1790000000000000");
        assert_eq!(Token::from(ballot).to_string(), "1790000000000000");
    }

    #[test]
    fn a_token_reads_back_what_it_prints() {
        let token = Token::from(Ballot(1_790_000_000_000_000));
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!((token.get(), u64::from(token)), (1_790_000_000_000_000, 1_790_000_000_000_000));
        for text in ["12x", "", "-1", "0", "9007199254740992", "18446744073709551616"] {
            assert_eq!(text.parse::<Token>(), Err(ParseTokenError), "{text:?}");
        }
        for number in [1, LIMIT - 1] {
            assert_eq!(number.to_string().parse().map(Token::get), Ok(number));
        }
        assert!(ParseTokenError.to_string().contains(&(LIMIT - 1).to_string()));
    }

    #[test]
    fn a_token_goes_through_a_signed_column_and_is_checked_on_the_way_back() {
        let largest = Token(LIMIT - 1);
        assert_eq!((largest.as_i64(), i64::from(largest)), (9_007_199_254_740_991, 9_007_199_254_740_991));
        assert_eq!((Token::try_from(largest.as_i64()), Token::try_from(largest.get())), (Ok(largest), Ok(largest)));
        for number in [i64::MIN, -1, 0, LIMIT.cast_signed(), i64::MAX] {
            assert_eq!(Token::try_from(number), Err(ParseTokenError), "{number}");
        }
        for number in [0, LIMIT, u64::MAX] {
            assert_eq!(Token::try_from(number), Err(ParseTokenError), "{number}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_token_is_a_number_in_json_and_no_other_number_is_a_token() {
        let token = Token(1_790_000_000_000_000);
        assert_eq!(serde_json::to_string(&token).ok().as_deref(), Some("1790000000000000"));
        assert_eq!(serde_json::from_str::<Token>("1790000000000000").ok(), Some(token));
        for text in ["0", "-1", "1.5", "9007199254740992", "\"7\"", "null"] {
            assert!(serde_json::from_str::<Token>(text).is_err(), "{text}");
        }
        let error = serde_json::from_str::<Token>("0").expect_err("not a token").to_string();
        assert!(error.contains("fencing token"), "{error}");
    }
}
