//! The settings of a run, which the seed decides in advance.

use std::time::Duration;

use quorlock_testkit::rng::Rng;

use crate::time::micros;
use quorlock_testkit::node::rules::Rules;

/// The deliberate defect of a run: none, or one that the judges must detect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Broken {
    pub rules: Rules,
    /// A crashed node comes back empty at once, and is declared as new.
    pub forgets_at_once: bool,
    /// The client's monotonic clock is a wall clock that is set back.
    pub clock_is_set_back: bool,
    /// Two answers of a node are swapped.
    pub swaps_answers: bool,
    /// Not broken: nodes' clocks step, in every run.
    pub steps_clocks: bool,
    /// Not broken: nodes lose their memory, in every run.
    pub forgets: bool,
}

/// The behaviour of the clocks. All invariants must hold for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// Nodes' clocks keep their rates within the drift allowance, up to its edge, and a step never shortens a lease. Clients'
    /// wall clocks are minutes apart.
    Sound,
    /// Nodes' clocks step as they like, any number of them, also under leases. Clients' wall clocks agree within the drift.
    Stepping,
}

/// How fast clocks run, in ppm of true time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rates {
    /// All equal: if wall clocks agree too, two clients that begin at the same moment propose the same ballot.
    Equal,
    /// As far apart as the drift allowance (1 %) permits, in the worst way: clients believe in their leases for long, and nodes
    /// end them soon.
    Edge,
    Random,
}

impl Rates {
    const MOST: u64 = 4_000;
    const EDGE: i64 = 4_900;

    fn of_a_node(self, rng: &mut Rng) -> i64 {
        match self {
            Self::Equal => 0,
            Self::Edge => Self::EDGE,
            Self::Random => rng.signed(Self::MOST),
        }
    }

    fn of_a_client(self, rng: &mut Rng) -> i64 {
        match self {
            Self::Equal => 0,
            Self::Edge => -Self::EDGE,
            Self::Random => rng.signed(Self::MOST),
        }
    }
}

/// How clients know of the longest lease of all, which a node may have forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Longest {
    /// It is in the settings of all. Any number of nodes may forget at any time.
    Told,
    /// They learn of it from the nodes. One node forgets within two leases.
    Learnt,
    /// The same, but now and then a lease is much longer than all before, and a node forgets it at once. No other fault happens in these
    /// runs, but that the holder does not reach one more node, and stops.
    Grows,
}

#[derive(Clone, Debug)]
pub struct ClientPlan {
    pub lease: Duration,
    pub node_timeout: Option<Duration>,
    pub extends: bool,
    pub actors: usize,
    pub ppm: i64,
    pub skew_us: i64,
    /// Its clocks are off by a millisecond at most, at whichever rate.
    pub bounded: bool,
}

#[derive(Clone, Debug)]
pub struct NodeClock {
    pub offset_us: i64,
    pub ppm: i64,
    /// Hours off: such a node refuses every client.
    pub useless: bool,
    /// Its append-only file keeps every vote.
    pub durable: bool,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub broken: Broken,
    pub nodes: Vec<NodeClock>,
    pub clients: Vec<ClientPlan>,
    pub resources: usize,
    pub clocks: Clocks,
    /// Some nodes lose their memory, or fall back to an older one. Wall clocks agree in these runs, because a forgotten ballot is
    /// replaced by nothing but the wall clock.
    pub forgetful: bool,
    pub longest: Longest,
    /// How long nodes remember ballots. Half of it is how far a ballot may be from a node's clock.
    pub ballot_ttl: Duration,
    /// The servers have just been started; declared new or not.
    pub young: bool,
    pub declared_new: bool,
    pub safety: Duration,
    pub latency_us: (u64, u64),
    pub late: f64,
    pub lost: f64,
    pub split: f64,
    /// The mean time between two faults that the simulation causes.
    pub faults_every: Duration,
}

/// The lease of all clients where leases grow.
const SHORT_LEASE: Duration = Duration::from_millis(500);

const MINUTE_US: u64 = 60_000_000;

/// Clients and nodes are never further apart than ballots may be, unless a plan says so.
fn furthest_skew(ballot_ttl: Duration) -> u64 {
    micros(ballot_ttl) * 3 / 20
}

impl Plan {
    pub fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = Rng::new(seed, 1);
        let count = rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 7]);
        let forgetful = rng.chance(0.3) || broken.forgets_at_once || broken.forgets;
        let stepping = rng.chance(0.4) || broken.steps_clocks;
        let skewed = !forgetful && rng.chance(0.5);
        let rates = match rng.between(0..10) {
            0 => Rates::Equal,
            1 | 2 => Rates::Edge,
            _ => Rates::Random,
        };
        // Short enough that ballots are forgotten and asked for again within a run.
        let mut of_memory = Rng::new(seed, 4);
        let ballot_ttl = Duration::from_secs(if of_memory.chance(0.4) { 60 } else { 600 });
        let furthest = furthest_skew(ballot_ttl);
        let skew = |rng: &mut Rng| if skewed { rng.signed(furthest) } else { 0 };
        let mut nodes: Vec<NodeClock> = (0..count)
            .map(|_| NodeClock {
                offset_us: skew(&mut rng),
                ppm: rates.of_a_node(&mut rng),
                useless: false,
                durable: rng.chance(0.3),
            })
            .collect();
        if skewed && rng.chance(0.3) {
            let minority = (count - 1) / 2;
            for node in nodes.iter_mut().take(minority) {
                node.offset_us = rng.pick(&[-1, 1]) * rng.between(100 * MINUTE_US..300 * MINUTE_US).cast_signed();
                node.useless = true;
            }
        }
        let slow = rng.chance(0.15);
        let leases = if slow {
            [1500, 2000, 3000]
        } else {
            rng.pick(&[[300, 500, 1000], [1000, 2000, 3000], [400, 1500, 5000], [2000, 2000, 2000]])
        };
        let client = |rng: &mut Rng| {
            let lease = Duration::from_millis(rng.pick(&leases));
            ClientPlan {
                lease,
                node_timeout: (!slow && rng.chance(0.3))
                    .then(|| lease / u32::try_from(rng.between(3..12)).unwrap_or(4)),
                extends: rng.chance(if rates == Rates::Edge { 0.5 } else { 0.75 }),
                actors: rng.pick(&[1, 2, 3, 6]),
                ppm: rates.of_a_client(rng),
                skew_us: if skewed && !stepping { rng.signed(furthest) } else { 0 },
                bounded: stepping,
            }
        };
        let mut clients: Vec<ClientPlan> = (0..rng.between(2..6)).map(|_| client(&mut rng)).collect();
        if skewed && !stepping {
            for client in &mut clients {
                if !of_memory.chance(0.2) {
                    continue;
                }
                // Further behind than ballots may be.
                client.skew_us = -of_memory.between(2 * furthest..20 * furthest).cast_signed();
            }
        }
        let mut of_leases = Rng::new(seed, 5);
        let longest = match of_leases.between(0..10) {
            0..4 if forgetful && count > 2 => Longest::Grows,
            0..7 if count > 2 => Longest::Learnt,
            _ => Longest::Told, // When the only node loses its memory, no other node has the longest lease.
        };
        let faulty = if longest == Longest::Grows { 0.0 } else { 1.0 };
        if longest == Longest::Grows {
            clients.iter_mut().for_each(|client| (client.lease, client.node_timeout) = (SHORT_LEASE, None));
        }
        Self {
            seed,
            broken,
            nodes,
            clients,
            resources: rng.pick(&[1, 2, 3, 4, 6]),
            clocks: if stepping { Clocks::Stepping } else { Clocks::Sound },
            forgetful,
            longest,
            ballot_ttl,
            young: rng.chance(0.3),
            declared_new: rng.chance(0.5),
            safety: Duration::from_secs(rng.between(20..60)),
            latency_us: if slow { (1_000, rng.between(10_000..40_000)) } else { (50, rng.between(200..4_000)) },
            late: faulty * rng.pick(&[0.0, 0.01, 0.05, 0.15]),
            lost: faulty * rng.pick(&[0.0, 0.001, 0.005, 0.02]),
            split: rng.pick(&[0.0, 0.02, 0.1]),
            faults_every: Duration::from_millis(rng.pick(&[60, 150, 400, 1500])),
        }
    }

    /// Returns the text for the head of a trace.
    pub fn described(&self) -> String {
        let skewed = self.has_skewed_clients();
        format!(
            "seed {}: {} nodes ({} with a useless clock, {} durable), {} clients, {} resources, clocks {:?}, skewed {skewed}, \
             forgetful {}, longest lease {:?}, ballots kept for {:?}, latency {:?} us, late {}, lost {}, leases {:?}",
            self.seed,
            self.nodes.len(),
            self.nodes.iter().filter(|node| node.useless).count(),
            self.nodes.iter().filter(|node| node.durable).count(),
            self.clients.len(),
            self.resources,
            self.clocks,
            self.forgetful,
            self.longest,
            self.ballot_ttl,
            self.latency_us,
            self.late,
            self.lost,
            self.clients.iter().map(|client| client.lease).collect::<Vec<_>>(),
        )
    }

    /// Returns whether the wall clocks of clients differ by more than the drift.
    pub fn has_skewed_clients(&self) -> bool {
        self.clients.iter().any(|client| client.skew_us != 0)
    }

    pub fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// Returns how long the clock of a crashed holder may delay a client beyond the lease.
    pub fn behind(&self, longest: Duration) -> Duration {
        if self.has_skewed_clients() { longest } else { Duration::ZERO }
    }

    /// Returns how far the clock of a client or node is off, in µs, unless the plan says that it is further.
    pub fn furthest_skew(&self) -> u64 {
        furthest_skew(self.ballot_ttl)
    }

    /// Returns how many nodes may fail beside the useless ones.
    pub fn spare(&self) -> usize {
        (self.nodes.len() - self.quorum()) - self.nodes.iter().filter(|node| node.useless).count()
    }

    /// Returns the longest lease that any client requests.
    pub fn longest_lease(&self) -> Duration {
        self.clients.iter().map(|client| client.lease).max().unwrap_or_default()
    }

    pub fn longest_latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.1)
    }
}
