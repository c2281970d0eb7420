//! Watching instead of polling: a release wakes a waiter, and a removed lock file is noticed.

use std::{
    io,
    sync::{Arc, Weak},
};

use cap_std::fs::Dir;
use portalock_core::{Sleeper, WakeSender};

use super::lock_file::LockFile;
use crate::sys::{Change, Registration, Watched, Watcher};

/// A watched directory. Dropping this ends the watch.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    watcher: Arc<Watcher>,
    _registration: Registration,
    told: Weak<dyn Watched>,
}

impl DirectoryWatch {
    /// Starts a watch. Fails if the system can't watch, or if its limits are reached.
    pub(crate) fn new(dir: &Dir, told: Weak<dyn Watched>) -> io::Result<Self> {
        let watcher = Watcher::shared()?;
        Ok(Self {
            _registration: watcher.watch(dir, None, told.clone())?,
            watcher,
            told,
        })
    }

    /// Makes the watch call [`look`](Watched::look) from now on, as long as it returns true.
    pub(crate) fn keep_looking(&self) {
        self.watcher.keep_looking();
    }

    /// Lets the thread of a blocking call receive the events.
    pub(crate) fn sleeper(&self) -> Arc<dyn Sleeper> {
        self.watcher.sleeper()
    }

    /// Watches one lock file until it is closed.
    pub(crate) fn watch_file(&self, file: &LockFile, name: &str) -> io::Result<Registration> {
        let told = self.told.clone();
        self.watcher.watch(file.file(), Some(name), told)
    }
}

/// Wakes one waiter for one or several files. There is none if the system can't watch, or if its limits are reached;
/// the engine then polls.
#[derive(Debug)]
pub(crate) struct Line {
    watcher: Arc<Watcher>,
    told: Arc<WakeSender>,
}

impl Line {
    pub(crate) fn new(sender: WakeSender) -> io::Result<Self> {
        Ok(Self {
            watcher: Watcher::shared()?,
            told: Arc::new(sender),
        })
    }

    /// Lets the thread of a blocking call receive the events.
    pub(crate) fn sleeper(&self) -> Arc<dyn Sleeper> {
        self.watcher.sleeper()
    }

    /// Wakes the waiter whenever `file` is closed.
    pub(crate) fn watch_file(&self, file: &LockFile) -> io::Result<Registration> {
        let told: Weak<WakeSender> = Arc::downgrade(&self.told);
        self.watcher.watch(file.file(), Some(""), told)
    }
}

impl Watched for WakeSender {
    /// Each attempt checks the path itself.
    fn tell(&self, _change: &Change) {
        self.wake();
    }
}
