//! Pauses, kills and cuts of workers, independent of the faults of nodes.

use quorlock_testkit::rng::Rng;

use super::{Card, Deck, Settings, WORKERS};
use crate::chaos::fault::{Fault, Kind, Scale};

pub fn plan(settings: &Settings) -> Vec<Fault> {
    const KINDS: [Kind; 3] = [Kind::WorkerPause, Kind::WorkerKill, Kind::Isolate];
    let mut rng = Rng::new(settings.seed, WORKERS);
    let lease = settings.lease;
    let mut deck = Deck::new(KINDS.into_iter().map(Card::One).collect());
    let mut free = vec![0; settings.workers];
    let mut faults = Vec::new();
    let mut now = lease / 2;
    // A program that is tested has no workers.
    while settings.workers > 0 && now < settings.lasts {
        let Some(Card::One(kind)) = deck.deal(&mut rng, |_| false) else { break };
        let worker = rng.below(settings.workers);
        let lasts = match kind {
            Kind::WorkerPause => rng.between(lease * 130 / 100..lease * 220 / 100),
            Kind::WorkerKill => rng.between(0..lease / 2),
            _ => rng.between(lease * 70 / 100..lease * 150 / 100),
        };
        let lossy = rng.chance(0.4);
        let nodes = if kind == Kind::Isolate { (0..settings.nodes).collect() } else { Vec::new() };
        let at = now.max(free[worker]);
        let fault = Fault { worker: Some(worker), lossy, ..Fault::new(kind, Scale::Harmless, at, lasts, nodes) };
        if fault.ends() <= settings.lasts {
            free[worker] = fault.ends() + fault.tail(lease) + lease / 4;
            faults.push(fault);
        }
        now += rng.between(lease * 40 / 100..lease * 130 / 100);
    }
    faults
}
