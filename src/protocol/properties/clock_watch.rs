use std::time::Duration;

use proptest::prelude::*;

use crate::protocol::{ClockWatch, Moment, Validity};

const LEASE: Duration = Duration::from_secs(10);
const VALIDITY: Validity = Validity { drift_factor: 0.01 };
/// The drift that is allowed for, in microseconds per second.
const FASTEST: i64 = 10_000;
const SECOND: i64 = 1_000_000;

/// Asks a node, whose clock is fast by so much per second, after a pause; the ways there and back take a while. In µs.
#[derive(Clone, Debug)]
struct Question {
    pause: i64,
    there: i64,
    back: i64,
    fast: i64,
}

fn question() -> impl Strategy<Value = Question> {
    let way = prop_oneof![Just(0), 0..SECOND];
    let pause = prop_oneof![0..SECOND, 0..60 * SECOND];
    let fast = prop_oneof![Just(FASTEST), -FASTEST..=FASTEST];
    (pause, way.clone(), way, fast).prop_map(|(pause, there, back, fast)| Question { pause, there, back, fast })
}

/// The two clocks, in µs.
struct Clocks {
    ours: i64,
    theirs: i64,
    watch: ClockWatch,
}

impl Clocks {
    fn new() -> Self {
        Self { ours: 0, theirs: 5000 * SECOND, watch: ClockWatch::default() }
    }

    fn pass(&mut self, micros: i64, fast: i64) -> Moment {
        self.ours += micros;
        self.theirs += micros + micros * fast / SECOND;
        Moment::new(Duration::from_micros(self.ours.unsigned_abs()))
    }

    fn ask(&mut self, question: &Question) -> Option<Duration> {
        let sent = self.pass(question.pause, question.fast);
        self.pass(question.there, question.fast);
        let stamp = self.theirs.unsigned_abs();
        let received = self.pass(question.back, question.fast);
        self.watch.observe(sent, received, stamp, VALIDITY, LEASE)
    }
}

proptest! {
    #[test]
    fn a_clock_within_the_allowed_drift_is_never_distrusted(
        questions in prop::collection::vec(question(), 1..40),
    ) {
        let mut clocks = Clocks::new();
        for question in questions {
            prop_assert_eq!(clocks.ask(&question), None, "{:?}", question);
        }
    }

    #[test]
    fn a_step_beyond_the_allowance_and_the_doubt_is_seen_in_the_next_answer(
        before in prop::collection::vec(question(), 1..20),
        next in question(),
        beyond in 1..3600 * SECOND,
    ) {
        let mut clocks = Clocks::new();
        for question in &before {
            clocks.ask(question);
        }
        let last = before.last().expect("at least one");
        let since = Duration::from_micros((last.back + next.pause + next.there + next.back).unsigned_abs());
        // The watch looks back over a lease at most, and the clock may have been slow by the same amount since.
        let allowed = VALIDITY.drift(LEASE + since) + VALIDITY.drift(since);
        let doubt = Duration::from_micros((last.there + next.back).unsigned_abs());
        let step = allowed + doubt + Duration::from_micros(beyond.unsigned_abs());
        clocks.theirs += i64::try_from(step.as_micros()).expect("hours");
        let seen = clocks.ask(&next);
        prop_assert!(seen.is_some_and(|seen| seen <= step), "{seen:?} of {step:?}");
    }
}
