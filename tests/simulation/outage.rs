//! A majority of the nodes is down for a while, and requests wait for it.

use std::time::Duration;

use tokio::time::{sleep, sleep_until};

use crate::invariant::Invariant;
use crate::machine::Turns;
use crate::requests::How;
use crate::run::Stage;
use crate::time::micros;
use crate::world::lock;

/// How long the majority is down, and from when on commands are counted: the pauses between tries have grown by then.
const OUTAGE: Duration = Duration::from_secs(8);
const COUNT_AFTER: Duration = Duration::from_secs(2);
/// The number of waiting requests of each client.
const WAITERS: u64 = 3;
/// The limit after the outage until all are served, beside the round trips and the time until the nodes' queues agree again: too
/// few nodes may call each request twice, and reserve the resource for it for 100 ms each time.
const SERVED_AFTER: Duration = Duration::from_secs(1);
const RESERVED_IN_VAIN: Duration = Duration::from_millis(200);

/// Checks that requests that wait for a majority send few commands, and are served soon when it is back.
pub async fn majority_is_down(stage: &Stage, resources: [usize; 2], lease: Duration, round_trip: Duration) {
    let plan = std::sync::Arc::clone(&stage.scene.plan);
    let time = lock(&stage.scene.world).time;
    let began = stage.scene.now();
    let back = began + micros(OUTAGE);
    let living = plan.nodes.len() - plan.quorum();
    for node in living..plan.nodes.len() {
        let mut world = lock(&stage.scene.world);
        stage
            .clients
            .iter()
            .for_each(|client_run| world.cut(client_run.client.index, node, true, true, false, micros(OUTAGE)));
    }
    let mut requests = Vec::new();
    for place in 0..stage.clients.len() {
        for waiter in 0..WAITERS {
            let mut user = stage.user(place, 600 + waiter);
            let (scene, client) = (stage.scene.clone(), user.client.index);
            let resource = resources[usize::from(waiter > 0)];
            let waits = async move {
                let holding = user.ask(&[resource], None, Some(lease), How::Wait(Some(2 * OUTAGE))).await.ok();
                let served = holding.is_some().then(|| scene.now());
                if let Some(holding) = holding {
                    user.release(holding).await;
                }
                served
            };
            let world = std::sync::Arc::clone(&stage.scene.world);
            requests.push(tokio::spawn(Turns { world, client, task: Box::pin(waits) }));
        }
    }
    sleep(COUNT_AFTER).await;
    let before = lock(&stage.scene.world).figures.commands;
    sleep_until(time.at(back)).await;
    let commands = lock(&stage.scene.world).figures.commands - before;
    let waiters = requests.len() as u64;
    let counted = micros(OUTAGE - COUNT_AFTER);
    lock(&stage.scene.ledger).waited_out(back, commands, waiters * living as u64, counted);

    let limit = micros(SERVED_AFTER) + waiters * micros(RESERVED_IN_VAIN + 8 * round_trip);
    for request in requests {
        let served = request.await.expect("no panic");
        let what = || "a request waits although the majority is back".to_owned();
        let took = served.map(|served| served.saturating_sub(back));
        lock(&stage.scene.ledger).waited(back, Invariant::NoStorm, took, limit, what);
    }
}
