//! The results: ratios and targets first, then the figures; for programs one JSON object per line.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Map, Value, json};

use super::cases::Case;
use super::measure::{Rounds, Stretch};

/// The result of one implementation in one case.
#[derive(Default)]
pub struct Entry {
    pub case: &'static str,
    pub nodes: usize,
    pub implementation: &'static str,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub cycles_per_s: Option<f64>,
    pub cpu_us: Option<f64>,
    /// Further figures of the case.
    pub more: Map<String, Value>,
    pub findings: Vec<Finding>,
}

/// A figure that can be judged without knowing the machine.
pub struct Finding {
    pub what: String,
    pub figure: f64,
    pub unit: &'static str,
    pub target: Option<Target>,
}

#[derive(Clone, Copy)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met(self, figure: f64) -> bool {
        // NaN meets no target.
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }

    fn parts(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(limit) => ("≤", limit),
            Self::AtLeast(limit) => ("≥", limit),
        }
    }
}

impl Finding {
    fn is_missed(&self) -> bool {
        self.target.is_some_and(|target| !target.is_met(self.figure))
    }

    fn as_json(&self) -> Value {
        let target = self.target.map(Target::parts);
        json!({
            "what": self.what,
            "figure": rounded(self.figure),
            "unit": self.unit,
            "target": target.map(|(sign, limit)| format!("{sign} {limit}")),
            "met": self.target.map(|target| target.is_met(self.figure)),
        })
    }
}

impl Entry {
    pub fn new(case: Case, nodes: usize, implementation: &'static str) -> Self {
        Self { case: case.name(), nodes, implementation, ..Self::default() }
    }

    /// Creates a row with the medians of a column.
    pub fn with_rounds(mut self, rounds: &Rounds, column: usize) -> Self {
        self.p50_us = Some(rounds.median(column, Stretch::p50_us));
        self.p99_us = Some(rounds.median(column, Stretch::p99_us));
        self.cycles_per_s = Some(rounds.median(column, Stretch::cycles_per_s));
        self.cpu_us = Some(rounds.median(column, Stretch::cpu_us_per_cycle));
        self.add("failed", rounds.failed(column));
        let nodes_cpu = rounds.median(column, Stretch::nodes_cpu_us_per_cycle);
        if nodes_cpu.is_finite() {
            self.add("nodes_cpu_us", nodes_cpu);
        }
        self
    }

    pub fn add(&mut self, field: &str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::Number(number) if number.is_f64() => json!(number.as_f64().map(rounded)),
            value => value,
        };
        self.more.insert(field.to_owned(), value);
    }

    pub fn find(&mut self, what: impl Into<String>, figure: f64, unit: &'static str, target: Option<Target>) {
        self.findings.push(Finding { what: what.into(), figure, unit, target });
    }

    fn as_json(&self) -> Value {
        let figure = |figure: Option<f64>| figure.map(rounded);
        let mut object = json!({
            "case": self.case,
            "nodes": self.nodes,
            "impl": self.implementation,
            "p50_us": figure(self.p50_us),
            "p99_us": figure(self.p99_us),
            "cycles_per_s": figure(self.cycles_per_s),
            "client_cpu_us_per_cycle": figure(self.cpu_us),
            "findings": self.findings.iter().map(Finding::as_json).collect::<Vec<_>>(),
        });
        if let Value::Object(fields) = &mut object {
            fields.extend(self.more.clone());
        }
        object
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

/// All results.
pub struct Report {
    json: bool,
    entries: Vec<Entry>,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Self { json, entries: Vec::new() }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// JSON is printed immediately.
    pub fn add(&mut self, entry: Entry) {
        if self.json {
            say(&format!("{}\n", entry.as_json()));
        }
        self.entries.push(entry);
    }

    pub fn has_missed(&self) -> bool {
        self.entries.iter().flat_map(|entry| &entry.findings).any(Finding::is_missed)
    }

    pub fn print(&self, has_peers: bool) {
        if self.json {
            return;
        }
        let mut text = self.findings();
        text.push('\n');
        text.push_str(&self.figures());
        if !has_peers {
            text.push_str("\nOther crates beside it: cargo bench -p quorlock-lab\n");
        }
        say(&text);
    }

    fn findings(&self) -> String {
        let mut rows = vec![["CASE", "N", "", "", "TARGET"].map(str::to_owned)];
        for entry in &self.entries {
            for finding in &entry.findings {
                let target = finding.target.map_or_else(String::new, |target| {
                    let (sign, limit) = target.parts();
                    let met = if target.is_met(finding.figure) { "met" } else { "NOT MET" };
                    format!("{sign} {limit}{}  {met}", finding.unit)
                });
                let figure = format!("{}{}", short(finding.figure), finding.unit);
                rows.push([entry.case.to_owned(), entry.nodes.to_string(), finding.what.clone(), figure, target]);
            }
        }
        table(&rows)
    }

    fn figures(&self) -> String {
        let head = ["CASE", "N", "IMPL", "P50 µs", "P99 µs", "CYCLES/s", "CPU µs/CYCLE", ""];
        let mut rows = vec![head.map(str::to_owned)];
        let cell = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), short);
        for entry in &self.entries {
            let more = entry.more.iter().filter(|(field, value)| *field != "failed" || **value != json!(0));
            rows.push([
                entry.case.to_owned(),
                entry.nodes.to_string(),
                entry.implementation.to_owned(),
                cell(entry.p50_us),
                cell(entry.p99_us),
                cell(entry.cycles_per_s),
                cell(entry.cpu_us),
                more.map(|(field, value)| format!("{field} {value}")).collect::<Vec<_>>().join(", "),
            ]);
        }
        table(&rows)
    }
}

/// Formats a number with three digits, which is more than the precision of a measurement.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  "); // A String takes everything.
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A closed pipe (`| head`) is no failure.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_may_be_upper_or_lower_limits() {
        let finding = |figure, target| Finding { what: String::new(), figure, unit: " ×", target };
        assert!(!finding(1.3, Some(Target::AtMost(1.3))).is_missed());
        assert!(finding(1.31, Some(Target::AtMost(1.3))).is_missed());
        assert!(finding(0.9, Some(Target::AtLeast(1.0))).is_missed());
        assert!(finding(f64::NAN, Some(Target::AtMost(1.0))).is_missed());
        assert!(!finding(9.0, None).is_missed());
    }
}
