//! A test of the judges of histories: on many small random histories they must agree with a search of all orders.

use quorlock_testkit::rng::Rng;

use crate::history::{NEVER, Op, What};
use crate::linear::{Verdict, judge, order};
use crate::porcupine;

const HISTORIES: u64 = 30_000;
const MOST_OPS: u64 = 8;

/// Generates a history: a run of a mutex with overlapping operations, sometimes with one change.
fn random(rng: &mut Rng) -> Vec<Op> {
    let (mut token, mut now) = (1, 0);
    let mut ops: Vec<Op> = Vec::new();
    let mut depths = [0_u32; 3];
    let mut holder = 0;
    for _ in 0..rng.between(1..MOST_OPS + 1) {
        now += rng.between(1..4);
        let share = rng.below(3);
        if rng.chance(0.2) || ops.is_empty() {
            (token, holder, depths) = (token + rng.between(1..3), share, [0; 3]);
        }
        // Shares 0 and 1 are of one owner.
        let share = if share / 2 == holder / 2 { share } else { holder };
        let what = match rng.between(0..10) {
            0..4 => What::Enter,
            _ if depths[share] == 0 => What::Enter,
            4..6 => What::Leave { left: Some(depths[share] - 1).filter(|_| rng.chance(0.7)) },
            6 => What::UnconfirmedRelease,
            7 => What::Lost,
            8 => What::UnansweredEnter,
            _ => What::Holds { depth: Some(depths[share]) },
        };
        match what {
            What::Enter => depths[share] += 1,
            What::Leave { .. } | What::UnconfirmedRelease => depths[share] -= 1,
            What::Holds { .. } | What::Lost | What::UnansweredEnter => {}
        }
        let invoked = u64::saturating_sub(now, rng.between(0..5));
        let returned = if rng.chance(0.1) { NEVER } else { now + rng.between(0..5) };
        let (share, owner) = (share as u32, share as u32 / 2);
        ops.push(Op { share, owner, token, what, invoked, returned });
    }
    if rng.chance(0.5) {
        let i = rng.below(ops.len());
        match rng.between(0..4) {
            0 => ops[i].token = rng.between(1..5),
            1 => ops[i].share = rng.between(0..3) as u32,
            2 => ops[i].what = What::Holds { depth: Some(rng.between(0..3) as u32) },
            _ => ops[i].invoked = rng.between(0..now + 1).min(ops[i].returned),
        }
    }
    ops
}

pub fn agrees() -> Result<(), String> {
    let mut rng = Rng::new(1, 1);
    let (mut legal, mut illegal) = (0, 0);
    for _ in 0..HISTORIES {
        let ops = random(&mut rng);
        let (fast, exhaustive) = (judge(&ops), order(&ops));
        if let Some(difference) = porcupine::contradicts(&fast, &ops) {
            return Err(format!("{difference}: {ops:#?}"));
        }
        match (&fast, &exhaustive) {
            (Verdict::Legal, Verdict::Legal) => legal += 1,
            (Verdict::Illegal(_), Verdict::Illegal(_)) => illegal += 1,
            _ => return Err(format!("{fast:?} and {exhaustive:?}: {ops:#?}")),
        }
    }
    // Both verdicts must occur.
    let enough = HISTORIES / 10;
    if legal > enough && illegal > enough { Ok(()) } else { Err(format!("{legal} legal and {illegal} illegal")) }
}
