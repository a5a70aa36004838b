//! A majority of the nodes is down while requests wait: how much they send to the remaining nodes, and how soon they are
//! served when the majority is back.

use std::time::{Duration, Instant};

use super::{Case, TARGET_NODES};
use crate::bench::Bench;
use crate::bench::lockers::Ours;
use crate::bench::measure::number;
use crate::bench::report::{Entry, Report, Target};
use crate::exit::Failure;

/// The number of clients, and of waiting requests of each.
const CROWDS: [(usize, usize); 3] = [(1, 1), (50, 1), (1, 500)];
/// How long clients take to close connections to paused nodes.
const SETTLE: Duration = Duration::from_secs(3);
const OUTAGE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let living = (nodes - 1) / 2;
    if !bench.fleet().can_pause() || living == 0 {
        bench.skip(Case::Outage.name(), "it needs three servers of its own");
        return Ok(());
    }
    let targeted = |target| (nodes == TARGET_NODES).then_some(target);
    for (clients, requests) in CROWDS {
        let (commands, served) = outage(bench, nodes, living, clients, requests)?;
        let per_node_and_s = commands / number(living) / OUTAGE.as_secs_f64();
        let per_waiter = per_node_and_s / number(clients * requests);
        let mut entry = Entry::new(Case::Outage, nodes, "quorlock");
        entry.add("clients", clients);
        entry.add("waiters_each", requests);
        entry.add("commands_per_living_node_and_s", per_node_and_s);
        entry.add("commands_per_waiter_living_node_and_s", per_waiter);
        let who = format!("{living} of {nodes} nodes live, {clients} × {requests} waiters");
        if clients == 1 && requests > 1 {
            let what = format!("{who}, commands per living node and second");
            entry.find(what, per_node_and_s, "", targeted(Target::AtMost(200.0)));
        } else {
            let what = format!("{who}, commands per waiter, living node and second");
            entry.find(what, per_waiter, "", targeted(Target::AtMost(20.0)));
        }
        entry.add("all_served_after_s", served);
        entry.find(format!("{who}, all served"), served, " s", targeted(Target::AtMost(1.0)));
        report.add(entry);
    }
    Ok(())
}

/// The commands that the remaining nodes received, and the seconds until all requests are served: infinite when one is not.
fn outage(
    bench: &Bench<'_>,
    nodes: usize,
    living: usize,
    clients: usize,
    requests: usize,
) -> Result<(f64, f64), Failure> {
    const NAME: &str = "waited-for in an outage";
    let urls = bench.fleet().urls(nodes);
    let connect = |_| bench.runtime.block_on(Ours::connect(&urls));
    let clients = (0..clients).map(connect).collect::<Result<Vec<Ours>, Failure>>()?;
    for node in living..nodes {
        bench.fleet().pause(node)?;
    }
    let wait = |locks: &quorlock::Quorlock| {
        let request = locks.lock(NAME).wait(PATIENCE).acquire();
        bench.runtime.spawn(async move {
            let guard = request.await.ok()?;
            let served = Instant::now();
            guard.release().await.ok()?;
            Some(served)
        })
    };
    let waiting: Vec<_> = clients.iter().flat_map(|one| (0..requests).map(|_| wait(&one.locks))).collect();
    std::thread::sleep(SETTLE);
    let before = bench.fleet().commands(living)?;
    std::thread::sleep(OUTAGE);
    let commands = bench.fleet().commands(living)? - before;
    let mut back = Instant::now();
    for node in living..nodes {
        let answered = bench.fleet().resume(node)?;
        if node == nodes / 2 {
            back = answered; // This node completes the majority.
        }
    }
    let mut served = Duration::ZERO;
    for task in waiting {
        let at = bench.runtime.block_on(task).ok().flatten();
        served = served.max(at.map_or(Duration::MAX, |at| at.saturating_duration_since(back)));
    }
    Ok((number(usize::try_from(commands).unwrap_or(usize::MAX)), served.as_secs_f64()))
}
