/// What an error is: all of one kind are handled in one way.
///
/// `docs/operations.md` has a table of what to do, which HTTP status fits, and with which code the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a name or an argument cannot work.
    Usage,
    /// Another owner holds the lock, or asks for it at the same moment.
    Held,
    /// Too few nodes answer, or they are too slow.
    NoQuorum,
    /// Too few nodes can have a vote until the deployment is changed.
    Misconfigured,
    /// The lease is over although it was not released.
    Lost,
    /// No majority has confirmed a release yet.
    Unconfirmed,
}

impl ErrorKind {
    /// Returns whether the same request may succeed later, without a change of the program or of the deployment.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Held | Self::NoQuorum)
    }
}
