//! When to try again.

use std::future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Core;
use crate::environment::Moment;
use crate::error::{AcquireError, Answer, NodeError};
use crate::protocol::Ballot;
use crate::ticket::Ticket;

/// Between two looks at a lock whose release will be called: only a call that was lost makes such a look worth its while.
const LOOK_EVERY: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(2);
/// Between two looks at a key of another kind of client, which calls nobody.
const LOOK_AT_FOREIGN_EVERY: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(200);
/// Between two tries to hear a majority.
const LISTEN_EVERY: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(100);
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
}

impl Patience {
    pub(crate) fn until(now: Moment, wait: Option<Duration>) -> Self {
        let until = wait.map(|wait| now + wait);
        Self { began: now, until, once: false, unheard_since: None, met: None, races: 0, ballots: 0 }
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

    /// Returns when it is time for the next try, or with the error that ends the request.
    pub(crate) async fn wait_after(
        &mut self,
        core: &Core,
        lease: Duration,
        error: AcquireError,
        again: Again,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<(), AcquireError> {
        let now = core.now();
        if !matches!(again, Again::WhenHeard) {
            self.unheard_since = None;
        }
        let pause = match again {
            Again::Never => return Err(error),
            Again::Above(_) if self.ballots < MOST_BALLOTS => {
                self.ballots += 1;
                Duration::ZERO
            }
            _ if self.once => return Err(error),
            Again::Above(_) => self.after_race(core, ROUND_TRIP.1),
            Again::AfterRace(round_trip) => self.after_race(core, round_trip),
            Again::WhenFree { free_in, calls } => {
                self.races = 0;
                let look = core.random_time(if calls { LOOK_EVERY } else { LOOK_AT_FOREIGN_EVERY });
                free_in.map_or(look, |free_in| look.min(free_in + core.random_time(Duration::ZERO..ROUND_TRIP.1 / 10)))
            }
            Again::WhenHeard => {
                let since = *self.unheard_since.get_or_insert(now);
                if self.until.is_none() && now.since(since) >= lease / 2 && !only_quarantined(&error) {
                    return Err(error);
                }
                core.random_time(LISTEN_EVERY)
            }
            Again::Later => Duration::ZERO,
        };
        let called = async {
            match ticket {
                Some(ticket) => ticket.called().await,
                None => future::pending().await,
            }
        };
        let Some(until) = self.until else {
            let _ = core.within(pause, called).await;
            return Ok(());
        };
        let left = until.since(now);
        if left.is_zero() {
            return Err(self.over(now, error));
        }
        let slept = core.within(pause.min(left), called).await.is_none();
        // A try that has no time to be answered would hide what this one has met.
        if (slept && pause >= left) || until.since(core.now()).is_zero() {
            return Err(self.over(core.now(), error));
        }
        if self.unheard_since.is_none() {
            self.met = Some(error);
        }
        Ok(())
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
