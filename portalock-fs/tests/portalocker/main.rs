//! The behaviour of portalocker on files: one test for each, with two processes if needed.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod atomic;
mod child;
mod file_lock;
mod file_lock_failures;
mod handle;
mod pid_file;
mod python;
mod reentrant;
mod semaphore;
mod temporary;
#[cfg(target_os = "linux")]
mod wakeups;

use std::{path::PathBuf, time::Duration};

use portalock_core::Policy;
use portalock_fs::LockKind;

/// A directory that is removed after the test, and a file name in it.
fn place(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    (dir, path)
}

/// The kinds of lock that there are here.
fn kinds() -> &'static [LockKind] {
    if cfg!(any(target_os = "linux", target_os = "android", windows)) {
        &[LockKind::Flock, LockKind::Record]
    } else {
        &[LockKind::Flock]
    }
}

/// Long enough for every event on a busy machine.
fn patient() -> Policy {
    Policy::default().with_timeout(Duration::from_secs(60))
}

/// A policy with a short timeout.
fn briefly() -> Policy {
    Policy::default().with_timeout(Duration::from_millis(50))
}
