use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::environment::{Environment, System};
use crate::error::ExportError;
use crate::export::Export;
use crate::text::{LONGEST_LABEL, word};

tokio::task_local! {
    static SCOPED: Owner;
}

/// Who may re-enter: 128 random bits and a readable label.
///
/// Every acquisition that is not given an owner makes one, so nothing re-enters by accident: not another task, not the
/// next user of a thread, not a process with the same number in another container. Clones are the same owner.
///
/// An owner can be the key of a map: equality and hash go by the random bits, which never change. The lint `clippy::mutable_key_type` does
/// not see that.
#[derive(Clone)]
pub struct Owner(Arc<Identity>);

struct Identity {
    id: u128,
    label: Arc<str>,
    /// Seldom: most owners are made for one acquisition.
    inherited: Option<Box<Export>>,
    /// The largest ballot that was proposed for it in this process.
    last_ballot: AtomicU64,
}

impl Owner {
    /// A new owner, labelled with this machine's name and the process number.
    #[must_use]
    pub fn new() -> Self {
        Self::labelled("")
    }

    /// A new owner with a name for people. The error of a request that finds the lock held shows it, as `host:pid:name`.
    ///
    /// What is not a printable ASCII character becomes `_`; a long name is cut.
    #[must_use]
    pub fn labelled(name: &str) -> Self {
        Self::anonymous(&System::default(), &label(name).into())
    }

    pub(crate) fn anonymous(environment: &dyn Environment, label: &Arc<str>) -> Self {
        let mut id = [0; 16];
        environment.fill(&mut id);
        Self(Arc::new(Identity {
            id: u128::from_be_bytes(id),
            label: Arc::clone(label),
            inherited: None,
            last_ballot: AtomicU64::new(0),
        }))
    }

    /// The owner of an [exported](crate::Guard::export) lease: an acquisition of what is named there joins the lease.
    ///
    /// Pass it to [`owner`](crate::LockRequest::owner). What is not in the export is acquired anew, by the same owner.
    ///
    /// # Errors
    ///
    /// When `exported` is not what [`export`](crate::Guard::export) wrote.
    pub fn import(exported: &str) -> Result<Self, ExportError> {
        let export = Export::from_str(exported)?;
        Ok(Self(Arc::new(Identity {
            id: export.owner,
            label: export.label.as_str().into(),
            inherited: Some(Box::new(export)),
            last_ballot: AtomicU64::new(0),
        })))
    }

    /// Runs `future` with this owner as the one that acquisitions inside it take when none is passed.
    ///
    /// It reaches as far as the task does; a task spawned inside does not inherit it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops `future`.
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        SCOPED.scope(self.clone(), future).await
    }

    /// Runs `work` with this owner as the one that acquisitions on this thread take meanwhile when none is passed.
    ///
    /// It reaches as far as the thread does; hand the owner to another thread, and open a scope there.
    pub fn sync_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        SCOPED.sync_scope(self.clone(), work)
    }

    /// Returns the owner in whose [`scope`](Self::scope) this task runs; `None` outside of every scope. Pass it to a task that is
    /// spawned, so that the task can enter what this one holds.
    #[must_use]
    pub fn current() -> Option<Self> {
        SCOPED.try_with(Self::clone).ok()
    }

    /// The 128 random bits in hexadecimal. A process that knows them and may ask the nodes can enter what the owner holds: errors
    /// and `quorlock inspect` show the [fingerprint](Self::fingerprint) instead.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:032x}", self.0.id)
    }

    /// Tells this owner from others, as [`Holder::Owner`](crate::Holder::Owner) and `quorlock inspect` show it. It opens
    /// nothing.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.id())
    }

    /// The label for people.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.0.label
    }

    pub(crate) fn last_ballot(&self) -> &AtomicU64 {
        &self.0.last_ballot
    }

    pub(crate) fn number(&self) -> u128 {
        self.0.id
    }

    pub(crate) fn inherited(&self) -> Option<&Export> {
        self.0.inherited.as_deref()
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({} {})", self.label(), self.fingerprint())
    }
}

/// A hash of an owner's id as it stands in a lock key: 32 hexadecimal digits. The id is random and long, so it cannot be found
/// by trying.
pub(crate) fn fingerprint(id: &str) -> String {
    sha1_smol::Sha1::from(id).digest().to_string()[..32].to_owned() // It has 40 digits.
}

/// Returns whether this label names this process. Another machine may have the same name, and a process with the same number.
pub(crate) fn is_of_this_process(other: &str) -> bool {
    other.strip_prefix(&label("")).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// `host:pid` or `host:pid:name`, safe to stand in a lock key between spaces.
fn label(name: &str) -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let host = if host.is_empty() { "unknown" } else { &host };
    let mut label = format!("{}:{}", word(host, 40), std::process::id());
    if !name.is_empty() {
        label.push(':');
        label.push_str(&word(name, 60));
    }
    debug_assert!(label.len() <= LONGEST_LABEL);
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::mutable_key_type, reason = "the hash goes by what never changes")]
    fn owners_differ_and_clones_do_not() {
        let owner = Owner::new();
        assert_eq!(owner, owner.clone());
        assert_ne!(owner, Owner::new());
        let owners = std::collections::HashSet::from([owner.clone(), owner.clone(), Owner::new()]);
        assert!(owners.len() == 2 && owners.contains(&owner));
        assert_eq!(owner.id().len(), 32);
        assert_eq!(owner.fingerprint().len(), 32);
    }

    #[test]
    fn labels_hold_no_space_and_no_control_character() {
        let owner = Owner::labelled("night batch\nñ");
        assert!(owner.label().ends_with(":night_batch__"), "{}", owner.label());
        assert!(owner.label().contains(&format!(":{}:", std::process::id())));
        assert!(Owner::labelled(&"x".repeat(500)).label().len() < 130);
    }

    #[test]
    fn nothing_that_is_shown_of_an_owner_is_its_id() {
        let owner = Owner::new();
        assert_ne!(owner.id(), owner.fingerprint());
        assert!(!format!("{owner:?}").contains(&owner.id()));
    }

    #[tokio::test]
    async fn a_scope_ends_with_its_future() {
        let owner = Owner::new();
        owner.scope(async { assert_eq!(Owner::current(), Some(owner.clone())) }).await;
        assert_eq!(Owner::current(), None);
        owner.sync_scope(|| assert_eq!(Owner::current(), Some(owner.clone())));
        assert_eq!(Owner::current(), None);
    }
}
