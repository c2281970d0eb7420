//! Windows only: mandatory locks, and open files that can't be removed.
#![cfg(windows)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::windows::fs::OpenOptionsExt,
    time::{Duration, SystemTime},
};

use portalock_core::{LockBackend, Mode, Released};
use portalock_fs::{FileLock, FileMode, PidFileLock, TemporaryFileLock, open_atomic};
use support::{Locks, lock, try_once, wine};

const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_LOCK_VIOLATION: i32 = 33;

fn code<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[tokio::test]
async fn a_lock_file_in_use_is_neither_removed_nor_moved_nor_replaced() {
    let locks = Locks::new();
    let client = locks.client();
    let (held, _) = try_once(&client, "a", Mode::Exclusive).await.unwrap();
    let (file, elsewhere) = (locks.file("a"), locks.path().join("elsewhere"));
    assert_eq!(code(fs::remove_file(&file)), ERROR_SHARING_VIOLATION);
    assert_eq!(code(fs::rename(&file, &elsewhere)), ERROR_SHARING_VIOLATION);
    fs::write(&elsewhere, "").unwrap();
    assert!(fs::rename(&elsewhere, &file).is_err());
    assert!(fs::rename(locks.path(), locks.path().with_extension("moved")).is_err());
    let other = locks.client();
    assert!(try_once(&other, "a", Mode::Shared).await.is_none());
    assert_eq!(client.release(&held).await.unwrap(), Released::Freed);
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_file_specific_locks_file_stays_while_it_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = FileLock::new(path("data")).unwrap().try_acquire().unwrap();
    let temporary = TemporaryFileLock::new(path("temporary")).unwrap();
    let temporary = temporary.try_acquire().unwrap();
    let pid = PidFileLock::new(path("pid")).unwrap();
    let pid = pid.try_acquire().unwrap();
    for name in ["data", "temporary", "pid.lock"] {
        assert_eq!(code(fs::remove_file(path(name))), ERROR_SHARING_VIOLATION);
    }
    data.ensure_held().unwrap();
    temporary.ensure_held().unwrap();
    pid.ensure_held().unwrap();
    temporary.release().unwrap();
    pid.release().unwrap();
    drop(data);
    assert!(path("data").exists());
    assert!(!path("temporary").exists() && !path("pid").exists() && !path("pid.lock").exists());
}

/// The holder's record is in a file beside it.
#[tokio::test]
async fn a_lock_file_stays_empty() {
    let locks = Locks::new();
    let client = locks.client();
    for mode in [Mode::Exclusive, Mode::Shared] {
        let (held, _) = try_once(&client, "a", mode).await.unwrap();
        assert!(lock(&client, "a").inspect().await.unwrap().held);
        assert_eq!(fs::metadata(locks.file("a")).unwrap().len(), 0);
        assert!(fs::metadata(locks.record("a")).unwrap().len() > 0);
        client.release(&held).await.unwrap();
    }
}

#[tokio::test]
async fn a_scanner_that_looks_at_all_files_is_in_nobodys_way() {
    let locks = Locks::new();
    let client = locks.client();
    for _ in 0..2 {
        let (held, _) = try_once(&client, "a", Mode::Shared).await.unwrap();
        let scans: Vec<File> = fs::read_dir(locks.path())
            .unwrap()
            .map(|entry| File::open(entry.unwrap().path()).unwrap())
            .collect();
        assert!(scans.len() >= 3, "{}", scans.len());
        let other = locks.client();
        let (too, _) = try_once(&other, "a", Mode::Shared).await.unwrap();
        for (client, request) in [(&client, held), (&other, too)] {
            assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
        }
        drop(lock(&client, "a").try_acquire().await.unwrap());
        drop(scans);
    }
}

#[tokio::test]
async fn cleaning_goes_by_when_a_lock_was_last_granted_and_spares_what_is_open() {
    let locks = Locks::new();
    let client = locks.client();
    for name in ["used", "unused", "open"] {
        drop(lock(&client, name).acquire_shared().await.unwrap());
    }
    // Grants don't write to the lock file, so its own time says nothing.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let date = |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(long_ago).unwrap();
    };
    for name in ["used", "unused", "open"] {
        date(locks.file(name));
    }
    date(locks.record("unused"));
    date(locks.record("open"));
    let mut no_removal = File::options();
    no_removal.read(true).share_mode(3);
    let open = no_removal.open(locks.file("open")).unwrap();
    let cleaner = locks.client();
    assert_eq!(cleaner.clean(Duration::from_secs(3600)).unwrap(), 1);
    assert!(locks.file("used").exists() && locks.file("open").exists());
    assert!(!locks.file("unused").exists() && !locks.record("unused").exists());
    drop(open);
    drop(lock(&client, "open").acquire().await.unwrap());
    assert_eq!(cleaner.clean(Duration::ZERO).unwrap(), 2);
    assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
}

#[test]
fn the_holder_of_a_data_file_reads_and_writes_it_and_nobody_else_does() {
    if wine::skips(wine::LENIENT) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "before").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::ReadWrite);
    let mut held = lock.try_acquire().unwrap();
    assert_eq!(code(fs::read(&path)), ERROR_LOCK_VIOLATION);
    let mut other = File::options().write(true).open(&path).unwrap();
    assert_eq!(code(other.write(b"theirs")), ERROR_LOCK_VIOLATION);
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    held.rewind().unwrap();
    held.write_all(b"AFTER!").unwrap();
    held.try_clone().unwrap().write_all(b"!").unwrap();
    held.release().unwrap();
    assert_eq!(content, "before");
    assert_eq!(fs::read_to_string(&path).unwrap(), "AFTER!!");
}

#[test]
fn a_shared_data_file_is_read_by_all_and_written_by_nobody_not_even_its_holder() {
    if wine::skips(wine::LENIENT) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "before").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::ReadWrite);
    let mut held = lock.shared().try_acquire().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    assert_eq!(code(held.write(b"x")), ERROR_LOCK_VIOLATION);
}

/// A reader that shares everything doesn't prevent the next pid file from replacing the old one.
#[test]
fn a_pid_file_is_published_over_one_that_is_being_read() {
    if wine::skips("wine does not rename over a file that is open: only Windows can show this") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon.pid");
    fs::write(&path, "4711").unwrap();
    let _reader = File::open(&path).unwrap();
    let lock = PidFileLock::new(&path).unwrap();
    let _held = lock.try_acquire().unwrap();
    assert_eq!(lock.read_pid(), Some(std::process::id()));
}

#[tokio::test]
async fn long_paths_work_for_locks_and_for_files() {
    let dir = tempfile::tempdir().unwrap();
    let deep = (0..6).fold(dir.path().to_owned(), |path, _| path.join("d".repeat(60)));
    assert!(deep.as_os_str().len() > 300);
    let client = portalock_fs::FsBackend::open(deep.join("locks")).unwrap();
    let long = "n".repeat(255);
    let (held, _) = try_once(&client, &long, Mode::Exclusive).await.unwrap();
    let other = portalock_fs::FsBackend::open(deep.join("locks")).unwrap();
    assert!(try_once(&other, &long, Mode::Exclusive).await.is_none());
    client.release(&held).await.unwrap();
    if !wine::skips("wine does not tell the path of a directory that is so deep") {
        assert_eq!(client.clean(Duration::ZERO).unwrap(), 1);
    }

    open_atomic(deep.join("report"), |file| file.write_all(b"whole")).unwrap();
    assert_eq!(fs::read_to_string(deep.join("report")).unwrap(), "whole");
    let lock = PidFileLock::new(deep.join("pid")).unwrap();
    let held = lock.try_acquire().unwrap();
    assert_eq!(lock.read_pid(), Some(std::process::id()));
    held.release().unwrap();
}

#[test]
fn a_path_that_windows_reads_in_two_ways_is_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let lock = |name: &str| FileLock::new(dir.path().join(name)).unwrap();
    let _held = lock("data").try_acquire().unwrap();
    for same in ["DATA", "data.", "data "] {
        let error = lock(same).try_acquire().unwrap_err();
        assert!(error.is_contention(), "{same}: {error}");
    }
}
