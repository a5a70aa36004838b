//! Whether the holder of a lock is a `quorlock run` around this one, which would be waited for in vain, or one beside it.

use std::fs;

use quorlock::{AcquireError, Holder, Owner};
use rustix::process::getppid;

const AROUND: &str = "That is a `quorlock run` around this one, or a run nested in it. Its QUORLOCK_LEASE is not in the environment here (sudo, \
                      env -i and --no-export take it away): if the one around has it, this one would wait for itself";

const BESIDE: &str =
    "Another nested run of the same outermost `quorlock run` has it: this one can go on when that has ended";

/// How a holder is related to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relative {
    /// It seems to be around this one.
    Around,
    /// It is inside the same run as this one.
    Beside,
}

impl Relative {
    /// What is to be said of it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Around => AROUND,
            Self::Beside => BESIDE,
        }
    }
}

/// Returns how the holder is related to this process. `imported` is the owner of the enclosing `quorlock run`, where its lock is on the
/// same nodes.
pub fn relative(holder: &Holder, imported: Option<&Owner>) -> Option<Relative> {
    let Holder::Owner { label, id, .. } = holder else { return None };
    // A nested run keeps the label of the outermost one, so the label says nothing of a run beside this one.
    if imported.is_some_and(|owner| *owner.fingerprint() == **id) {
        return Some(Relative::Beside);
    }
    let own = Owner::new();
    let machine = own.label().strip_suffix(&std::process::id().to_string())?;
    let pid = label.strip_prefix(machine)?.split(':').next()?.parse().ok()?;
    is_ancestor(pid).then_some(Relative::Around)
}

/// Returns what is to be said of the holder that an error names, and takes out of the error what it says to programs instead.
pub fn hint_of(error: &mut AcquireError, imported: Option<&Owner>) -> Option<&'static str> {
    match error {
        AcquireError::Held { by, own, .. } => {
            let relative = relative(by, imported)?;
            *own = None;
            Some(relative.hint())
        }
        AcquireError::TimedOut { last, .. } => hint_of(last, imported),
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
