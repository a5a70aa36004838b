//! A command and its answer, for people.

use std::fmt::Write as _;

use crate::node::{Script, split};
use crate::oracle::text;
use crate::resp::Reply;
use crate::rules::{Hold, Release};

/// A command and its answer on one line. The label is left out: it holds the number of this very process.
pub fn describe(args: &[&[u8]], reply: &Reply) -> String {
    let (Some(script), Some((keys, argv))) = (Script::by_hash(args[1]), split(args)) else { return String::new() };
    let shown = |fields: &[&[u8]]| fields.iter().map(|field| text(field)).collect::<Vec<_>>().join(" ");
    let (common, rest): (String, &[&[u8]]) = match script {
        Script::Hold => {
            let Some(Hold { next, lease, owner, session, resources, .. }) = Hold::parse(&argv) else {
                return String::new();
            };
            (format!("next {} lease {} {}", text(next), text(lease), shown(&[owner, session])), resources)
        }
        Script::Release => {
            let Some(Release { next, owner, session, resources, .. }) = Release::parse(&argv) else {
                return String::new();
            };
            (format!("next {} {}", text(next), shown(&[owner, session])), resources)
        }
        Script::Inspect => (String::new(), &[]),
    };
    let width = rest.len() / (keys.len() / 2).max(1);
    let mut line = format!("{script:?} {common}");
    for (i, key) in keys.chunks_exact(2).enumerate() {
        write!(line, " [{} {}]", text(key[0]), shown(&rest[i * width..(i + 1) * width])).expect("a string");
    }
    let answer = match reply {
        Reply::Error(error) => error.clone(),
        Reply::Array(items) => {
            let item = |item: &Reply| match item {
                Reply::Int(number) => number.to_string(),
                Reply::Bulk(bytes) => crate::rules::LockValue::parse(bytes).map_or("…".to_owned(), |value| {
                    format!("{} {} {}", text(value.token), text(value.owner), text(value.sessions))
                }),
                other => format!("{other:?}"),
            };
            items.iter().map(item).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    };
    write!(line, " -> {answer}").expect("a string");
    line
}
