//! One lease as its client sees it.

use std::time::Duration;

use super::ballot::{Ballot, Token};
use super::moment::Moment;
use super::validity::Schedule;

/// What a holder may believe of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Asked for, not granted yet.
    Pending,
    /// Confirmed by a majority, with enough validity left.
    Held,
    /// Still valid, but it could not be renewed and the end is near.
    Endangered,
    /// Over, for good: nothing confirms it again.
    Lost,
    /// Given back by its holder.
    Released,
}

/// What time has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Send an extension now.
    Extension,
    /// Warn the holder that the end is near; send an extension too when `extend`.
    Warning {
        extend: bool,
    },
    /// The validity is spent: the lease is lost.
    Loss,
}

/// One resource's lease as one client sees it: a state machine whose inputs are what happened and when.
///
/// Contract: `confirmed` gets the moment before the *first send* of the round that a majority honoured, and every call
/// gets a `now` that never runs backwards. Nothing leaves [`Phase::Lost`] or [`Phase::Released`].
#[derive(Clone, Debug)]
pub(crate) struct LeaseState {
    pub(crate) token: Token,
    /// The ballot that a majority last honoured for this lease.
    pub(crate) known: Ballot,
    /// The lease that was asked for, or a longer one that was confirmed since. Extensions ask for it again.
    pub(crate) length: Duration,
    /// This client's nesting depth.
    pub(crate) holds: u32,
    phase: Phase,
    schedule: Schedule,
    valid_until: Moment,
    extend_at: Moment,
    voted: Voted,
}

/// How many nodes honour the lease, by the latest round that a majority honoured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Voted {
    ballot: Ballot,
    votes: usize,
    /// How many nodes have not answered.
    awaited: usize,
    /// The votes of the round before: a node that has not answered yet may honour that one.
    before: usize,
}

impl LeaseState {
    pub(crate) fn pending(token: Token, known: Ballot, length: Duration, schedule: Schedule, now: Moment) -> Self {
        Self {
            token,
            known,
            length,
            holds: 0,
            phase: Phase::Pending,
            schedule,
            valid_until: now,
            extend_at: now,
            voted: Voted::default(),
        }
    }

    /// Returns the phase at `now`. A lease whose validity is spent is lost, also before the watchdog has noticed.
    pub(crate) fn phase(&self, now: Moment) -> Phase {
        match self.phase {
            Phase::Held | Phase::Endangered if self.is_spent(now) => Phase::Lost,
            Phase::Held if now >= self.warning_at() => Phase::Endangered,
            phase => phase,
        }
    }

    pub(crate) fn remaining(&self, now: Moment) -> Duration {
        match self.phase(now) {
            Phase::Held | Phase::Endangered => self.valid_until.since(now),
            Phase::Pending | Phase::Lost | Phase::Released => Duration::ZERO,
        }
    }

    /// Returns whether its validity ended by time, also where it was given back after that.
    pub(crate) fn is_spent(&self, now: Moment) -> bool {
        now >= self.valid_until
    }

    /// Returns how long the phase lasts if nothing but time changes it; `None` for ever.
    pub(crate) fn until_next_phase(&self, now: Moment) -> Option<Duration> {
        match self.phase(now) {
            Phase::Held => Some(self.warning_at().since(now)),
            Phase::Endangered => Some(self.valid_until.since(now)),
            Phase::Pending | Phase::Lost | Phase::Released => None,
        }
    }

    /// Records that a majority honoured a round that began at `started`. Returns the phase after that.
    pub(crate) fn confirmed(&mut self, now: Moment, started: Moment, ballot: Ballot, length: Duration) -> Phase {
        let phase = self.phase(now);
        let deadline = self.schedule.validity.deadline(started, length);
        // What comes after the end changes nothing: the loss is still to be reported. What was granted too late to be of use
        // stays pending: the request that waits for it sees no validity.
        let over = matches!(phase, Phase::Lost | Phase::Released);
        if over || (phase == Phase::Pending && deadline <= now) {
            return phase;
        }
        self.phase = Phase::Held;
        self.length = self.length.max(length);
        self.known = self.known.max(ballot);
        if deadline > self.valid_until {
            self.valid_until = deadline;
            self.extend_at = started + Schedule::extend_after(length);
        }
        self.phase(now)
    }

    /// Records that a majority refused: a newer owner was granted, or this share was released. Returns whether that changes the
    /// phase.
    pub(crate) fn refused(&mut self) -> bool {
        self.end(Phase::Lost)
    }

    /// Records that the holder gave it back at `now`. One whose validity was spent by then is lost. Returns `false` if its end had
    /// been noticed already.
    pub(crate) fn released(&mut self, now: Moment) -> bool {
        let is_lost = self.phase(now) == Phase::Lost;
        self.end(if is_lost { Phase::Lost } else { Phase::Released })
    }

    fn end(&mut self, phase: Phase) -> bool {
        let running = !matches!(self.phase, Phase::Lost | Phase::Released);
        if running {
            self.phase = phase;
        }
        running
    }

    /// Moves the next extension to `at`, if it is not due before.
    pub(crate) fn extend_before(&mut self, at: Moment) {
        self.extend_at = self.extend_at.min(at);
    }

    /// Records how many nodes honour the round of this ballot by now, and how many have not answered.
    pub(crate) fn voted(&mut self, ballot: Ballot, votes: usize, awaited: usize) {
        if ballot < self.voted.ballot {
            return;
        }
        let before = if ballot == self.voted.ballot { self.voted.before } else { self.votes() };
        self.voted = Voted { ballot, votes, awaited, before };
    }

    /// Returns how many nodes honour the lease. A node that has not answered the latest round counts as in the round before.
    pub(crate) fn votes(&self) -> usize {
        let Voted { votes, awaited, before, .. } = self.voted;
        votes.max(before.min(votes + awaited))
    }

    /// Returns what is due at `now`, and counts it as done.
    pub(crate) fn due(&mut self, now: Moment) -> Due {
        let was = self.phase;
        self.phase = self.phase(now);
        let extend =
            self.schedule.extends && now >= self.extend_at && matches!(self.phase, Phase::Held | Phase::Endangered);
        if extend {
            self.extend_at = now + Schedule::retry_after(self.length);
        }
        match (was, self.phase) {
            (Phase::Held | Phase::Endangered, Phase::Lost) => Due::Loss,
            (Phase::Held, Phase::Endangered) => Due::Warning { extend },
            _ if extend => Due::Extension,
            _ => Due::Nothing,
        }
    }

    /// Returns when to ask [`due`](Self::due) next; `None` when nothing will ever be due.
    pub(crate) fn next_due(&self) -> Option<Moment> {
        let signal = match self.phase {
            Phase::Held => self.warning_at(),
            Phase::Endangered => self.valid_until,
            Phase::Pending | Phase::Lost | Phase::Released => return None,
        };
        Some(if self.schedule.extends { signal.min(self.extend_at) } else { signal })
    }

    fn warning_at(&self) -> Moment {
        self.valid_until.minus(self.schedule.warns_before(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Validity;
    use super::*;

    const NEXT: Ballot = Ballot::ZERO;

    fn at(millis: u64) -> Moment {
        Moment::new(Duration::from_millis(millis))
    }

    fn lease(extends: bool) -> LeaseState {
        let schedule = Schedule { validity: Validity { drift_factor: 0.01 }, extends, warn_before: None };
        LeaseState::pending(Token::from(NEXT.next()), NEXT.next(), Duration::from_secs(3), schedule, at(0))
    }

    /// A lease of 3 s, confirmed by a round that began at 100 ms: valid until 3068, warning at 2068, extension at 1100.
    fn held(extends: bool) -> LeaseState {
        let mut lease = lease(extends);
        assert_eq!(lease.confirmed(at(110), at(100), NEXT.next(), Duration::from_secs(3)), Phase::Held);
        lease
    }

    #[test]
    fn validity_runs_from_the_start_of_the_round() {
        let lease = held(true);
        assert_eq!(lease.remaining(at(110)), Duration::from_millis(2958));
        assert_eq!(lease.remaining(at(3067)), Duration::from_millis(1));
        assert_eq!(lease.remaining(at(3068)), Duration::ZERO);
    }

    #[test]
    fn time_alone_moves_the_phase() {
        let lease = held(true);
        assert_eq!(lease.phase(at(2067)), Phase::Held);
        assert_eq!(lease.until_next_phase(at(2000)), Some(Duration::from_millis(68)));
        assert_eq!(lease.until_next_phase(at(2068)), Some(Duration::from_secs(1)));
        assert_eq!(lease.until_next_phase(at(3068)), None);
        assert_eq!(lease.phase(at(2068)), Phase::Endangered);
        assert_eq!(lease.phase(at(3067)), Phase::Endangered);
        assert_eq!(lease.phase(at(3068)), Phase::Lost);
        assert_eq!([3067, 3068].map(|millis| lease.is_spent(at(millis))), [false, true]);
    }

    #[test]
    fn a_grant_whose_validity_is_spent_stays_pending() {
        let mut lease = lease(true);
        assert_eq!(lease.confirmed(at(3068), at(100), NEXT, Duration::from_secs(3)), Phase::Pending);
        assert_eq!(lease.remaining(at(3068)), Duration::ZERO);
        assert_eq!(lease.next_due(), None);
        assert_eq!(lease.confirmed(at(3067), at(100), NEXT, Duration::from_secs(3)), Phase::Endangered);
    }

    #[test]
    fn extension_retry_warning_loss_in_that_order() {
        let mut lease = held(true);
        assert_eq!(lease.next_due(), Some(at(1100)));
        assert_eq!(lease.due(at(1099)), Due::Nothing);
        assert_eq!(lease.due(at(1100)), Due::Extension);
        assert_eq!(lease.next_due(), Some(at(1300)));
        assert_eq!(lease.due(at(1299)), Due::Nothing);
        assert_eq!(lease.due(at(1300)), Due::Extension);
        assert_eq!(lease.due(at(2068)), Due::Warning { extend: true });
        assert_eq!(lease.due(at(2069)), Due::Nothing);
        assert_eq!(lease.next_due(), Some(at(2268)));
        assert_eq!(lease.due(at(2999)), Due::Extension);
        assert_eq!(lease.next_due(), Some(at(3068)));
        assert_eq!(lease.due(at(3068)), Due::Loss);
        assert_eq!(lease.due(at(3069)), Due::Nothing);
        assert_eq!(lease.next_due(), None);
    }

    #[test]
    fn without_extension_only_the_signals_are_due() {
        let mut lease = held(false);
        assert_eq!(lease.next_due(), Some(at(2068)));
        assert_eq!(lease.due(at(1200)), Due::Nothing);
        assert_eq!(lease.due(at(2068)), Due::Warning { extend: false });
        assert_eq!(lease.next_due(), Some(at(3068)));
        assert_eq!(lease.due(at(3068)), Due::Loss);
    }

    #[test]
    fn a_confirmation_ends_the_warning() {
        let mut lease = held(true);
        lease.due(at(2068));
        assert_eq!(lease.confirmed(at(2100), at(2090), NEXT.next().next(), Duration::from_secs(3)), Phase::Held);
        assert_eq!((lease.known, lease.next_due()), (NEXT.next().next(), Some(at(3090))));
        assert_eq!(lease.remaining(at(2100)), Duration::from_millis(2958));
    }

    #[test]
    fn an_older_or_shorter_confirmation_takes_nothing_away() {
        let mut lease = held(true);
        let before = lease.remaining(at(200));
        lease.confirmed(at(200), at(190), NEXT, Duration::from_secs(1));
        assert_eq!(lease.remaining(at(200)), before);
        assert_eq!((lease.length, lease.known), (Duration::from_secs(3), NEXT.next()));
        assert_eq!(lease.next_due(), Some(at(1100)));
        lease.confirmed(at(200), at(190), NEXT, Duration::from_secs(9));
        assert_eq!(lease.length, Duration::from_secs(9));
    }

    #[test]
    fn an_extension_can_be_moved_forward_and_not_back() {
        let mut lease = held(true);
        lease.extend_before(at(1101));
        assert_eq!(lease.next_due(), Some(at(1100)));
        lease.extend_before(at(150));
        assert_eq!((lease.next_due(), lease.due(at(149))), (Some(at(150)), Due::Nothing));
        assert_eq!(lease.due(at(150)), Due::Extension);
    }

    #[test]
    fn only_more_validity_puts_the_next_extension_off() {
        let mut lease = held(true);
        assert_eq!(lease.due(at(1100)), Due::Extension);
        assert_eq!(lease.next_due(), Some(at(1300)));
        lease.confirmed(at(1150), at(100), NEXT.next(), Duration::from_secs(3));
        assert_eq!(lease.next_due(), Some(at(1300)), "the same round once more");
        lease.confirmed(at(1150), at(1100), NEXT.next(), Duration::from_secs(3));
        assert_eq!(lease.next_due(), Some(at(2100)));
    }

    #[test]
    fn nothing_brings_back_a_lost_lease() {
        let mut late = held(true);
        assert_eq!(late.confirmed(at(3068), at(3000), NEXT, Duration::from_secs(3)), Phase::Lost);
        assert_eq!(late.next_due(), Some(at(1100)), "the loss has not been reported yet");
        assert_eq!(late.due(at(3068)), Due::Loss);
        let mut refused = held(true);
        assert!(refused.refused());
        assert!(!refused.refused());
        assert!(!refused.released(at(200)));
        for lease in [&mut late, &mut refused] {
            assert_eq!(lease.confirmed(at(3100), at(3090), NEXT, Duration::from_secs(3)), Phase::Lost);
            assert_eq!((lease.phase(at(3100)), lease.remaining(at(3100))), (Phase::Lost, Duration::ZERO));
            lease.due(at(3100));
            assert_eq!((lease.due(at(3100)), lease.next_due()), (Due::Nothing, None));
        }
    }

    #[test]
    fn a_confirmation_after_the_end_does_not_swallow_the_loss() {
        let mut lease = held(true);
        assert_eq!(lease.confirmed(at(3068), at(3000), NEXT, Duration::from_secs(3)), Phase::Lost);
        assert_eq!(lease.due(at(3068)), Due::Loss);
        assert_eq!((lease.due(at(3069)), lease.next_due()), (Due::Nothing, None));
    }

    #[test]
    fn a_lease_that_is_given_back_after_its_end_is_lost() {
        let mut lease = held(true);
        assert!(lease.released(at(3068)), "its end has not been noticed before");
        assert_eq!((lease.phase(at(3068)), lease.next_due()), (Phase::Lost, None));
    }

    #[test]
    fn a_released_lease_is_not_lost_and_not_valid() {
        let mut lease = held(true);
        assert!(lease.released(at(150)));
        assert!(!lease.refused());
        assert_eq!(lease.phase(at(9000)), Phase::Released);
        assert_eq!(lease.confirmed(at(200), at(190), NEXT, Duration::from_secs(3)), Phase::Released);
        assert_eq!((lease.remaining(at(200)), lease.due(at(1200))), (Duration::ZERO, Due::Nothing));
    }

    #[test]
    fn a_node_that_has_not_answered_the_latest_round_counts_as_in_the_round_before() {
        let mut lease = held(true);
        let (first, second) = (NEXT.next(), NEXT.next().next());
        lease.voted(first, 3, 2);
        assert_eq!(lease.votes(), 3);
        lease.voted(first, 5, 0);
        assert_eq!(lease.votes(), 5);
        lease.voted(second, 3, 2);
        assert_eq!(lease.votes(), 5, "two nodes have not answered the extension yet");
        lease.voted(first, 5, 0);
        lease.voted(second, 3, 1);
        assert_eq!(lease.votes(), 4, "one of the two has refused it");
    }
}
