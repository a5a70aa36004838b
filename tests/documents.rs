//! What the documents name exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
        name.matches('_').count() > 1 - usize::from(name.len() < word.len())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(is_name)
}

#[test]
fn each_test_in_the_tables_of_the_evidence_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for folder in ["src", "tests", "lab", "testkit"] {
        functions(&root.join(folder), &mut names);
    }
    let text = fs::read_to_string(root.join("docs/evidence.md")).expect("the document");
    let exists = |word: &&str| match word.strip_suffix('…') {
        Some(beginning) => names.iter().any(|name| name.starts_with(beginning)),
        None => names.contains(*word),
    };
    let missing: Vec<&str> = named(&text).filter(|word| !exists(word)).collect();
    assert_eq!(missing, [""; 0], "rename them in docs/evidence.md");
    assert!(named(&text).count() > 80, "the tables are not read");
}
