use std::time::Duration;

use proptest::prelude::*;

use super::{MILLISECOND, at, millis};
use crate::protocol::{Ballot, Due, LeaseState, Moment, Phase, Schedule, Token, Validity};

#[derive(Clone, Debug)]
enum Event {
    /// A majority honoured a round that began so long ago.
    Confirmed {
        ago: Duration,
        length: Duration,
        ballot: u64,
    },
    Asked,
    Refused,
    Released,
}

/// Events, each with the time that passes before it.
fn events() -> impl Strategy<Value = Vec<(Duration, Event)>> {
    let confirmed = (millis(0..2_000), millis(10..6_000), 1..100_u64)
        .prop_map(|(ago, length, ballot)| Event::Confirmed { ago, length, ballot });
    let event = prop_oneof![
        8 => confirmed,
        16 => Just(Event::Asked),
        1 => Just(Event::Refused),
        1 => Just(Event::Released),
    ];
    prop::collection::vec((millis(0..1_000), event), 1..60)
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (any::<bool>(), prop::option::of(millis(1..2_000))).prop_map(|(extends, warn_before)| Schedule {
        validity: Validity { drift_factor: 0.01 },
        extends,
        warn_before,
    })
}

fn ballot(number: u64) -> Ballot {
    Ballot::from_wire(number).expect("small")
}

fn asked_for(schedule: Schedule, length: Duration, now: Moment) -> LeaseState {
    LeaseState::pending(Token::from(ballot(1)), ballot(1), length, schedule, now)
}

fn is_over(phase: Phase) -> bool {
    matches!(phase, Phase::Lost | Phase::Released)
}

fn is_held(phase: Phase) -> bool {
    matches!(phase, Phase::Held | Phase::Endangered)
}

proptest! {
    #[test]
    fn over_is_over_and_validity_is_what_majorities_gave(schedule in schedule(), events in events()) {
        let mut now = at(10_000);
        let mut lease = asked_for(schedule, MILLISECOND, now);
        let mut given = now; // The latest deadline of all rounds so far.
        let (mut begun, mut endings) = (false, 0);
        for (passed, event) in events {
            let before = lease.clone();
            now = now + passed;
            match event {
                Event::Confirmed { ago, length, ballot: number } => {
                    let started = now.minus(ago);
                    let deadline = schedule.validity.deadline(started, length);
                    let phase = lease.confirmed(now, started, ballot(number), length);
                    prop_assert_eq!(phase, lease.phase(now));
                    prop_assert!(is_over(phase) || lease.remaining(now) >= deadline.since(now), "not in full");
                    given = given.max(deadline);
                }
                Event::Asked => endings += usize::from(lease.due(now) == Due::Loss),
                Event::Refused => endings += usize::from(lease.refused()),
                Event::Released => endings += usize::from(lease.released(now)),
            }
            let (was, phase) = (before.phase(now), lease.phase(now));
            prop_assert!(!is_over(was) || phase == was, "{was:?} became {phase:?}");
            begun |= is_held(phase);
            prop_assert!(endings <= 1, "an end is news once");
            prop_assert!(lease.known >= before.known && lease.length >= before.length);

            let remaining = lease.remaining(now);
            prop_assert_eq!(is_held(phase), !remaining.is_zero());
            prop_assert!(remaining <= given.since(now), "more than any majority gave");
            prop_assert!(!is_held(was) || !is_held(phase) || remaining >= before.remaining(now), "moved back");
            if is_held(phase) {
                prop_assert_eq!(phase == Phase::Endangered, remaining <= schedule.warns_before(lease.length));
            }
        }
        endings += usize::from(lease.due(at(1_000_000)) == Due::Loss);
        prop_assert!(endings == 1 || !begun, "the end was not said");
    }

    #[test]
    fn something_is_due_just_when_it_was_announced(schedule in schedule(), events in events()) {
        let mut now = at(10_000);
        let mut lease = asked_for(schedule, MILLISECOND, now);
        for (passed, event) in events {
            now = now + passed;
            if let Event::Confirmed { ago, length, ballot: number } = event {
                lease.confirmed(now, now.minus(ago), ballot(number), length);
            }
            let announced = lease.next_due().is_some_and(|announced| announced <= now);
            let due = lease.due(now);
            prop_assert_eq!(due != Due::Nothing, announced, "{:?}", due);
            prop_assert_eq!(lease.due(now), Due::Nothing, "said is done");
        }
    }

    #[test]
    fn an_unconfirmed_lease_brings_extension_warning_and_loss(
        schedule in schedule(),
        length in millis(10..60_000),
    ) {
        let mut lease = asked_for(schedule, length, at(0));
        prop_assume!(is_held(lease.confirmed(at(0), at(0), ballot(2), length)));
        let (valid, warning) = (lease.remaining(at(0)), schedule.warns_before(length));
        let mut asked = Vec::new();
        let mut now = at(0);
        while let Some(next) = lease.next_due() {
            now = now.max(next);
            let due = lease.due(now);
            match due {
                Due::Warning { .. } => prop_assert_eq!(lease.remaining(now), warning.min(valid)),
                Due::Loss => prop_assert_eq!(now, at(0) + valid),
                Due::Extension | Due::Nothing => {}
            }
            asked.push(due);
            prop_assert!(asked.len() <= 100, "asks without rest: {asked:?}");
        }
        let extensions = asked.iter().filter(|due| matches!(due, Due::Extension | Due::Warning { extend: true }));
        prop_assert_eq!(extensions.count() > 0, schedule.extends);
        asked.retain(|due| *due != Due::Extension);
        prop_assert!(matches!(asked[..], [Due::Warning { .. }, Due::Loss]), "{asked:?}");
    }
}
