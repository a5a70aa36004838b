//! What the command has started, in any process group: a `quorlock run` inside it puts its own command into a group of its
//! own, which a signal to the outer group does not reach.
//!
//! A program that executes quorlock leaves it its children. These, and what they start, are not of the command.

use rustix::process::Pid;

/// What is left of the command after it was to be killed.
#[derive(Debug, Default)]
pub struct Left {
    /// Some process is on its way out.
    pub killable: bool,
    /// Processes that quorlock has no permission to signal.
    pub refusing: Vec<Pid>,
}

/// The processes that refuse signals, and why.
pub fn shown(refusing: &[Pid]) -> String {
    let numbers: Vec<String> = refusing.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let (process, run) = if numbers.len() == 1 { ("process", "runs") } else { ("processes", "run") };
    format!(
        "{process} {} of the command: quorlock has no permission to signal what {run} as another user",
        numbers.join(", ")
    )
}

#[cfg(target_os = "linux")]
pub use linux::{adopt, kill, note_inherited, refusing};

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, HashSet};
    use std::fs;
    use std::sync::OnceLock;

    use rustix::io::{Errno, Result};
    use rustix::process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_open, pidfd_send_signal,
        set_child_subreaper, test_kill_process, waitid,
    };

    use super::Left;

    /// A process as /proc has it. A number alone may be another process's a moment later.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Process {
        pid: Pid,
        parent: Option<Pid>,
        /// In clock ticks since the machine's start.
        started: u64,
        /// It has ended, and its parent has not waited for it.
        ended: bool,
    }

    /// Numbers and start times of the processes that were below this one before it started any.
    static INHERITED: OnceLock<HashSet<(Pid, u64)>> = OnceLock::new();

    /// Excludes the processes that are below this one now, and what they start. To be called before this process starts any.
    ///
    /// An orphan of such a process that was started later, and that this process gets as its child, counts as the command's.
    pub fn note_inherited() {
        // A look at all processes takes milliseconds, and most often there is none.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !matches!(waitid(WaitId::All, look), Err(Errno::CHILD)) {
            let inherited = descendants().iter().map(Process::identity).collect();
            let _ = INHERITED.set(inherited); // It is called once.
        }
    }

    /// From now on, what loses its parent among this process's descendants becomes this process's child, and so can still
    /// be found.
    pub fn adopt() {
        let _ = set_child_subreaper(Some(getpid())); // Older than any kernel that is still in use.
    }

    /// Kills all descendants of this process but for the inherited ones, and gives what was there.
    pub fn kill(_leader: Pid) -> Left {
        let mut left = Left::default();
        for process in descendants() {
            match process.signal(Signal::KILL) {
                Err(Errno::PERM) => left.refusing.push(process.pid),
                // One that ended meanwhile may have started another just before.
                _ => left.killable = true,
            }
        }
        left
    }

    /// The descendants of this process that it may not signal.
    pub fn refusing(_leader: Pid) -> Vec<Pid> {
        let refusing = |process: &Process| test_kill_process(process.pid) == Err(Errno::PERM);
        descendants().iter().filter(|process| refusing(process)).map(|process| process.pid).collect()
    }

    impl Process {
        /// A process that gets the same number later has another one.
        fn identity(&self) -> (Pid, u64) {
            (self.pid, self.started)
        }

        fn is_inherited(&self) -> bool {
            INHERITED.get().is_some_and(|inherited| inherited.contains(&self.identity()))
        }

        fn look(pid: Pid) -> Option<Self> {
            let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            Self::parse(pid, &String::from_utf8_lossy(&stat))
        }

        /// `PID (NAME) STATE PARENT ...`, where the name may hold anything, and any bytes.
        fn parse(pid: Pid, stat: &str) -> Option<Self> {
            let (_, after_name) = stat.rsplit_once(") ")?;
            let mut fields = after_name.split(' ');
            let ended = matches!(fields.next()?, "Z" | "X");
            let parent = Pid::from_raw(fields.next()?.parse().ok()?);
            // The 22nd of all; the name is the second.
            let started = fields.nth(17)?.trim().parse().ok()?;
            Some(Self { pid, parent, started, ended })
        }

        /// Sends by a descriptor of the process, so that the signal reaches no other that has got its number.
        fn signal(&self, signal: Signal) -> Result<()> {
            let process = match pidfd_open(self.pid, PidfdFlags::empty()) {
                Err(Errno::NOSYS) => return kill_process(self.pid, signal), // Linux before 5.3.
                opened => opened?,
            };
            match Self::look(self.pid) {
                Some(now) if now.started == self.started => pidfd_send_signal(process, signal),
                _ => Err(Errno::SRCH),
            }
        }
    }

    /// Without those that are [inherited](note_inherited), and without what is below these.
    fn descendants() -> Vec<Process> {
        let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            if let Some(process) = pid.and_then(Process::look).filter(|process| !process.is_inherited())
                && let Some(parent) = process.parent
            {
                children.entry(parent).or_default().push(process);
            }
        }
        let mut found = children.remove(&getpid()).unwrap_or_default();
        let mut looked_at = 0;
        while let Some(process) = found.get(looked_at).copied() {
            found.extend(children.remove(&process.pid).unwrap_or_default());
            looked_at += 1;
        }
        found.retain(|process| !process.ended);
        found
    }

    #[cfg(test)]
    mod tests {
        use std::process::Command;

        use super::*;

        const REST: &str = "42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1";

        #[test]
        fn a_program_name_may_look_like_anything() {
            let process = |pid, stat: &str| Process::parse(Pid::from_raw(pid)?, &format!("{stat} {REST}"));
            let of_a = process(42, "42 (a) R 7) S 5");
            let expected =
                Process { pid: Pid::from_raw(42).unwrap(), parent: Pid::from_raw(5), started: 777, ended: false };
            assert_eq!(of_a, Some(expected));
            assert_eq!(process(1, "1 (init) S 0").and_then(|process| process.parent), None);
            assert_eq!(process(42, "42 (dead) Z 5").map(|process| process.ended), Some(true));
            assert_eq!(Process::parse(Pid::INIT, ""), None);
        }

        /// As if the process that was meant had ended, and its number had been given away.
        #[test]
        fn a_process_that_has_the_number_of_another_is_not_killed() {
            let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
            let there = Process::look(Pid::from_child(&sleep)).unwrap();
            let meant = Process { started: there.started - 1, ..there };
            assert_eq!(meant.signal(Signal::KILL), Err(Errno::SRCH));
            assert!(sleep.try_wait().unwrap().is_none());
            assert_eq!(there.signal(Signal::KILL), Ok(()));
            sleep.wait().unwrap();
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn adopt() {}

#[cfg(not(target_os = "linux"))]
pub fn note_inherited() {}

/// Elsewhere only the command's own group is killed.
#[cfg(not(target_os = "linux"))]
pub fn kill(leader: Pid) -> Left {
    Left { killable: false, refusing: refusing(leader) }
}

#[cfg(not(target_os = "linux"))]
pub fn refusing(leader: Pid) -> Vec<Pid> {
    let tested = rustix::process::test_kill_process_group(leader);
    if tested == Err(rustix::io::Errno::PERM) { vec![leader] } else { Vec::new() }
}
