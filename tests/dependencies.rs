//! Checks of the dependencies from the lock file, without the network: licences, sources, the oldest compiler.

use std::process::Command;

use serde_json::Value;

/// Each licence expression must be satisfied by these.
const LICENCES: [&str; 9] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Unicode-3.0",
    "Zlib",
];

/// Returns all packages that are built on this platform, with all features and tests.
fn packages() -> Vec<Value> {
    let host = Command::new("rustc").arg("-vV").output().expect("the compiler");
    let host = String::from_utf8(host.stdout).expect("text");
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("the host's name");
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--all-features",
            "--filter-platform",
            host,
        ])
        .output()
        .expect("cargo metadata");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let used: Vec<&Value> =
        metadata["resolve"]["nodes"].as_array().expect("nodes").iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().expect("packages");
    let packages: Vec<Value> = packages.iter().filter(|package| used.contains(&&package["id"])).cloned().collect();
    assert!(packages.len() > 50, "only {} packages", packages.len());
    packages
}

/// `A OR B`, `A AND B`, `A/B`, with parentheses around an alternative at most.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    expression.split(" AND ").all(|part| {
        let part = part.trim_matches(|c| "() ".contains(c));
        part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[test]
fn licences_of_dependencies_are_compatible() {
    assert!(is_allowed("(MIT OR GPL-3.0) AND Unicode-3.0"));
    assert!(!is_allowed("MIT AND GPL-3.0") && !is_allowed("GPL-3.0") && !is_allowed(""));
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence), "{} is licensed under {licence:?}", package["name"]);
    }
}

#[test]
fn all_dependencies_come_from_the_registry() {
    for package in packages() {
        let source = package["source"].as_str();
        let is_own = package["manifest_path"].as_str().is_some_and(|path| path.starts_with(env!("CARGO_MANIFEST_DIR")));
        assert!(
            is_own || source.is_some_and(|source| source.starts_with("registry+")),
            "{}: {source:?}",
            package["name"]
        );
    }
}

#[test]
fn no_dependency_needs_a_newer_compiler() {
    let version = |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().expect("a number")).collect() };
    let promised = version(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages() {
        if let Some(needed) = package["rust_version"].as_str() {
            assert!(version(needed)[..2] <= promised[..2], "{} needs Rust {needed}", package["name"]);
        }
    }
}
