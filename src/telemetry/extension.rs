//! How an extension of a lease ended.

use crate::error::Reports;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Extension<'a> {
    /// A majority honours it, and so many nodes beyond the quorum.
    Confirmed { margin: usize },
    /// A majority says that the lease is over.
    Refused(&'a Reports),
    /// No majority answered, or too few agreed. The lease runs on, and the next extension follows.
    NoQuorum(&'a Reports),
}

impl Extension<'_> {
    /// The word for logs and metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Confirmed { .. } => "extended",
            Self::Refused(_) => "refused",
            Self::NoQuorum(_) => "no_quorum",
        }
    }
}
