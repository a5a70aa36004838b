//! Checks of the dependencies from the lock file, without the network: the oldest compiler, and what the library alone needs. Licences and
//! sources are checked by `cargo deny` (deny.toml).

use std::process::Command;

use serde_json::Value;

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

/// Returns the crates that a program gets with the library, for these arguments of `cargo tree`.
fn crates_of_the_library(features: &[&str]) -> Vec<String> {
    let tree =
        ["tree", "-p", "quorlock", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--locked", "--offline"];
    let output = Command::new(env!("CARGO")).args(tree).args(features).output().expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("text");
    names.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Neither TLS, nor what the command needs, nor a logger.
#[test]
fn the_library_alone_needs_nothing_of_its_features() {
    let of_features = ["clap", "nix", "serde_json", "ratatui", "rustls", "ring", "log", "serde", "metrics"];
    let features = crates_of_the_library(&["--all-features"]);
    let alone = crates_of_the_library(&[]);
    for name in of_features {
        assert!(features.iter().any(|found| found == name), "no feature needs {name} any more: it proves nothing here");
        assert!(!alone.iter().any(|found| found == name), "the library alone needs {name}");
    }
    for name in ["tracing-subscriber", "env_logger", "openssl-sys"] {
        assert!(!features.iter().any(|found| found == name), "the library needs {name}");
    }
}
