use std::collections::BTreeSet;

use super::*;

const LEASE: u64 = 2000;

fn settings(seed: u64, nodes: usize) -> Settings {
    Settings { seed, nodes, workers: 5, lease: LEASE, lasts: 60_000, clocks: true }
}

/// Which nodes are disturbed at this time, and by faults of which scale.
fn disturbed(plan: &Plan, at: u64) -> (BTreeSet<usize>, bool) {
    let felt = |fault: &&Fault| {
        fault.kind.disturbs() && !fault.kind.is_of_workers() && fault.at <= at && at < fault.ends() + fault.tail(LEASE)
    };
    let felt: Vec<&Fault> = plan.faults.iter().filter(felt).collect();
    let outage = felt.iter().any(|fault| fault.scale == Scale::Majority);
    (felt.iter().flat_map(|fault| fault.nodes.iter().copied()).collect(), outage)
}

#[test]
fn a_seed_always_means_the_same_plan() {
    for seed in 0..20 {
        assert_eq!(Plan::new(&settings(seed, 5)), Plan::new(&settings(seed, 5)));
    }
    assert_ne!(Plan::new(&settings(1, 5)), Plan::new(&settings(2, 5)));
}

#[test]
fn a_minute_holds_every_kind() {
    for nodes in [1, 2, 3, 4, 5, 7] {
        for seed in 0..300 {
            let settings = settings(seed, nodes);
            let plan = Plan::new(&settings);
            let planned: BTreeSet<Kind> = plan.faults.iter().map(|fault| fault.kind).collect();
            for kind in settings.palette() {
                let silent = matches!(
                    kind,
                    Kind::Pause | Kind::ClientPause | Kind::Cut | Kind::CutRequests | Kind::CutReplies | Kind::Mute
                );
                assert!(planned.contains(&kind) || (silent && nodes < 3), "seed {seed}, {nodes} nodes: no {kind:?}");
            }
            assert!(plan.faults.iter().any(|fault| fault.scale == Scale::Majority), "seed {seed}: no outage");
        }
    }
}

#[test]
fn only_outages_disturb_more_than_a_minority() {
    for nodes in [3, 4, 5, 7] {
        for seed in 0..30 {
            let plan = Plan::new(&settings(seed, nodes));
            for at in (0..65_000).step_by(50) {
                let (disturbed, outage) = disturbed(&plan, at);
                assert!(
                    outage || disturbed.len() <= spare(nodes),
                    "seed {seed}, {nodes} nodes, at {at} ms: {disturbed:?}"
                );
            }
        }
    }
}

#[test]
fn only_a_minority_forgets_within_a_lease() {
    for nodes in [3, 4, 5, 7] {
        for seed in 0..30 {
            let plan = Plan::new(&settings(seed, nodes));
            let forgets = |fault: &&Fault| matches!(fault.kind, Kind::Forget | Kind::Restart | Kind::ClockForward);
            let forgets: Vec<&Fault> = plan.faults.iter().filter(forgets).collect();
            for first in &forgets {
                let window = first.at..first.at + LEASE;
                let within = forgets.iter().filter(|fault| window.contains(&fault.at));
                let nodes_forgetting: BTreeSet<usize> = within.flat_map(|fault| fault.nodes.iter().copied()).collect();
                assert!(nodes_forgetting.len() <= spare(nodes), "seed {seed}, {nodes} nodes, from {} ms", first.at);
            }
        }
    }
}

#[test]
fn a_clock_leaps_only_while_all_others_are_well() {
    let mut leaps = 0;
    for nodes in [3, 5, 7] {
        for seed in 0..50 {
            let plan = Plan::new(&settings(seed, nodes));
            for leap in plan.faults.iter().filter(|fault| fault.kind == Kind::ClockForward) {
                leaps += 1;
                for other in plan.faults.iter().filter(|other| other.id != leap.id && other.kind.disturbs()) {
                    let felt = other.ends() + other.tail(LEASE) + if other.worker.is_some() { 0 } else { LEASE };
                    let apart = other.at >= leap.at + LEASE || felt <= leap.at;
                    assert!(apart, "seed {seed}, {nodes} nodes: {leap:?} beside {other:?}");
                }
            }
        }
    }
    assert!(leaps > 150);
}

#[test]
fn rates_stay_within_the_drift_allowance() {
    for seed in 0..50 {
        for fault in Plan::new(&settings(seed, 5)).faults.iter().filter(|fault| fault.kind == Kind::ClockRate) {
            assert!(fault.amount.unsigned_abs() <= LARGEST_RATE_PPM, "{fault:?}");
        }
    }
}

#[test]
fn a_clock_that_is_set_right_was_ahead() {
    for seed in 0..50 {
        let mut ahead = [0_i64; 5];
        for fault in &Plan::new(&settings(seed, 5)).faults {
            if matches!(fault.kind, Kind::ClockForward | Kind::ClockBack) {
                ahead[fault.nodes[0]] += fault.amount;
                assert!(ahead[fault.nodes[0]] >= 0, "seed {seed}: {fault:?}");
            }
        }
    }
}

#[test]
fn without_a_shim_no_clock_is_touched() {
    let plan = Plan::new(&Settings { clocks: false, ..settings(1, 5) });
    assert!(plan.faults.iter().all(|fault| !fault.kind.is_of_clocks()));
}
