//! Who keeps whom out.

use portalock_core::{LockBackend, Mode, Released};
use portalock_fs::{FsBackend, FsSettings, LockKind};

use crate::support::{Locks, granted, try_once};

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
