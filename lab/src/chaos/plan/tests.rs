use std::collections::BTreeSet;

use super::*;
use crate::chaos::fault::{LARGEST_HARMLESS_STEP_MS, Scale};

const LEASE: u64 = 2000;

fn settings(seed: u64, nodes: usize) -> Settings {
    Settings { seed, nodes, workers: 5, lease: LEASE, lasts: 90_000, clocks: true }
}

/// Returns the nodes that are disturbed at this time, and the scales of the faults.
fn disturbed(plan: &Plan, at: u64) -> (BTreeSet<usize>, bool) {
    let felt = |fault: &&Fault| {
        fault.disturbs() && !fault.kind.is_of_workers() && fault.at <= at && at < fault.ends() + fault.tail(LEASE)
    };
    let felt: Vec<&Fault> = plan.faults.iter().filter(felt).collect();
    let outage = felt.iter().any(|fault| fault.scale == Scale::Majority);
    (felt.iter().flat_map(|fault| fault.nodes.iter().copied()).collect(), outage)
}

#[test]
fn the_same_seed_gives_the_same_plan() {
    for seed in 0..20 {
        assert_eq!(Plan::new(&settings(seed, 5)), Plan::new(&settings(seed, 5)));
    }
    assert_ne!(Plan::new(&settings(1, 5)), Plan::new(&settings(2, 5)));
}

#[test]
fn a_run_of_90_seconds_has_every_kind_of_fault() {
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
            for at in (0..95_000).step_by(50) {
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
fn nodes_forget_one_at_a_time() {
    for nodes in [3, 4, 5, 7] {
        for seed in 0..100 {
            let plan = Plan::new(&settings(seed, nodes));
            let forgets: Vec<&Fault> = plan.faults.iter().filter(|fault| fault.kind.forgets()).collect();
            assert!(forgets.iter().all(|fault| fault.nodes.len() == 1), "seed {seed}");
            for pair in forgets.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                assert!(second.at >= first.ends() + 2 * LEASE, "seed {seed}, {nodes} nodes: {first:?}, {second:?}");
            }
        }
    }
}

#[test]
fn only_durable_nodes_are_restarted_with_their_data() {
    for seed in 0..100 {
        let plan = Plan::new(&settings(seed, 5));
        for restart in plan.faults.iter().filter(|fault| fault.kind == Kind::Restart) {
            assert!(plan.durable[restart.nodes[0]], "seed {seed}: {restart:?}");
        }
    }
}

#[test]
fn clock_steps_combine_with_every_other_fault() {
    let (mut numbers, mut ahead, mut back, mut beside) = (BTreeSet::new(), 0, 0, 0);
    for seed in 0..50 {
        let plan = Plan::new(&settings(seed, 5));
        for step in plan.faults.iter().filter(|fault| fault.kind == Kind::Step) {
            assert!((1000..=600_000).contains(&step.amount.unsigned_abs()), "{step:?}");
            numbers.insert(step.nodes.len());
            (ahead, back) = (ahead + usize::from(step.amount > 0), back + usize::from(step.amount < 0));
            beside += usize::from(!disturbed(&plan, step.at).0.is_empty());
        }
    }
    assert_eq!(numbers, (1..=5).collect());
    assert!(ahead > 50 && back > 50 && beside > 50, "{ahead} ahead, {back} back, {beside} beside other faults");
}

#[test]
fn clock_steps_never_overlap_and_far_ones_ahead_hit_one_node() {
    for seed in 0..100 {
        let plan = Plan::new(&settings(seed, 5));
        let steps: Vec<&Fault> = plan.faults.iter().filter(|fault| fault.kind == Kind::Step).collect();
        for pair in steps.windows(2) {
            assert!(pair[1].at >= pair[0].ends(), "seed {seed}: {pair:?}");
        }
        for step in steps {
            let is_far = step.amount.unsigned_abs() > LARGEST_HARMLESS_STEP_MS;
            assert!(!is_far || step.amount < 0 || step.nodes.len() == 1, "seed {seed}: {step:?}");
            assert_eq!(is_far, step.scale != Scale::Harmless, "seed {seed}: {step:?}");
        }
    }
}

#[test]
fn all_clocks_go_ahead_once_and_stay_ahead() {
    for seed in 0..50 {
        let plan = Plan::new(&settings(seed, 5));
        let leaps: Vec<&Fault> = plan.faults.iter().filter(|fault| fault.kind == Kind::Leap).collect();
        let [leap] = leaps[..] else { panic!("seed {seed}: {leaps:?}") };
        assert_eq!((leap.nodes.len(), leap.amount), (5, 600_000));
    }
}

#[test]
fn no_clock_is_set_during_a_client_pause_of_its_server() {
    let mut pauses = 0;
    for (seed, nodes) in (0..100).flat_map(|seed| [3, 5, 7].map(|nodes| (seed, nodes))) {
        let plan = Plan::new(&settings(seed, nodes));
        for pause in plan.faults.iter().filter(|fault| fault.kind == Kind::ClientPause) {
            pauses += 1;
            for step in plan.faults.iter().filter(|fault| fault.kind.sets_clocks()) {
                let shared = step.nodes.iter().any(|node| pause.nodes.contains(node));
                let during = |at: u64| (pause.at.saturating_sub(400)..=pause.ends() + 100).contains(&at);
                let is_set = during(step.at) || (step.kind == Kind::Step && during(step.ends()));
                assert!(!(shared && is_set), "seed {seed}, {nodes} nodes: {pause:?}, {step:?}");
            }
        }
    }
    assert!(pauses > 300);
}

#[test]
fn a_replica_copies_another_node_that_is_well() {
    for nodes in [3, 5] {
        for seed in 0..50 {
            let plan = Plan::new(&settings(seed, nodes));
            for fault in plan.faults.iter().filter(|fault| fault.kind.copies()) {
                let source = fault.source.expect("a source");
                assert!(source < nodes && !fault.nodes.contains(&source), "{fault:?}");
                // In an outage, the links of the other node may be cut.
                let is_well = !disturbed(&plan, fault.at).0.contains(&source);
                assert!(is_well || fault.scale == Scale::Majority, "seed {seed}: {fault:?}");
            }
        }
    }
}

#[test]
fn every_kind_has_its_own_name_and_description() {
    let names: BTreeSet<String> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let words: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.words()).collect();
    assert_eq!((names.len(), words.len()), (Kind::ALL.len(), Kind::ALL.len()));
    for name in ["flush", "swap", "replica", "promote", "replace", "step", "leap"] {
        assert!(names.contains(name), "{name}");
    }
    let script = include_str!("../report/report.js");
    for name in names {
        assert!(script.contains(&format!("{name}: \"")), "the report does not know {name}");
    }
}

#[test]
fn rates_stay_within_the_drift_allowance() {
    for seed in 0..50 {
        for fault in Plan::new(&settings(seed, 5)).faults.iter().filter(|fault| fault.kind == Kind::ClockRate) {
            assert!(fault.amount.unsigned_abs() <= nodes::LARGEST_RATE_PPM, "{fault:?}");
        }
    }
}

#[test]
fn without_the_clock_library_no_clock_is_set() {
    let plan = Plan::new(&Settings { clocks: false, ..settings(1, 5) });
    assert!(plan.faults.iter().all(|fault| !fault.kind.is_of_clocks()));
}
