//! `quorlock nodes declare-new`: the records of a new cluster.
//!
//! All records are written before the first list. So where a list stands, the declaration had got as far as a record on every
//! node, and a node that has none has lost it.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use futures::future::{join_all, try_join_all};
use humantime::format_duration;
use quorlock::NodeError;
use quorlock::admin::{Declared, Node, RECORD};
use quorlock::text::counted_nodes;

use super::keeps::Keeps;
use super::keys::{read, trace_of_use};
use super::{DeclareOptions, each, print_table, reach, refused, unanswered};
use crate::exit::{Exit, Failure};
use crate::messages::print;

const SET_LIST: &str = "make this list the valid one with `quorlock nodes set-list` and the same --prefix, or start the nodes with empty data \
     folders when no lease is in force";

pub async fn declare(options: &DeclareOptions) -> Result<(), Failure> {
    if !options.yes && !io::stdin().is_terminal() {
        let message = "declare-new asks for a confirmation, and standard input is no terminal: give --yes";
        return Err(Failure::new(Exit::Usage, message));
    }
    let DeclareOptions { place, ballot_ttl, longest_lease, .. } = options;
    let builder = place.builder().lease(*longest_lease).ballot_ttl(*ballot_ttl);
    let mut nodes = reach(&builder).await?;
    let cluster = cluster(options, &nodes)?.unwrap_or_else(|| nodes[0].random());
    let prefix = place.prefix.as_bytes();
    try_join_all(nodes.iter_mut().map(|node| is_unused(node, prefix))).await?;
    let keeps = try_join_all(nodes.iter_mut().map(keeps)).await?;
    let found: Vec<bool> = nodes.iter().map(|node| node.record().is_some()).collect();
    if !options.yes {
        confirm(&nodes)?;
    }
    let records = nodes.iter_mut().zip(&keeps).map(|(node, keeps)| {
        let record = node.new_record(*longest_lease, *ballot_ttl, cluster, keeps.is_kept());
        write_record(node, record)
    });
    outcome(join_all(records).await)?;
    let count = nodes.len();
    outcome(join_all(nodes.iter_mut().map(|node| write_list(node, count))).await)?;

    let rows = nodes.iter().zip(&found).zip(&keeps).map(|((node, found), keeps)| {
        [node.name.clone(), if *found { "before" } else { "now" }.to_owned(), keeps.to_string()]
    });
    print_table(["NODE", "DECLARED", "KEEPS EVERY WRITE"], rows.collect());
    let prefix = place.prefix.to_string_lossy();
    let (counted, verb) = (counted_nodes(count), if count == 1 { "is" } else { "are" });
    print(&format!("{counted} {verb} declared to be one new cluster, and the list for the prefix {prefix:?}.\n"));
    if keeps.iter().any(|keeps| !keeps.is_kept()) {
        print("A node that does not keep every write has no vote after a restart until the longest lease is over.\n");
    }
    Ok(())
}

/// The cluster word of a declaration that was interrupted; `None` when none was begun.
///
/// A declaration is completed when all records that are there are of one declaration, with this ballot time and without a
/// quarantine, and when no list is there before every node has a record.
fn cluster(options: &DeclareOptions, nodes: &[Node]) -> Result<Option<u64>, Failure> {
    let mut first: Option<(&str, u64)> = None;
    for node in nodes {
        let name = node.name.as_str();
        if let Some(listed) = node.listed().filter(|listed| *listed != nodes.len()) {
            let (listed, count) = (counted_nodes(listed), nodes.len());
            return Err(refused(format!("{name} has a list of {listed} already, not of {count}: {SET_LIST}")));
        }
        let Some(Declared { cluster, is_settled, ballot_ttl, .. }) = node.record() else { continue };
        let Some(cluster) = cluster.filter(|_| is_settled) else {
            return Err(refused(format!(
                "{name} has a record already ({RECORD}), which a client (`inspect`, too) has written: {SET_LIST}"
            )));
        };
        if ballot_ttl != options.ballot_ttl {
            let ttl = format_duration(ballot_ttl);
            return Err(refused(format!(
                "{name} is declared already, with --ballot-ttl {ttl}: use the same, or start the nodes with empty data \
                 folders when no lease is in force"
            )));
        }
        match first {
            Some((other, word)) if word != cluster => {
                return Err(refused(format!(
                    "{name} and {other} are declared already, as parts of two clusters: join them with `quorlock nodes \
                     set-list --adopt`, or start the nodes with empty data folders when no lease is in force"
                )));
            }
            Some(_) => {}
            None => first = Some((name, cluster)),
        }
    }
    let bare = nodes.iter().find(|node| node.record().is_none());
    let listed = nodes.iter().find(|node| node.listed().is_some());
    if let (Some(bare), Some(listed)) = (bare, listed) {
        let (bare, listed) = (&bare.name, &listed.name);
        return Err(refused(format!(
            "{listed} has a list already, and {bare} has no record, so it is new there or has lost its data: {SET_LIST}"
        )));
    }
    Ok(first.map(|(_, cluster)| cluster))
}

async fn is_unused(node: &mut Node, prefix: &[u8]) -> Result<(), Failure> {
    match trace_of_use(node, prefix).await {
        Ok(None) => Ok(()),
        Ok(Some(key)) => Err(refused(format!("{} has the key {key}, so locks were used there: {SET_LIST}", node.name))),
        Err(error) => Err(unanswered(node, &error)),
    }
}

async fn keeps(node: &mut Node) -> Result<Keeps, Failure> {
    Keeps::ask(node).await.map_err(|error| unanswered(node, &error))
}

fn confirm(nodes: &[Node]) -> Result<(), Failure> {
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let mut answer = String::new();
    let _ = write!(
        io::stderr().lock(),
        "Nodes that have lost their data are not new: a lease may be in force, and a second owner would get the same lock.\n\
         Declare {} to be a new cluster, where no lease was ever granted? [y/N] ",
        names.join(", ")
    );
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "not confirmed: nothing was changed"))
}

/// What a node was to be written, and whether it was. `None`: a client has written there meanwhile.
type Written = (String, Result<Option<()>, NodeError>);

/// Writes the record where none is.
async fn write_record(node: &mut Node, record: String) -> Written {
    let written = match node.record() {
        Some(_) => Ok(Some(())),
        None => set(node, RECORD.as_bytes().to_vec(), record).await,
    };
    (node.name.clone(), written)
}

/// Writes the list where none is.
async fn write_list(node: &mut Node, count: usize) -> Written {
    let written = match node.listed() {
        Some(_) => Ok(Some(())),
        None => set(node, node.list_key().to_vec(), count.to_string()).await,
    };
    (node.name.clone(), written)
}

/// Writes a key that is not there. The same value may be there already.
async fn set(node: &mut Node, key: Vec<u8>, value: String) -> Result<Option<()>, NodeError> {
    let written: Option<String> = read("SET", node.ask(redis::cmd("SET").arg(&key).arg(&value).arg("NX")).await?)?;
    if written.is_some() {
        return Ok(Some(()));
    }
    let there: Option<String> = read("GET", node.ask(redis::cmd("GET").arg(&key)).await?)?;
    Ok((there == Some(value)).then_some(()))
}

/// Says which nodes were written, unless all were.
fn outcome(written: Vec<Written>) -> Result<(), Failure> {
    let (mut done, mut overtaken, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (name, written) in written {
        match written {
            Ok(Some(())) => done.push(name),
            Ok(None) => overtaken.push(name),
            Err(error) => failed.push((name, error)),
        }
    }
    if !overtaken.is_empty() {
        let names = overtaken.join(", ");
        return Err(refused(format!("clients have begun to use {names} meanwhile: {SET_LIST}")));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let done = if done.is_empty() { "none".to_owned() } else { done.join(", ") };
    let message = format!(
        "{}. Declared are: {done}. Repeat the call when every node can be reached: it completes the declaration",
        each(&failed)
    );
    Err(Failure::new(Exit::NoQuorum, message))
}
