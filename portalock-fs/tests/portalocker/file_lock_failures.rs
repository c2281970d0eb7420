//! `Lock`: failures are not contention, and end the call at once.

use std::fs;

use portalock_core::{BackendErrorKind, LockError};
use portalock_fs::{FileLock, FileMode};

#[cfg(unix)]
use crate::child::Other;
use crate::{patient, place};

/// The error's kind, and a check that the call did not wait, which it would have done for a minute.
fn failure(lock: &FileLock) -> BackendErrorKind {
    match lock.blocking_acquire_with(&patient()) {
        Err(LockError::Backend { source, .. }) => source.kind(),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn a_missing_directory_is_an_error_at_once_and_a_later_retry_works() {
    let (dir, _) = place("");
    let lock = FileLock::new(dir.path().join("missing/data")).unwrap();
    assert_eq!(failure(&lock), BackendErrorKind::NotFound);
    fs::create_dir(dir.path().join("missing")).unwrap();
    assert!(lock.try_acquire().is_ok());
}

#[test]
fn reading_needs_a_file_that_exists() {
    let (_dir, path) = place("data");
    for mode in [FileMode::Read, FileMode::ReadWrite] {
        let lock = FileLock::new(&path).unwrap().with_mode(mode);
        assert_eq!(failure(&lock), BackendErrorKind::NotFound);
        assert!(!path.exists());
    }
}

#[test]
fn exclusive_creation_refuses_a_file_that_exists() {
    let (_dir, path) = place("data");
    for mode in [FileMode::New, FileMode::NewRead] {
        let lock = FileLock::new(&path).unwrap().with_mode(mode);
        let held = lock.try_acquire().unwrap();
        let Err(LockError::Backend { source, .. }) = lock.try_acquire() else {
            panic!("created a file that exists");
        };
        assert!(source.to_string().contains("exists already"), "{source}");
        drop(held);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_directory_is_no_data_file() {
    let (dir, _) = place("");
    for mode in [FileMode::Read, FileMode::Append] {
        let lock = FileLock::new(dir.path()).unwrap().with_mode(mode);
        assert_eq!(failure(&lock), BackendErrorKind::Corrupt);
    }
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused_rather_than_waited_for() {
    let (_dir, path) = place("pipe");
    let pipe = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(pipe.unwrap().success());
    for mode in [FileMode::Read, FileMode::Append, FileMode::ReadWrite] {
        let lock = FileLock::new(&path).unwrap().with_mode(mode);
        assert_eq!(failure(&lock), BackendErrorKind::Corrupt, "{mode:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_exclusive_record_lock_on_a_read_only_handle_is_a_mistake_not_contention() {
    let (_dir, path) = place("data");
    fs::write(&path, "").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::Read);
    let lock = lock.with_kind(portalock_fs::LockKind::Record);
    assert_eq!(failure(&lock), BackendErrorKind::Misconfigured);
}

#[cfg(unix)]
#[test]
fn too_many_open_files_is_told_apart() {
    let (_dir, path) = place("data");
    Other::start("no handles left", &path).expect("Exhausted");
}

#[test]
fn an_empty_path_is_no_file() {
    let error = FileLock::new("").unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
}

#[test]
fn a_path_of_any_length_can_be_named_in_an_error() {
    let (dir, _) = place("");
    // One of them is cut within a letter.
    for end in ["ö".repeat(120), format!("o{}", "ö".repeat(120))] {
        let long = dir.path().join("ä".repeat(120)).join(end);
        assert_eq!(
            failure(&FileLock::new(long).unwrap()),
            BackendErrorKind::NotFound
        );
    }
}
