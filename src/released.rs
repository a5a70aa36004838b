/// A hold was given back, and a majority has confirmed it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Released {
    /// Nodes that have not confirmed: slower than the others, or away. They still get the release. What they keep is in the way
    /// of no other owner, and ends with the lease.
    pub pending: Vec<String>,
    /// How deep this owner is still nested on the (first) resource in this process. At 0 the resource is free, unless
    /// another process has joined.
    pub holds: u32,
}

impl Released {
    /// Returns whether every node that had a part in it has confirmed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }
}
