//! The server program of tests: `redis-server`, or what a variable names; what it can do; and the programs that
//! `cluster/servers` has fetched beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The variable with the server program, when it is not `redis-server`.
const PROGRAM_VARIABLE: &str = "QUORLOCK_TEST_SERVER";

/// The variable with the folder of the fetched programs, when it is not `target/servers`.
const FOLDER_VARIABLE: &str = "QUORLOCK_SERVERS_DIR";

/// Returns the server program.
pub(crate) fn program() -> io::Result<PathBuf> {
    let program = std::env::var(PROGRAM_VARIABLE).unwrap_or_else(|_| "redis-server".to_owned());
    // The server starts in its own folder, so a relative path must be made absolute.
    if program.contains('/') { std::path::absolute(program) } else { Ok(program.into()) }
}

/// Returns whether the server program has TLS built in, and prints that the test is skipped if it has not. The server is
/// asked to listen for TLS without a certificate: it refuses that in any case, and its reason tells.
pub fn serves_tls() -> bool {
    static SERVES: OnceLock<bool> = OnceLock::new();
    let serves = *SERVES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(program().expect("a path"));
        command.current_dir(folder.path()).args([
            "--port",
            "0",
            "--tls-port",
            "1",
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ]);
        let refused = command.stdin(Stdio::null()).output().expect("a server program");
        let words = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        // What servers of version 7 and newer say, and older ones.
        !words.contains("Failed finding TLS support") && !words.contains("Bad directive")
    });
    if !serves {
        println!("skipped: this server has no TLS built in");
    }
    serves
}

/// A server program that `cluster/servers` has fetched.
#[derive(Debug)]
struct Build {
    program: PathBuf,
    kind: Kind,
}

/// What a server is. Versions are compared as numbers.
#[derive(Debug, PartialEq)]
struct Kind {
    /// In small letters: `redis` or `valkey`.
    name: String,
    version: Vec<u32>,
}

impl Kind {
    fn new(name: &str, version: &str) -> Option<Self> {
        let version: Option<Vec<u32>> = version.split('.').map(|number| number.parse().ok()).collect();
        Some(Self { name: name.to_lowercase(), version: version? })
    }

    /// Reads what `--version` prints: `Redis server v=7.0.15 sha=…`.
    fn of_version(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let name = words.next()?;
        Self::new(name, words.find_map(|word| word.strip_prefix("v="))?)
    }

    /// Reads the file of a fetched program: `NAME VERSION TLS`.
    fn of_file(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        Self::new(words.next()?, words.next()?)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.name == other.name && self.version.first() == other.version.first()
    }
}

/// Returns the newest Redis and the newest Valkey of these, without those of the installed server's name and major version.
fn chosen(builds: Vec<Build>, installed: Option<&Kind>) -> Vec<Build> {
    let mut newest: Vec<Build> = Vec::new();
    for build in builds {
        let is_other = installed.is_none_or(|installed| !build.kind.is_like(installed));
        if !is_other || !["redis", "valkey"].contains(&build.kind.name.as_str()) {
            continue;
        }
        match newest.iter_mut().find(|known| known.kind.name == build.kind.name) {
            Some(known) if known.kind.version < build.kind.version => *known = build,
            Some(_) => {}
            None => newest.push(build),
        }
    }
    newest
}

fn fetched(folder: &Path) -> Vec<Build> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let build = |path: PathBuf| {
        let kind = Kind::of_file(&fs::read_to_string(path.join("about")).ok()?)?;
        Some(Build { program: path.join("server"), kind })
    };
    entries.filter_map(|entry| build(entry.path())).collect()
}

/// Runs the tests of the calling test program whose names have one of these words once more, on two other servers: the
/// newest Redis and the newest Valkey that `cluster/servers` has fetched, of another major version than the installed server.
/// Without fetched servers, or when the variable chooses the server, it does nothing. Panics with the output of tests that
/// fail.
pub fn run_on_others(names: &[&str]) {
    if std::env::var_os(PROGRAM_VARIABLE).is_some() {
        return;
    }
    let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers"));
    let version = program().and_then(|program| Command::new(program).arg("--version").output());
    let installed = version.ok().and_then(|output| Kind::of_version(&String::from_utf8_lossy(&output.stdout)));
    for Build { program, .. } in chosen(fetched(&folder), installed.as_ref()) {
        let mut tests = Command::new(std::env::current_exe().expect("a test program"));
        let ended = tests.args(names).env(PROGRAM_VARIABLE, &program).stdin(Stdio::null()).output().expect("its tests");
        let (out, error) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success(), "with {}:\n{out}\n{error}", program.display());
        assert!(!out.contains("running 0 tests"), "no test has one of these words: {names:?}");
        println!("with {}:\n{out}", program.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_another_major_version_is_chosen() {
        let folder = tempfile::tempdir().expect("a folder");
        for about in [
            "redis 6.2.14 no",
            "redis 8.2.3 no",
            "redis 8.10.0 no",
            "valkey 9.0.0 no",
            "valkey 9.1.2 no",
            "redict 7.3.6 yes",
            "",
        ] {
            let build = folder.path().join(about.replace(' ', "-"));
            fs::create_dir_all(&build).expect("a folder");
            fs::write(build.join("about"), format!("{about}\n")).expect("a file");
        }
        for (installed, expected) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", ["redis-8.10.0-no", "valkey-9.1.2-no"]),
            ("Redis server v=8.2.3 sha=0", ["redis-6.2.14-no", "valkey-9.1.2-no"]),
            ("what is not understood", ["redis-8.10.0-no", "valkey-9.1.2-no"]),
        ] {
            let builds = chosen(fetched(folder.path()), Kind::of_version(installed).as_ref());
            let mut programs: Vec<PathBuf> = builds.into_iter().map(|build| build.program).collect();
            programs.sort_unstable();
            assert_eq!(programs, expected.map(|name| folder.path().join(name).join("server")), "{installed}");
        }
        assert!(chosen(fetched(&folder.path().join("none")), None).is_empty());
    }
}
