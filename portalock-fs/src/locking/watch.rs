//! Watching instead of polling: a release wakes a waiter, and a removed lock file is noticed.

use std::{
    io,
    sync::{Arc, Weak},
};

use cap_std::fs::Dir;
use portalock_core::{Sleeper, WakeSender};

use super::lock_file::LockFile;
use crate::sys::{Change, Registration, Watched, Watcher};

/// Watches of files, and perhaps of their directory, for one receiver of events. There is none if the system can't
/// watch, or if its limits are reached; then waiters poll.
#[derive(Debug)]
pub(crate) struct FileWatch {
    watcher: Arc<Watcher>,
    told: Weak<dyn Watched>,
    /// Ends when this is dropped.
    _directory: Option<Registration>,
}

impl FileWatch {
    /// Tells `told` about the files that it will watch, and about changes in `directory`.
    pub(crate) fn new(told: Weak<dyn Watched>, directory: Option<&Dir>) -> io::Result<Self> {
        let watcher = Watcher::shared()?;
        let directory = directory.map(|directory| watcher.watch(directory, None, told.clone()));
        Ok(Self {
            _directory: directory.transpose()?,
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

    /// Watches a file until it is closed. Its events contain `name`.
    pub(crate) fn watch_file(&self, file: &LockFile, name: &str) -> io::Result<Registration> {
        let told = self.told.clone();
        self.watcher.watch(file.file(), Some(name), told)
    }
}

/// A waiter, which checks by its next attempt what has changed.
impl Watched for WakeSender {
    fn tell(&self, _change: &Change) {
        self.wake();
    }
}
