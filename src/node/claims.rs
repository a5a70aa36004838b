//! Which server stands at which place of the node list: each at one place only, and all of one list and one cluster.

use std::collections::HashMap;
use std::sync::Arc;

use super::health::{CHANGING, Health};
use crate::error::NodeError;
use crate::protocol::{Record, quorum};

/// What is known of one server.
#[derive(Clone, Debug)]
struct Claim {
    name: Arc<str>,
    /// `None` once the server cannot be reached any more.
    run_id: Option<String>,
    /// Of its record.
    word: Option<u64>,
    cluster: Option<u64>,
    /// Why it cannot be part of this list.
    conflict: Option<NodeError>,
}

/// One place of the node list. An attempt to connect may reach another server than the connection that is in use: it changes
/// nothing of what is known of that one.
#[derive(Debug, Default)]
struct Place {
    is_connected: bool,
    /// The server of the connection in use, or of the last one.
    connected: Option<Claim>,
    /// The server that the latest attempt reached.
    attempted: Option<Claim>,
}

impl Place {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.connected.iter().chain(&self.attempted)
    }

    fn conflict(&self) -> Option<&NodeError> {
        self.claims().find_map(|claim| claim.conflict.as_ref())
    }

    /// Is it known to have nothing against this client's list?
    fn agrees(&self) -> bool {
        self.claims().next().is_some() && self.conflict().is_none()
    }
}

/// What a server is to be told of the list that it is part of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Nothing: it knows.
    Known,
    /// The number of nodes.
    Write(usize),
}

#[derive(Debug)]
pub(super) struct Claims {
    places: Vec<Place>,
    /// How many conflicts were found so far.
    pub(super) conflicts: u64,
}

impl Claims {
    pub(super) fn new(nodes: usize) -> Self {
        Self { places: std::iter::repeat_with(Place::default).take(nodes).collect(), conflicts: 0 }
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &Claim> {
        let places = self.places.iter().enumerate().filter(move |(place, _)| *place != index);
        places.flat_map(|(_, place)| place.claims())
    }

    /// Records the server that an attempt has reached.
    ///
    /// # Errors
    ///
    /// Why it cannot be part of this list, or has no vote yet.
    pub(super) fn attempt(&mut self, index: usize, name: &Arc<str>, health: &Health) -> Result<Listing, NodeError> {
        let nodes = self.places.len();
        let place = &mut self.places[index];
        let before = place.attempted.take().and_then(|claim| claim.conflict);
        if !place.is_connected {
            place.connected = None;
        }
        let cluster = health.record.as_ref().and_then(|(_, record)| record.cluster);
        let same = self.others(index).find(|claim| claim.run_id.as_ref() == Some(&health.run_id));
        let apart = self.others(index).find(|claim| claim.cluster.zip(cluster).is_some_and(|(a, b)| a != b));
        let conflict = match (same, health.listed, apart) {
            (Some(same), _, _) => return Err(NodeError::SameServer(same.name.to_string())),
            (_, Some(CHANGING..), _) => Some(NodeError::ListChanging),
            (_, Some(theirs), _) if theirs != nodes => Some(NodeError::OtherList { ours: nodes, theirs }),
            (_, _, Some(other)) => Some(NodeError::OtherCluster { other: other.name.to_string() }),
            _ => None,
        };
        self.places[index].attempted = Some(Claim {
            name: Arc::clone(name),
            run_id: Some(health.run_id.clone()),
            word: health.record.as_ref().map(|(_, record)| record.word),
            cluster,
            conflict: conflict.clone(),
        });
        if conflict.is_some() && conflict != before {
            self.conflicts += 1;
        }
        match conflict {
            Some(conflict) => Err(conflict),
            None if health.listed.is_some() => Ok(Listing::Known),
            // The others may know of another list. A majority of them would, and then this client's is written nowhere.
            None if self.places.iter().filter(|place| place.agrees()).count() >= quorum(nodes) => {
                Ok(Listing::Write(nodes))
            }
            None => Err(NodeError::Unlisted),
        }
    }

    /// The connection of the latest attempt is used from now on.
    pub(super) fn connected(&mut self, index: usize) {
        let place = &mut self.places[index];
        (place.connected, place.is_connected) = (place.attempted.take(), true);
    }

    /// The connection in use has ended.
    pub(super) fn disconnected(&mut self, index: usize) {
        self.places[index].is_connected = false;
    }

    /// The latest attempt is over, and its connection, if any, is not used.
    pub(super) fn abandoned(&mut self, index: usize) {
        let place = &mut self.places[index];
        if place.is_connected && place.conflict().is_none() {
            place.attempted = None;
        }
    }

    /// No server can be reached there: it is at no place now, and what was in the way of the list may have been mended by taking
    /// it away.
    pub(super) fn unreachable(&mut self, index: usize) {
        let place = &mut self.places[index];
        for claim in [&mut place.connected, &mut place.attempted] {
            claim.take_if(|claim| claim.conflict.is_some());
            if let Some(claim) = claim {
                claim.run_id = None;
            }
        }
    }

    /// Does another node have this record? Then this one was its replica, and has its data.
    pub(super) fn is_copy(&self, index: usize, record: &Record) -> bool {
        self.others(index).any(|claim| claim.word == Some(record.word))
    }

    /// The cluster that a majority of the list is part of, this node left out.
    pub(super) fn cluster_of_others(&self, index: usize) -> Option<u64> {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        let others = self.places.iter().enumerate().filter(|(place, _)| *place != index);
        for cluster in others.filter_map(|(_, place)| place.claims().next()?.cluster) {
            *counts.entry(cluster).or_default() += 1;
        }
        counts.into_iter().find(|(_, count)| *count >= quorum(self.places.len())).map(|(cluster, _)| cluster)
    }

    pub(super) fn has_conflict(&self) -> bool {
        self.places.iter().any(|place| place.conflict().is_some())
    }

    /// Why this client acquires nothing at all: its list is not that of its nodes.
    pub(super) fn conflict(&self, index: usize) -> Option<NodeError> {
        let other = || self.places.iter().flat_map(Place::claims).find(|claim| claim.conflict.is_some());
        let own = self.places[index].conflict().cloned();
        own.or_else(|| other().map(|claim| NodeError::NotAsked { node: claim.name.to_string() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Process;

    fn server(run_id: &str, listed: Option<usize>) -> Health {
        let process = Process::new(run_id, 0, false, false);
        Health { run_id: run_id.to_owned(), process, record: None, listed, clock: 0 }
    }

    fn name(index: usize) -> Arc<str> {
        format!("node {index}").into()
    }

    /// Three places, with a connection in use to a server of its own at each.
    fn three() -> Claims {
        let mut claims = Claims::new(3);
        for (index, run_id) in ["a", "b", "c"].into_iter().enumerate() {
            claims.attempt(index, &name(index), &server(run_id, Some(3))).unwrap();
            claims.connected(index);
        }
        claims
    }

    fn attempt(claims: &mut Claims, index: usize, run_id: &str) -> Result<Listing, NodeError> {
        claims.attempt(index, &name(index), &server(run_id, Some(3)))
    }

    #[test]
    fn an_attempt_beside_a_connection_does_not_free_the_server_of_that_connection() {
        let mut claims = three();
        assert_eq!(attempt(&mut claims, 0, "b"), Err(NodeError::SameServer("node 1".to_owned())));
        assert_eq!(attempt(&mut claims, 0, "d"), Ok(Listing::Known));
        assert_eq!(attempt(&mut claims, 1, "a"), Err(NodeError::SameServer("node 0".to_owned())));
        assert_eq!(attempt(&mut claims, 1, "d"), Err(NodeError::SameServer("node 0".to_owned())));
        claims.abandoned(0);
        assert_eq!(attempt(&mut claims, 1, "a"), Err(NodeError::SameServer("node 0".to_owned())));
        assert_eq!(attempt(&mut claims, 1, "d"), Ok(Listing::Known), "the attempt that reached it is over");
    }

    #[test]
    fn a_server_may_change_its_place_when_its_old_place_has_no_connection() {
        let mut claims = three();
        claims.disconnected(0);
        claims.disconnected(1);
        assert!(attempt(&mut claims, 1, "a").is_err(), "place 0 may reach it again");
        assert_eq!(attempt(&mut claims, 0, "b"), Ok(Listing::Known));
        assert_eq!(attempt(&mut claims, 1, "a"), Ok(Listing::Known));
    }

    #[test]
    fn a_server_may_change_its_place_when_its_old_address_reaches_nothing() {
        let mut claims = three();
        claims.disconnected(0);
        claims.disconnected(1);
        claims.unreachable(0);
        assert_eq!(attempt(&mut claims, 1, "a"), Ok(Listing::Known));
        assert!(attempt(&mut claims, 0, "a").is_err());
    }

    #[test]
    fn a_conflict_stays_until_the_next_attempt() {
        let mut claims = three();
        let other = NodeError::OtherList { ours: 3, theirs: 5 };
        assert_eq!(claims.attempt(0, &name(0), &server("a", Some(5))), Err(other.clone()));
        claims.abandoned(0);
        assert_eq!(claims.conflict(0), Some(other));
        assert_eq!(claims.conflict(1), Some(NodeError::NotAsked { node: "node 0".to_owned() }));
        assert_eq!((claims.conflicts, claims.has_conflict()), (1, true));
        assert_eq!(attempt(&mut claims, 0, "a"), Ok(Listing::Known));
        assert!(!claims.has_conflict());
    }

    #[test]
    fn a_list_is_written_when_a_majority_knows_of_no_other() {
        let mut claims = Claims::new(3);
        assert_eq!(claims.attempt(0, &name(0), &server("a", None)), Err(NodeError::Unlisted));
        assert_eq!(claims.attempt(1, &name(1), &server("b", None)), Ok(Listing::Write(3)));
        assert_eq!(claims.attempt(0, &name(0), &server("a", None)), Ok(Listing::Write(3)));
    }
}
