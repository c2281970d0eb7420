//! Receivers of events: changes in a directory, and closed files.

#![cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    allow(dead_code, reason = "nobody tells where nothing can be watched")
)]

use std::sync::Arc;

use portalock_core::WakeSender;

/// What happened.
pub(crate) enum Change {
    /// The file with this name was closed, and perhaps unlocked.
    Closed(Arc<str>),
    /// A file with this name was removed from the directory, or moved there.
    Replaced(Arc<str>),
    /// The directory itself is gone, or there were too many events.
    Everything,
}

/// A receiver of events. Its methods are called on the watcher's thread.
pub(crate) trait Watched: Send + Sync {
    fn tell(&self, change: &Change);

    /// Checks for a change without an event: the path now leads to another directory, because a directory above it was
    /// renamed, a link was changed, or something was mounted over it. False if no further check is needed.
    fn look(&self) -> bool {
        false
    }
}

/// A waiter, which checks by its next attempt what has changed.
impl Watched for WakeSender {
    fn tell(&self, _: &Change) {
        self.wake();
    }
}
