//! Exclusion.

use portalock_core::{LockBackend, Mode, Released};
use portalock_fs::{FsBackend, FsSettings, LockKind};

use crate::support::{Locks, granted, lock, try_once};

#[tokio::test]
async fn two_clients_exclude_each_other() {
    let locks = Locks::new();
    for kind in [LockKind::Flock, LockKind::Record] {
        if kind == LockKind::Record
            && cfg!(not(any(
                target_os = "linux",
                target_os = "android",
                windows
            )))
        {
            continue;
        }
        let settings = FsSettings::new(locks.path()).with_lock(kind);
        let (one, two) = (
            FsBackend::with_settings(&settings).unwrap(),
            FsBackend::with_settings(&settings).unwrap(),
        );
        let (held, _) = try_once(&one, "a", Mode::Exclusive).await.unwrap();
        assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
        assert!(try_once(&two, "a", Mode::Shared).await.is_none());
        assert!(try_once(&two, "b", Mode::Exclusive).await.is_some());
        assert_eq!(one.release(&held).await.unwrap(), Released::Freed);
        assert_eq!(one.release(&held).await.unwrap(), Released::NotHeld);
        let (held, _) = try_once(&two, "a", Mode::Exclusive).await.unwrap();
        assert_eq!(one.release(&held).await.unwrap(), Released::NotHeld);
        assert!(try_once(&one, "a", Mode::Exclusive).await.is_none());
        two.release(&held).await.unwrap();
    }
}

#[tokio::test]
async fn a_granted_owner_that_tries_again_finds_its_grant() {
    let locks = Locks::new();
    let client = locks.client();
    let (request, grant) = try_once(&client, "a", Mode::Exclusive).await.unwrap();
    let again = granted(client.try_acquire(&request).await.unwrap());
    assert_eq!(again.token, grant.token);
}

/// Like another program that locks the file, or a holder that has not written its record yet.
#[tokio::test]
async fn a_try_whose_holder_is_unknown_lets_other_tasks_run_meanwhile() {
    let locks = Locks::new();
    let client = locks.client();
    drop(lock(&client, "a").acquire().await.unwrap());
    let file = std::fs::File::open(locks.file("a")).unwrap();
    assert!(portalock_fs::try_lock(&file, Mode::Exclusive, LockKind::Flock).unwrap());
    let tried = lock(&client, "a");
    let error = tried.try_acquire().await.unwrap_err();
    assert!(error.is_contention() && error.holder().is_none(), "{error}");
    // Without a runtime, too.
    let blocking = portalock_core::blocking::Lock::from(tried.clone());
    let error = std::thread::spawn(move || blocking.try_acquire()).join();
    assert!(error.unwrap().unwrap_err().is_contention());
    let mut trying = Box::pin(tried.try_acquire());
    assert!(futures_util::poll!(&mut trying).is_pending());
    drop(file);
    trying.await.unwrap().release().await.unwrap();
}
