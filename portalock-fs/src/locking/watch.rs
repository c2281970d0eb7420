//! Being told of changes instead of asking: a release that wakes a waiter, a lock file that was removed.

use std::{
    io,
    sync::{Arc, Weak},
};

use cap_std::fs::Dir;
use portalock_core::WakeSender;

use super::lock_file::LockFile;
use crate::sys::{Registration, Watched, Watcher};

/// A directory that is watched for as long as this lives.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    watcher: Arc<Watcher>,
    _registration: Registration,
    target: Weak<dyn Watched>,
}

impl DirectoryWatch {
    /// Starts to watch. An error where this system, or its limits, can't do it.
    pub(crate) fn new(dir: &Dir, target: Weak<dyn Watched>) -> io::Result<Self> {
        let watcher = Watcher::shared()?;
        let registration = Watcher::watch_directory(&watcher, dir, target.clone())?;
        Ok(Self {
            watcher,
            _registration: registration,
            target,
        })
    }

    /// Makes sure that what happens is heard: there is no thread before something is held or waited for.
    pub(crate) fn start(&self) -> io::Result<()> {
        Watcher::start(&self.watcher)?;
        self.watcher.keep_looking();
        Ok(())
    }

    /// Watches one lock file for being closed.
    pub(crate) fn watch_file(&self, file: &LockFile, name: &str) -> io::Result<Registration> {
        self.start()?;
        Watcher::watch_file(&self.watcher, file.file(), name, self.target.clone())
    }
}

/// The end at which one waiter for one file, or a few, is woken. There is none where the system, or its limits, can't watch:
/// then the engine polls.
#[derive(Debug)]
pub(crate) struct Line {
    watcher: Arc<Watcher>,
    told: Arc<Told>,
}

#[derive(Debug)]
struct Told(
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        allow(dead_code, reason = "nobody tells where nothing can be watched")
    )]
    WakeSender,
);

impl Line {
    pub(crate) fn new(sender: WakeSender) -> io::Result<Self> {
        Ok(Self {
            watcher: Watcher::shared()?,
            told: Arc::new(Told(sender)),
        })
    }

    /// Wakes the waiter whenever somebody closes `file`.
    pub(crate) fn watch_file(&self, file: &LockFile) -> io::Result<Registration> {
        let told: Weak<Told> = Arc::downgrade(&self.told);
        Watcher::start(&self.watcher)?;
        Watcher::watch_file(&self.watcher, file.file(), "", told)
    }
}

impl Watched for Told {
    fn closed(&self, _file: &str) {
        self.0.wake();
    }

    fn replaced(&self, _file: &str) {
        self.0.wake();
    }

    fn everything_changed(&self) {
        self.0.wake();
    }

    fn look(&self) -> bool {
        // Each attempt looks at the path itself.
        false
    }
}
