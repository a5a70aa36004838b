//! The listeners that a program adds to a client.

#[cfg(feature = "metrics")]
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::observer::Observer;

/// The listeners of a client that a program sets.
#[derive(Clone, Default)]
pub(crate) struct Listeners {
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// The classes of names in metrics.
    #[cfg(feature = "metrics")]
    pub(crate) class: Option<Class>,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("observer", &self.observer.is_some()).finish_non_exhaustive()
    }
}

/// The function of the program that gives a name its class.
#[cfg(feature = "metrics")]
#[derive(Clone)]
pub(crate) struct Class(pub(crate) Arc<Classify>);

#[cfg(feature = "metrics")]
type Classify = dyn Fn(&[u8]) -> Cow<'static, str> + Send + Sync;

#[cfg(feature = "metrics")]
impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Class")
    }
}
