//! When to try again.

use std::future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Core;
use crate::environment::Moment;
use crate::error::{AcquireError, Answer, NodeError};
use crate::protocol::Ballot;
use crate::waiting::Ticket;

/// Between two looks at a lock whose release will be called: only a call that was lost makes such a look worth its while.
const LOOK_EVERY: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(2);
/// Between two looks at a key of another kind of client, which calls nobody.
const LOOK_AT_FOREIGN_EVERY: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(200);
/// So many calls in a row that led to nothing are answered at once. After that pauses grow: from there on calls bring about
/// at most 20 tries a second.
const PROMPT_CALLS: u32 = 3;
const FIRST_CALL_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_CALL_PAUSE: Duration = Duration::from_millis(50);
/// The pause before a look at what is kept for another request is doubled at most so often.
const MOST_DOUBLINGS: u32 = 5;
/// A round trip is taken to be no shorter and no longer than this when a pause is measured in round trips.
pub(crate) const ROUND_TRIP: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(50));
/// A pause after a lost race is at most this many round trips, times two for each race lost before.
const RACE_ROUND_TRIPS: u32 = 4;
/// So often is a new ballot tried at once before it counts as a lost race.
const MOST_BALLOTS: u32 = 8;

/// What may help a request that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Again {
    Never,
    /// A ballot above this one.
    Above(Ballot),
    /// A random pause, so that contenders do not meet again; the duration is what a round took.
    AfterRace(Duration),
    /// Waiting for the holder, whose lease ends then; does its release call who waits?
    WhenFree {
        free_in: Option<Duration>,
        calls: bool,
    },
    /// Waiting for a call: another request has been called, and the nodes keep the resource for it for so long.
    WhenCalled(Duration),
    /// Waiting for nodes to come back.
    WhenHeard,
    /// Waiting for another task of the same owner.
    Later,
}

impl Again {
    /// What is waited for is over after this time, if it is given, even where a node says longer.
    pub(crate) fn within(self, time: Option<Duration>) -> Self {
        match (self, time) {
            (Self::WhenFree { free_in: Some(free_in), calls }, Some(time)) => {
                Self::WhenFree { free_in: Some(free_in.min(time)), calls }
            }
            (again, _) => again,
        }
    }
}

/// How long a request may go on.
pub(crate) struct Patience {
    began: Moment,
    /// `None` for ever.
    until: Option<Moment>,
    /// Not even a second try.
    once: bool,
    unheard_since: Option<Moment>,
    /// What was in the way last, as far as somebody could be asked: nodes, or this process.
    met: Option<AcquireError>,
    races: u32,
    ballots: u32,
    /// So many tries in a row were begun by a call and failed.
    vain_calls: u32,
    /// So often has it looked, without a call, and another one had been called.
    looks: u32,
}

impl Patience {
    pub(crate) fn until(now: Moment, wait: Option<Duration>) -> Self {
        let until = wait.map(|wait| now + wait);
        Self {
            began: now,
            until,
            once: false,
            unheard_since: None,
            met: None,
            races: 0,
            ballots: 0,
            vain_calls: 0,
            looks: 0,
        }
    }

    pub(crate) fn none(now: Moment) -> Self {
        Self { once: true, ..Self::until(now, None) }
    }

    /// Somebody was in the way.
    pub(crate) fn has_met(&mut self, error: AcquireError) {
        self.met = Some(error);
    }

    /// Is there no waiting at all?
    pub(crate) fn is_over_at_once(&self) -> bool {
        self.once
    }

    /// What is left of the time; `None` for ever.
    pub(crate) fn left(&self, now: Moment) -> Option<Duration> {
        if self.once { Some(Duration::ZERO) } else { self.until.map(|until| until.since(now)) }
    }

    /// How long a round may be waited for.
    pub(crate) fn limit(&self, now: Moment, node_timeout: Duration) -> Duration {
        self.until.map_or(node_timeout, |until| until.since(now).min(node_timeout))
    }

    /// Returns when it is time for the next try, or with the error that ends the request. Says whether the try may wait for
    /// its turn: not while no majority is known to be heard.
    pub(crate) async fn wait_after(
        &mut self,
        core: &Core,
        lease: Duration,
        error: AcquireError,
        again: Again,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<bool, AcquireError> {
        if let Again::WhenHeard = again {
            return self.until_heard(core, lease, error).await;
        }
        self.unheard_since = None;
        let Some(pause) = self.pause(core, again) else { return Err(error) };
        let now = core.now();
        let left = self.until.map(|until| until.since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(self.over(now, error));
        }
        let rest = left.map_or(pause, |left| pause.min(left));
        let is_called = core.within(rest, called(core, ticket, self.calls_pause())).await.is_some();
        self.vain_calls = if is_called { self.vain_calls + 1 } else { 0 };
        self.looks = if is_called { 0 } else { self.looks };
        // A try that has no time to be answered would hide what this one has met.
        let is_cut_short = left.is_some_and(|left| !is_called && pause >= left);
        if is_cut_short || self.until.is_some_and(|until| until <= core.now()) {
            return Err(self.over(core.now(), error));
        }
        if self.until.is_some() {
            self.met = Some(error);
        }
        Ok(true)
    }

    /// How long to wait for a call before the next try, if there is one.
    fn pause(&mut self, core: &Core, again: Again) -> Option<Duration> {
        Some(match again {
            Again::Never => return None,
            Again::Above(_) if self.ballots < MOST_BALLOTS => {
                self.ballots += 1;
                Duration::ZERO
            }
            _ if self.once => return None,
            Again::Above(_) => self.after_race(core, ROUND_TRIP.1),
            Again::AfterRace(round_trip) => self.after_race(core, round_trip),
            Again::WhenFree { free_in, calls } => {
                self.races = 0;
                let look = core.random_time(if calls { LOOK_EVERY } else { LOOK_AT_FOREIGN_EVERY });
                free_in.map_or(look, |free_in| look.min(free_in + core.random_time(Duration::ZERO..ROUND_TRIP.1 / 10)))
            }
            Again::WhenCalled(kept_for) => {
                self.races = 0;
                // Most likely the other one takes it, and there will be a call. Should it not, one of those who wait must look.
                let doublings = self.looks.min(MOST_DOUBLINGS);
                self.looks += 1;
                let soon = kept_for * 2_u32.pow(doublings) + core.random_time(Duration::ZERO..kept_for);
                soon.min(core.random_time(LOOK_EVERY))
            }
            Again::Later | Again::WhenHeard => Duration::ZERO,
        })
    }

    /// Calls that led to nothing may be false, or come from everywhere: the more of them in a row, the later is the next one
    /// answered.
    fn calls_pause(&self) -> Duration {
        let doublings = self.vain_calls.checked_sub(PROMPT_CALLS);
        doublings.map_or(Duration::ZERO, |doublings| {
            (FIRST_CALL_PAUSE * 2_u32.pow(doublings.min(10))).min(LONGEST_CALL_PAUSE)
        })
    }

    /// Waits until it is worth while to ask again, although no majority has answered. Calls say nothing of that: they come
    /// from the few nodes that are heard, also after this request's own release.
    async fn until_heard(&mut self, core: &Core, lease: Duration, error: AcquireError) -> Result<bool, AcquireError> {
        let now = core.now();
        let since = *self.unheard_since.get_or_insert(now);
        if self.once {
            return Err(error);
        }
        let until = match self.until {
            None if only_quarantined(&error) => None,
            None => Some(since + lease / 2),
            until => until,
        };
        let next_try = core.next_try();
        let heard = match until.map(|until| until.since(now)) {
            None => Some(next_try.await),
            Some(Duration::ZERO) => None,
            Some(left) => core.within(left, next_try).await,
        };
        match (heard, self.until) {
            (Some(heard), None) => Ok(heard),
            (Some(heard), Some(until)) if until > core.now() => Ok(heard),
            (None, None) => Err(error),
            (None, Some(until)) if until <= now => Err(self.over(now, error)),
            (_, Some(_)) => Err(self.over(core.now(), error)),
        }
    }

    fn over(&mut self, now: Moment, last: AcquireError) -> AcquireError {
        let last = match last {
            // The end of the time cut this try short: what the one before it met is what was waited for.
            AcquireError::NoQuorum { .. } if self.unheard_since == Some(now) => self.met.take().unwrap_or(last),
            last => last,
        };
        match last {
            // Nobody's lock is in the way: say what is.
            AcquireError::NoQuorum { .. } => last,
            last => AcquireError::TimedOut { waited: now.since(self.began), last: Box::new(last) },
        }
    }

    fn after_race(&mut self, core: &Core, round_trip: Duration) -> Duration {
        let longest = round_trip.clamp(ROUND_TRIP.0, ROUND_TRIP.1) * RACE_ROUND_TRIPS * 2_u32.pow(self.races.min(4));
        self.races += 1;
        core.random_time(Duration::ZERO..longest)
    }
}

/// Resolves when the ticket is called, not before this pause is over.
async fn called(core: &Core, ticket: Option<&Arc<Ticket>>, pause: Duration) {
    let Some(ticket) = ticket else { return future::pending().await };
    if !pause.is_zero() {
        core.sleep(pause).await;
    }
    ticket.called().await;
}

/// Is the quorum only missing because nodes are in quarantine, which ends by itself?
fn only_quarantined(error: &AcquireError) -> bool {
    let AcquireError::NoQuorum { needed, nodes } = error else { return false };
    let gone = nodes.0.iter().filter(|report| match &report.answer {
        Answer::Failed(NodeError::Quarantined { .. }) => false,
        Answer::Failed(_) | Answer::ClockBehind => true,
        _ => false,
    });
    nodes.0.len() - gone.count() >= *needed
}
