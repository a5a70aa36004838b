//! A command and its answer, for people.

use std::fmt::Write as _;

use crate::node::{Script, split};
use crate::oracle::text;
use crate::resp::Reply;

/// A command and its answer on one line. The label is left out: it holds the number of this very process.
pub fn describe(args: &[&[u8]], reply: &Reply) -> String {
    let (Some(script), Some((keys, argv))) = (Script::by_hash(args[1]), split(args)) else { return String::new() };
    let per_key = match script {
        Script::Hold => 7,
        Script::Release => 5,
        Script::Inspect => 0,
    };
    let shown = |fields: &[&[u8]]| fields.iter().map(|field| text(field)).collect::<Vec<_>>().join(" ");
    let (common, rest) = argv.split_at(per_key.min(argv.len()));
    let common = match script {
        Script::Hold => {
            format!("next {} lease {} {}", text(common[0]), text(common[1]), shown(&[common[3], common[5]]))
        }
        Script::Release => format!("next {} {}", text(common[0]), shown(&[common[2], common[4]])),
        Script::Inspect => String::new(),
    };
    let width = rest.len() / (keys.len() / 3).max(1);
    let mut line = format!("{script:?} {common}");
    for (i, key) in keys.chunks_exact(3).enumerate() {
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
