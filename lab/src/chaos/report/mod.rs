//! `report.html`: one file that opens anywhere, without the network.

mod chart;
mod program;

use std::fmt::Write;
use std::io;

use super::check::{State, Verdict};
use super::code;
use super::options::Options;
use super::outcome::{LedgerResults, Outcome, ProgramResults, Results};
use super::run::Raw;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// The invariants that only the simulation checks.
const ELSEWHERE: &str = "CancelSafe, Deterministic, Linearizable and RecordHolds are not judged here, and of ReleaseSafe only \
                         what a release says: what a node did with a late or a foreign release cannot be seen from outside. \
                         The model and the simulation do that.";

/// What is not judged where a program is tested.
const INSIDE: &str = "Only what the nodes show is judged, not what the command does with its locks.";

pub fn html(options: &Options, raw: &Raw, outcome: &Outcome) -> io::Result<String> {
    // The escaped data cannot end its element.
    let data = serde_json::to_string(&chart::Data::of(raw, outcome))?.replace('<', "\\u003c");
    let mut page = String::with_capacity(data.len() + 64 * 1024);
    let results = &outcome.results;
    page.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    put(&mut page, format_args!("<title>quorlock chaos, seed {}</title>", options.seed));
    put(&mut page, format_args!("<style>{STYLE}</style></head><body><main>"));
    banner(&mut page, outcome);
    figures(&mut page, results);
    timeline(&mut page, results.program.is_some());
    verdicts(&mut page, outcome);
    if let Some(results) = &results.ledger {
        ledger(&mut page, results);
    }
    if let Some(results) = &results.program {
        program::section(&mut page, results, raw);
    }
    faults(&mut page, outcome);
    notes(&mut page, results);
    put(&mut page, format_args!("</main><script type=\"application/json\" id=\"data\">{data}</script>"));
    put(&mut page, format_args!("<script>{SCRIPT}</script></body></html>\n"));
    Ok(page)
}

/// Writing to a string cannot fail.
fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// 1234567 as 1 234 567, with spaces that do not break.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn banner(page: &mut String, outcome: &Outcome) {
    let results = &outcome.results;
    let broken = outcome.verdicts.iter().filter(|verdict| verdict.state == State::Violated).count();
    let (class, head, rest) = match outcome.code() {
        _ if results.interrupted && results.violations == 0 => {
            ("open", "Interrupted", "Nothing was violated until then.".to_owned())
        }
        0 => ("good", "Every promise held", format!("No violation, and {}.", results.exercised())),
        code::LOST_UPDATES => (
            "open",
            "Updates were lost: this run had no fencing",
            "This was the demonstration: the database ignored tokens, so holders that had been stopped past the end of \
             their lease wrote over newer balances. With fencing, the same writes are refused."
                .to_owned(),
        ),
        code::PROGRAM_FAILED => (
            "bad",
            "Every promise held, but the command failed",
            results.program.as_ref().map(ProgramResults::words).unwrap_or_default(),
        ),
        code::NOT_EXERCISED => {
            let missing = results.missing.iter().chain(&results.problems);
            let missing = missing.map(String::as_str).collect::<Vec<_>>().join(", ");
            ("open", "Some required events did not occur", format!("No violation. Missing: {missing}."))
        }
        _ if broken == 0 => ("bad", "The result is unknown", "Data that a check needs is missing.".to_owned()),
        _ => ("bad", "A promise was broken", format!("Violations: {}, of {broken} of the invariants.", results.violations)),
    };
    put(page, format_args!("<header class=\"banner {class}\"><p class=\"what\">quorlock chaos</p><h1>{head}</h1>"));
    put(page, format_args!("<p>{}</p></header>", escaped(&rest)));
    let work = match &results.program {
        Some(_) => "one command".to_owned(),
        None => format!("{} workers", results.workers),
    };
    put(
        page,
        format_args!(
            "<section class=\"head\"><p>{} nodes and {} for {} s, leases of up to {} ms, seed {}. To repeat the \
             plan (the history will differ, as time is real):</p><pre><code>{}</code></pre></section>",
            results.nodes,
            work,
            results.seconds,
            results.lease_ms,
            results.seeds[0],
            escaped(&results.command)
        ),
    );
}

fn figures(page: &mut String, results: &Results) {
    let faults = results.faults.values().sum();
    let mut figures = vec![("faults", faults), ("grants", results.grants)];
    if let Some(program) = &results.program {
        figures.extend([("names", program.names), ("lines of output", program.lines)]);
    }
    if let Some(ledger) = &results.ledger {
        figures.extend([
            ("re-entries", results.reentries),
            ("extensions", results.extensions),
            ("losses", results.losses),
            ("stale writes refused", ledger.stale_writes_rejected),
        ]);
    }
    figures.extend([("Redis commands", results.commands), ("violations", results.violations)]);
    page.push_str("<section class=\"figures\">");
    for (name, value) in figures {
        put(page, format_args!("<div><b>{}</b><span>{name}</span></div>", number(value)));
    }
    page.push_str("</section>");
}

fn timeline(page: &mut String, of_program: bool) {
    let latencies = if of_program { " hidden" } else { "" };
    put(
        page,
        format_args!(
            "<section><h2>What happened</h2><p class=\"quiet\">The strip on top is the whole run; the part inside the frame \
         is shown below. Drag it, or use the wheel. Each bar of a lock is a holder; the bars inside are the same \
         owner's nested holds.</p><canvas id=\"overview\" height=\"54\"></canvas><p class=\"tools\">\
         <button data-zoom=\"in\">closer</button><button data-zoom=\"out\">wider</button>\
         <button data-zoom=\"all\">all</button><span id=\"window\"></span></p><canvas id=\"timeline\"></canvas>\
         <div id=\"legend\" class=\"legend\"></div><div{latencies}><h3>Latency, in ms</h3><p class=\"quiet\">A re-entry waits for \
         no other owner: it shows how long one round to the nodes takes. A first acquisition waits for its turn. Faults are \
         shaded, outages of a majority darker.</p><canvas id=\"latency\" height=\"190\"></canvas>\
         <div id=\"latency-legend\" class=\"legend\"></div></div><h3>Rates, per second</h3>\
         <canvas id=\"rates\" height=\"150\"></canvas><div id=\"rates-legend\" class=\"legend\"></div>\
         <p class=\"quiet\" id=\"capped\"></p><div id=\"tip\" hidden></div></section>",
        ),
    );
}

fn pill(state: State) -> &'static str {
    match state {
        State::Held => "<b class=\"pill good\">held</b>",
        State::Violated => "<b class=\"pill bad\">violated</b>",
        State::NotExercised => "<b class=\"pill open\">not exercised</b>",
        State::Unknown => "<b class=\"pill bad\">unknown</b>",
    }
}

fn verdicts(page: &mut String, outcome: &Outcome) {
    page.push_str(
        "<section><h2>Invariants</h2><table class=\"verdicts\"><thead><tr><th>Invariant</th><th>Verdict</th>",
    );
    page.push_str("<th class=\"n\">Checks</th></tr></thead><tbody>");
    for verdict in &outcome.verdicts {
        let Verdict { name, meaning, checks, described, violations, state, .. } = verdict;
        let checks = number(*checks);
        put(page, format_args!("<tr><td><b>{name}</b><span>{meaning}</span>"));
        if !described.is_empty() {
            put(page, format_args!("<details open><summary>violations: {}", number(*violations)));
            if described.len() < usize::try_from(*violations).unwrap_or(usize::MAX) {
                put(page, format_args!(", the first {}", described.len()));
            }
            page.push_str("</summary><ul>");
            for text in described {
                put(page, format_args!("<li>{}</li>", escaped(text)));
            }
            page.push_str("</ul></details>");
        }
        put(page, format_args!("</td><td>{}</td><td class=\"n\">{checks}</td></tr>", pill(*state)));
    }
    let elsewhere = if outcome.results.program.is_some() { INSIDE } else { ELSEWHERE };
    put(page, format_args!("</tbody></table><p class=\"quiet\">{elsewhere}</p></section>"));
}

fn ledger(page: &mut String, ledger: &LedgerResults) {
    put(page, format_args!("<section><h2>Ledger</h2><p>Transfers between accounts in {}. ", ledger.database));
    page.push_str(if ledger.fencing {
        "Each write carries its token, and an account takes no token smaller than the largest it has seen."
    } else {
        "The database ignored the tokens (--no-fencing)."
    });
    page.push_str("</p>");
    let Some(audit) = &ledger.audit else {
        page.push_str("<p>It could not be read.</p></section>");
        return;
    };
    let rows = [
        ("transfers accepted", audit.transfers.to_string()),
        ("stale writes refused", ledger.stale_writes_rejected.to_string()),
        ("stale writes accepted", audit.stale_accepted.to_string()),
        ("updates lost", audit.lost_updates.to_string()),
        ("money in the beginning", audit.opened_with.to_string()),
        ("money in the end", audit.closed_with.to_string()),
        (
            "accounts that are not what their transfers make of them",
            format!("{} of {}", audit.wrong_balances, audit.accounts),
        ),
    ];
    page.push_str("<table class=\"pairs\"><tbody>");
    for (name, value) in rows {
        put(page, format_args!("<tr><td>{name}</td><td class=\"n\">{value}</td></tr>"));
    }
    page.push_str("</tbody></table></section>");
}

fn faults(page: &mut String, outcome: &Outcome) {
    let results = &outcome.results;
    put(page, format_args!("<section><h2>Faults</h2><p>No majority was left {} times.</p>", number(results.outages)));
    page.push_str("<table class=\"pairs\"><tbody>");
    for kind in super::fault::Kind::ALL {
        if let Some(count) = results.faults.get(&kind.name()) {
            put(page, format_args!("<tr><td>{kind}</td><td class=\"n\">{count}</td></tr>"));
        }
    }
    page.push_str("</tbody></table></section>");
}

fn notes(page: &mut String, results: &Results) {
    let notes: Vec<&String> = results.notes.iter().chain(&results.problems).collect();
    if notes.is_empty() {
        return;
    }
    page.push_str("<section><h2>Notes</h2><ul>");
    for note in notes {
        put(page, format_args!("<li>{}</li>", escaped(note)));
    }
    page.push_str("</ul></section>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }

    #[test]
    fn report_data_is_escaped() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
