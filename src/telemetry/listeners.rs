//! The listeners that a program adds to a client.

use std::fmt;
use std::sync::Arc;

use super::observer::Observer;

/// The listeners of a client that a program sets.
#[derive(Clone, Default)]
pub(crate) struct Listeners {
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("observer", &self.observer.is_some()).finish_non_exhaustive()
    }
}
