//! How much the nodes are asked.

use std::collections::BTreeMap;

use super::Verdict;
use super::model::Model;

/// The shortest time over which a rate is taken, in µs.
const WINDOW: u64 = 900_000;

/// The most commands of a node in a second, for each worker. A script counts with the commands that it calls.
const MOST_PER_WORKER: u64 = 1200;

/// Checks that no node executes more commands than the work needs: not while a lock is waited for, nor during an outage.
pub fn no_storm(model: &Model) -> Verdict {
    let mut verdict = Verdict::of("NoStorm", "requests that wait, or find no majority, do not flood the nodes");
    let workers = model.asks.iter().map(|ask| ask.worker + 1).max().unwrap_or(1) as u64;
    let mut last: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for (node, from, at, total) in &model.commands {
        let (since, before) = *last.entry(*node).or_insert((*at, *total));
        if from.saturating_sub(since) < WINDOW {
            continue;
        }
        last.insert(*node, (*at, *total));
        // The count was taken at some time between the start and the end of each query.
        let count = total.saturating_sub(before);
        let rate = count * 1_000_000 / (from - since);
        verdict.check(*at, rate <= MOST_PER_WORKER * workers, || {
            format!("node {} executed {count} commands in {} us: {rate} a second", node + 1, from - since)
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::check::State;
    use crate::chaos::check::test_history::{TestHistory, ms};

    #[test]
    fn many_commands_in_a_second_violate_no_storm() {
        for (count, expected) in [(1100, State::Held), (1300, State::Violated)] {
            let mut history = TestHistory::new(3);
            history.asked(1, "a", "x", ms(1));
            for second in 0..3 {
                history.counted(0, ms(1000 * second), second * count);
            }
            assert_eq!(no_storm(&history.model()).state, expected, "{count} a second");
        }
    }
}
