//! What the documents name exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Adds the names of all functions in the Rust files under `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            functions(&entry, names);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&entry).expect("a source file");
            let after = text.split("fn ").skip(1);
            names.extend(after.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
}

/// Returns the words in backticks that are names of tests, or beginnings of such names with an ellipsis.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |word: &&str| {
        let name = word.trim_end_matches('…');
        assert!(!name.contains('…') || name.contains(' '), "a part of a name cannot be looked up: {name}");
        name.matches('_').count() > 1 - usize::from(name.len() < word.len())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(is_name)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).expect("a file of the repository")
}

/// Adds the text of all files under `folder`.
fn texts(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            texts(&entry, found);
        } else {
            found.push((entry.clone(), fs::read_to_string(&entry).expect("text")));
        }
    }
}

fn deploy() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    texts(&root().join("docs/deploy"), &mut found);
    found
}

/// Returns the words of `text` that begin with `beginning` and go on with these characters.
fn words(text: &str, beginning: &str, part: fn(char) -> bool) -> BTreeSet<String> {
    let rests = text.match_indices(beginning).map(|(at, _)| &text[at..]);
    rests.map(|rest| rest.chars().take_while(|c| part(*c)).collect()).collect()
}

#[test]
fn each_test_in_the_tables_of_the_evidence_exists() {
    let mut names = BTreeSet::new();
    for folder in ["src", "tests", "lab", "testkit"] {
        functions(&root().join(folder), &mut names);
    }
    let text = text("docs/evidence.md");
    let exists = |word: &&str| match word.strip_suffix('…') {
        Some(beginning) => names.iter().any(|name| name.starts_with(beginning)),
        None => names.contains(*word),
    };
    let missing: Vec<&str> = named(&text).filter(|word| !exists(word)).collect();
    assert_eq!(missing, [""; 0], "rename them in docs/evidence.md");
    assert!(named(&text).count() > 80, "the tables are not read");
}

/// The dashboard shows every metric of docs/operations.md, and no other.
#[test]
fn the_dashboard_has_the_metrics_of_the_operations() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("docs/deploy/grafana.json")).expect("JSON");
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let names = words(expression, "quorlock_", |c| c.is_ascii_lowercase() || c == '_');
            assert!(!names.is_empty(), "{expression}");
            // The series of a histogram.
            let plain = |name: &String| {
                let end = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
                end.unwrap_or(name).to_owned()
            };
            shown.extend(names.iter().map(plain));
        }
    }
    let operations = text("docs/operations.md");
    let rows = operations.lines().filter(|line| line.starts_with("| `quorlock_"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| words(cell, "quorlock_", |c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(documented.len() > 12, "the tables are not read: {documented:?}");
    assert_eq!(shown, documented);
}

/// docs/migration.md names the versions of other clients that `cluster/test --peers` installs, and the one in Cargo.lock.
#[test]
fn the_guide_names_the_versions_of_other_clients_that_are_tested() {
    let guide = text("docs/migration.md");
    let packages: serde_json::Value = serde_json::from_str(&text("lab/tests/coexistence/package.json")).expect("JSON");
    let npm = packages["dependencies"].as_object().expect("packages").values();
    let npm = npm.map(|version| version.as_str().expect("a version").rsplit('@').next().expect("a word").to_owned());
    let requirements = text("lab/tests/coexistence/requirements.txt");
    let python = requirements.lines().map(|line| line.split_once("==").expect("NAME==VERSION").1.to_owned());
    let lock = text("Cargo.lock");
    let rslock = lock.split_once("name = \"rslock\"\nversion = \"").expect("the package").1;
    let rslock = rslock.split('"').next().expect("a word").to_owned();
    let versions: Vec<String> = npm.chain(python).chain([rslock]).collect();
    assert_eq!(versions.len(), 6);
    let missing: Vec<&String> = versions.iter().filter(|version| !guide.contains(*version)).collect();
    assert!(missing.is_empty(), "docs/migration.md is about other versions than {missing:?}");
}

#[test]
fn each_variable_in_the_files_to_deploy_exists() {
    let mut sources = Vec::new();
    texts(&root().join("src/bin/quorlock"), &mut sources);
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let known: BTreeSet<String> = sources.iter().flat_map(|(_, text)| words(text, "QUORLOCK_", is_part)).collect();
    let mut count = 0;
    for (file, text) in deploy() {
        for name in words(&text, "QUORLOCK_", is_part) {
            assert!(known.contains(&name), "{}: {name}", file.display());
            count += 1;
        }
    }
    assert!(count > 5, "the files are not read");
}

/// The rights in the Secret of the nodes are those of docs/operations.md.
#[test]
fn the_users_in_the_manifests_have_the_rights_of_the_operations() {
    let operations = text("docs/operations.md");
    let rule =
        operations.lines().find_map(|line| line.strip_prefix("ACL SETUSER quorlock on >secret ")).expect("a rule");
    let manifest = text("docs/deploy/kubernetes/nodes.yaml");
    assert!(manifest.lines().any(|line| line.trim() == format!("user quorlock on >CLIENT-PASSWORD {rule}")), "{rule}");
    let row = operations.lines().find(|line| line.starts_with("| `list` | `+")).expect("a row");
    let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
    let keys = cells[2].replace('`', "").replace("PREFIX", "quorlock:lock:");
    let rule = format!("user monitor on >MONITOR-PASSWORD {keys} resetchannels -@all {}", cells[1].replace('`', ""));
    assert!(manifest.lines().any(|line| line.trim() == rule), "{rule}");
}

/// Returns the arguments of each call of quorlock in the text, up to `--`, a pipe or the end of the line. The words of a YAML list
/// stand on one line, or on a line each. Comments have no calls.
#[cfg(feature = "cli")]
fn calls(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let one_line = lines.fold(String::new(), |lines, line| match line.trim_start().strip_prefix("- ") {
        Some(word) if !word.contains(':') || word.contains(":nightly") => format!("{lines} {word}"),
        _ => format!("{lines}\n{line}"),
    });
    let plain = one_line.replace(['[', ']', ',', '"', '`'], " ");
    let mut found = Vec::new();
    for line in plain.lines() {
        let mut words = line.split_whitespace().skip_while(|word| word.rsplit(['/', '=']).next() != Some("quorlock"));
        if words.next().is_some() {
            found.push(words.take_while(|word| !["--", "|", ">", ";"].contains(word)).map(str::to_owned).collect());
        }
    }
    found
}

/// Each option stands in the help text of its subcommand.
#[cfg(feature = "cli")]
#[test]
fn each_option_in_the_files_to_deploy_exists() {
    let mut count = 0;
    for (file, text) in deploy() {
        for call in calls(&text) {
            let subcommand: Vec<&str> = match call.first().map(String::as_str) {
                Some("nodes") => call.iter().take(2).map(String::as_str).collect(),
                Some(verb @ ("run" | "lead" | "status" | "list" | "doctor" | "inspect" | "release")) => vec![verb],
                _ => continue,
            };
            let mut quorlock = std::process::Command::new(env!("CARGO_BIN_EXE_quorlock"));
            let help = quorlock.args(&subcommand).arg("--help").output().expect("the help text");
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            assert!(help.contains("Usage: quorlock"), "{}: {call:?}", file.display());
            for option in call.iter().filter(|word| word.starts_with('-')) {
                let exists = help.split([' ', ',', '\n']).any(|word| word == option);
                assert!(exists, "{}: {option} of {subcommand:?}", file.display());
                count += 1;
            }
        }
    }
    assert!(count >= 5, "the files are not read: {count}");
}
