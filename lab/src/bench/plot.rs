//! The figures as a picture: for each case a bar for every implementation, up to its median, and a line up to its p99.

use std::fmt::Write as _;

use super::report::Entry;

// All in the picture's own units.
const WIDTH: f64 = 760.0;
const LABELS: f64 = 150.0;
/// Room for the figures behind the longest bar.
const FIGURES: f64 = 170.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;

const INK: &str = "#333";
const COLOURS: [(&str, &str); 7] = [
    ("floor", "#9aa5b1"),
    ("fenced", "#6f7d8c"),
    ("scripts", "#4c5966"),
    ("redis-rs", "#d9a441"),
    ("redis-rs-scripts", "#b58526"),
    ("quorlock", "#2f7d6d"),
    ("rslock", "#b4553d"),
];
const OTHER_COLOUR: &str = "#7a6aa8";

/// An SVG. Each case has a scale of its own, as a re-entry and a hand-over have little in common.
pub fn draw(entries: &[Entry]) -> String {
    let mut body = String::new();
    let mut y = ROW;
    let timed = entries.iter().filter_map(|entry| Some((entry, entry.p50_us?, entry.p99_us?)));
    let timed: Vec<(&Entry, f64, f64)> = timed.filter(|(_, p50, p99)| p50.is_finite() && p99.is_finite()).collect();
    for group in timed.chunk_by(|(a, ..), (b, ..)| (a.case, a.nodes) == (b.case, b.nodes)) {
        // A single slow p99 must not press all bars flat: lines may end at the edge.
        let largest = group.iter().map(|(_, p50, _)| 1.5 * p50).fold(1.0, f64::max);
        let scale = (WIDTH - LABELS - FIGURES) / largest;
        let (case, nodes) = (group[0].0.case, group[0].0.nodes);
        text(&mut body, 0.0, y, "bold", &format!("{case}, N = {nodes}"));
        y += ROW;
        for (entry, p50, p99) in group {
            let colour = COLOURS.iter().find(|(name, _)| *name == entry.implementation);
            let colour = colour.map_or(OTHER_COLOUR, |(_, colour)| colour);
            let (bar, line) = (LABELS + p50 * scale, LABELS + p99.min(largest) * scale);
            text(&mut body, 10.0, y, "normal", entry.implementation);
            let _ = writeln!(
                body,
                r#"<rect x="{LABELS}" y="{:.1}" width="{:.1}" height="{BAR}" fill="{colour}"/><path d="M{bar:.1} {:.1}H{line:.1}" stroke="{colour}" stroke-width="2"/>"#,
                y - BAR + 3.0,
                bar - LABELS,
                y - BAR / 2.0 + 3.0,
            );
            text(&mut body, WIDTH - FIGURES + 10.0, y, "normal", &format!("p50 {p50:.0} µs, p99 {p99:.0} µs"));
            y += ROW;
        }
        y += ROW / 2.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"13\" fill=\"{INK}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// Names of cases and implementations need no escaping.
fn text(body: &mut String, x: f64, y: f64, weight: &str, words: &str) {
    let _ = writeln!(body, r#"<text x="{x}" y="{y:.1}" font-weight="{weight}">{words}</text>"#);
}
