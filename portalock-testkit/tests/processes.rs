//! What only other processes can show: backends over files that are each wrong in one way, and one that is right.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, Grant, LockBackend,
    LockRequest, OwnerId, Released, Scope,
};
use portalock_testkit::{
    CaseReport, Fixture, FixtureError, HelperCommand, Outcome, Suite, cases, process,
};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The oldest fault of file locks: who unlocks a file and then removes it lets two in. One waits on the file that is
    /// about to go, the next makes a new one.
    RemovesAfterTheUnlock,
    /// A forked child shares the parent's open file, and unlocks it when it drops its copy of the guard.
    UnlocksInAChild,
}

impl Flaw {
    const ALL: [Self; 3] = [
        Self::None,
        Self::RemovesAfterTheUnlock,
        Self::UnlocksInAChild,
    ];
}

/// Locks a file, and removes it when it is released: before the unlock, or after it.
#[derive(Debug, Clone)]
struct Files {
    directory: PathBuf,
    flaw: Flaw,
    process: u32,
    held: Arc<Mutex<HashMap<OwnerId, File>>>,
}

impl Files {
    fn open(directory: &Path, flaw: Flaw) -> Self {
        Self {
            directory: directory.to_owned(),
            flaw,
            process: std::process::id(),
            held: Arc::default(),
        }
    }

    fn path(&self, request: &LockRequest) -> PathBuf {
        self.directory.join(request.name.as_str())
    }

    fn removes_first(&self) -> bool {
        self.flaw != Flaw::RemovesAfterTheUnlock
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
            Ok(()) if !self.removes_first() || Self::is_there(&file, &path) => {
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
        if self.process != std::process::id() {
            if self.flaw == Flaw::UnlocksInAChild {
                file.unlock().map_err(failed)?;
            }
            return Ok(Released::NotHeld);
        }
        if self.removes_first() {
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
    flaw: Flaw,
}

impl Directory {
    fn new(flaw: Flaw) -> Result<Self, FixtureError> {
        let directory = tempfile::tempdir()?;
        Ok(Self { directory, flaw })
    }
}

#[async_trait]
impl Fixture for Directory {
    type Backend = Files;

    async fn client(&self) -> Result<Files, FixtureError> {
        Ok(Files::open(self.directory.path(), self.flaw))
    }

    fn address(&self) -> Option<String> {
        Some(format!(
            "{:?} {}",
            self.flaw,
            self.directory.path().display()
        ))
    }

    async fn connect(address: &str) -> Result<Files, FixtureError> {
        let (flaw, directory) = address
            .split_once(' ')
            .ok_or_else(|| FixtureError::failed("this is no fixture's address"))?;
        let flaw = Flaw::ALL
            .into_iter()
            .find(|known| format!("{known:?}") == flaw)
            .ok_or_else(|| FixtureError::failed("there is no such flaw"))?;
        Ok(Files::open(Path::new(directory), flaw))
    }
}

#[test]
#[ignore = "the suite starts it as a second process"]
fn helper_process() {
    process::serve(|| async { Directory::new(Flaw::None) });
}

fn play(case: &str, flaw: Flaw) -> CaseReport {
    let helper = HelperCommand::new(
        std::env::current_exe().unwrap(),
        ["helper_process", "--exact", "--ignored", "--nocapture"],
    );
    Suite::new(move || async move { Directory::new(flaw) })
        .with_helper(helper)
        .run_case(cases::find(case).unwrap())
}

/// Whether the case fails, and for the reason that is expected.
fn is_found_out(case: &str, flaw: Flaw, seen: &str) -> bool {
    let report = play(case, flaw);
    println!("{report}");
    matches!(report.outcome, Outcome::Failed { reason } if reason.contains(seen))
}

#[test]
fn a_file_that_is_removed_after_the_unlock_is_found_out_every_time() {
    let flaw = Flaw::RemovesAfterTheUnlock;
    for case in ["threads_never_overlap", "processes_never_overlap"] {
        for round in 0..20 {
            assert!(
                is_found_out(&format!("exclusive::{case}"), flaw, "inside together"),
                "{case}, round {round}: two were inside, and nobody noticed"
            );
        }
    }
}

#[test]
fn a_child_that_unlocks_its_parents_file_is_found_out() {
    let case = "release::a_forked_childs_copy_frees_nothing";
    assert!(is_found_out(
        case,
        Flaw::UnlocksInAChild,
        "was granted while somebody was in the way"
    ));
}

#[test]
fn one_that_does_all_this_right_passes() {
    for case in [
        "exclusive::threads_never_overlap",
        "exclusive::processes_never_overlap",
        "release::a_forked_childs_copy_frees_nothing",
    ] {
        let report = play(case, Flaw::None);
        assert_eq!(report.outcome, Outcome::Passed, "{report}");
    }
}
