//! What a connection knows of its node's record, and what it says of it in each message.

use std::time::Duration;

use redis::Value;

use super::commands::millis;
use super::common::Common;
use crate::environment::Moment;
use crate::protocol::{Ballot, LONGEST_LEASE, Record};

/// Longer leases take the long way through the script: a node keeps what it knows of an unreleased lease for two days.
const LONGEST_USUAL: Duration = Duration::from_secs(24 * 3600);

/// The record of the node at the other end of one connection.
pub(super) struct Known {
    record: Record,
    /// No quarantine, or one that a grant has shown to be over.
    is_over: bool,
    /// The node's clock less this machine's monotonic one, in µs.
    clock_ahead: i64,
    /// The record as an argument.
    usual: Vec<u8>,
    /// How long ballots are kept, as an argument.
    memory: Vec<u8>,
}

impl Known {
    /// `None` for a text that is no record. `clock_ahead` is the node's clock less this machine's monotonic one, in µs.
    pub(super) fn new(text: &str, clock_ahead: i64) -> Option<Self> {
        let record = Record::parse(text)?;
        let memory = argument((2 * record.window.as_millis()).to_string().as_bytes());
        Some(Self { is_over: record.is_settled(), clock_ahead, usual: argument(text.as_bytes()), memory, record })
    }

    pub(super) fn longest(&self) -> Duration {
        self.record.longest
    }

    /// Returns until when the node may have forgotten leases, by its quarantine, which may be over; not after `now`.
    pub(super) fn forgot(&self, now: Moment) -> Option<Moment> {
        let end = self.record.ends.0.saturating_mul(1000).saturating_add_signed(self.clock_ahead.saturating_neg());
        (!self.record.is_settled()).then(|| Moment::new(Duration::from_micros(end)).min(now))
    }

    /// Returns how long the node's quarantine lasts by its own clock.
    pub(super) fn quarantine(&self, now: Moment) -> Duration {
        Duration::from_millis(self.record.ends.0.saturating_sub(self.clock(now) / 1000)).min(self.record.longest)
    }

    /// Takes the record by which the node has granted something. Its quarantine was over for what the sender knew then; it is over for
    /// all that the record says when both ends have passed. Returns `false` if it is no record. `wall` is this machine's wall clock,
    /// in ms.
    pub(super) fn learn(&mut self, text: &[u8], now: Moment, wall: u64) -> bool {
        let Some(record) = std::str::from_utf8(text).ok().and_then(Record::parse) else { return false };
        let is_over = record.is_settled() || (record.ends.0 <= self.clock(now) / 1000 && record.ends.1 <= wall);
        (self.record, self.is_over, self.usual) = (record, is_over, argument(text));
        true
    }

    /// Returns the node's clock in µs, as it has run on since the node was asked.
    fn clock(&self, now: Moment) -> u64 {
        now.micros().saturating_add_signed(self.clock_ahead)
    }

    /// Returns the last argument of a hold message.
    pub(super) fn said_in_hold(
        &self,
        lease: Duration,
        ballot: Ballot,
        common: &Common,
        wait: &Wait,
        now: Moment,
    ) -> Vec<u8> {
        let used = common.longest_lease();
        let longest = used.max(lease);
        // If the ballot is close to the node's clock, the node need not compare them.
        let is_close = u128::from(ballot.get().saturating_sub(self.clock(now))) <= self.record.window.as_micros() / 2;
        if self.is_over && is_close && longest <= self.record.longest && lease <= LONGEST_USUAL {
            return self.usual.clone();
        }
        self.word_and_wait(used, longest, wait, now)
    }

    /// Returns the last argument of a revocation.
    pub(super) fn said_in_revoke(&self, common: &Common, wait: &Wait, now: Moment) -> Vec<u8> {
        let used = common.longest_lease();
        if self.is_over && used <= self.record.longest {
            return self.usual.clone();
        }
        self.word_and_wait(used, used, wait, now)
    }

    /// Returns the record as far as a node needs it whose quarantine is not known to be over: the word, the longest lease that this
    /// client knows, and whether it has waited for longer than `longest`.
    fn word_and_wait(&self, used: Duration, longest: Duration, wait: &Wait, now: Moment) -> Vec<u8> {
        let waited = if wait.is_over(self.record.word, longest.max(self.record.longest), now) { " waited" } else { "" };
        argument(format!("{:016x} {}{waited}", self.record.word, millis(used)).as_bytes())
    }

    /// Returns the last argument of a release.
    pub(super) fn said_in_release(&self) -> &[u8] {
        &self.memory
    }

    /// Begins the wait by this client's own clock, as the node says that it is quarantined.
    pub(super) fn begin_wait(&self, wait: &mut Wait, now: Moment) {
        if wait.0.is_none_or(|(word, _)| word != self.record.word) {
            wait.0 = Some((self.record.word, now));
        }
    }
}

/// Since when this client has waited for the end of a node's quarantine, and under which word.
#[derive(Debug, Default)]
pub(super) struct Wait(Option<(u64, Moment)>);

impl Wait {
    /// Returns whether the wait has been longer than `longest`. Then no lease of that length from before it is in force.
    fn is_over(&self, word: u64, longest: Duration, now: Moment) -> bool {
        self.0.is_some_and(|(waits_for, since)| waits_for == word && now.since(since) > longest)
    }
}

/// What an answer to a hold message says of the node itself.
pub(super) enum Standing<'a> {
    /// Nothing.
    Unchanged,
    /// It granted, by this record.
    Record(&'a [u8]),
    /// It may have forgotten leases that are in force for so long.
    Young(Duration),
    /// It has another record.
    Forgot,
}

pub(super) fn standing(value: &Value) -> Standing<'_> {
    let Value::Array(fields) = value else { return Standing::Unchanged };
    match fields.as_slice() {
        [Value::Int(1), Value::BulkString(record)] => Standing::Record(record),
        [Value::Int(9), Value::Int(_), Value::Int(left), ..] => {
            Standing::Young(Duration::from_millis(u64::try_from(*left).unwrap_or(0)))
        }
        [Value::Int(10), Value::Int(_)] => Standing::Forgot,
        _ => Standing::Unchanged,
    }
}

/// Returns the longest lease of the node's record, if a refusal tells of one that is longer than the client knew.
pub(super) fn told_lease(value: &Value) -> Option<Duration> {
    let Value::Array(fields) = value else { return None };
    let [Value::Int(2..), .., Value::Array(told)] = fields.as_slice() else { return None };
    let [Value::Int(longest)] = told.as_slice() else { return None };
    let longest = Duration::from_millis(u64::try_from(*longest).ok()?);
    (longest <= LONGEST_LEASE).then_some(longest)
}

/// Returns the node's clock in µs, if the answer shows it. The usual ones do not.
pub(super) fn shown_clock(value: &Value) -> Option<u64> {
    match value {
        Value::Array(fields) => match fields.as_slice() {
            [Value::Int(2..), Value::Int(now), ..] => u64::try_from(*now).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// Packs one argument of a command.
fn argument(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fake::RECORD;
    use super::*;
    use crate::environment::{Environment, Fake};
    use crate::telemetry::Telemetry;

    /// What the node's clock shows at the moment zero, in µs.
    const CLOCK: u64 = 1_790_000_000_000_000;
    const SECOND: Duration = Duration::from_secs(1);
    /// What a hold says of the record that does not know that the quarantine is over.
    const WORD: &str = "00000000000000af 0";
    const QUARANTINED: &str = "00000000000000af 10000 1790000005000 1790000005000 300000 - 1 abc";

    fn at(time: Duration) -> Moment {
        Moment::new(time)
    }

    fn known(text: &str) -> Known {
        Known::new(text, CLOCK.cast_signed()).expect("a record")
    }

    fn common() -> Common {
        let (environment, _) = Fake::new();
        let environment: Arc<dyn Environment> = Arc::new(environment);
        let telemetry = Telemetry::silent(&environment, 1);
        Common::new(environment, telemetry, Vec::new(), SECOND, 300 * SECOND, 10 * SECOND)
    }

    /// What a hold message says of the record at the moment zero; the ballot is so far ahead of the node's clock.
    fn said(known: &Known, lease: Duration, ahead: Duration) -> String {
        let ballot = Ballot::from_wire(CLOCK + u64::try_from(ahead.as_micros()).expect("µs")).expect("a ballot");
        let said = known.said_in_hold(lease, ballot, &common(), &Wait::default(), at(Duration::ZERO));
        String::from_utf8(said).expect("text").lines().nth(1).expect("an argument").to_owned()
    }

    #[test]
    fn a_quarantine_ends_by_the_clock_of_the_node() {
        let known = known(QUARANTINED);
        let left = [0, 2, 5, 6].map(|seconds| known.quarantine(at(seconds * SECOND)));
        assert_eq!(left, [5 * SECOND, 3 * SECOND, Duration::ZERO, Duration::ZERO]);
        let behind = Known::new(QUARANTINED, CLOCK.cast_signed() - 60_000_000).expect("a record");
        assert_eq!(behind.quarantine(at(Duration::ZERO)), 10 * SECOND, "at most the longest lease");
    }

    #[test]
    fn a_node_has_forgotten_leases_before_the_end_of_its_quarantine() {
        let forgot = |text: &str, now| known(text).forgot(at(now));
        assert_eq!(forgot(QUARANTINED, 3 * SECOND), Some(at(3 * SECOND)));
        assert_eq!(forgot(QUARANTINED, 60 * SECOND), Some(at(5 * SECOND)));
        assert_eq!(forgot(RECORD, 60 * SECOND), None);
    }

    #[test]
    fn the_usual_hold_says_the_record_and_others_say_the_lease_in_use() {
        let half_a_window = 150 * SECOND;
        let settled = known(RECORD);
        assert_eq!(said(&settled, 10 * SECOND, half_a_window), RECORD);
        assert_eq!(said(&settled, 10 * SECOND, half_a_window + Duration::from_micros(1)), WORD);
        assert_eq!(said(&settled, 10 * SECOND + Duration::from_millis(1), half_a_window), WORD);
        assert_eq!(said(&known(QUARANTINED), 10 * SECOND, Duration::ZERO), WORD);
        let long = "00000000000000af 200000000 0 0 300000 - 1 abc";
        assert_eq!(said(&known(long), LONGEST_USUAL, Duration::ZERO), long);
        assert_eq!(said(&known(long), LONGEST_USUAL + SECOND, Duration::ZERO), WORD);
    }

    #[test]
    fn a_revocation_carries_the_record_when_that_is_all_there_is_to_say() {
        let said = |known: &Known, used: Duration| {
            let common = common();
            common.use_lease(used);
            let said = known.said_in_revoke(&common, &Wait::default(), at(Duration::ZERO));
            String::from_utf8(said).expect("text").lines().nth(1).expect("an argument").to_owned()
        };
        assert_eq!(said(&known(RECORD), 10 * SECOND), RECORD);
        assert_eq!(said(&known(RECORD), 20 * SECOND), "00000000000000af 20000");
        assert_eq!(said(&known(QUARANTINED), SECOND), "00000000000000af 1000");
    }

    #[test]
    fn a_record_that_a_node_grants_by_is_learnt_and_ends_its_quarantine_when_both_ends_have_passed() {
        const END: u64 = 1_790_000_005_000;
        let mut known = known(QUARANTINED);
        let next = QUARANTINED.replace(" 10000 ", " 20000 ");
        for nonsense in [&b"nonsense"[..], &[255]] {
            assert!(!known.learn(nonsense, at(5 * SECOND), END));
        }
        for (moment, wall) in [(at(5 * SECOND), END - 1), (at(4 * SECOND), END)] {
            assert!(known.learn(next.as_bytes(), moment, wall));
            assert_eq!((known.longest(), said(&known, 20 * SECOND, Duration::ZERO)), (20 * SECOND, WORD.to_owned()));
        }
        assert!(known.learn(next.as_bytes(), at(5 * SECOND), END));
        assert_eq!(said(&known, 20 * SECOND, Duration::ZERO), next);
        assert!(known.learn(RECORD.as_bytes(), at(Duration::ZERO), 0));
        assert_eq!(said(&known, 10 * SECOND, Duration::ZERO), RECORD, "it has had no quarantine");
    }

    #[test]
    fn a_refusal_may_tell_of_longer_leases() {
        let refusal = |code, told: Value| Value::Array(vec![Value::Int(code), Value::Int(7), Value::Int(1), told]);
        let longest = |ms| Value::Array(vec![Value::Int(ms)]);
        assert_eq!(told_lease(&refusal(2, longest(60_000))), Some(60 * SECOND));
        let most = i64::try_from(LONGEST_LEASE.as_millis()).expect("ms");
        assert_eq!(told_lease(&refusal(9, longest(most))), Some(LONGEST_LEASE));
        for no in [refusal(9, longest(most + 1)), refusal(9, longest(-1)), refusal(4, Value::Int(5)), Value::Int(1)] {
            assert_eq!(told_lease(&no), None, "{no:?}");
        }
        assert_eq!(told_lease(&refusal(1, longest(5))), None, "a grant has the record");
        let young = Value::Array(vec![Value::Int(9), Value::Int(7), Value::Int(5), longest(60_000)]);
        assert!(matches!(standing(&young), Standing::Young(left) if left == Duration::from_millis(5)));
    }

    #[test]
    fn a_wait_is_over_after_more_than_the_longest_lease_under_the_same_word() {
        let (known, mut wait) = (known(QUARANTINED), Wait::default());
        let (word, longest) = (0xaf, 10 * SECOND);
        assert!(!wait.is_over(word, longest, at(60 * SECOND)));
        known.begin_wait(&mut wait, at(SECOND));
        known.begin_wait(&mut wait, at(5 * SECOND));
        let after = at(11 * SECOND) + Duration::from_micros(1);
        assert!(!wait.is_over(word, longest, at(11 * SECOND)) && wait.is_over(word, longest, after));
        assert!(!wait.is_over(0xb0, longest, after));
    }

    #[test]
    fn answers_say_what_a_node_knows_of_itself() {
        let record = Value::Array(vec![Value::Int(1), Value::BulkString(b"record".to_vec())]);
        assert!(matches!(standing(&record), Standing::Record(b"record")));
        let refused = |code| Value::Array(vec![Value::Int(code), Value::Int(7), Value::Int(5)]);
        assert!(matches!(standing(&refused(9)), Standing::Young(left) if left == Duration::from_millis(5)));
        let forgot = Value::Array(vec![Value::Int(10), Value::Int(7)]);
        assert!(matches!(standing(&forgot), Standing::Forgot));
        assert!(matches!(standing(&Value::Int(1)), Standing::Unchanged));
        assert!(matches!(standing(&refused(3)), Standing::Unchanged));
        assert_eq!([&refused(2), &forgot, &record, &Value::Int(1)].map(shown_clock), [Some(7), Some(7), None, None]);
    }
}
