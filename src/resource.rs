use std::fmt;
use std::sync::Arc;

use crate::text::readable;

/// Lock keys may not begin like this, or one resource's lock key could be another's ballot key. Only an empty or odd prefix
/// can bring that about.
const BALLOT: &[u8] = b"quorlock:ballot:";
/// The key of the requests that wait for a lock is this and the lock key. Only scripts use it.
const QUEUE: &[u8] = b"quorlock:queue:";
/// The key that says how many nodes the list of a prefix has begins like this.
pub(crate) const LIST: &[u8] = b"quorlock:list:";
/// The node record.
const NODE: &[u8] = b"quorlock:node";

/// What is locked: a name of any bytes, and the keys that stand for it on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Resource(Arc<Keys>);

/// The ballot key ends with the lock key, and that with the name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Keys {
    ballot: Box<[u8]>,
    name_at: usize,
}

impl Resource {
    /// `None` when the lock key would lie where quorlock keeps other things.
    pub(crate) fn new(prefix: &[u8], name: &[u8]) -> Option<Self> {
        let ballot = [BALLOT, prefix, name].concat().into();
        let resource = Self(Arc::new(Keys { ballot, name_at: BALLOT.len() + prefix.len() }));
        let key = resource.lock_key();
        let is_reserved = key == NODE || [BALLOT, LIST, QUEUE].iter().any(|kind| key.starts_with(kind));
        (!is_reserved).then_some(resource)
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.0.ballot[self.0.name_at..]
    }

    pub(crate) fn lock_key(&self) -> &[u8] {
        &self.0.ballot[BALLOT.len()..]
    }

    pub(crate) fn ballot_key(&self) -> &[u8] {
        &self.0.ballot
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&readable(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_name() {
        let resource = Resource::new(b"quorlock:lock:", b"account:42").unwrap();
        assert_eq!(resource.lock_key(), b"quorlock:lock:account:42");
        assert_eq!(resource.ballot_key(), b"quorlock:ballot:quorlock:lock:account:42");
        assert_eq!(resource.name(), b"account:42");
        assert!(Resource::new(b"", b"").is_some());
    }

    #[test]
    fn a_lock_key_is_never_a_key_of_another_kind() {
        assert_eq!(Resource::new(b"", b"quorlock:ballot:x"), None);
        assert_eq!(Resource::new(b"quorlock:", b"ballot:x"), None);
        assert_eq!(Resource::new(b"quorlock:", b"node"), None);
        assert_eq!(Resource::new(b"", b"quorlock:list:x"), None);
        assert_eq!(Resource::new(b"quorlock:", b"queue:x"), None);
        assert!(Resource::new(b"quorlock:", b"node2").is_some());
        assert!(Resource::new(b"quorlock:lock:", b"quorlock:ballot:x").is_some());
    }
}
