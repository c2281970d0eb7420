//! The oldest fault of file locks: who unlocks a file and then removes it lets two in. One waits on the file that is about
//! to go, the next makes a new one.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, Grant, LockBackend,
    LockRequest, OwnerId, Released, Scope,
};
use portalock_testkit::{Fixture, FixtureError, Suite, cases};

/// Locks a file, and removes it when it is released: before the unlock, or after it.
#[derive(Debug, Clone)]
struct Files {
    directory: PathBuf,
    removes_first: bool,
    held: Arc<Mutex<HashMap<OwnerId, File>>>,
}

impl Files {
    fn path(&self, request: &LockRequest) -> PathBuf {
        self.directory.join(request.name.as_str())
    }

    /// Whether `file` is still the one at `path`.
    fn is_there(file: &File, path: &PathBuf) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::metadata(path)) {
            (Ok(mine), Ok(there)) => (mine.ino(), mine.dev()) == (there.ino(), there.dev()),
            _ => false,
        }
    }
}

fn failed(error: std::io::Error) -> BackendError {
    BackendError::new(BackendErrorKind::Other, "a file failed").with_source(error)
}

#[async_trait]
impl LockBackend for Files {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Host).with_releases_now(true)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let mut held = self.held.lock().unwrap();
        if held.contains_key(&request.owner) {
            return Ok(Attempt::Granted(Grant::new()));
        }
        let path = self.path(request);
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            // A correct one looks whether the file it locked is still there.
            Ok(()) if !self.removes_first || Self::is_there(&file, &path) => {
                held.insert(request.owner, file);
                Ok(Attempt::Granted(Grant::new()))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(Attempt::Contended(Contention::new())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        let released = self.held.lock().unwrap().remove(&request.owner);
        let Some(file) = released else {
            return Ok(Released::NotHeld);
        };
        if self.removes_first {
            fs::remove_file(self.path(request)).map_err(failed)?;
            drop(file);
        } else {
            drop(file);
            // Whoever came first has removed it.
            let _ = fs::remove_file(self.path(request));
        }
        Ok(Released::Freed)
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        matches!(
            futures_util::FutureExt::now_or_never(self.release(request)),
            Some(Ok(_))
        )
    }
}

struct Directory {
    directory: tempfile::TempDir,
    removes_first: bool,
}

#[async_trait]
impl Fixture for Directory {
    type Backend = Files;

    async fn client(&self) -> Result<Files, FixtureError> {
        Ok(Files {
            directory: self.directory.path().to_owned(),
            removes_first: self.removes_first,
            held: Arc::default(),
        })
    }
}

fn fails(removes_first: bool) -> bool {
    let suite = Suite::new(move || async move {
        Directory {
            directory: tempfile::tempdir().unwrap(),
            removes_first,
        }
    });
    let case = cases::find("exclusive::threads_never_overlap").unwrap();
    suite.run_case(case).is_failure()
}

#[test]
fn a_file_that_is_removed_after_the_unlock_is_found_out_every_time() {
    for round in 0..20 {
        assert!(
            fails(false),
            "round {round}: two were inside, and nobody noticed"
        );
    }
}

#[test]
fn a_file_that_is_removed_before_the_unlock_is_sound() {
    assert!(!fails(true));
}
