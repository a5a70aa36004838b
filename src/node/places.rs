//! Which server stands at which place of the node list: each at one place only, and all of one list and one cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::health::{CHANGING, Health};
use crate::error::NodeError;
use crate::protocol::{Moment, quorum};

/// What is known of the server at one place.
#[derive(Clone, Debug)]
struct SeenServer {
    name: Arc<str>,
    run_id: String,
    /// It can be reached, as far as is known. Otherwise it is in the way of no other place.
    is_reachable: bool,
    /// Of its record.
    word: Option<u64>,
    /// Its record holds for its own process.
    has_own_record: bool,
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
    connected: Option<SeenServer>,
    /// The server that the latest attempt reached.
    attempted: Option<SeenServer>,
}

impl Place {
    fn servers(&self) -> impl Iterator<Item = &SeenServer> {
        self.connected.iter().chain(&self.attempted)
    }

    fn conflict(&self) -> Option<&NodeError> {
        self.servers().find_map(|server| server.conflict.as_ref())
    }

    /// Returns whether it is known to agree with this client's list.
    fn agrees(&self) -> bool {
        self.servers().next().is_some() && self.conflict().is_none()
    }
}

/// What is to be written to a server of the list that it is part of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Nothing: it knows.
    Known,
    /// The number of nodes.
    Write(usize),
}

/// A server whose connection has ended. A round that was begun before may count its vote at that place: it gets no vote at another
/// one until that round's lease is over.
#[derive(Debug)]
struct Departed {
    run_id: String,
    place: usize,
    name: Arc<str>,
    at: Moment,
}

/// How many are kept of one place at most: the latest. A server that is another one at every connection must not fill the memory.
const MOST_DEPARTED: usize = 64;

/// What is known of all places of the node list.
#[derive(Debug)]
pub(super) struct Places {
    by_index: Vec<Place>,
    departed: Vec<Departed>,
    /// How many conflicts were found so far.
    pub(super) conflicts: u64,
}

impl Places {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            by_index: std::iter::repeat_with(Place::default).take(nodes).collect(),
            departed: Vec::new(),
            conflicts: 0,
        }
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &SeenServer> {
        let places = self.by_index.iter().enumerate().filter(move |(place, _)| *place != index);
        places.flat_map(|(_, place)| place.servers())
    }

    /// Those of other places that can be reached.
    fn reachable(&self, index: usize) -> impl Iterator<Item = &SeenServer> {
        self.others(index).filter(|server| server.is_reachable)
    }

    /// Returns the name of another place at which this server is, or was when a lease began that may still be in force.
    fn place_of(&self, run_id: &str, index: usize) -> Option<&Arc<str>> {
        let stands = self.reachable(index).find(|server| server.run_id == run_id).map(|server| &server.name);
        let stood = || self.departed.iter().find(|departed| departed.run_id == run_id && departed.place != index);
        stands.or_else(|| stood().map(|departed| &departed.name))
    }

    /// Records the server that an attempt has reached. No lease is longer than `longest`.
    ///
    /// # Errors
    ///
    /// Why it cannot be part of this list, or has no vote yet.
    pub(super) fn attempt(
        &mut self,
        index: usize,
        name: &Arc<str>,
        health: &Health,
        (now, longest): (Moment, Duration),
    ) -> Result<Listing, NodeError> {
        self.departed.retain(|departed| now.since(departed.at) <= longest);
        let nodes = self.by_index.len();
        let place = &mut self.by_index[index];
        let before = place.attempted.take().and_then(|server| server.conflict);
        if !place.is_connected {
            place.connected = None;
        }
        let cluster = health.record.as_ref().and_then(|(_, record)| record.cluster);
        let same = self.place_of(&health.run_id, index);
        // A server that is refused itself is no reason to refuse the nodes of the list.
        let is_apart = |server: &&SeenServer| {
            server.conflict.is_none() && server.cluster.zip(cluster).is_some_and(|(a, b)| a != b)
        };
        let apart = self.reachable(index).find(is_apart);
        let conflict = match (same, health.listed, apart) {
            (Some(same), _, _) => return Err(NodeError::SameServer(same.to_string())),
            (_, Some(CHANGING..), _) => Some(NodeError::ListChanging),
            (_, Some(theirs), _) if theirs != nodes => Some(NodeError::OtherList { ours: nodes, theirs }),
            (_, _, Some(other)) => Some(NodeError::OtherCluster { other: other.name.to_string() }),
            _ => None,
        };
        self.by_index[index].attempted = Some(SeenServer {
            name: Arc::clone(name),
            run_id: health.run_id.clone(),
            is_reachable: true,
            word: health.record.as_ref().map(|(_, record)| record.word),
            has_own_record: health.has_own_record(),
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
            None if self.by_index.iter().filter(|place| place.agrees()).count() >= quorum(nodes) => {
                Ok(Listing::Write(nodes))
            }
            None => Err(NodeError::Unlisted),
        }
    }

    /// Notes that the connection of the latest attempt is used from now on.
    pub(super) fn connected(&mut self, index: usize) {
        let place = &mut self.by_index[index];
        (place.connected, place.is_connected) = (place.attempted.take(), true);
    }

    /// Notes that the connection in use has ended.
    pub(super) fn disconnected(&mut self, index: usize, now: Moment) {
        let place = &mut self.by_index[index];
        place.is_connected = false;
        if let Some(SeenServer { run_id, name, .. }) = &place.connected {
            self.departed.retain(|departed| (departed.run_id.as_str(), departed.place) != (run_id, index));
            let of_place = self.departed.iter().filter(|departed| departed.place == index).count();
            if of_place >= MOST_DEPARTED
                && let Some(oldest) = self.departed.iter().position(|departed| departed.place == index)
            {
                self.departed.remove(oldest);
            }
            let (run_id, name) = (run_id.clone(), Arc::clone(name));
            self.departed.push(Departed { run_id, place: index, name, at: now });
        }
    }

    /// Notes that the latest attempt is over, and that its connection, if any, is not used.
    pub(super) fn abandoned(&mut self, index: usize) {
        let place = &mut self.by_index[index];
        if place.is_connected && place.conflict().is_none() {
            place.attempted = None;
        }
    }

    /// Notes that no server can be reached at this place. A conflict that was found there is forgotten: it may have been mended by
    /// taking the server away.
    pub(super) fn unreachable(&mut self, index: usize) {
        let place = &mut self.by_index[index];
        for server in [&mut place.connected, &mut place.attempted] {
            server.take_if(|server| server.conflict.is_some());
            if let Some(server) = server {
                server.is_reachable = false;
            }
        }
    }

    /// Returns whether this server may have the data of another one, whose replica it was: that one has the same record. A record that
    /// holds for the one and not for the other shows which of them is the copy. Where it shows nothing, either may be.
    pub(super) fn is_copy(&self, index: usize, health: &Health) -> bool {
        let Some((_, record)) = &health.record else { return false };
        let same = |server: &&SeenServer| server.word == Some(record.word) && server.run_id != health.run_id;
        self.others(index).filter(same).any(|server| !health.has_own_record() || server.has_own_record)
    }

    /// Returns the cluster that a majority of the list is part of, without counting this node.
    pub(super) fn cluster_of_others(&self, index: usize) -> Option<u64> {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        let others = self.by_index.iter().enumerate().filter(|(place, _)| *place != index);
        for cluster in others.filter_map(|(_, place)| place.servers().next()?.cluster) {
            *counts.entry(cluster).or_default() += 1;
        }
        counts.into_iter().find(|(_, count)| *count >= quorum(self.by_index.len())).map(|(cluster, _)| cluster)
    }

    pub(super) fn has_conflict(&self) -> bool {
        self.by_index.iter().any(|place| place.conflict().is_some())
    }

    /// Returns why this client acquires nothing at all: its list is not that of its nodes.
    pub(super) fn conflict(&self, index: usize) -> Option<NodeError> {
        let other = || self.by_index.iter().flat_map(Place::servers).find(|server| server.conflict.is_some());
        let own = self.by_index[index].conflict().cloned();
        own.or_else(|| other().map(|server| NodeError::NotAsked { node: server.name.to_string() }))
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

    const LONGEST: Duration = Duration::from_secs(60);

    fn second(second: u64) -> Moment {
        Moment::new(Duration::from_secs(second))
    }

    /// Three places, with a connection in use to a server of its own at each.
    fn three() -> Places {
        let mut places = Places::new(3);
        for (index, run_id) in ["a", "b", "c"].into_iter().enumerate() {
            attempt(&mut places, 0, index, &server(run_id, Some(3))).unwrap();
            places.connected(index);
        }
        places
    }

    fn attempt(places: &mut Places, at: u64, index: usize, server: &Health) -> Result<Listing, NodeError> {
        places.attempt(index, &name(index), server, (second(at), LONGEST))
    }

    fn same_as(index: usize) -> Result<Listing, NodeError> {
        Err(NodeError::SameServer(name(index).to_string()))
    }

    #[test]
    fn an_attempt_beside_a_connection_does_not_free_the_server_of_that_connection() {
        let mut places = three();
        let [a, b, d] = ["a", "b", "d"].map(|run_id| server(run_id, Some(3)));
        assert_eq!(attempt(&mut places, 1, 0, &b), same_as(1));
        assert_eq!(attempt(&mut places, 1, 0, &d), Ok(Listing::Known));
        assert_eq!(attempt(&mut places, 1, 1, &a), same_as(0));
        assert_eq!(attempt(&mut places, 1, 1, &d), same_as(0));
        places.abandoned(0);
        assert_eq!(attempt(&mut places, 1, 1, &a), same_as(0));
        assert_eq!(attempt(&mut places, 1, 1, &d), Ok(Listing::Known), "the attempt that reached it is over");
    }

    #[test]
    fn a_server_may_change_its_place_when_no_round_can_count_its_vote_at_the_old_one() {
        let [a, b] = ["a", "b"].map(|run_id| server(run_id, Some(3)));
        for is_swap in [false, true] {
            let mut places = three();
            places.disconnected(0, second(10));
            places.disconnected(1, second(10));
            places.unreachable(0);
            assert_eq!(attempt(&mut places, 70, 1, &a), same_as(0));
            assert_eq!(attempt(&mut places, 70, 1, &b), Ok(Listing::Known), "its own place");
            if is_swap {
                assert_eq!(attempt(&mut places, 71, 1, &a), Ok(Listing::Known));
                assert_eq!(attempt(&mut places, 71, 0, &b), Ok(Listing::Known));
            } else {
                assert_eq!(attempt(&mut places, 71, 1, &a), Ok(Listing::Known));
                assert_eq!(attempt(&mut places, 71, 0, &a), same_as(1));
            }
        }
    }

    fn in_cluster(run_id: &str, word: u64, cluster: u64) -> Health {
        let text = format!("{word:016x} 1000 0 0 300000 {cluster:016x} 0 {run_id}");
        let record = crate::protocol::Record::parse(&text).unwrap();
        Health { record: Some((text, record)), ..server(run_id, Some(3)) }
    }

    #[test]
    fn a_server_that_cannot_be_reached_refuses_no_new_cluster() {
        let mut places = Places::new(3);
        for (index, run_id) in ["a", "b", "c"].into_iter().enumerate() {
            attempt(&mut places, 0, index, &in_cluster(run_id, index as u64, 1)).unwrap();
            places.connected(index);
        }
        for index in 0..3 {
            places.disconnected(index, second(1));
        }
        let other = NodeError::OtherCluster { other: name(1).to_string() };
        assert_eq!(attempt(&mut places, 1, 0, &in_cluster("a", 0, 2)), Err(other));
        for index in [1, 2] {
            places.unreachable(index);
        }
        assert_eq!(attempt(&mut places, 1, 0, &in_cluster("a", 0, 2)), Ok(Listing::Known));
    }

    #[test]
    fn a_copy_is_another_server_with_the_record_of_one_that_may_be_away() {
        let mut places = Places::new(3);
        attempt(&mut places, 0, 0, &in_cluster("a", 7, 1)).unwrap();
        places.connected(0);
        places.disconnected(0, second(1));
        places.unreachable(0);
        let copy_on = |run_id| Health { record: in_cluster("a", 7, 1).record, ..server(run_id, Some(3)) };
        assert!(places.is_copy(1, &copy_on("b")));
        assert!(!places.is_copy(1, &copy_on("a")), "the same server at another place");
        assert!(!places.is_copy(0, &copy_on("b")), "its own place");
        assert!(!places.is_copy(1, &server("b", None)));
    }

    #[test]
    fn the_original_of_a_copy_is_none() {
        let [original, copy] =
            ["a", "b"].map(|run_id| Health { record: in_cluster("a", 7, 1).record, ..server(run_id, Some(3)) });
        let mut places = Places::new(3);
        attempt(&mut places, 0, 1, &copy).unwrap();
        assert!(!places.is_copy(0, &original));
        assert!(places.is_copy(0, &Health { record: original.record.clone(), ..server("d", Some(3)) }), "neither is");
        assert!(!places.is_copy(0, &copy), "the same server");
    }

    #[test]
    fn either_of_two_servers_that_have_the_same_record_as_their_own_may_be_the_copy() {
        let mut places = Places::new(3);
        attempt(&mut places, 0, 1, &in_cluster("b", 7, 1)).unwrap();
        assert!(places.is_copy(0, &in_cluster("a", 7, 1)));
    }

    #[test]
    fn a_server_of_another_cluster_refuses_no_node_of_the_list() {
        let mut places = Places::new(3);
        for (index, run_id) in ["a", "b", "c"].into_iter().enumerate() {
            attempt(&mut places, 0, index, &in_cluster(run_id, index as u64, 1)).unwrap();
            places.connected(index);
        }
        let other = NodeError::OtherCluster { other: name(1).to_string() };
        assert_eq!(attempt(&mut places, 1, 0, &in_cluster("x", 9, 2)), Err(other));
        places.disconnected(1, second(2));
        assert_eq!(attempt(&mut places, 2, 1, &in_cluster("b", 1, 1)), Ok(Listing::Known));
        assert!(places.has_conflict(), "and nothing is acquired while it stands there");
    }

    #[test]
    fn a_conflict_stays_until_the_next_attempt() {
        let mut places = three();
        let other = NodeError::OtherList { ours: 3, theirs: 5 };
        assert_eq!(attempt(&mut places, 1, 0, &server("a", Some(5))), Err(other.clone()));
        places.abandoned(0);
        assert_eq!(places.conflict(0), Some(other));
        assert_eq!(places.conflict(1), Some(NodeError::NotAsked { node: "node 0".to_owned() }));
        assert_eq!((places.conflicts, places.has_conflict()), (1, true));
        assert_eq!(attempt(&mut places, 1, 0, &server("a", Some(3))), Ok(Listing::Known));
        assert!(!places.has_conflict());
    }

    #[test]
    fn a_list_is_written_when_a_majority_knows_of_no_other() {
        let mut places = Places::new(3);
        assert_eq!(attempt(&mut places, 0, 0, &server("a", None)), Err(NodeError::Unlisted));
        assert_eq!(attempt(&mut places, 0, 1, &server("b", None)), Ok(Listing::Write(3)));
        assert_eq!(attempt(&mut places, 0, 0, &server("a", None)), Ok(Listing::Write(3)));
    }

    #[test]
    fn a_list_that_is_being_changed_is_a_conflict() {
        let mut places = three();
        for listed in [CHANGING, CHANGING + 3, 3 * CHANGING + 3] {
            assert_eq!(attempt(&mut places, 1, 0, &server("a", Some(listed))), Err(NodeError::ListChanging));
        }
        assert_eq!(attempt(&mut places, 1, 0, &server("a", Some(3))), Ok(Listing::Known));
    }

    #[test]
    fn the_same_conflict_is_counted_once() {
        let mut places = three();
        for (listed, conflicts) in [(5, 1), (5, 1), (4, 2), (3, 2), (4, 3)] {
            let _ = attempt(&mut places, 1, 0, &server("a", Some(listed)));
            assert_eq!(places.conflicts, conflicts, "after a list of {listed}");
        }
    }

    #[test]
    fn the_cluster_of_the_list_is_that_of_a_majority_without_the_node_itself() {
        let mut places = Places::new(5);
        let mut see = |index: usize, cluster: u64| {
            let server = in_cluster(&index.to_string(), index as u64, cluster);
            let _ = attempt(&mut places, 0, index, &server);
            places.connected(index);
            [0, 4].map(|index| places.cluster_of_others(index))
        };
        assert_eq!([see(0, 1), see(1, 1)], [[None; 2]; 2]);
        assert_eq!(see(2, 1), [None, Some(1)]);
        assert_eq!(see(3, 1), [Some(1); 2]);
    }
}
