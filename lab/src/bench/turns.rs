//! The turns of contenders for one lock, and the hand-overs between them.

use std::time::Duration;

use super::measure::{number, quantile_us};

/// One turn. Times are `CLOCK_MONOTONIC`, one clock for all processes of a machine.
#[derive(Clone, Copy)]
pub struct Turn {
    pub who: usize,
    pub entered: Duration,
    /// When the release began.
    pub left: Duration,
}

pub struct Turns {
    contenders: usize,
    taken: Vec<Turn>,
    pub failed: usize,
}

/// The statistics of a stretch of turns.
pub struct Summary {
    pub p50_us: f64,
    pub p99_us: f64,
    /// How long a contender holds the lock.
    pub inside_us: f64,
    /// The durations of hand-overs from one contender to another, without those to the same contender.
    pub hand_overs: usize,
    /// The share of turns whose contender also had the turn before.
    pub same_share: f64,
    /// The largest deviation from an equal share: 0.1 is 10 % too much or too little.
    pub unfairness: f64,
    /// Turns that overlap: there must be none.
    pub overlaps: usize,
}

impl Turns {
    pub fn new(contenders: usize) -> Self {
        Self { contenders, taken: Vec::new(), failed: 0 }
    }

    pub fn add(&mut self, taken: Vec<Turn>, failed: usize) {
        self.taken.extend(taken);
        self.failed += failed;
    }

    pub fn len(&self) -> usize {
        self.taken.len()
    }

    pub fn taken(&self) -> &[Turn] {
        &self.taken
    }

    pub fn summary(&mut self) -> Summary {
        self.taken.sort_unstable_by_key(|turn| turn.entered);
        let pairs = || self.taken.windows(2).map(|pair| (pair[0], pair[1]));
        let others = pairs().filter(|(before, after)| before.who != after.who);
        let mut gaps: Vec<Duration> = others.map(|(before, after)| after.entered.saturating_sub(before.left)).collect();
        gaps.sort_unstable();
        let mut inside: Vec<Duration> = self.taken.iter().map(|turn| turn.left.saturating_sub(turn.entered)).collect();
        inside.sort_unstable();
        let equal = number(self.taken.len()) / number(self.contenders);
        let unfairness = (0..self.contenders).map(|who| {
            let share = number(self.taken.iter().filter(|turn| turn.who == who).count());
            (share / equal - 1.0).abs()
        });
        Summary {
            p50_us: quantile_us(&gaps, 0.5),
            p99_us: quantile_us(&gaps, 0.99),
            inside_us: quantile_us(&inside, 0.5),
            hand_overs: gaps.len(),
            same_share: 1.0 - number(gaps.len()) / number(pairs().count()),
            unfairness: unfairness.fold(0.0, f64::max),
            overlaps: pairs().filter(|(before, after)| after.entered < before.left).count(),
        }
    }
}

pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Both fields of this clock are non-negative, and nanoseconds stay below 10^9.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hand_overs_between_contenders_count() {
        let mut turns = Turns::new(2);
        let turn = |who, entered, left| {
            let ms = Duration::from_millis;
            Turn { who, entered: ms(entered), left: ms(left) }
        };
        turns.add(vec![turn(0, 0, 10), turn(0, 11, 20), turn(0, 40, 50)], 0);
        turns.add(vec![turn(1, 25, 35)], 1);
        let summary = turns.summary();
        assert_eq!((summary.hand_overs, summary.overlaps, turns.failed), (2, 0, 1));
        assert!((summary.p50_us - 5_000.0).abs() < 1e-6, "{}", summary.p50_us);
        assert!((summary.unfairness - 0.5).abs() < 1e-9, "three of four, where two would be fair");
        assert!((summary.same_share - 1.0 / 3.0).abs() < 1e-9);
        turns.add(vec![turn(1, 45, 55)], 0);
        assert_eq!(turns.summary().overlaps, 1);
    }
}
