//! `ReentrantFileLock`: one open file for all its guards.

use std::{fs, io::Write};

#[cfg(unix)]
use portalock_core::LockError;
#[cfg(target_os = "linux")]
use portalock_core::Policy;
use portalock_fs::{FileLock, ReentrantFileLock};

use crate::{patient, place};

#[tokio::test]
async fn a_reentrant_lock_hands_out_one_file() {
    let (_dir, path) = place("ledger");
    let alone = FileLock::new(&path).unwrap();
    let ours = ReentrantFileLock::new(alone.clone().with_policy(patient())).unwrap();
    // Twice: the second time it opens the file anew, and is woken as the first time.
    for round in 1..=2 {
        let other = alone.try_acquire().unwrap();
        let waiting = tokio::spawn({
            let ours = ours.clone();
            async move { ours.acquire().await.unwrap() }
        });
        tokio::task::yield_now().await;
        other.release().unwrap();
        let outer = waiting.await.unwrap();
        let inner = ours.acquire().await.unwrap();
        assert_eq!(ours.count(), 2);
        writeln!(&*outer, "a").unwrap();
        writeln!(&*inner, "b").unwrap();
        outer.release().unwrap();
        assert!(alone.try_acquire().is_err());
        inner.release().unwrap();
        assert_eq!(ours.count(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n".repeat(round));
    }
}

#[cfg(unix)]
#[test]
fn a_reentrant_release_says_that_the_file_was_replaced() {
    let (_dir, path) = place("data");
    let lock = ReentrantFileLock::new(FileLock::new(&path).unwrap()).unwrap();
    let held = lock.blocking_acquire().unwrap();
    fs::remove_file(&path).unwrap();
    let error = held.release().unwrap_err();
    assert!(matches!(error, LockError::NotHeld { .. }), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_attempt_that_fails_leaves_no_file_open() {
    let (_dir, path) = place("data");
    let file = FileLock::new(&path).unwrap();
    let held = file.try_acquire().unwrap();
    let once = Policy::new().with_fail_when_locked(true);
    let lock = ReentrantFileLock::new(file.with_policy(once)).unwrap();
    assert!(lock.blocking_acquire().unwrap_err().is_contention());
    let path = fs::canonicalize(path).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    assert_eq!(open.filter(|target| *target == path).count(), 1);
    drop(held);
}
