//! `TemporaryFileLock`: the lock file exists only while it is held, and a holder never removes another holder's file.

#[cfg(unix)]
use std::fs;
use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use portalock_core::{LockError, Policy};
use portalock_fs::TemporaryFileLock;

use crate::{child::Other, kinds, patient, place};

#[test]
fn the_file_is_there_only_while_it_is_held() {
    let (_dir, path) = place("lock");
    let lock = TemporaryFileLock::new(&path).unwrap();
    assert!(!path.exists());
    let held = lock.try_acquire().unwrap();
    assert!(path.exists());
    held.release().unwrap();
    assert!(!path.exists());
    drop(lock.try_acquire().unwrap());
    assert!(!path.exists());
}

#[test]
fn a_held_lock_is_an_error_at_once_by_default() {
    let (_dir, path) = place("lock");
    let _other = Other::that_has("temporary", &path);
    let error = TemporaryFileLock::new(&path)
        .unwrap()
        .blocking_acquire()
        .unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
    assert!(path.exists(), "a failed attempt removed the holder's file");
}

#[test]
fn waits_if_told_to() {
    let (_dir, path) = place("lock");
    let other = Other::that_has("temporary", &path);
    let lock = TemporaryFileLock::new(&path)
        .unwrap()
        .with_policy(patient());
    let waiter = thread::spawn(move || lock.blocking_acquire());
    other.finish();
    let held = waiter.join().unwrap().unwrap();
    assert!(path.exists(), "the waiter holds a lock on a removed file");
    held.ensure_held().unwrap();
}

/// On Windows nobody can remove a file that is open.
#[cfg(unix)]
#[test]
fn a_stale_temporary_lock_never_removes_anothers_file() {
    let (_dir, path) = place("lock");
    let lock = TemporaryFileLock::new(&path).unwrap();
    for release in [true, false] {
        let stale = lock.try_acquire().unwrap();
        fs::remove_file(&path).unwrap();
        let present = Other::that_has("temporary", &path);
        if release {
            assert!(stale.release().is_err());
        } else {
            drop(stale);
        }
        assert!(path.exists(), "release: {release}");
        assert!(lock.try_acquire().is_err());
        present.finish();
        assert!(!path.exists());
    }
}

#[cfg(unix)]
#[test]
fn a_removed_lock_file_is_a_lost_lock() {
    let (_dir, path) = place("lock");
    let lock = TemporaryFileLock::new(&path).unwrap();
    let held = lock.try_acquire().unwrap();
    held.ensure_held().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(held.ensure_held(), Err(LockError::Lost { .. })));
    fs::write(&path, "").unwrap();
    assert!(matches!(held.ensure_held(), Err(LockError::Lost { .. })));
}

#[test]
fn what_a_killed_process_left_is_taken_over() {
    let (_dir, path) = place("lock");
    Other::that_has("temporary", &path).kill();
    assert!(path.exists());
    let lock = TemporaryFileLock::new(&path).unwrap();
    let held = lock.blocking_acquire_with(&patient()).unwrap();
    held.release().unwrap();
    assert!(!path.exists());
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_leads_nowhere() {
    let (dir, path) = place("lock");
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    let lock = TemporaryFileLock::new(&path).unwrap();
    assert!(matches!(lock.try_acquire(), Err(LockError::Backend { .. })));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// Unlocking before unlinking, and locking without checking the path again, both give two holders within milliseconds
/// here.
#[test]
fn there_are_never_two_holders() {
    for &kind in kinds() {
        let (_dir, path) = place("lock");
        let inside = Arc::new(AtomicU32::new(0));
        let start = Arc::new(Barrier::new(6));
        let policy = patient()
            .with_check_interval(Duration::from_millis(1))
            .unwrap();
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (inside, start) = (inside.clone(), start.clone());
                let lock = TemporaryFileLock::new(&path)
                    .unwrap()
                    .with_kind(kind)
                    .with_policy(policy.clone());
                thread::spawn(move || {
                    start.wait();
                    for _ in 0..150 {
                        let held = lock.blocking_acquire().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                        let busy = Instant::now();
                        while busy.elapsed() < Duration::from_micros(30) {
                            std::hint::spin_loop();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn async_waiters_take_turns() {
    let (_dir, path) = place("lock");
    let lock = TemporaryFileLock::new(&path)
        .unwrap()
        .with_policy(Policy::forever());
    let turns = (0..8).map(|_| {
        let lock = lock.clone();
        tokio::spawn(async move {
            let held = lock.acquire().await.unwrap();
            tokio::task::yield_now().await;
            held.ensure_held().unwrap();
            held.release().unwrap();
        })
    });
    for turn in turns.collect::<Vec<_>>() {
        turn.await.unwrap();
    }
    assert!(!path.exists());
}

#[cfg(unix)]
#[test]
fn a_hard_link_is_not_emptied() {
    let (dir, path) = place("build.lock");
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::hard_link(&victim, &path).unwrap();
    assert!(
        TemporaryFileLock::new(&path)
            .unwrap()
            .try_acquire()
            .is_err()
    );
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[cfg(unix)]
#[test]
fn a_release_says_that_the_lock_was_lost() {
    let (_dir, path) = place("build.lock");
    let guard = TemporaryFileLock::new(&path)
        .unwrap()
        .try_acquire()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let error = guard.release().unwrap_err();
    assert!(
        matches!(error, portalock_core::LockError::Lost { .. }),
        "{error}"
    );
}

#[test]
fn those_who_share_it_leave_the_file_to_the_last() {
    for &kind in kinds() {
        let (_dir, path) = place("shared.lock");
        let alone = TemporaryFileLock::new(&path).unwrap().with_kind(kind);
        let shared = alone.clone().shared();
        let one = shared.try_acquire().unwrap();
        let two = shared.try_acquire().unwrap();
        assert!(alone.try_acquire().is_err());
        one.release().unwrap();
        assert!(path.exists(), "{kind:?}");
        two.ensure_held().unwrap();
        assert!(alone.try_acquire().is_err());
        two.release().unwrap();
        assert!(!path.exists(), "{kind:?}");
        alone.try_acquire().unwrap().release().unwrap();
    }
}
