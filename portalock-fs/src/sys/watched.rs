//! Who is told of changes in a directory, or of a file that was closed.

/// Who is told. Called in the watcher's thread.
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    allow(dead_code, reason = "nobody tells where nothing can be watched")
)]
pub(crate) trait Watched: Send + Sync {
    /// Somebody closed the lock file, and so perhaps freed it.
    fn closed(&self, file: &str);
    /// A file of this name was removed from the directory, or put there by renaming.
    fn replaced(&self, file: &str);
    /// The directory itself is gone, or more happened than the system could tell.
    fn everything_changed(&self);
    /// Looks for what the system tells nobody of: that the path to the directory leads elsewhere, because a directory above it
    /// was renamed, a link was switched, or something was mounted over it. False if nothing needs it to look again.
    fn look(&self) -> bool;
}
