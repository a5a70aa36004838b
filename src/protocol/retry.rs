//! When a request that failed tries again.

use std::ops::Range;
use std::time::Duration;

use super::ballot::Ballot;
use super::moment::Moment;

/// The pause between two looks at a lock whose release calls the waiters. Such a look only makes up for a lost call.
const LOOK_EVERY: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(2);
/// The pause between two looks at a key of another kind of client, whose release calls no waiter.
const LOOK_AT_FOREIGN_EVERY: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(200);
/// How many calls in a row that led to nothing are answered at once. Then the pauses grow, to a rate of at most 20 tries a second.
const PROMPT_CALLS: u32 = 3;
const FIRST_CALL_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_CALL_PAUSE: Duration = Duration::from_millis(50);
/// The pause before a look at what is kept for another request is doubled at most this often.
const MOST_DOUBLINGS: u32 = 5;
/// A round trip is taken to be no shorter and no longer than this when a pause is measured in round trips.
pub(crate) const ROUND_TRIP: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(50));
/// A pause after a lost race is at most this many round trips, times two for each race lost before.
const RACE_ROUND_TRIPS: u32 = 4;
/// These pauses grow by this factor, and on to this length where round trips are short. What looks like a race may be the key that a
/// lost lease has left on one node while another node is down, and that can last for a lease.
const MOST_RACE_GROWTH: u32 = 16;
const LONGEST_RACE_PAUSE: Duration = Duration::from_millis(100);
/// A new ballot is tried at once this often before it counts as a lost race.
const MOST_BALLOTS: u32 = 8;

/// What a request that waits does while no majority of the nodes answers.
///
/// A majority that is missing only because of quarantines is no outage for [`Bounded`](Self::Bounded): a quarantine ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outage {
    /// Fails with [`NoQuorum`](crate::AcquireError::NoQuorum) as soon as one try finds no majority: after the node timeout at the
    /// latest.
    Fail,
    /// Waits for a bounded time: until the limit of the request, or for half a lease where it has none.
    #[default]
    Bounded,
    /// Waits until a majority answers again, or until the limit of the request.
    Wait,
}

impl Outage {
    /// Returns until when a request whose limit is `end` goes on, in an outage that began at `since`; `None` for ever.
    /// `ends_by_itself` is for quarantines.
    pub(crate) fn until(
        self,
        since: Moment,
        end: Option<Moment>,
        lease: Duration,
        ends_by_itself: bool,
    ) -> Option<Moment> {
        match self {
            Self::Fail => Some(since),
            Self::Bounded if !ends_by_itself => end.or(Some(since + lease / 2)),
            Self::Bounded | Self::Wait => end,
        }
    }
}

/// What may help a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryAdvice {
    Never,
    /// A ballot above this one.
    Above(Ballot),
    /// A random pause, so that contenders do not meet again; the duration is what a round took.
    AfterRace(Duration),
    /// Waiting for the holder.
    WhenFree {
        /// When its lease ends; `None` for never.
        free_in: Option<Duration>,
        /// Its release calls the waiters.
        calls: bool,
    },
    /// Waiting for a call: another request has been called, and the nodes keep the resource for it for this long.
    WhenCalled(Duration),
    /// Waiting for nodes to come back.
    WhenAnswered,
    /// Waiting for another task of the same owner.
    Later,
}

impl RetryAdvice {
    /// Shortens the wait for the holder to this time, if it is given, even where a node says longer.
    pub(crate) fn within(self, time: Option<Duration>) -> Self {
        match (self, time) {
            (Self::WhenFree { free_in: Some(free_in), calls }, Some(time)) => {
                Self::WhenFree { free_in: Some(free_in.min(time)), calls }
            }
            (advice, _) => advice,
        }
    }
}

/// How long a request may go on, and how long it pauses between its tries.
#[derive(Clone, Debug)]
pub(crate) struct RetryPolicy {
    began: Moment,
    /// `None` for ever.
    until: Option<Moment>,
    /// Only one try, but for other ballots.
    once: bool,
    races: u32,
    ballots: u32,
    /// How many tries in a row were begun by a call and failed.
    vain_calls: u32,
    /// How many looks in a row, without a call, have found that another request had been called.
    looks: u32,
}

impl RetryPolicy {
    pub(crate) fn until(now: Moment, wait: Option<Duration>) -> Self {
        let until = wait.map(|wait| now + wait);
        Self { began: now, until, once: false, races: 0, ballots: 0, vain_calls: 0, looks: 0 }
    }

    pub(crate) fn once(now: Moment) -> Self {
        Self { once: true, ..Self::until(now, None) }
    }

    pub(crate) fn is_once(&self) -> bool {
        self.once
    }

    /// Returns how long the request has waited.
    pub(crate) fn waited(&self, now: Moment) -> Duration {
        now.since(self.began)
    }

    /// Returns the end of the time to wait; `None` for ever.
    pub(crate) fn end(&self) -> Option<Moment> {
        self.until
    }

    /// Returns what is left of the time; `None` for ever.
    pub(crate) fn left(&self, now: Moment) -> Option<Duration> {
        if self.once { Some(Duration::ZERO) } else { self.until.map(|until| until.since(now)) }
    }

    /// Returns how long a round may be waited for.
    pub(crate) fn limit(&self, now: Moment, node_timeout: Duration) -> Duration {
        self.until.map_or(node_timeout, |until| until.since(now).min(node_timeout))
    }

    /// Returns how long to wait for a call before the next try; `None` when there is none. `random` gives a time in a range.
    pub(crate) fn pause(
        &mut self,
        advice: RetryAdvice,
        random: impl Fn(Range<Duration>) -> Duration,
    ) -> Option<Duration> {
        Some(match advice {
            RetryAdvice::Never => return None,
            RetryAdvice::Above(_) if self.ballots < MOST_BALLOTS => {
                self.ballots += 1;
                Duration::ZERO
            }
            _ if self.once => return None,
            RetryAdvice::Above(_) => random(self.after_race(ROUND_TRIP.1)),
            RetryAdvice::AfterRace(round_trip) => random(self.after_race(round_trip)),
            RetryAdvice::WhenFree { free_in, calls } => {
                self.races = 0;
                let look = random(if calls { LOOK_EVERY } else { LOOK_AT_FOREIGN_EVERY });
                free_in.map_or(look, |free_in| look.min(free_in + random(Duration::ZERO..ROUND_TRIP.1 / 10)))
            }
            RetryAdvice::WhenCalled(kept_for) => {
                self.races = 0;
                // Most likely the other request takes the lock, and its release calls. If it does not, only a look finds that out.
                let doublings = self.looks.min(MOST_DOUBLINGS);
                self.looks += 1;
                let soon = kept_for * 2_u32.pow(doublings) + random(Duration::ZERO..kept_for);
                soon.min(random(LOOK_EVERY))
            }
            RetryAdvice::Later | RetryAdvice::WhenAnswered => Duration::ZERO,
        })
    }

    fn after_race(&mut self, round_trip: Duration) -> Range<Duration> {
        let first = round_trip.clamp(ROUND_TRIP.0, ROUND_TRIP.1) * RACE_ROUND_TRIPS;
        let longest = first * 2_u32.pow(self.races.min(10));
        self.races += 1;
        Duration::ZERO..longest.min((first * MOST_RACE_GROWTH).max(LONGEST_RACE_PAUSE))
    }

    /// Returns how long the next call waits for its answer. The more calls in a row have led to nothing, the longer that is: they
    /// may be false.
    pub(crate) fn calls_pause(&self) -> Duration {
        let doublings = self.vain_calls.checked_sub(PROMPT_CALLS);
        doublings.map_or(Duration::ZERO, |doublings| {
            (FIRST_CALL_PAUSE * 2_u32.pow(doublings.min(10))).min(LONGEST_CALL_PAUSE)
        })
    }

    /// Notes that the pause has ended, by a call or by itself.
    pub(crate) fn paused(&mut self, is_called: bool) {
        self.vain_calls = if is_called { self.vain_calls + 1 } else { 0 };
        self.looks = if is_called { 0 } else { self.looks };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u32) -> Moment {
        Moment::new(millis * MS)
    }

    fn longest(range: Range<Duration>) -> Duration {
        range.end
    }

    fn shortest(range: Range<Duration>) -> Duration {
        range.start
    }

    fn policy() -> RetryPolicy {
        RetryPolicy::until(at(100), Some(1000 * MS))
    }

    #[test]
    fn an_outage_is_waited_for_as_the_request_says() {
        let (since, lease, end) = (at(100), 1000 * MS, Some(at(5000)));
        let table = [
            (Outage::Fail, None, false, Some(since)),
            (Outage::Fail, end, true, Some(since)),
            (Outage::Bounded, None, false, Some(at(600))),
            (Outage::Bounded, None, true, None),
            (Outage::Bounded, end, false, end),
            (Outage::Wait, None, false, None),
            (Outage::Wait, end, false, end),
        ];
        for (outage, end, ends_by_itself, until) in table {
            assert_eq!(outage.until(since, end, lease, ends_by_itself), until, "{outage:?} {end:?} {ends_by_itself}");
        }
    }

    #[test]
    fn the_time_to_wait_bounds_the_request_and_its_rounds() {
        let (policy, once, endless) = (policy(), RetryPolicy::once(at(100)), RetryPolicy::until(at(100), None));
        assert_eq!((policy.left(at(300)), policy.end()), (Some(800 * MS), Some(at(1100))));
        assert_eq!((once.left(at(300)), once.end(), once.is_once()), (Some(Duration::ZERO), None, true));
        assert_eq!((endless.left(at(300)), endless.end(), endless.is_once()), (None, None, false));
        assert_eq!(policy.limit(at(300), 500 * MS), 500 * MS);
        assert_eq!(policy.limit(at(900), 500 * MS), 200 * MS);
        assert_eq!(once.limit(at(900), 500 * MS), 500 * MS);
        assert_eq!(policy.waited(at(300)), 200 * MS);
    }

    #[test]
    fn a_request_that_does_not_wait_tries_other_ballots_only() {
        let mut once = RetryPolicy::once(at(100));
        let above = RetryAdvice::Above(Ballot::ZERO);
        for _ in 0..MOST_BALLOTS {
            assert_eq!(once.pause(above, longest), Some(Duration::ZERO));
        }
        for advice in [above, RetryAdvice::Later, RetryAdvice::AfterRace(MS), RetryAdvice::Never] {
            assert_eq!(once.pause(advice, longest), None, "{advice:?}");
        }
    }

    #[test]
    fn a_ballot_that_does_not_help_counts_as_a_race() {
        let mut policy = policy();
        let above = RetryAdvice::Above(Ballot::ZERO);
        let pauses: Vec<_> = (0..10).filter_map(|_| policy.pause(above, longest)).collect();
        assert_eq!((pauses[7], pauses[8], pauses[9]), (Duration::ZERO, 200 * MS, 400 * MS));
    }

    #[test]
    fn pauses_after_races_double_and_are_measured_in_round_trips() {
        let mut policy = policy();
        let race = |policy: &mut RetryPolicy, round_trip| policy.pause(RetryAdvice::AfterRace(round_trip), longest);
        let pauses: Vec<_> = (0..7).filter_map(|_| race(&mut policy, MS)).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [4, 8, 16, 32, 64, 100, 100]);
        policy.pause(RetryAdvice::WhenCalled(MS), longest);
        assert_eq!(race(&mut policy, Duration::ZERO), Some(ROUND_TRIP.0 * 4), "not shorter");
        policy.pause(RetryAdvice::WhenFree { free_in: None, calls: true }, longest);
        assert_eq!(race(&mut policy, 9000 * MS), Some(200 * MS), "not longer");
        let last = |round_trip| {
            let mut policy = self::policy();
            (0..20).filter_map(|_| race(&mut policy, round_trip)).last()
        };
        assert_eq!([Duration::ZERO, 50 * MS].map(last), [Some(100 * MS), Some(3200 * MS)]);
        assert_eq!(policy.pause(RetryAdvice::AfterRace(MS), shortest), Some(Duration::ZERO));
    }

    #[test]
    fn a_holder_is_looked_at_when_its_lease_ends_or_after_a_while() {
        let free = |free_in, calls| RetryAdvice::WhenFree { free_in, calls };
        let table = [
            (free(None, true), 1000, 2000),
            (free(None, false), 100, 200),
            (free(Some(300 * MS), true), 300, 305),
            (free(Some(300 * MS), false), 100, 200),
            (free(Some(5000 * MS), true), 1000, 2000),
            (RetryAdvice::Later, 0, 0),
            (RetryAdvice::WhenAnswered, 0, 0),
        ];
        for (advice, least, most) in table {
            assert_eq!(policy().pause(advice, shortest), Some(least * MS), "{advice:?}");
            assert_eq!(policy().pause(advice, longest), Some(most * MS), "{advice:?}");
        }
    }

    #[test]
    fn what_is_kept_for_another_request_is_looked_at_less_and_less_often() {
        let mut policy = policy();
        let kept = RetryAdvice::WhenCalled(20 * MS);
        let look = |policy: &mut RetryPolicy| policy.pause(kept, shortest).map(|pause| pause.as_millis());
        let looks: Vec<_> = (0..7).filter_map(|_| look(&mut policy)).collect();
        assert_eq!(looks, [20, 40, 80, 160, 320, 640, 640]);
        policy.paused(false);
        assert_eq!(look(&mut policy), Some(640));
        policy.paused(true);
        assert_eq!(look(&mut policy), Some(20));
        assert_eq!(policy.pause(RetryAdvice::WhenCalled(3000 * MS), longest), Some(2000 * MS));
        policy.paused(true);
        assert_eq!(policy.pause(kept, longest), Some(40 * MS), "never before it is kept no more");
    }

    #[test]
    fn vain_calls_are_answered_later_and_later() {
        let mut policy = policy();
        let mut pauses = Vec::new();
        for _ in 0..20 {
            pauses.push(policy.calls_pause().as_millis());
            policy.paused(true);
        }
        assert_eq!(pauses[..10], [0, 0, 0, 1, 2, 4, 8, 16, 32, 50]);
        assert_eq!(pauses[19], 50);
        policy.paused(false);
        assert_eq!(policy.calls_pause(), Duration::ZERO);
    }

    #[test]
    fn an_end_that_the_client_knows_shortens_the_wait_for_a_holder() {
        let free =
            |millis: Option<u32>| RetryAdvice::WhenFree { free_in: millis.map(|millis| millis * MS), calls: true };
        assert_eq!(free(Some(9)).within(Some(5 * MS)), free(Some(5)));
        assert_eq!(free(Some(5)).within(Some(9 * MS)), free(Some(5)));
        assert_eq!(free(Some(5)).within(None), free(Some(5)));
        assert_eq!(free(None).within(Some(5 * MS)), free(None));
        assert_eq!(RetryAdvice::Later.within(Some(MS)), RetryAdvice::Later);
    }
}
