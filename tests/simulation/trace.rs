//! The printed form of a command and its answer.

use std::fmt::Write as _;

use crate::oracle::text;
use quorlock_testkit::node::resp::Reply;
use quorlock_testkit::node::script_args::{Hold, LockValue, Release};
use quorlock_testkit::node::{Script, split};

/// A command and its answer on one line. The label is left out: it holds the number of this very process.
pub fn describe(args: &[&[u8]], reply: &Reply) -> String {
    let (Some(script), Some((keys, argv))) = (Script::of(args), split(args)) else { return String::new() };
    let mut line = format!("{script:?}");
    match script {
        Script::Hold => {
            let Some(Hold { next, lease, owner, end, resources, record, .. }) = Hold::parse(argv) else {
                return String::new();
            };
            let common = [next, lease, end, owner].map(text).join(" ");
            write!(line, " {common} record {:?}", text(record)).expect("a string");
            for (key, one) in keys.chunks_exact(2).zip(&resources) {
                let words = [key[0], one.token, one.known, one.holds, one.share].map(text).join(" ");
                write!(line, " [{words}]").expect("a string");
            }
        }
        Script::Release => {
            let Some(Release { sent, owner, resources, .. }) = Release::parse(argv) else { return String::new() };
            write!(line, " {} {}", text(sent), text(owner)).expect("a string");
            for (key, one) in keys.chunks_exact(2).zip(&resources) {
                let words = [key[0], one.token, one.known, one.share].map(text).join(" ");
                write!(line, " [{words}]").expect("a string");
            }
        }
        Script::Inspect => {}
        Script::Revoke => {
            let words = [keys[0], argv[0]].map(text).join(" ");
            write!(line, " {words}").expect("a string");
        }
        Script::Record => {
            let words: Vec<String> = argv.iter().map(|word| text(word)).collect();
            write!(line, " {words:?}").expect("a string");
        }
    }
    let answer = match reply {
        Reply::Error(error) => error.clone(),
        Reply::Array(items) => {
            let item = |item: &Reply| match item {
                Reply::Int(number) => number.to_string(),
                Reply::Bulk(bytes) => LockValue::parse(bytes).map_or_else(
                    || text(bytes),
                    |value| format!("{} {} {}", text(value.token), text(value.owner), text(value.shares)),
                ),
                other => format!("{other:?}"),
            };
            items.iter().map(item).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    };
    write!(line, " -> {answer}").expect("a string");
    line
}
