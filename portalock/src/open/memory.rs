//! `memory:`, a store in this process.

use portalock_core::MemoryBackend;

use crate::{AnyBackend, OpenError};

/// A new store, independent of all others.
pub(crate) fn open(rest: &str) -> Result<AnyBackend, OpenError> {
    if rest.is_empty() {
        Ok(AnyBackend::new(MemoryBackend::new()))
    } else {
        Err(OpenError::settings(
            "memory",
            "nothing follows memory:, each is a store of its own",
        ))
    }
}
