//! The figures of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::invariant::{Checks, Invariant};

macro_rules! faults {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// The faults that the simulation causes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($kind),* }

        impl Fault {
            pub const NAMES: &[&str] = &[$($name),*];
        }
    };
}

faults! {
    LostRequest = "lost request",
    LostReply = "applied, reply lost",
    LateRequest = "late request",
    LateReply = "late reply",
    Reorder = "reordered by a reconnect",
    SplitFrame = "split frame",
    Reset = "connection reset",
    ConnectRefused = "connection refused",
    Partition = "partition",
    OneWayPartition = "one-way partition",
    NodePause = "node pause",
    NodeCrash = "node crash, memory kept",
    NodeAmnesia = "node crash, memory lost",
    NodeOlder = "node crash, older state",
    NodeFlush = "node flushed",
    NodeReplica = "node became a replica and a master again",
    NodeReplace = "another node behind the address",
    NodeLoading = "node answers with errors",
    NodeClockStep = "node clock step",
    AllClocksStep = "all node clocks step",
    NodeClockLeap = "node clock leap of hours, and back",
    NodeClockRate = "node clock rate",
    ScriptFlush = "scripts flushed",
    ClientPause = "client pause",
    ClientCrash = "client crash",
    ClientClockRate = "client clock rate",
    ClientClockStep = "client wall clock step",
    DroppedFuture = "dropped future",
    IdleFuture = "future left alone",
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub seeds: u64,
    pub simulated_us: u64,
    pub commands: u64,
    pub faults: [u64; Fault::NAMES.len()],
    pub grants: u64,
    pub reentries: u64,
    pub joins: u64,
    pub extensions: u64,
    pub releases: u64,
    pub losses: u64,
    pub refusals: u64,
    pub revocations: u64,
    pub writes: u64,
    pub stale_writes_rejected: u64,
    pub checks: Checks,
}

impl Figures {
    pub fn fault(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated_us += other.simulated_us;
        self.commands += other.commands;
        self.faults.iter_mut().zip(other.faults).for_each(|(mine, theirs)| *mine += theirs);
        self.grants += other.grants;
        self.reentries += other.reentries;
        self.joins += other.joins;
        self.extensions += other.extensions;
        self.releases += other.releases;
        self.losses += other.losses;
        self.refusals += other.refusals;
        self.revocations += other.revocations;
        self.writes += other.writes;
        self.stale_writes_rejected += other.stale_writes_rejected;
        self.checks.add(&other.checks);
    }

    pub fn simulated_hours(&self) -> f64 {
        self.simulated_us as f64 / 3.6e9
    }

    pub fn all_faults(&self) -> u64 {
        self.faults.iter().sum()
    }

    fn counts(&self) -> [(&'static str, u64); 10] {
        [
            ("grants", self.grants),
            ("reentries", self.reentries),
            ("joins", self.joins),
            ("extensions", self.extensions),
            ("releases", self.releases),
            ("losses", self.losses),
            ("refusals", self.refusals),
            ("revocations", self.revocations),
            ("fenced_writes", self.writes),
            ("stale_writes_rejected", self.stale_writes_rejected),
        ]
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| writeln!(text, "{name:>28}  {value:>14}").expect("a string");
        row("seeds", grouped(self.seeds));
        row("simulated hours", format!("{:.1}", self.simulated_hours()));
        row("commands", grouped(self.commands));
        for (name, count) in self.counts() {
            row(&name.replace('_', " "), grouped(count));
        }
        row("faults", grouped(self.all_faults()));
        for (name, count) in Fault::NAMES.iter().zip(self.faults) {
            row(name, grouped(count));
        }
        text
    }

    /// Returns one JSON object, with `violations` by invariant and the results of `controls`.
    pub fn json(&self, violations: &BTreeMap<Invariant, u64>, controls: &str) -> String {
        let mut text = String::from("{");
        write!(text, "\"seeds\":{},\"simulated_hours\":{:.3},", self.seeds, self.simulated_hours()).expect("a string");
        write!(text, "\"commands\":{},\"faults\":{{", self.commands).expect("a string");
        let object = |pairs: Vec<(String, u64)>| {
            let pairs = pairs.into_iter().map(|(name, count)| format!("\"{name}\":{count}"));
            pairs.collect::<Vec<_>>().join(",")
        };
        let faults = Fault::NAMES.iter().zip(self.faults).map(|(name, count)| ((*name).to_owned(), count));
        write!(text, "{}}},", object(faults.collect())).expect("a string");
        for (name, count) in self.counts() {
            write!(text, "\"{name}\":{count},").expect("a string");
        }
        let checks = Invariant::ALL.map(|invariant| (invariant.to_string(), self.checks.of(invariant)));
        write!(text, "\"checks\":{{{}}},", object(checks.into())).expect("a string");
        let violations = violations.iter().map(|(invariant, count)| (invariant.to_string(), *count));
        write!(text, "\"violations\":{{{}}},", object(violations.collect())).expect("a string");
        write!(text, "\"controls\":{controls}}}").expect("a string");
        text
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for chunk in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(chunk.iter().map(|byte| char::from(*byte)));
    }
    text
}
