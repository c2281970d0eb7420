//! `lock` and `unlock`: plain locks against another process.

use std::{
    fs::{self, File},
    path::Path,
};

use portalock_core::LockError;
use portalock_fs::{LockKind, Mode, blocking_lock_with, lock, lock_with, try_lock, unlock};

use crate::{briefly, child::Other, kinds, patient, place};

fn open(path: &Path) -> File {
    fs::write(path, "").unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// What the other process is told to do.
const fn task(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Record => "record",
        _ => "flock",
    }
}

#[test]
fn a_lock_on_a_handle_keeps_another_process_out() {
    for &kind in kinds() {
        let task = task(kind);
        let (_dir, path) = place("data");
        let file = open(&path);
        let other = Other::that_has(task, &path);
        assert!(!try_lock(&file, Mode::Exclusive, kind).unwrap(), "{kind:?}");
        assert!(!try_lock(&file, Mode::Shared, kind).unwrap(), "{kind:?}");
        other.finish();
        lock(&file, Mode::Exclusive, kind).unwrap();
    }
}

#[test]
fn a_blocking_lock_waits_for_another_process() {
    for &kind in kinds() {
        let task = task(kind);
        let (_dir, path) = place("data");
        let file = open(&path);
        let mut other = Other::start(task, &path);
        other.expect("ready");
        let waiter = std::thread::spawn(move || lock(&file, Mode::Exclusive, kind));
        other.finish();
        waiter.join().unwrap().unwrap();
    }
}

#[test]
fn unlocking_what_is_not_locked_is_harmless_on_unix() {
    let (_dir, path) = place("data");
    let file = open(&path);
    for &kind in kinds() {
        assert_eq!(unlock(&file, kind).is_ok(), cfg!(unix));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn flock_and_record_locks_do_not_see_each_other() {
    let (_dir, path) = place("data");
    let file = open(&path);
    let _other = Other::that_has("flock", &path);
    assert!(try_lock(&file, Mode::Exclusive, LockKind::Record).unwrap());
}

#[tokio::test]
async fn an_open_handle_is_waited_for_until_a_deadline() {
    for &kind in kinds() {
        let (_dir, path) = place("ledger");
        let (ours, theirs) = (open(&path), open(&path));
        assert!(try_lock(&theirs, Mode::Exclusive, kind).unwrap());
        for mode in [Mode::Shared, Mode::Exclusive] {
            let refused = lock_with(&ours, mode, kind, &briefly()).await;
            assert!(
                matches!(refused, Err(LockError::Timeout { .. })),
                "{kind:?}: {refused:?}"
            );
        }
        // The failed attempts have left nothing that unlocks later.
        unlock(&theirs, kind).unwrap();
        lock_with(&ours, Mode::Exclusive, kind, &briefly())
            .await
            .unwrap();
        assert!(!try_lock(&theirs, Mode::Shared, kind).unwrap(), "{kind:?}");
        unlock(&ours, kind).unwrap();
        assert!(try_lock(&theirs, Mode::Shared, kind).unwrap(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_waiter_with_an_open_handle_has_it_once_the_other_is_closed() {
    for &kind in kinds() {
        let (_dir, path) = place("ledger");
        let (ours, theirs) = (open(&path), open(&path));
        assert!(try_lock(&theirs, Mode::Exclusive, kind).unwrap());
        let policy = patient();
        let mut waiting = Box::pin(lock_with(&ours, Mode::Exclusive, kind, &policy));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(theirs);
        waiting.await.unwrap();
        assert!(!try_lock(&open(&path), Mode::Shared, kind).unwrap());
    }
}

#[tokio::test]
async fn a_wait_on_an_open_handle_that_is_dropped_locks_nothing() {
    for &kind in kinds() {
        let (_dir, path) = place("ledger");
        let (ours, theirs) = (open(&path), open(&path));
        assert!(try_lock(&theirs, Mode::Exclusive, kind).unwrap());
        let policy = patient();
        let mut waiting = Box::pin(lock_with(&ours, Mode::Exclusive, kind, &policy));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(waiting);
        unlock(&theirs, kind).unwrap();
        assert!(
            try_lock(&theirs, Mode::Exclusive, kind).unwrap(),
            "{kind:?}"
        );
    }
}

#[test]
fn a_thread_waits_for_an_open_handle_until_a_deadline() {
    for &kind in kinds() {
        let task = task(kind);
        let (_dir, path) = place("ledger");
        let ours = open(&path);
        let other = Other::that_has(task, &path);
        let refused = blocking_lock_with(&ours, Mode::Exclusive, kind, &briefly());
        assert!(
            matches!(refused, Err(LockError::Timeout { .. })),
            "{kind:?}: {refused:?}"
        );
        let waiter = std::thread::spawn(move || {
            blocking_lock_with(&ours, Mode::Exclusive, kind, &patient()).map(|()| ours)
        });
        other.finish();
        let ours = waiter.join().unwrap().unwrap();
        assert!(!try_lock(&open(&path), Mode::Shared, kind).unwrap());
        drop(ours);
    }
}
