//! The shared handle of a client.

use std::sync::Arc;

use super::core::Core;
use super::registry::Registry;

/// A client, as its clones and guards share it. Dropping the last reference closes the client.
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
    pub(super) registry: Arc<Registry>,
}

impl Handle {
    pub(crate) fn new(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core, registry: Arc::default() })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.close();
    }
}
