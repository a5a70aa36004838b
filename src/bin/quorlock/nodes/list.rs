//! `quorlock nodes set-list`: another list of nodes for a prefix.
//!
//! Two clients with different lists could each have a majority. So at no time may both the old and the new list have one, also
//! when this program dies half way, a node hangs, or a client cannot reach some nodes. In this order:
//!
//! 1. *Look.* Every node answers. The nodes that remember what they granted leave less than a majority of each old list
//!    outside the new one. So every lease that is in force, and every majority of an old list, has a node here that knows it.
//!    No lease is in force. Up to here nothing was changed.
//! 2. *Begin* on every node, in one script each: the record gets a new word, and the list becomes a number that no client has.
//!    Messages with the old word are answered FORGOT, and a client that repeats the handshake meets the number. So nothing is
//!    granted or extended under the prefix on this node from now on, however long the rest takes. Clients of other prefixes
//!    repeat the handshake and go on.
//! 3. *Look again* on every node. A lease that began between 1 and 2 shows now, and none can begin any more. If there is one,
//!    the old list is put back everywhere: no node had the new one yet.
//! 4. *Finish* on every node: the new number, and one cluster word. By 1 the nodes outside have no majority of an old list, so
//!    it does not matter in which order this happens.
//!
//! A call that is interrupted leaves nodes where nothing is granted, until it is repeated. Then nothing is put back in step 3,
//! as some node may have the new list already.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use humantime::format_duration;
use quorlock::NodeError;
use quorlock::admin::{ANSWER_LIMIT, CHANGING, Node, RECORD};
use quorlock::text::counted_nodes;
use redis::Value;

use super::keeps::Keeps;
use super::keys::{InForce, lease_in_force, read};
use super::{ListOptions, each, print_table, reach, refused, unanswered};
use crate::exit::{Exit, Failure};
use crate::messages::print;

const BEGIN: &str = include_str!("begin.lua");
const UNDO: &str = include_str!("undo.lua");
const FINISH: &str = include_str!("finish.lua");

const REPEAT: &str = "until then no lock can be had under this prefix on the nodes that are being changed";

/// A node in the change.
struct Change {
    node: Node,
    keeps: Keeps,
    /// The number in its list before; `None` for none.
    before: Option<usize>,
    /// What the list is during the change.
    changing: usize,
    /// The word of its record during the change and after it.
    word: String,
    /// Whether the change has begun there, as far as is known.
    may_have_begun: bool,
}

pub async fn set(options: &ListOptions) -> Result<(), Failure> {
    let prefix = options.place.prefix.as_bytes();
    let mut nodes = reach(&options.place.builder()).await?;
    let cluster = cluster(options, &nodes)?.unwrap_or_else(|| nodes[0].random());
    check_majorities(&nodes)?;
    if let Some(found) = any_lease(nodes.iter_mut(), prefix).await.map_err(|errors| not_changed(&errors))? {
        return Err(in_force(&found, "Nothing was changed"));
    }
    let mut changes = prepare(nodes).await?;
    let is_repeat = changes.iter().any(|change| change.before.is_some_and(|before| before >= CHANGING));

    let begun = join_all(changes.iter_mut().map(Change::begin)).await;
    let failed = failures(&changes, begun);
    if !failed.is_empty() {
        let left = undo(&mut changes, is_repeat).await;
        return Err(Failure::new(Exit::NoQuorum, format!("{}. {left}", each(&failed))));
    }
    let nodes = changes.iter_mut().map(|change| &mut change.node);
    match any_lease(nodes, prefix).await {
        Ok(None) => {}
        Ok(Some(found)) => {
            let left = undo(&mut changes, is_repeat).await;
            return Err(in_force(&found, &left));
        }
        Err(errors) => {
            let left = undo(&mut changes, is_repeat).await;
            return Err(Failure::new(Exit::NoQuorum, format!("{}. {left}", each(&errors))));
        }
    }
    let count = changes.len();
    let finished = join_all(changes.iter_mut().map(|change| change.finish(count, cluster))).await;
    let failed = failures(&changes, finished);
    if !failed.is_empty() {
        let names: Vec<&str> = changes.iter().map(|change| change.node.name.as_str()).collect();
        return Err(Failure::new(Exit::NoQuorum, half_done(&names, &failed)));
    }
    show(options, &changes);
    Ok(())
}

/// Says which of these nodes have the new list, when some could not be given it.
fn half_done(names: &[&str], failed: &[(String, NodeError)]) -> String {
    let has_failed = |name: &str| failed.iter().any(|(missing, _)| missing == name);
    let done: Vec<&str> = names.iter().copied().filter(|name| !has_failed(name)).collect();
    let done = if done.is_empty() { "none".to_owned() } else { done.join(", ") };
    format!("{}. Nodes that have the new list: {done}. Repeat the call: {REPEAT}", each(failed))
}

/// The cluster word that stays, when this very list was valid on all nodes before; `None` for a new one, by which clients
/// tell the nodes of this list from those of the old one.
fn cluster(options: &ListOptions, nodes: &[Node]) -> Result<Option<u64>, Failure> {
    let is_changing = |node: &&Node| node.listed().is_some_and(|listed| listed >= CHANGING);
    let word = |node: &Node| node.record().and_then(|record| record.cluster);
    let mut known: HashMap<u64, &str> = HashMap::new();
    // A change that was interrupted has given some nodes their new word already.
    for node in nodes.iter().filter(|node| !is_changing(node)) {
        if let Some(cluster) = word(node) {
            known.entry(cluster).or_insert(&node.name);
        }
    }
    if known.len() > 1 && !options.adopt {
        let mut names: Vec<&str> = known.into_values().collect();
        names.sort_unstable();
        return Err(refused(format!(
            "{} are parts of different clusters that were declared. Check that the list is right; give --adopt to make \
             all its nodes one cluster. Nothing was changed",
            names.join(", ")
        )));
    }
    let is_the_same = |node: &Node| node.listed() == Some(nodes.len()) && word(node).is_some();
    let stays = known.len() == 1 && nodes.iter().all(is_the_same);
    Ok(known.into_keys().next().filter(|_| stays))
}

/// Checks that the nodes which remember what they granted leave no majority of any list outside.
fn check_majorities(nodes: &[Node]) -> Result<(), Failure> {
    let quorum = |count: usize| count / 2 + 1;
    let lists: HashSet<(Option<u64>, usize)> = nodes.iter().filter_map(memberships).collect();
    for (cluster, listed) in lists {
        // A node in a change that was interrupted takes part in no list, so also not in the one it was to get.
        let is_part = |node: &&Node| {
            memberships(node) == Some((cluster, listed)) || node.listed().is_some_and(|it| it / CHANGING == listed)
        };
        let parts: Vec<&Node> = nodes.iter().filter(is_part).collect();
        let waits: Vec<Duration> = parts.iter().filter_map(|node| node.record()?.quarantine).collect();
        let outside = listed.saturating_sub(parts.len());
        if outside >= quorum(listed) {
            let count = parts.len();
            return Err(refused(format!(
                "only {count} of the {listed} nodes that share the old list are in the new one, so the others could still \
                 grant locks to clients with the old list. Change the list in steps that each keep more of its nodes, or \
                 start the new nodes with empty data folders and use `quorlock nodes declare-new` when no client of the \
                 old ones is left. Nothing was changed"
            )));
        }
        if outside + waits.len() >= quorum(listed) {
            let wait = format_duration(rounded(waits.into_iter().max().unwrap_or_default()));
            return Err(Failure::new(
                Exit::Conflict,
                format!(
                    "too many of the nodes may have forgotten leases that are in force. Nothing was changed; try again in {wait}"
                ),
            ));
        }
    }
    Ok(())
}

/// The lists that a node is part of, or was until it was changed: their clusters and lengths.
fn memberships(node: &Node) -> Option<(Option<u64>, usize)> {
    let listed = node.listed()? % CHANGING;
    (listed > 0).then(|| (node.record().and_then(|record| record.cluster), listed))
}

/// A lease that is in force on any of the nodes, and the name of that node.
async fn any_lease(
    nodes: impl Iterator<Item = &mut Node>,
    prefix: &[u8],
) -> Result<Option<(String, InForce)>, Vec<(String, NodeError)>> {
    let looks = nodes.map(async |node| (node.name.clone(), lease_in_force(node, prefix).await));
    let (mut found, mut errors) = (None, Vec::new());
    for (name, look) in join_all(looks).await {
        match look {
            Ok(lease) => found = found.or(lease.map(|lease| (name, lease))),
            Err(error) => errors.push((name, error)),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn not_changed(errors: &[(String, NodeError)]) -> Failure {
    Failure::new(Exit::NoQuorum, format!("{}. Nothing was changed", each(errors)))
}

fn in_force((node, lease): &(String, InForce), left: &str) -> Failure {
    let InForce { key, left: time } = lease;
    let what = match time {
        None => format!("a lease is in force: {node} has the lock {key}. Wait until it is released"),
        Some(time) => format!(
            "a lease may be in force: that on {key} was not released, by what {node} has, and ends in {} by the clock of \
             this machine. Wait, or lock and release that name",
            format_duration(rounded(*time))
        ),
    };
    Failure::new(Exit::Conflict, format!("{what}, and try again. {left}"))
}

fn rounded(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// Gives each node the record that a client would give it, and asks what it keeps.
async fn prepare(nodes: Vec<Node>) -> Result<Vec<Change>, Failure> {
    let records: Vec<_> = nodes.iter().filter_map(Node::record).collect();
    let longest = records.iter().map(|record| record.longest).max().unwrap_or(quorlock::DEFAULT_LEASE);
    let ballot_ttl = records.iter().map(|record| record.ballot_ttl).max().unwrap_or(Duration::from_secs(600));
    let count = nodes.len();
    try_join_all(nodes.into_iter().map(async |mut node| {
        let asked = async {
            node.settle(longest, ballot_ttl).await?;
            Keeps::ask(&mut node).await
        };
        match asked.await {
            Ok(keeps) => {
                let before = node.listed();
                let changing = count * CHANGING + before.unwrap_or(0) % CHANGING;
                let word = format!("{:016x}", node.random());
                Ok(Change { node, keeps, before, changing, word, may_have_begun: false })
            }
            Err(error) => Err(unanswered(&node, &error)),
        }
    }))
    .await
}

fn failures(changes: &[Change], results: Vec<Result<(), NodeError>>) -> Vec<(String, NodeError)> {
    let named = changes.iter().map(|change| change.node.name.clone()).zip(results);
    named.filter_map(|(name, result)| Some((name, result.err()?))).collect()
}

/// Puts the old lists back, unless a change before this one was interrupted. Says what is left.
async fn undo(changes: &mut [Change], is_repeat: bool) -> String {
    if is_repeat {
        return format!("The change of the list was begun before and is not finished. Repeat the call: {REPEAT}");
    }
    let undone = join_all(changes.iter_mut().map(Change::undo)).await;
    let failed = failures(changes, undone);
    if failed.is_empty() {
        return "The list is as it was".to_owned();
    }
    format!("The list was not put back ({}). Repeat the call: {REPEAT}", each(&failed))
}

impl Change {
    async fn begin(&mut self) -> Result<(), NodeError> {
        let (seconds, micros): (u64, u64) = read("TIME", self.node.ask(&redis::cmd("TIME")).await?)?;
        let latest = seconds * 1_000_000 + micros + u64::try_from(ANSWER_LIMIT.as_micros()).unwrap_or(u64::MAX);
        let record = self.node.record().map(|record| record.text).unwrap_or_default();
        let before = self.before.map(|before| before.to_string()).unwrap_or_default();
        let (word, changing) = (self.word.clone(), self.changing.to_string());
        let begun = self.script(BEGIN, &[record, before, word, changing, latest.to_string()]).await;
        self.may_have_begun = !matches!(begun, Err(NodeError::Redis { .. } | NodeError::Replica | NodeError::Forgot));
        begun
    }

    async fn undo(&mut self) -> Result<(), NodeError> {
        if !self.may_have_begun {
            return Ok(());
        }
        let before = self.before.map(|before| before.to_string()).unwrap_or_default();
        self.script(UNDO, &[self.word.clone(), self.changing.to_string(), before]).await
    }

    async fn finish(&mut self, count: usize, cluster: u64) -> Result<(), NodeError> {
        let keeps = u8::from(self.keeps.is_kept()).to_string();
        let (word, changing) = (self.word.clone(), self.changing.to_string());
        self.script(FINISH, &[word, changing, count.to_string(), format!("{cluster:016x}"), keeps]).await
    }

    async fn script(&mut self, code: &str, arguments: &[String]) -> Result<(), NodeError> {
        let mut command = redis::cmd("EVAL");
        command.arg(code).arg(2).arg(RECORD).arg(self.node.list_key()).arg(arguments);
        match self.node.ask(&command).await? {
            Value::BulkString(answer) if answer == b"done" => Ok(()),
            _ => Err(NodeError::Forgot),
        }
    }
}

fn show(options: &ListOptions, changes: &[Change]) {
    let rows = changes.iter().map(|Change { node, keeps, .. }| {
        let vote = match node.record().and_then(|record| record.quarantine) {
            None => "now".to_owned(),
            Some(left) => format!("in {}", format_duration(rounded(left))),
        };
        [node.name.clone(), vote, keeps.to_string()]
    });
    print_table(["NODE", "VOTES", "KEEPS EVERY WRITE"], rows.collect());
    let prefix = options.place.prefix.to_string_lossy();
    let (count, verb) = (counted_nodes(changes.len()), if changes.len() == 1 { "is" } else { "are" });
    print(&format!("{count} {verb} the list for the prefix {prefix:?}.\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_to_seconds() {
        let seconds = [0, 1, 1000, 1001].map(|millis| rounded(Duration::from_millis(millis)).as_secs());
        assert_eq!(seconds, [0, 1, 1, 2]);
    }

    #[test]
    fn a_change_that_is_half_done_names_the_nodes_that_have_the_new_list() {
        let failed = |names: &[&str]| -> Vec<(String, NodeError)> {
            names.iter().map(|name| ((*name).to_owned(), NodeError::Forgot)).collect()
        };
        let some = half_done(&["a", "b", "c"], &failed(&["b"]));
        assert!(some.starts_with("b: ") && some.contains("have the new list: a, c. Repeat the call"), "{some}");
        let none = half_done(&["a", "b"], &failed(&["a", "b"]));
        assert!(none.contains("have the new list: none. Repeat the call"), "{none}");
    }
}
