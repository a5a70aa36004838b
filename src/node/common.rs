//! What the nodes of one client must know of each other and of the client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clocks::NodeClocks;
use super::health::{CHANGING, Health};
use crate::environment::Environment;
use crate::error::NodeError;
use crate::hearing::Hearing;
use crate::life::Life;
use crate::protocol::{Newcomer, Record, Wall, difference, quorum};
use crate::sync::locked;
use crate::ticket::Tickets;

/// What is known of the server at one place of the node list.
#[derive(Clone, Debug)]
struct Claim {
    name: Arc<str>,
    run_id: String,
    /// Of its record.
    word: Option<u64>,
    cluster: Option<u64>,
    /// Why it cannot be part of this list.
    conflict: Option<NodeError>,
}

#[derive(Debug)]
pub(crate) struct Common {
    environment: Arc<dyn Environment>,
    pub(crate) life: Life,
    wall: Mutex<Wall>,
    /// How long a round waits for an answer.
    pub(crate) timeout: Duration,
    /// How far ballots may lie from a node's clock, where no client has said so before.
    pub(crate) window: Duration,
    /// This client's own lease: others may have such, too.
    usual_lease: Duration,
    /// The longest lease that this client was granted, or told of by its user, in µs.
    used_lease: AtomicU64,
    /// The longest lease that the nodes have told of, in µs.
    learnt_lease: AtomicU64,
    /// The shortest that any of them has told of as its longest.
    least_learnt: AtomicU64,
    claims: Mutex<Vec<Option<Claim>>>,
    has_conflict: AtomicBool,
    /// How many conflicts were found so far.
    conflicts: AtomicU64,
    /// The key that says how many nodes the list of this client's prefix has.
    pub(crate) list_key: Vec<u8>,
    /// Random: names this client in its shares, and the channel on which nodes call it.
    pub(crate) client: u64,
    /// The requests that nodes may call.
    pub(crate) tickets: Arc<Tickets>,
    /// By node, how long the end of a program may wait for it, in µs.
    last_waits: Vec<AtomicU64>,
    pub(crate) hearing: Hearing,
    pub(crate) clocks: NodeClocks,
}

impl Common {
    pub(crate) fn new(
        environment: Arc<dyn Environment>,
        nodes: usize,
        list_key: Vec<u8>,
        timeout: Duration,
        window: Duration,
        usual_lease: Duration,
    ) -> Self {
        let wall = Wall::new(environment.now(), wall_micros(environment.as_ref()));
        let client = random(environment.as_ref());
        Self {
            environment,
            life: Life::new(),
            wall: Mutex::new(wall),
            timeout,
            window,
            usual_lease,
            used_lease: AtomicU64::new(0),
            learnt_lease: AtomicU64::new(0),
            least_learnt: AtomicU64::new(u64::MAX),
            claims: Mutex::new(vec![None; nodes]),
            has_conflict: AtomicBool::new(false),
            conflicts: AtomicU64::new(0),
            list_key,
            client,
            tickets: Arc::default(),
            last_waits: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            hearing: Hearing::new(nodes),
            clocks: NodeClocks::new(nodes),
        }
    }

    /// The runtime of the client has ended, or the client has.
    pub(super) fn end_of_runtime(&self) {
        self.environment.runtime_has_ended();
        self.life.end();
    }

    /// The wall clock in µs, as it ran on from when the client was made.
    pub(crate) fn wall(&self) -> u64 {
        let shown = wall_micros(self.environment.as_ref());
        locked(&self.wall).read(self.environment.now(), shown, self.longest_lease().max(self.usual_lease))
    }

    /// A node's clock shows this, in µs, if it shows anything.
    pub(super) fn sees_clock(&self, node: usize, shown: Option<u64>) {
        if let Some(micros) = shown {
            self.clocks.saw(node, self.ahead_of_monotonic(micros));
        }
    }

    /// How far a clock that shows this now is ahead of the monotonic one, in µs.
    pub(super) fn ahead_of_monotonic(&self, clock_micros: u64) -> i64 {
        difference(self.environment.now(), clock_micros)
    }

    /// This client was granted a lease of this length, or was told that others are.
    pub(crate) fn use_lease(&self, lease: Duration) {
        self.used_lease.fetch_max(micros(lease), Ordering::SeqCst);
    }

    /// A node's record says that a lease of this length has been in use.
    pub(super) fn learn_lease(&self, longest: Duration) {
        self.least_learnt.fetch_min(micros(longest), Ordering::SeqCst);
        self.learnt_lease.fetch_max(micros(longest), Ordering::SeqCst);
    }

    /// The longest lease in use, as far as the nodes have said.
    pub(crate) fn learnt_lease(&self) -> Duration {
        Duration::from_micros(self.learnt_lease.load(Ordering::SeqCst))
    }

    /// Has any node told of shorter leases than another one?
    pub(crate) fn nodes_differ_on_leases(&self) -> bool {
        self.least_learnt.load(Ordering::SeqCst) < self.learnt_lease.load(Ordering::SeqCst)
    }

    /// The longest lease in use, as far as this client knows.
    pub(super) fn longest_lease(&self) -> Duration {
        Duration::from_micros(self.used_lease.load(Ordering::SeqCst)).max(self.learnt_lease())
    }

    /// A node may still hear of what it has not answered: so long does that take, at most. Zero while it cannot be reached.
    pub(super) fn waits_for(&self, index: usize, time: Duration) {
        self.last_waits[index].store(micros(time), Ordering::Relaxed);
    }

    /// How long the end of a program may wait for this node, when a majority has answered.
    pub(crate) fn last_wait(&self, index: usize) -> Duration {
        Duration::from_micros(self.last_waits[index].load(Ordering::Relaxed))
    }

    /// What this client brings along to a node.
    pub(super) fn newcomer(&self, index: usize) -> Newcomer {
        Newcomer {
            word: random(self.environment.as_ref()),
            longest: self.longest_lease().max(self.usual_lease),
            proven: self.longest_lease(),
            window: self.window,
            wall: self.wall() / 1000,
            cluster: self.cluster_of_others(index),
        }
    }

    /// The cluster that a majority of the list is part of, this node left out.
    fn cluster_of_others(&self, index: usize) -> Option<u64> {
        let claims = locked(&self.claims);
        let mut counts: HashMap<u64, usize> = HashMap::new();
        let others = claims.iter().enumerate().filter(|(i, _)| *i != index);
        for cluster in others.filter_map(|(_, claim)| claim.as_ref()?.cluster) {
            *counts.entry(cluster).or_default() += 1;
        }
        counts.into_iter().find(|(_, count)| *count >= quorum(claims.len())).map(|(cluster, _)| cluster)
    }

    /// Records the server at `index`. Gives the number of nodes that is to be written there as the list's, if it is.
    ///
    /// # Errors
    ///
    /// Why it cannot be part of this list, or has no vote yet.
    pub(super) fn claim(&self, index: usize, name: &Arc<str>, health: &Health) -> Result<Option<usize>, NodeError> {
        let mut claims = locked(&self.claims);
        let before = claims[index].take().and_then(|claim| claim.conflict);
        let cluster = health.record.as_ref().and_then(|(_, record)| record.cluster);
        let conflict = {
            let others = || claims.iter().flatten();
            let same = others().find(|claim| claim.run_id == health.run_id);
            let apart = others().find(|claim| claim.cluster.zip(cluster).is_some_and(|(a, b)| a != b));
            match (same, health.listed, apart) {
                (Some(same), _, _) => Some(NodeError::SameServer(same.name.to_string())),
                (_, Some(CHANGING..), _) => Some(NodeError::ListChanging),
                (_, Some(theirs), _) if theirs != claims.len() => {
                    Some(NodeError::OtherList { ours: claims.len(), theirs })
                }
                (_, _, Some(other)) => Some(NodeError::OtherCluster { other: other.name.to_string() }),
                _ => None,
            }
        };
        let run_id = health.run_id.clone();
        let is_deployment = matches!(
            conflict,
            Some(NodeError::OtherList { .. } | NodeError::OtherCluster { .. } | NodeError::ListChanging)
        );
        if conflict.is_none() || is_deployment {
            let word = health.record.as_ref().map(|(_, record)| record.word);
            claims[index] = Some(Claim { name: Arc::clone(name), run_id, word, cluster, conflict: conflict.clone() });
        }
        if is_deployment && conflict != before {
            self.conflicts.fetch_add(1, Ordering::SeqCst);
        }
        self.look_for_conflicts(&claims);
        match conflict {
            Some(conflict) => Err(conflict),
            None if health.listed.is_some() => Ok(None),
            // The others may know of another list. A majority of them would, and then this client's is written nowhere.
            None if agreeing(&claims) >= quorum(claims.len()) => Ok(Some(claims.len())),
            None => Err(NodeError::Unlisted),
        }
    }

    /// Another node has the same record: this one was its replica, and has its data.
    pub(super) fn is_copy(&self, index: usize, record: &Record) -> bool {
        let claims = locked(&self.claims);
        let mut others = claims.iter().enumerate().filter(|(i, _)| *i != index);
        others.any(|(_, claim)| claim.as_ref().is_some_and(|claim| claim.word == Some(record.word)))
    }

    /// The server at `index` cannot be reached: what was in the way of the list may have been mended by taking it away.
    pub(super) fn unclaim(&self, index: usize) {
        let mut claims = locked(&self.claims);
        if claims[index].as_ref().is_some_and(|claim| claim.conflict.is_some()) {
            claims[index] = None;
            self.look_for_conflicts(&claims);
        }
    }

    fn look_for_conflicts(&self, claims: &[Option<Claim>]) {
        let has_conflict = claims.iter().flatten().any(|claim| claim.conflict.is_some());
        self.has_conflict.store(has_conflict, Ordering::SeqCst);
    }

    /// Grows with each conflict that is found. What an older connection knows of its node may be what is wrong.
    pub(super) fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::SeqCst)
    }

    /// Why this client acquires nothing at all: its list is not that of its nodes.
    pub(super) fn conflict(&self, index: usize) -> Option<NodeError> {
        if !self.has_conflict.load(Ordering::SeqCst) {
            return None;
        }
        let claims = locked(&self.claims);
        let own = claims[index].as_ref().and_then(|claim| claim.conflict.clone());
        let other = || claims.iter().flatten().find(|claim| claim.conflict.is_some());
        own.or_else(|| other().map(|claim| NodeError::NotAsked { node: claim.name.to_string() }))
    }
}

/// How many nodes are known to have nothing against this client's list.
fn agreeing(claims: &[Option<Claim>]) -> usize {
    claims.iter().flatten().filter(|claim| claim.conflict.is_none()).count()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn wall_micros(environment: &dyn Environment) -> u64 {
    u64::try_from(environment.wall().as_micros()).unwrap_or(u64::MAX)
}

fn random(environment: &dyn Environment) -> u64 {
    let mut bytes = [0; 8];
    environment.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
