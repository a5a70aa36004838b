//! The state that a guard shows while it is held.

use std::pin::pin;
use std::time::Duration;

use futures::future::{BoxFuture, Either, FutureExt as _, select};
use futures::stream::{FuturesUnordered, StreamExt as _};
use quorlock::Guard;

use super::event_log::EventLog;
use crate::chaos::history::{Signal, What, now};

/// The interval of readings of a guard.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a guard that is lost is kept, to see its signals: longer than any of them may take.
const HEARING: Duration = Duration::from_millis(400);

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
/// shown, the last reading, and every signal.
pub async fn watched<T>(guard: &Guard, op: u64, names: &[String], log: &EventLog, work: impl Future<Output = T>) -> T {
    let mut watching = pin!(watch(guard, op, names, log));
    let work = pin!(work);
    let done = match select(work, &mut watching).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    };
    if guard.remaining().is_zero() {
        // Every signal of the loss is waited for.
        drop(tokio::time::timeout(HEARING, &mut watching).await);
    }
    let reading = reading(guard, op, names);
    if matches!(reading, What::Valid { remaining: 1.., .. }) {
        log.write(reading);
    }
    done
}

fn reading(guard: &Guard, op: u64, names: &[String]) -> What {
    let (from, remaining) = left(guard);
    let (tokens, holds, margin) = (tokens(guard, names), guard.hold_count(), guard.margin());
    What::Valid { op, from, remaining, tokens, holds, margin }
}

/// What a future of the guard has resolved for.
enum Woken {
    Lost,
    Signal(Signal),
}

/// The futures of a guard that resolve. Each is made once, as in a user's program, and polled only when it wakes: a poll in
/// between would find what it has not been woken for.
fn futures(guard: &Guard) -> FuturesUnordered<BoxFuture<'_, Woken>> {
    let protected = async {
        // The work never ends by itself.
        drop(guard.protect(std::future::pending::<()>()).await);
        Woken::Signal(Signal::Protect)
    };
    let warned = guard.endangered().map(|()| Woken::Signal(Signal::Endangered));
    [guard.lost().map(|()| Woken::Lost).boxed(), protected.boxed(), warned.boxed()].into_iter().collect()
}

async fn watch(guard: &Guard, op: u64, names: &[String], log: &EventLog) {
    let mut deadline = 0;
    let mut said = 0;
    let mut was_lost = false;
    let mut signals = futures(guard);
    let mut polled = vec![Signal::IsLost, Signal::IsEndangered];
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        let valid = reading(guard, op, names);
        let at = now();
        if let What::Valid { from, remaining: remaining @ 1.., .. } = valid {
            // The time may have advanced between the two readings: this value is certain.
            let shrank = at + remaining < deadline;
            let grew = from + remaining > said + GROWTH;
            deadline = deadline.max(from + remaining);
            if shrank || grew || was_lost {
                said = from + remaining;
                log.write_at(at, valid);
            }
        }
        polled.retain(|signal| {
            let is_given = if *signal == Signal::IsLost { guard.is_lost() } else { guard.is_endangered() };
            if is_given {
                log.write(What::Signal { op, signal: *signal });
            }
            !is_given
        });
        tokio::select! {
            Some(woken) = signals.next() => match woken {
                Woken::Lost => {
                    log.write(What::Lost { op, deadline });
                    was_lost = true;
                }
                Woken::Signal(signal) => log.write(What::Signal { op, signal }),
            },
            _ = looks.tick() => {}
        }
    }
}
