//! The state that a guard shows while it is held.

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use quorlock::Guard;

use super::diary::Diary;
use crate::chaos::history::{What, now};

/// The interval of readings of a guard.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The validity must have grown by this much, in µs, to be worth a line: less is the time between two readings.
const GROWTH: u64 = 1000;

pub fn tokens(guard: &Guard, names: &[String]) -> Vec<u64> {
    if let [_] = names {
        return vec![guard.token().into()];
    }
    names.iter().map(|name| guard.token_of(name).map_or(0, u64::from)).collect()
}

/// Returns the remaining validity, in µs, and the time before the reading, in µs.
pub fn left(guard: &Guard) -> (u64, u64) {
    let from = now();
    (from, u64::try_from(guard.remaining().as_micros()).unwrap_or(u64::MAX))
}

/// Runs this work while it reads the guard. Records when the guard is valid for longer, or for a shorter time than it had
/// shown, and when it is lost.
pub async fn watched<T>(guard: &Guard, op: u64, names: &[String], diary: &Diary, work: impl Future<Output = T>) -> T {
    let mut watching = pin!(watch(guard, op, names, diary));
    let work = pin!(work);
    match select(work, &mut watching).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}

async fn watch(guard: &Guard, op: u64, names: &[String], diary: &Diary) {
    let mut deadline = 0;
    let mut said = 0;
    let mut was_lost = false;
    // Created once, as in a user's program: a new future would find the loss without having been woken.
    let mut lost = pin!(guard.lost());
    loop {
        let (from, remaining) = left(guard);
        let at = now();
        let valid = What::Valid { op, from, remaining, tokens: tokens(guard, names), holds: guard.hold_count() };
        if remaining > 0 {
            // The time may have advanced between the two readings: this value is certain.
            let shrank = at + remaining < deadline;
            let grew = from + remaining > said + GROWTH;
            deadline = deadline.max(from + remaining);
            if shrank || grew || was_lost {
                said = from + remaining;
                diary.write_at(at, valid);
            }
        }
        if was_lost {
            tokio::time::sleep(LOOK_EVERY).await;
        } else if let Either::Left(_) = select(lost.as_mut(), pin!(tokio::time::sleep(LOOK_EVERY))).await {
            diary.write(What::Lost { op, deadline });
            was_lost = true;
        }
    }
}
