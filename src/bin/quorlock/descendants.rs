//! What the command has started, in whatever process group: a `quorlock run` inside it puts its own command into a group
//! of its own, which a signal to the outer group does not reach.

#[cfg(target_os = "linux")]
pub use linux::{adopt, kill};

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs;

    use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};

    /// From now on, whatever loses its parent among this process's descendants becomes this process's child, and so can
    /// still be found.
    pub fn adopt() {
        let _ = set_child_subreaper(Some(getpid())); // Older than any kernel that is still in use.
    }

    /// Kills all descendants of this process. `true` when there were none.
    pub fn kill() -> bool {
        let descendants = descendants();
        for pid in &descendants {
            let _ = kill_process(*pid, Signal::KILL); // It fails for one that has ended meanwhile.
        }
        descendants.is_empty()
    }

    fn descendants() -> Vec<Pid> {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
            else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if let Some(parent) = parent(&stat) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut found = children.remove(&getpid()).unwrap_or_default();
        let mut looked_at = 0;
        while let Some(pid) = found.get(looked_at).copied() {
            found.extend(children.remove(&pid).unwrap_or_default());
            looked_at += 1;
        }
        found
    }

    /// `PID (NAME) STATE PARENT ...`, where the name may hold anything.
    fn parent(stat: &str) -> Option<Pid> {
        let (_, after_name) = stat.rsplit_once(") ")?;
        Pid::from_raw(after_name.split(' ').nth(1)?.parse().ok()?)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_program_name_may_look_like_anything() {
            assert_eq!(parent("42 (a) R 7) S 5 42 42 0"), Pid::from_raw(5));
            assert_eq!(parent("1 (init) S 0 1 1"), None);
            assert_eq!(parent(""), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn adopt() {}

/// Elsewhere only the command's own group is killed.
#[cfg(not(target_os = "linux"))]
pub fn kill() -> bool {
    true
}
