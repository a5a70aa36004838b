//! The phase after the faults: all nodes work again, so every request must succeed soon.

use std::time::Duration;

use tokio::time::{sleep, sleep_until, timeout};

use crate::figures::Fault;
use crate::invariant::Invariant;
use crate::machine::Turns;
use crate::outage;
use crate::plan::ClientPlan;
use crate::requests::{Dropped, How};
use crate::run::Stage;
use crate::servers::Memory;
use crate::time::{EPOCH_US, micros};
use crate::world::lock;

/// Resources that only this phase uses, beside those of the plan.
pub const EXTRA_RESOURCES: usize = 7;

/// Leases of this phase are long, so that no lock becomes free by the end of a lease within a limit.
pub const LEASE: Duration = Duration::from_secs(8);

const MILLI: Duration = Duration::from_millis(1);

pub async fn judge(stage: &mut Stage) {
    let plan = std::sync::Arc::clone(&stage.scene.plan);
    let round_trip = 2 * plan.longest_latency() + 2 * MILLI;
    // A node whose clock was set back keeps a dead client's key for that much longer.
    let set_back = lock(&stage.scene.world).furthest_set_back();
    let patience = plan.longest_lease() * 3 + Duration::from_secs(20) + set_back;
    let finished = timeout(patience, stage.users_finish()).await.is_ok();
    let at = stage.scene.now();
    lock(&stage.scene.ledger).findings.judge(Invariant::MinorityFaultLive, at, finished, || {
        "after all faults have ended, a request still waits for a free lock".to_owned()
    });
    if !finished {
        return;
    }
    // Late messages have arrived, clients are connected again, and keys of crashed clients are gone. The leases of this phase are
    // longer than those before: if a clock was far ahead when a node lost its memory, each client waits once for such a lease,
    // from its first refusal.
    long_leases_begin(stage).await;
    sleep(2 * LEASE + Duration::from_secs(10) + set_back).await;
    long_leases_begin(stage).await;
    sleep(2 * LEASE).await;
    long_leases_begin(stage).await;
    every_client_acquires(stage, round_trip).await;
    minority_fails(stage, round_trip).await;
    requests_are_dropped(stage, round_trip).await;
    let resources = [plan.resources + 1, plan.resources + 6];
    outage::majority_is_down(stage, resources, LEASE, round_trip).await;
    holder_is_cut_off(stage, round_trip).await;
    holder_crashes(stage, round_trip).await;
    nothing_is_left(stage).await;
}

/// Each client asks once for a lease of this phase, and may be refused.
async fn long_leases_begin(stage: &Stage) {
    for place in 0..stage.clients.len() {
        let mut user = stage.user(place, 500);
        if let Ok(holding) = user.ask(&[0], None, Some(LEASE), How::Try).await {
            user.release(holding).await;
        }
    }
}

/// Acquires within the limit, and releases.
async fn acquires(stage: &Stage, place: usize, resource: usize, limit: Duration, invariant: Invariant, when: &str) {
    let mut user = stage.user(place, resource as u64);
    let mut began = stage.scene.now();
    let mut asked = user.ask(&[resource], None, Some(LEASE), How::Wait(Some(limit))).await;
    if asked.as_ref().is_err_and(|error| !is_held(error) && !is_quarantined(error)) {
        // The awaited quarantine may have ended just before the wait did, and the error does not name it then.
        began = stage.scene.now();
        asked = user.ask(&[resource], None, Some(LEASE), How::Wait(Some(limit))).await;
    }
    let at = stage.scene.now();
    let who = || format!("{when}: c{} and r{resource}", user.client.index);
    let judge = |invariant, took, what: &str| {
        lock(&stage.scene.ledger).waited(at, invariant, took, micros(limit), || format!("{} {what}", who()));
    };
    match asked {
        Ok(holding) => {
            judge(invariant, Some(at - began), "");
            user.release(holding).await;
        }
        // An answer "held" violates the invariant; without one, too few nodes answered.
        Err(error) if is_held(&error) => judge(invariant, None, &error.to_string()),
        // The client has just noticed a jump of a node's clock, in its first request after the faults ended. That node has
        // no vote. Beside useless nodes, or with a minority down, no majority is left.
        Err(error) if is_quarantined(&error) => {}
        Err(error) => judge(Invariant::MinorityFaultLive, None, &error.to_string()),
    }
}

fn is_held(error: &quorlock::AcquireError) -> bool {
    error.nodes().iter().any(|report| matches!(report.answer, quorlock::Answer::Held { .. }))
}

fn is_quarantined(error: &quorlock::AcquireError) -> bool {
    let quarantined = |report: &quorlock::NodeReport| {
        matches!(report.answer, quorlock::Answer::Failed(quorlock::NodeError::Quarantined { .. }))
    };
    error.nodes().iter().any(quarantined)
}

async fn every_client_acquires(stage: &Stage, round_trip: Duration) {
    for resource in 0..stage.scene.plan.resources {
        for place in 0..stage.clients.len() {
            // A lease of a client whose clock is ahead ends later for other clients.
            let limit = 6 * round_trip + 150 * MILLI + stage.scene.plan.behind(LEASE);
            acquires(stage, place, resource, limit, Invariant::NoOrphan, "after all has healed").await;
        }
    }
}

/// A failed minority delays no request by more than a few round trips, however it fails.
async fn minority_fails(stage: &Stage, round_trip: Duration) {
    let plan = &stage.scene.plan;
    let spare = plan.spare();
    for way in 0..3_u64 {
        let failing = plan.nodes.iter().enumerate().filter(|(_, node)| !node.useless).map(|(i, _)| i).take(spare);
        for node in failing {
            let mut world = lock(&stage.scene.world);
            match way {
                0 => world.pause_node(node, 4_000_000),
                1 => world.crash_node(node, 4_000_000, Memory::Kept),
                _ => stage
                    .clients
                    .iter()
                    .for_each(|client_run| world.cut(client_run.client.index, node, true, true, false, 4_000_000)),
            }
        }
        for place in 0..stage.clients.len() {
            // A request that meets another client's unfinished release may have to wait for a hung node: the node timeout
            // (1.25 s at most), and a pause after a lost race. The first request meets no other.
            let limit = if place == 0 { 6 * round_trip + 150 * MILLI } else { 8 * round_trip + 2500 * MILLI };
            acquires(stage, place, plan.resources, limit, Invariant::MinorityFaultLive, "with a minority away").await;
        }
        sleep(Duration::from_secs(8)).await;
    }
}

/// A dropped request leaves nothing behind that blocks another request.
async fn requests_are_dropped(stage: &Stage, round_trip: Duration) {
    let resource = stage.scene.plan.resources + 1;
    let resources = [resource];
    let places = stage.clients.len();
    for polls in 0..6 {
        let user = stage.user(polls % places, 100 + polls as u64);
        lock(&stage.scene.world).figures.fault(Fault::DroppedFuture);
        let request = user.ask(&resources, None, Some(LEASE), How::Wait(None));
        let holding = if polls % 2 == 0 {
            Dropped { future: Some(Box::pin(request)), polls: polls / 2 }.await.and_then(Result::ok)
        } else {
            timeout(round_trip * (polls as u32) / 8, request).await.ok().and_then(Result::ok)
        };
        if let Some(holding) = holding {
            stage.user(0, 200).release(holding).await;
        }
        let limit = 10 * round_trip + 200 * MILLI;
        acquires(stage, (polls + 1) % places, resource, limit, Invariant::CancelSafe, "after a request was dropped")
            .await;
    }
}

/// A holder without answers of a majority signals the loss on time. A later answer does not revive the lease, nor does an answer
/// to a request that was paused for longer than the lease.
async fn holder_is_cut_off(stage: &mut Stage, round_trip: Duration) {
    let plan = std::sync::Arc::clone(&stage.scene.plan);
    // Short: the client must not close a connection before the answers arrive.
    let lease = (30 * round_trip).max(900 * MILLI).min(plan.longest_lease());
    let place = stage.clients.len();
    let client = ClientPlan { lease, node_timeout: None, extends: false, actors: 0, ..stage.clients[0].plan.clone() };
    stage.start_client(place, client).await;
    let index = stage.clients[place].client.index;
    sleep(20 * plan.longest_latency()).await;
    for requests in [true, false] {
        let resource = plan.resources + 4;
        let mut holder = stage.user(place, 400 + u64::from(requests));
        let Ok(holding) = holder.ask(&[resource], None, Some(lease), How::Try).await else { return };
        // The inner request is shorter, and does not shorten the lease.
        if let Ok(inner) = holder.ask(&[resource], Some(holding.guard.owner()), Some(lease / 2), How::Try).await {
            lock(&stage.scene.ledger).observe(stage.scene.now());
            holder.release(inner).await;
        }
        sleep(holding.guard.remaining().saturating_sub(lease / 3)).await;
        let away = holding.guard.remaining() + lease / 10;
        for node in plan.nodes.len() - plan.quorum()..plan.nodes.len() {
            lock(&stage.scene.world).cut(index, node, requests, true, true, micros(away));
        }
        let limit = lease + lease / 50 + 6 * round_trip + 150 * MILLI + plan.behind(LEASE);
        let rival = acquires(stage, 0, resource, limit, Invariant::FreeAfterTtl, "after its holder was cut off");
        let (_, ()) = tokio::join!(timeout(away, holding.guard.extend()), rival);
        sleep(lease).await;
        lock(&stage.scene.ledger).observe(stage.scene.now());
        holder.release(holding).await;
    }
    let mut late = stage.user(place, 402);
    let resource = plan.resources + 5;
    let asking = async move {
        if let Ok(holding) = late.ask(&[resource], None, Some(lease), How::Try).await {
            late.release(holding).await;
        }
    };
    let world = std::sync::Arc::clone(&stage.scene.world);
    let asking = tokio::spawn(Turns { world, client: index, task: Box::pin(asking) });
    sleep(Duration::from_micros(1)).await;
    lock(&stage.scene.world).pause_client(index, micros(lease + lease / 10));
    asking.await.expect("no panic");
}

/// A crashed client's lock is free when its lease has ended, and not before its validity has. This holds also for a client
/// whose wall clock is so far behind that it proposes the ballot of the lost lease again.
async fn holder_crashes(stage: &mut Stage, round_trip: Duration) {
    let (resource, twin) = (stage.scene.plan.resources + 2, stage.scene.plan.resources + 3);
    let lease = stage.clients[0].plan.lease;
    let victim = stage.user(0, 300);
    let began = stage.scene.now();
    let asked = victim.ask(&[resource, twin], None, Some(lease), How::Try).await;
    let took = asked.is_ok().then(|| stage.scene.now() - began);
    let limit = 6 * round_trip + 150 * MILLI;
    let who = || "a free lock was not to be had".to_owned();
    lock(&stage.scene.ledger).waited(began, Invariant::MinorityFaultLive, took, micros(limit), who);
    let Ok(holding) = asked else { return };
    let (valid, token) = (holding.guard.remaining(), holding.guard.token().get());
    stage.crash(0);
    drop(holding);
    let began = stage.scene.now();
    let limit = lease + lease / 50 + 4 * round_trip + 150 * MILLI + stage.scene.plan.behind(LEASE);
    acquires(stage, 1 % stage.clients.len(), resource, limit, Invariant::FreeAfterTtl, "after its holder crashed")
        .await;
    let took = stage.scene.now() - began;
    lock(&stage.scene.ledger).findings.judge(
        Invariant::MutualExclusion,
        began,
        took >= micros(valid - valid / 50),
        || "a crashed client's lock was granted before its validity was over".to_owned(),
    );

    sleep(lease / 10).await;
    let time = lock(&stage.scene.world).time;
    let moment = (time.now() + 40 * micros(round_trip)).next_multiple_of(1000);
    let plan = ClientPlan {
        actors: 0,
        ppm: 0,
        bounded: false,
        skew_us: token.cast_signed() - (EPOCH_US + moment).cast_signed(),
        ..stage.clients[0].plan.clone()
    };
    stage.start_client(0, plan).await;
    sleep_until(time.at(moment)).await;
    // It waits for as long as a lease may last, because its clock does not show the end of this one.
    let limit = 6 * round_trip + 200 * MILLI + LEASE;
    acquires(stage, 0, twin, limit, Invariant::FreeAfterTtl, "with the clock of a crashed client").await;
}

/// No node stores a lock once every client has released.
async fn nothing_is_left(stage: &Stage) {
    sleep(stage.clients[0].plan.lease + Duration::from_secs(2)).await;
    for node in 0..stage.scene.plan.nodes.len() {
        let locks = lock(&stage.scene.world).locks(node);
        lock(&stage.scene.ledger).left_over(stage.scene.now(), node, &locks);
    }
}
