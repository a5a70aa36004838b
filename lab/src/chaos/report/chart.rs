//! The data of the charts, small enough for a page: times in ms since the first worker was ready.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::chaos::check::{Answer, Grant, Hold, Model};
use crate::chaos::fault::{Kind, Scale};
use crate::chaos::outcome::Outcome;
use crate::chaos::run::Raw;

/// The largest number of bars of holders, about a MB of text.
const MOST_BARS: usize = 40_000;

/// The largest number of names of a program, each of which has a row.
pub const MOST_NAMES: usize = 40;

/// The largest number of points of a curve, each of which covers at least [`SHORTEST_STEP_MS`].
const MOST_POINTS: u64 = 300;
const SHORTEST_STEP_MS: u64 = 250;

#[derive(Serialize)]
pub struct Data {
    length: f64,
    nodes: usize,
    workers: usize,
    /// The holders that stand in the place of workers, where a program was tested.
    owners: Option<Vec<String>>,
    locks: Vec<String>,
    faults: Vec<FaultBar>,
    /// Lock, worker, from, until, depth, and whether it was lost.
    bars: Vec<(usize, usize, f64, f64, u32, u8)>,
    /// The time from which bars are left out.
    capped: Option<f64>,
    step: u64,
    reentry: Curves,
    first: Curves,
    grants: Vec<u64>,
    refused: Vec<u64>,
    losses: Vec<u64>,
}

#[derive(Serialize)]
struct FaultBar {
    kind: String,
    words: String,
    nodes: Vec<usize>,
    worker: Option<usize>,
    from: f64,
    until: f64,
    /// The end of its effects.
    felt: f64,
    majority: bool,
    amount: i64,
}

/// `None` where there is no value.
#[derive(Serialize)]
struct Curves {
    median: Vec<Option<f64>>,
    slow: Vec<Option<f64>>,
}

impl Data {
    pub fn of(raw: &Raw, outcome: &Outcome) -> Self {
        let model = &outcome.model;
        let time = |at: u64| Scale10::of(at.min(model.end).saturating_sub(model.begin));
        let length = model.end.saturating_sub(model.begin);
        let step = (length / 1000 / MOST_POINTS).max(SHORTEST_STEP_MS);
        let mut locks: Vec<String> = model.asks.iter().flat_map(|ask| ask.names.clone()).collect();
        // lock-1 sorts before account-1.
        locks.sort_unstable_by(|a, b| b.starts_with("lock").cmp(&a.starts_with("lock")).then(a.cmp(b)));
        locks.dedup();
        let (mut bars, mut capped) = bars(model, &locks, time);
        let owners = outcome.results.program.as_ref().map(|_| {
            locks = distinct(outcome.seen.iter().map(|grant| &grant.name));
            locks.truncate(MOST_NAMES);
            let owners = distinct(outcome.seen.iter().map(|grant| &grant.lease.label));
            (bars, capped) = seen_bars(&outcome.seen, &locks, &owners, time);
            owners
        });
        let faults = model.troubles.iter().map(|trouble| FaultBar {
            kind: trouble.kind.name(),
            words: trouble.kind.words().to_owned(),
            nodes: trouble.nodes.clone(),
            worker: trouble.worker,
            from: time(trouble.from),
            until: time(trouble.healed),
            felt: time(if trouble.kind == Kind::Isolate { trouble.healed } else { trouble.felt_until() }),
            majority: trouble.scale == Scale::Majority,
            amount: raw.plan.faults.get(trouble.id).map_or(0, |fault| fault.amount),
        });
        let points = usize::try_from(length / 1000 / step).unwrap_or(0) + 1;
        let count = |times: &mut dyn Iterator<Item = u64>| {
            let mut counts = vec![0; points];
            times.for_each(|at| counts[place(at.saturating_sub(model.begin), step).min(points - 1)] += 1);
            counts
        };
        let refused = |ask: &crate::chaos::check::Ask| match ask.answer {
            Answer::Refused(_, at) => Some(at),
            _ => None,
        };
        Self {
            length: time(model.end),
            nodes: model.setting.nodes,
            workers: raw.settings.workers,
            faults: faults.collect(),
            owners,
            bars,
            capped,
            step,
            reentry: curves(model, points, step, |hold| hold.ask.within.is_some()),
            first: curves(model, points, step, |hold| hold.ask.within.is_none()),
            grants: count(
                &mut model.holds.iter().map(|hold| hold.granted).chain(outcome.seen.iter().map(|grant| grant.from)),
            ),
            refused: count(&mut model.asks.iter().filter_map(refused)),
            losses: count(&mut model.holds.iter().filter_map(|hold| Some(hold.lost?.0))),
            locks,
        }
    }
}

/// ms to one decimal.
struct Scale10;

impl Scale10 {
    #[expect(clippy::cast_precision_loss, reason = "a run is no 2^53 us long")]
    fn of(micros: u64) -> f64 {
        (micros as f64 / 100.0).round() / 10.0
    }
}

fn place(micros: u64, step: u64) -> usize {
    usize::try_from(micros / 1000 / step).unwrap_or(usize::MAX)
}

type Bars = Vec<(usize, usize, f64, f64, u32, u8)>;

fn bars(model: &Model, locks: &[String], time: impl Fn(u64) -> f64) -> (Bars, Option<f64>) {
    let mut bars = Vec::new();
    for hold in &model.holds {
        for name in &hold.ask.names {
            if bars.len() == MOST_BARS {
                return (bars, Some(time(hold.granted)));
            }
            let lock = locks.iter().position(|lock| lock == name).unwrap_or(0);
            let around = model.around(hold).filter(|outer| outer.ask.names.contains(name)).count();
            let depth = u32::try_from(around).unwrap_or(0) + 1;
            let until = hold.believed_until().max(hold.granted);
            bars.push((lock, hold.ask.worker, time(hold.granted), time(until), depth, u8::from(hold.lost.is_some())));
        }
    }
    (bars, None)
}

fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<String> {
    texts.collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

/// Returns the bars of the holders that a majority of the nodes showed.
fn seen_bars(seen: &[Grant], locks: &[String], owners: &[String], time: impl Fn(u64) -> f64) -> (Bars, Option<f64>) {
    let shown = seen.iter().take(MOST_BARS).filter_map(|grant| {
        // A name without a row is left out.
        let lock = locks.binary_search(&grant.name).ok()?;
        let owner = owners.binary_search(&grant.lease.label).ok()?;
        Some((lock, owner, time(grant.from), time(grant.until), 1, 0))
    });
    (shown.collect(), seen.get(MOST_BARS).map(|grant| time(grant.from)))
}

/// Returns the durations of granted requests, by the time of the grant.
fn curves(model: &Model, points: usize, step: u64, wanted: impl Fn(&Hold) -> bool) -> Curves {
    let mut taken: Vec<Vec<u64>> = vec![Vec::new(); points];
    for hold in model.holds.iter().filter(|hold| wanted(hold)) {
        let point = place(hold.granted.saturating_sub(model.begin), step).min(points - 1);
        taken[point].push(hold.granted - hold.ask.at);
    }
    for times in &mut taken {
        times.sort_unstable();
    }
    let at = |share: usize| taken.iter().map(|times| percentile(times, share)).collect();
    Curves { median: at(50), slow: at(99) }
}

fn percentile(sorted: &[u64], share: usize) -> Option<f64> {
    let index = (sorted.len().checked_sub(1)? * share).div_ceil(100);
    #[expect(clippy::cast_precision_loss, reason = "no request takes 2^53 us")]
    sorted.get(index).map(|micros| *micros as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_work_for_few_and_many_values() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[3000], 99), Some(3.0));
        let hundred: Vec<u64> = (1..=101).map(|i| i * 1000).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (Some(51.0), Some(100.0)));
    }
}
