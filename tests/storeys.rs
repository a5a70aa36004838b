//! The library is built in storeys, and each imports only those below it. No two modules import each other in a circle.
//!
//! What counts is read from the text: every `crate::…` and `super::…` path in `src` outside of comments and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Modules of one storey may import each other, though not in a circle.
const STOREYS: [(&str, &[&str]); 9] = [
    ("words: text, secrets, locks", &["secrets", "sync", "text"]),
    ("protocol: the rules, as values", &["protocol"]),
    ("environment: clocks, randomness, streams", &["environment"]),
    ("values: what every storey above speaks of", &["error", "export", "owner", "resource", "settings"]),
    ("telemetry: what is reported", &["telemetry"]),
    ("waiting: queues and calls", &["waiting"]),
    ("node: one Redis master", &["node"]),
    ("coordinator: leases, rounds and requests", &["coordinator"]),
    (
        "public nouns",
        &[
            "admin",
            "blocking",
            "builder",
            "client",
            "election",
            "guard",
            "inspect",
            "lib",
            "observation",
            "released",
            "request",
            "revoke",
        ],
    ),
];

/// Within these, the files must not import each other in a circle either.
const FOLDERS: [&str; 6] = ["coordinator", "environment", "node", "protocol", "telemetry", "waiting"];

/// The subject of a sentence is a thing of the field: the client, the node, the request, the caller.
const VAGUE: [&str; 10] =
    ["whoever", "whomever", "whatever", "somebody", "someone", "nobody", "anybody", "anyone", "everybody", "everyone"];

/// A file, by its module path: `["node", "connection", "answers"]`. The code has no comments and no tests.
struct File {
    module: Vec<String>,
    code: String,
}

fn files() -> Vec<File> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    find(&source, &mut paths);
    let file = |path: PathBuf| {
        let module = path.strip_prefix(&source).expect("a file in src").with_extension("");
        let mut module: Vec<String> = module.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let text = fs::read_to_string(&path).expect("source text");
        // Tests stand at the end of each file.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        File { module, code }
    };
    paths.into_iter().map(file).collect()
}

fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The command is not the library, and `properties` are tests.
        if path.is_dir() && name != "bin" && name != "properties" {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "properties" {
            found.push(path);
        }
    }
}

impl File {
    /// The absolute paths in the code: for `use super::{a, b::c}` in `["node", "x"]` they are `node::a` and `node::b`.
    fn paths(&self) -> BTreeSet<Vec<String>> {
        let mut paths = BTreeSet::new();
        for (start, word) in [("crate::", "crate"), ("super::", "super")] {
            for (at, _) in self.code.match_indices(start) {
                let before = self.code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue; // The end of another word, or the second of two `super::`.
                }
                let mut base = if word == "crate" { Vec::new() } else { self.module.clone() };
                let mut rest = &self.code[at..];
                while let Some(behind) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = behind;
                }
                rest = rest.strip_prefix("crate::").unwrap_or(rest);
                for names in alternatives(rest) {
                    paths.insert(base.iter().cloned().chain(names).collect());
                }
            }
        }
        paths
    }
}

/// The first two words of each path that begins here: `a::{b, c}` has `a::b` and `a::c`, `{a::b, c}` has `a::b` and `c`.
fn alternatives(text: &str) -> Vec<Vec<String>> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let group = |text: &str| {
        let mut depth = 0;
        let end = text.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        let mut parts = vec![String::new()];
        for c in text[1..end.unwrap_or(text.len())].chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth == 0 { parts.push(String::new()) } else { parts.last_mut().expect("one").push(c) }
        }
        parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect::<Vec<_>>()
    };
    if text.starts_with('{') {
        return group(text).iter().flat_map(|part| alternatives(part)).collect();
    }
    let first = word(text);
    match text[first.len()..].strip_prefix("::") {
        Some(rest) if rest.starts_with('{') => group(rest).iter().map(|part| vec![first.clone(), word(part)]).collect(),
        Some(rest) => vec![vec![first, word(rest)]],
        None => vec![vec![first]],
    }
}

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Which top module imports which.
fn modules() -> Graph {
    let mut graph = Graph::new();
    for file in files() {
        let own = file.module[0].clone();
        let imported = file.paths().into_iter().map(|path| path[0].clone()).filter(|other| *other != own);
        graph.entry(own.clone()).or_default().extend(imported);
    }
    graph
}

/// Which file of a folder imports which. Its `mod.rs` has the name of the folder, and a file in a folder of its own belongs to the
/// file that declares it.
fn files_of(folder: &str) -> Graph {
    let files: Vec<File> = files().into_iter().filter(|file| file.module[0] == folder).collect();
    let names: BTreeSet<String> = files.iter().filter_map(|file| file.module.get(1)).cloned().collect();
    let unit =
        |path: &[String]| path.get(1).filter(|name| names.contains(*name)).map_or(folder, |name| name).to_owned();
    let mut graph = Graph::new();
    for file in &files {
        let own = unit(&file.module);
        let mut imported: BTreeSet<String> =
            file.paths().iter().filter(|path| path[0] == folder).map(|path| unit(path)).collect();
        if own == folder {
            let is_used = |name: &&String| file.code.contains(&format!(" {name}::"));
            imported.extend(names.iter().filter(is_used).cloned());
        }
        imported.remove(&own);
        graph.entry(own).or_default().extend(imported);
    }
    graph
}

/// A way from a module back to itself.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    graph.keys().find_map(|start| {
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in way.last().and_then(|last| graph.get(last)).into_iter().flatten() {
                let longer: Vec<String> = way.iter().chain([next]).cloned().collect();
                if next == start {
                    return Some(longer);
                }
                if seen.insert(next.clone()) {
                    ways.push(longer);
                }
            }
        }
        None
    })
}

fn storey(module: &str) -> usize {
    let at = STOREYS.iter().position(|(_, modules)| modules.contains(&module));
    at.unwrap_or_else(|| panic!("the module {module} has no storey: add it to the table in tests/storeys.rs"))
}

#[test]
fn each_storey_imports_only_those_below() {
    for (module, imported) in modules() {
        for other in imported {
            let (own, below) = (storey(&module), storey(&other));
            assert!(
                below <= own,
                "{module} ({}) imports {other} ({}), which lies above it",
                STOREYS[own].0,
                STOREYS[below].0
            );
        }
    }
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let graph = modules();
    println!("{} modules, {} arrows", graph.len(), graph.values().map(BTreeSet::len).sum::<usize>());
    assert_eq!(circle(&graph), None);
    for folder in FOLDERS {
        let graph = files_of(folder);
        println!("{folder}: {} files, {} arrows", graph.len(), graph.values().map(BTreeSet::len).sum::<usize>());
        assert_eq!(circle(&graph), None, "in {folder}");
    }
}

#[test]
fn the_library_names_what_it_speaks_of() {
    let mut paths = Vec::new();
    find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut paths);
    for path in paths {
        let text = fs::read_to_string(&path).expect("source text").to_lowercase();
        for (line, text) in text.lines().enumerate() {
            let vague = text.split(|c: char| !c.is_alphanumeric()).find(|word| VAGUE.contains(word));
            assert_eq!(vague, None, "{}:{}: name the thing that is meant", path.display(), line + 1);
        }
    }
}

#[test]
fn the_reading_of_paths() {
    let file = File {
        module: vec!["node".to_owned(), "x".to_owned()],
        code: "use crate::a::B;\nuse crate::{c, d::{E, F}};\nuse super::super::g;\nuse super::{h::I, J};\nsupercrate::k::L;"
            .to_owned(),
    };
    let paths: Vec<String> = file.paths().iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a::B", "c", "d::E", "d::F", "g", "node::J", "node::h::I"]);
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in arrows {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    let found = circle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")]));
    assert_eq!(found, Some(["b", "c", "b"].map(str::to_owned).to_vec()));
}
