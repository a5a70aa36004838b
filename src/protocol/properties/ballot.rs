use proptest::prelude::*;

use super::SEVERAL;
use crate::protocol::ballot::floor_for_a_quorum;
use crate::protocol::{AcceptedBallots, Ballot, propose};

const NOW: u64 = 1_790_000_000_000_000;

/// Five minutes.
const WINDOW: u64 = 300_000_000;

/// A moment near now, or near one of the edges of a window around it.
fn number() -> impl Strategy<Value = u64> {
    (-2..=2_i64, -3..=3_i64)
        .prop_map(|(windows, micros)| NOW.saturating_add_signed(windows * WINDOW.cast_signed() + micros))
}

fn ballot() -> impl Strategy<Value = Ballot> {
    number().prop_map(|number| Ballot::from_wire(number).expect("of this century"))
}

fn takes(node: &AcceptedBallots, number: u64) -> bool {
    node.floor.get() < number && number <= node.clock + WINDOW
}

proptest! {
    #[test]
    fn proposals_increase_whatever_the_wall_clock_does(walls in prop::collection::vec(0..(1_u64 << 52), 1..50)) {
        let mut last = 0;
        for wall in walls {
            let proposed = propose(last, wall);
            prop_assert!(proposed > last && proposed >= wall);
            prop_assert!(proposed == wall || proposed == last + 1, "no further than needed");
            last = proposed;
        }
    }

    #[test]
    fn a_quorum_may_take_what_follows_the_floor_and_is_not_known_to_take_less(
        answered in prop::collection::vec((ballot(), number()), 0..=SEVERAL),
        unanswered in 0..3_usize,
        quorum in 1..=SEVERAL / 2 + 1,
        (used, probe) in (ballot(), number()),
    ) {
        let answered: Vec<AcceptedBallots> = answered.into_iter().map(|(floor, clock)| AcceptedBallots { floor, clock, window: WINDOW }).collect();
        let known = |number| answered.iter().filter(|node| takes(node, number)).count();
        let like_us = AcceptedBallots { floor: Ballot::ZERO, clock: NOW, window: WINDOW };
        let hoped = |number| known(number) + if takes(&like_us, number) { unanswered } else { 0 };
        match floor_for_a_quorum(&answered, unanswered, like_us, used, quorum) {
            Some(floor) => {
                prop_assert!(floor >= used);
                prop_assert!(hoped(floor.get() + 1) >= quorum);
                let lower = used.get() < probe && probe <= floor.get();
                prop_assert!(!lower || known(probe) < quorum, "{probe} would do");
            }
            None => prop_assert!(probe <= used.get() || known(probe) < quorum, "{probe} would do"),
        }
    }
}
