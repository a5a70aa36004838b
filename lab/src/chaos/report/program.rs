//! The output of the program that was tested, beside the faults.

use super::chart::MOST_NAMES;
use super::{escaped, number, put};
use crate::chaos::history::{Stream, What};
use crate::chaos::outcome::ProgramResults;
use crate::chaos::progress::named;
use crate::chaos::run::Raw;

/// The largest number of rows, a few hundred kB of text.
const MOST_ROWS: usize = 5000;

pub fn section(page: &mut String, program: &ProgramResults, raw: &Raw) {
    put(page, format_args!("<section><h2>Output</h2><p>{}. ", escaped(&program.words())));
    put(page, format_args!("A majority of the nodes had a lock for {} s in total, and ", program.held_seconds));
    put(page, format_args!("the longest time without a new grant was {} s.", program.longest_wait_seconds));
    if program.names > MOST_NAMES as u64 {
        put(page, format_args!(" The chart has the first {MOST_NAMES} names."));
    }
    page.push_str("</p>");
    page.push_str(
        "<table class=\"output\"><thead><tr><th class=\"n\">s</th><th>Output</th><th>Faults</th></tr></thead><tbody>",
    );
    let begin = raw.events.iter().find(|event| event.what == What::Start).map_or(0, |event| event.at);
    let mut events: Vec<_> = raw.events.iter().filter(|event| event.at >= begin).collect();
    events.sort_by_key(|event| event.at);
    let mut rows = 0;
    for event in events {
        let (class, output, fault) = match &event.what {
            What::Line { stream, text } => {
                (if *stream == Stream::Stderr { " class=\"err\"" } else { "" }, escaped(text), String::new())
            }
            What::Fault { kind, nodes, worker, .. } => ("", String::new(), named(*kind, nodes, *worker)),
            What::Heal { id, .. } => (
                "",
                String::new(),
                raw.plan.faults.get(*id).map_or_else(String::new, |fault| {
                    format!("over: {}", named(fault.kind, &fault.nodes, fault.worker))
                }),
            ),
            What::Exit(_) => ("", format!("<i>{}</i>", escaped(&program.words())), String::new()),
            _ => continue,
        };
        rows += 1;
        if rows > MOST_ROWS {
            continue;
        }
        let seconds = std::time::Duration::from_micros(event.at - begin).as_secs_f64();
        put(page, format_args!("<tr{class}><td class=\"n\">{seconds:.2}</td><td>{output}</td><td>{fault}</td></tr>"));
    }
    page.push_str("</tbody></table>");
    if rows > MOST_ROWS {
        let (shown, rows) = (number(MOST_ROWS as u64), number(rows as u64));
        put(page, format_args!("<p class=\"quiet\">The first {shown} of {rows}; history.jsonl has them all.</p>"));
    }
    page.push_str("</section>");
}
