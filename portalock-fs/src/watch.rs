//! Being told of changes in a lock directory instead of asking: a release that wakes a waiter, a lock file removed.

use std::{
    io,
    sync::{Arc, Weak},
};

use cap_std::fs::Dir;

use crate::{
    open::{FileId, LockFile},
    sys,
};

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

/// A directory that is watched for as long as this lives.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    watcher: Arc<sys::Watcher>,
    _registration: sys::Registration,
    target: Weak<dyn Watched>,
}

/// A lock file that is watched for being closed, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watching {
    file: FileId,
    _registration: sys::Registration,
}

impl Watching {
    /// Whether it is this file that is watched.
    pub(crate) fn is_of(&self, file: &LockFile) -> bool {
        self.file == file.id()
    }
}

impl DirectoryWatch {
    /// Starts to watch. An error where this system, or its limits, can't do it.
    pub(crate) fn new(dir: &Dir, target: Weak<dyn Watched>) -> io::Result<Self> {
        let watcher = sys::Watcher::shared()?;
        let registration = sys::Watcher::watch_directory(&watcher, dir, target.clone())?;
        Ok(Self {
            watcher,
            _registration: registration,
            target,
        })
    }

    /// Makes sure that what happens is heard: there is no thread before something is held or waited for.
    pub(crate) fn start(&self) -> io::Result<()> {
        sys::Watcher::start(&self.watcher)?;
        self.watcher.keep_looking();
        Ok(())
    }

    /// Watches one lock file.
    pub(crate) fn watch_file(&self, file: &LockFile, name: &str) -> io::Result<Watching> {
        self.start()?;
        let told = self.target.clone();
        Ok(Watching {
            file: file.id(),
            _registration: sys::Watcher::watch_file(&self.watcher, &file.file, name, told)?,
        })
    }
}
