//! Whether the holder of a lock is a `quorlock run` around this one, which would be waited for in vain.

use std::fs;

use quorlock::{AcquireError, Holder, Owner};
use rustix::process::getppid;

const HINT: &str = "That is a `quorlock run` around this one, whose QUORLOCK_LEASE is not in the environment here (sudo, env -i \
                    and --no-export take it away), so it would wait for itself";

/// What is to be said of a holder.
pub fn hint(holder: &Holder) -> Option<&'static str> {
    let Holder::Owner { label, .. } = holder else { return None };
    let own = Owner::new();
    let machine = own.label().strip_suffix(&std::process::id().to_string())?;
    let pid = label.strip_prefix(machine)?.split(':').next()?.parse().ok()?;
    is_ancestor(pid).then_some(HINT)
}

/// What is to be said of the holder that an error names.
pub fn hint_of(error: &AcquireError) -> Option<&'static str> {
    match error {
        AcquireError::Held { by, .. } => hint(by),
        AcquireError::TimedOut { last, .. } => hint_of(last),
        _ => None,
    }
}

/// As /proc has it; where there is none, no process is.
fn is_ancestor(pid: u32) -> bool {
    let mut ancestor = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
    while let Some(at) = ancestor.filter(|at| *at > 0) {
        if at == pid {
            return true;
        }
        let stat = fs::read(format!("/proc/{at}/stat")).unwrap_or_default();
        // Behind the name, which may hold spaces and any bytes: the state, and the parent.
        ancestor =
            String::from_utf8_lossy(&stat).rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    }
    false
}
