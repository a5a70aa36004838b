//! Faults that the simulation causes, at times and places that the seed decides.

use std::time::Duration;

use quorlock_testkit::rng::Rng;
use tokio::time::sleep;

use crate::figures::Fault;
use crate::plan::{Clocks, Longest};
use crate::run::Stage;
use crate::servers::{Forgets, Memory};
use crate::time::micros;
use crate::world::lock;

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;

/// Causes faults until the time is up.
pub async fn cause(stage: &mut Stage, until: u64) {
    let mut rng = Rng::new(stage.scene.plan.seed, 3);
    let every = micros(stage.scene.plan.faults_every);
    let mut clients_to_crash = rng.below(3);
    loop {
        let now = stage.scene.now();
        let pause = rng.between(0..2 * every).min(until.saturating_sub(now));
        sleep(Duration::from_micros(pause)).await;
        let now = stage.scene.now();
        if now >= until {
            return;
        }
        if stage.scene.plan.forgetful {
            let node = rng.below(stage.scene.plan.nodes.len());
            lock(&stage.scene.world).keep_older(node);
        }
        one(stage, &mut rng, &mut clients_to_crash).await;
    }
}

/// Short ones are common, long ones are possible.
fn duration(rng: &mut Rng) -> u64 {
    match rng.between(0..10) {
        0..5 => rng.between(MILLI..100 * MILLI),
        5..9 => rng.between(100 * MILLI..SECOND),
        _ => rng.between(SECOND..6 * SECOND),
    }
}

async fn one(stage: &mut Stage, rng: &mut Rng, clients_to_crash: &mut usize) {
    let plan = std::sync::Arc::clone(&stage.scene.plan);
    let node = rng.below(plan.nodes.len());
    let client = rng.below(stage.clients.len());
    let index = stage.clients[client].client.index;
    let long = duration(rng);
    let what = rng.between(0..100);
    if (90..93).contains(&what) && *clients_to_crash > 0 {
        *clients_to_crash -= 1;
        stage.crash(client);
        stage.start_client(client, plan.clients[client].clone()).await;
        return;
    }
    let mut world = lock(&stage.scene.world);
    let may_forget = plan.forgetful && (plan.longest == Longest::Told || world.may_forget_one());
    if plan.longest == Longest::Grows {
        // Users let nodes forget.
        if rng.chance(0.25) {
            world.flush_scripts(node);
        }
        return;
    }
    match what {
        0..15 => {
            let ways = rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
            let keeps = rng.chance(0.5);
            world.cut(index, node, ways.0, ways.1, keeps, long);
        }
        15..30 => world.pause_node(node, long),
        30..40 => {
            let memory = match rng.between(0..4) {
                _ if !may_forget || plan.nodes[node].durable => Memory::Kept,
                0 => Memory::Lost,
                1 => Memory::Older,
                _ => Memory::Kept,
            };
            world.crash_node(node, long, memory);
        }
        40..45 => world.load_node(node, long),
        45..52 => world.reset_connections(node),
        52..60 => world.flush_scripts(node),
        60..67 => {
            let most = rng.pick(&[100 * MILLI, SECOND, 5 * SECOND, 60 * SECOND]);
            let by = rng.signed(most);
            let nodes =
                if plan.clocks == Clocks::Stepping && rng.chance(0.25) { 0..plan.nodes.len() } else { node..node + 1 };
            if nodes.len() > 1 {
                world.figures.fault(Fault::AllClocksStep);
            }
            for node in nodes {
                // A node's clock is never further away from where it began, so that ballots can be agreed on.
                let stays = (world.stepped(node) + by).unsigned_abs() <= plan.furthest_skew();
                let harmless = by <= 0 || world.locks(node).is_empty();
                if stays && (harmless || plan.clocks == Clocks::Stepping) {
                    world.step_clock(node, by);
                }
            }
        }
        67..69 if plan.clocks == Clocks::Stepping => {
            let by = rng.pick(&[-1, 1]) * rng.between(HOUR..20 * HOUR).cast_signed();
            if world.count_leaps() < plan.nodes.len() - plan.quorum() {
                world.leap_clock(node, by, long);
            }
        }
        69..72 if may_forget => {
            let of = rng.below(plan.nodes.len());
            let how = match rng.between(0..3) {
                0 => Forgets::Flush,
                1 => Forgets::Replaced,
                _ if of == node => Forgets::Flush,
                _ => Forgets::Replica { of, duration: long },
            };
            world.forget(node, how);
        }
        72..90 => {
            world.pause_client(index, long);
            if plan.broken.clock_is_set_back {
                let clock = &stage.clients[client].client.clock;
                clock.set_back_us.fetch_add(rng.signed(2 * SECOND).abs(), std::sync::atomic::Ordering::Relaxed);
            }
        }
        90..94 if plan.has_skewed_clients() => {
            stage.clients[client].client.clock.set_skew(rng.signed(plan.furthest_skew()));
            world.figures.fault(Fault::ClientClockStep);
        }
        _ => {
            // All links at once: a switch goes down for a moment.
            let keeps = rng.chance(0.5);
            for node in 0..plan.nodes.len() {
                if rng.chance(0.6) {
                    world.cut(index, node, true, true, keeps, long);
                }
            }
        }
    }
}
