//! How the nodes reach a `quorlock run` inside the command, when their URLs hold passwords: not by the environment, which every
//! process of the command inherits and may write to a log.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Returns whether this URL may hold a password: before the host, or in the query of a socket's path.
///
/// One with a comma counts, too: it is of a file, and a variable cannot hold it in a list.
fn is_secret(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.contains(['@', ',']) || rest.contains("pass=")
}

/// Returns a file with these URLs, one a line, if one of them holds a secret. Only processes of this user can read it, and it is gone
/// when this process ends, however it ends. `None` where there is no such file: then the environment has to do.
pub fn private_file(urls: &[String]) -> Option<PathBuf> {
    static FILE: OnceLock<Option<(PathBuf, linux::Memory)>> = OnceLock::new();
    if !urls.iter().any(|url| is_secret(url)) {
        return None;
    }
    // There is one list of nodes in a process.
    let file = FILE.get_or_init(|| linux::memory(&(urls.join("\n") + "\n")));
    file.as_ref().map(|(path, _)| path.clone())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    use rustix::fs::{MemfdFlags, memfd_create};

    /// A file in memory. It has a path while this process lives.
    pub type Memory = File;

    pub fn memory(text: &str) -> Option<(PathBuf, Memory)> {
        let mut file = File::from(memfd_create("quorlock-nodes", MemfdFlags::CLOEXEC).ok()?);
        file.write_all(text.as_bytes()).ok()?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        // Another process must be able to read it, too: /proc may be missing, or of other processes.
        (std::fs::read_to_string(&path).ok()? == text).then_some((path, file))
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    pub type Memory = std::convert::Infallible;

    pub fn memory(_: &str) -> Option<(std::path::PathBuf, Memory)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_credentials_are_secret_and_commas_need_a_file() {
        for (url, expected) in [
            ("redis://10.0.0.1:6379", false),
            ("redis://user:secret@10.0.0.1", true),
            ("rediss://:secret@[::1]:6379/3", true),
            ("redis+unix:///run/redis.sock?pass=secret", true),
            ("redis+unix:///run/redis.sock?db=1", false),
            ("redis+unix:///run/a,b.sock", true),
        ] {
            assert_eq!(is_secret(url), expected, "{url}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_file_has_each_url_on_a_line_of_its_own() {
        assert_eq!(private_file(&["redis://a".to_owned()]), None);
        let urls = ["redis://:s,t@a".to_owned(), "redis://b".to_owned()];
        let path = private_file(&urls).expect("a file");
        assert_eq!(std::fs::read_to_string(path).expect("readable"), "redis://:s,t@a\nredis://b\n");
    }
}
