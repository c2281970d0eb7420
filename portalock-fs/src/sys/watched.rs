//! Who is told of changes in a directory, or of a file that was closed.

#![cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    allow(dead_code, reason = "nobody tells where nothing can be watched")
)]

use std::sync::Arc;

/// What happened.
pub(crate) enum Change {
    /// Somebody closed the file of this name, and so perhaps freed it.
    Closed(Arc<str>),
    /// A file of this name was removed from the directory, or put there by renaming.
    Replaced(Arc<str>),
    /// The directory itself is gone, or more happened than the system could tell.
    Everything,
}

/// Who is told. Called in the watcher's thread.
pub(crate) trait Watched: Send + Sync {
    fn tell(&self, change: &Change);

    /// Looks for what the system tells nobody of: that the path to the directory leads elsewhere, because a directory above it
    /// was renamed, a link was switched, or something was mounted over it. False if nothing needs it to look again.
    fn look(&self) -> bool {
        false
    }
}
