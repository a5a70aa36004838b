//! Histories of one resource, made by hand: some are possible for a re-entrant fenced mutex, some are not.

use crate::history::{NEVER, Op, What};

fn op(share: u32, token: u64, what: What, invoked: u64, returned: u64) -> Op {
    // Session 2 is of another owner.
    Op { share, owner: share / 2, token, what, invoked, returned }
}

const LEFT: fn(u32) -> What = |left| What::Leave { left: Some(left) };
const DEEP: fn(u32) -> What = |depth| What::Holds { depth: Some(depth) };

/// Each history, and whether it is possible.
pub fn histories() -> Vec<(bool, &'static str, Vec<Op>)> {
    use What::{Enter, Lost, UnansweredEnter, UnconfirmedRelease};
    vec![
        (true, "nothing", vec![]),
        (true, "in and out", vec![op(0, 5, Enter, 1, 2), op(0, 5, LEFT(0), 3, 4), op(2, 6, Enter, 5, 6)]),
        (
            true,
            "enter, enter, leave, leave",
            vec![
                op(0, 5, Enter, 1, 2),
                op(0, 5, Enter, 3, 4),
                op(0, 5, DEEP(2), 5, 5),
                op(0, 5, LEFT(1), 6, 7),
                op(0, 5, LEFT(0), 8, 9),
            ],
        ),
        (
            true,
            "the second run acquires it while the first releases it",
            vec![op(0, 5, Enter, 1, 2), op(0, 5, LEFT(0), 3, 9), op(2, 6, Enter, 4, 8)],
        ),
        (
            true,
            "a lease that ends by itself",
            vec![
                op(0, 5, Enter, 1, 2),
                op(2, 6, Enter, 3, 4),
                op(0, 5, Lost, 5, 5),
                op(0, 5, UnconfirmedRelease, 6, NEVER),
            ],
        ),
        (
            true,
            "a share that joins",
            vec![op(0, 5, Enter, 1, 2), op(1, 5, Enter, 3, 4), op(0, 5, LEFT(0), 5, 6), op(1, 5, DEEP(1), 7, 7)],
        ),
        (
            false,
            "a share that joins what was given back",
            vec![op(0, 5, Enter, 1, 2), op(0, 5, LEFT(0), 3, 4), op(1, 5, Enter, 5, 6)],
        ),
        (
            true,
            "unless that is still under way",
            vec![op(0, 5, Enter, 1, 2), op(0, 5, UnconfirmedRelease, 3, NEVER), op(1, 5, Enter, 5, 6)],
        ),
        (
            true,
            "or kept by a share that got no answer",
            vec![
                op(0, 5, Enter, 1, 2),
                op(1, 5, UnansweredEnter, 2, NEVER),
                op(0, 5, LEFT(0), 3, 4),
                op(1, 5, Enter, 5, 6),
            ],
        ),
        (false, "two at once", vec![op(0, 5, Enter, 1, 2), op(2, 6, Enter, 3, 4), op(0, 5, DEEP(1), 5, 5)]),
        (false, "a token that falls", vec![op(0, 5, Enter, 1, 2), op(2, 4, Enter, 3, 4)]),
        (true, "unless the two overlap", vec![op(0, 5, Enter, 1, 4), op(2, 4, Enter, 2, 3)]),
        (false, "a token for two owners", vec![op(0, 5, Enter, 1, 2), op(2, 5, Enter, 3, 4)]),
        (
            false,
            "a release that was said after another's turn",
            vec![op(0, 5, Enter, 1, 2), op(2, 6, Enter, 3, 4), op(0, 5, LEFT(0), 5, 6)],
        ),
        (
            true,
            "a release that says that it was over",
            vec![
                op(0, 5, Enter, 1, 2),
                op(2, 6, Enter, 3, 4),
                op(0, 5, UnconfirmedRelease, 5, NEVER),
                op(0, 5, Lost, 6, 6),
            ],
        ),
        (false, "held after the loss", vec![op(0, 5, Enter, 1, 2), op(0, 5, Lost, 3, 3), op(0, 5, DEEP(1), 4, 4)]),
        (
            true,
            "a hold given back after the loss, while another one does not know yet",
            vec![
                op(0, 5, Enter, 1, 2),
                op(0, 5, Enter, 3, 4),
                op(0, 5, UnconfirmedRelease, 5, NEVER),
                op(0, 5, DEEP(1), 6, 6),
                op(0, 5, Lost, 7, 7),
            ],
        ),
        (false, "a wrong depth", vec![op(0, 5, Enter, 1, 2), op(0, 5, DEEP(2), 3, 3)]),
        (
            true,
            "a depth that is right before or after",
            vec![op(0, 5, Enter, 1, 2), op(0, 5, Enter, 3, 6), op(0, 5, DEEP(1), 4, 4), op(0, 5, DEEP(2), 5, 5)],
        ),
        (false, "one more out than in", vec![op(0, 5, Enter, 1, 2), op(0, 5, LEFT(0), 3, 4), op(0, 5, LEFT(0), 5, 6)]),
    ]
}
