//! After the faults: everything works again, so everything must go well, and soon.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::rules::LockValue;
use crate::run::Stage;
use crate::user::{Dropped, How};
use crate::world::{lock, micros};

/// Resources that only this phase uses, beside those of the plan.
pub const EXTRA_RESOURCES: usize = 3;

/// Leases of this phase are long, so that nothing is freed by the mere end of a lease before a limit.
pub const LEASE: Duration = Duration::from_secs(8);

const MILLI: Duration = Duration::from_millis(1);

pub async fn judge(stage: &mut Stage) {
    let plan = std::sync::Arc::clone(&stage.scene.plan);
    let round_trip = 2 * plan.longest_latency() + 2 * MILLI;
    // A node whose clock was set back keeps a dead client's key for that much longer.
    let set_back = lock(&stage.scene.world).furthest_set_back();
    let patience = plan.longest_lease() * 3 + Duration::from_secs(20) + set_back;
    if timeout(patience, stage.users_finish()).await.is_err() {
        violated(stage, "MinorityFaultLive", "after all has healed, somebody still waits for a lock that nobody holds");
        return;
    }
    // What is late has arrived, connections are made again, and keys of crashed clients are gone.
    sleep(2 * LEASE + Duration::from_secs(10) + set_back).await;
    everybody_acquires(stage, round_trip).await;
    minority_fails(stage, round_trip).await;
    requests_are_dropped(stage, round_trip).await;
    holder_crashes(stage, round_trip).await;
    nothing_is_left(stage).await;
}

fn violated(stage: &Stage, invariant: &'static str, what: &str) {
    let at = stage.scene.now();
    lock(&stage.scene.ledger).violated(invariant, at, what.to_owned());
}

/// Acquires within the limit and gives back.
async fn acquires(stage: &Stage, place: usize, resource: usize, limit: Duration, invariant: &'static str, when: &str) {
    let mut user = stage.user(place, resource as u64);
    let began = stage.scene.now();
    let asked = user.ask(&[resource], None, Some(LEASE), How::Wait(Some(limit))).await;
    let took = stage.scene.now() - began;
    match asked {
        Ok(holding) if took <= micros(limit) => user.give_back(holding).await,
        Ok(holding) => {
            violated(stage, invariant, &format!("{when}: c{} waited {took} µs for r{resource}", user.client.index));
            user.give_back(holding).await;
        }
        // A node's clock was seen to jump just now, when it was first asked after all was mended: it is not counted, and
        // with a minority away that is one too many.
        Err(error) if (invariant == "MinorityFaultLive" || !error.is_held()) && is_quarantined(&error) => {}
        Err(error) => {
            // Whoever is told that somebody holds it met what the invariant is about; otherwise nobody could be asked.
            let invariant = if error.is_held() { invariant } else { "MinorityFaultLive" };
            violated(stage, invariant, &format!("{when}: c{} did not get r{resource}: {error}", user.client.index));
        }
    }
}

fn is_quarantined(error: &quorlock::AcquireError) -> bool {
    let quarantined = |report: &quorlock::NodeReport| {
        matches!(report.answer, quorlock::Answer::Failed(quorlock::NodeError::Quarantined { .. }))
    };
    error.nodes().iter().any(quarantined)
}

async fn everybody_acquires(stage: &Stage, round_trip: Duration) {
    for resource in 0..stage.scene.plan.resources {
        for place in 0..stage.clients.len() {
            acquires(stage, place, resource, 6 * round_trip + 150 * MILLI, "NoOrphan", "after all has healed").await;
        }
    }
}

/// No minority makes anybody wait for more than a few round trips, whatever is wrong with it.
async fn minority_fails(stage: &Stage, round_trip: Duration) {
    let plan = &stage.scene.plan;
    let spare = plan.spare();
    for way in 0..3_u64 {
        let failing = plan.nodes.iter().enumerate().filter(|(_, node)| !node.useless).map(|(i, _)| i).take(spare);
        for node in failing {
            let mut world = lock(&stage.scene.world);
            match way {
                0 => world.pause_node(node, 4_000_000),
                1 => world.crash_node(node, 4_000_000, false),
                _ => stage
                    .clients
                    .iter()
                    .for_each(|troupe| world.cut(troupe.client.index, node, true, true, false, 4_000_000)),
            }
        }
        for place in 0..stage.clients.len() {
            // Whoever meets another's release that is still under way may have to hear of a hung node that it hangs: the
            // node timeout (1.25 s at most), and a pause after a lost race.
            let limit = 8 * round_trip + Duration::from_millis(2500);
            acquires(stage, place, plan.resources, limit, "MinorityFaultLive", "with a minority away").await;
        }
        sleep(Duration::from_secs(8)).await;
    }
}

/// A dropped request leaves nothing behind that stands in anybody's way.
async fn requests_are_dropped(stage: &Stage, round_trip: Duration) {
    let resource = stage.scene.plan.resources + 1;
    let resources = [resource];
    let places = stage.clients.len();
    for polls in 0..6 {
        let user = stage.user(polls % places, 100 + polls as u64);
        lock(&stage.scene.world).figures.fault(crate::figures::Fault::DroppedFuture);
        let request = user.ask(&resources, None, Some(LEASE), How::Wait(None));
        let holding = if polls % 2 == 0 {
            Dropped { future: Some(Box::pin(request)), polls: polls / 2 }.await.and_then(Result::ok)
        } else {
            timeout(round_trip * (polls as u32) / 8, request).await.ok().and_then(Result::ok)
        };
        if let Some(holding) = holding {
            stage.user(0, 200).give_back(holding).await;
        }
        let limit = 10 * round_trip + 200 * MILLI;
        acquires(stage, (polls + 1) % places, resource, limit, "CancelSafe", "after a request was dropped").await;
    }
}

/// What a crashed client held is free when its lease is over, and not before its validity is.
async fn holder_crashes(stage: &mut Stage, round_trip: Duration) {
    let resource = stage.scene.plan.resources + 2;
    let lease = stage.clients[0].plan.lease;
    let victim = stage.user(0, 300);
    let Ok(holding) = victim.ask(&[resource], None, Some(lease), How::Try).await else {
        return violated(stage, "MinorityFaultLive", "a free lock was not to be had");
    };
    let valid = holding.guard.remaining();
    stage.crash(0);
    drop(holding);
    let began = stage.scene.now();
    let limit = lease + lease / 50 + 4 * round_trip + 150 * MILLI;
    acquires(stage, 1 % stage.clients.len(), resource, limit, "FreeAfterTtl", "after its holder crashed").await;
    if stage.scene.now() - began < micros(valid - valid / 50) {
        violated(stage, "MutualExclusion", "a crashed client's lock was granted before its validity was over");
    }
}

/// No lock stands on any node once everybody has released.
async fn nothing_is_left(stage: &Stage) {
    sleep(stage.clients[0].plan.lease + Duration::from_secs(2)).await;
    for node in 0..stage.scene.plan.nodes.len() {
        let locks = lock(&stage.scene.world).locks(node);
        for (name, value) in locks {
            let known = LockValue::parse(value.as_bytes()).is_some();
            violated(stage, "NoOrphan", &format!("node {node} still has {name}: {value} (well-formed {known})"));
        }
    }
}
