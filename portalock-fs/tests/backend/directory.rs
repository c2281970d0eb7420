//! The directory and its files on Unix: their names and permissions.

use portalock_fs::{FsBackend, FsSettings};

use crate::support::{Locks, lock};

#[tokio::test]
async fn lock_files_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let locks = Locks::new();
    let client = locks.client();
    drop(lock(&client, "a").acquire_shared().await.unwrap());
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(locks.path()) & 0o022, 0);
    for entry in std::fs::read_dir(locks.path()).unwrap() {
        assert_eq!(mode(entry.unwrap().path()) & 0o177, 0);
    }
}

/// Root may evict a holder that doesn't respond; the users of the lock can still use it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lock_file_that_was_replaced_is_for_the_same_users() {
    use portalock_core::{LockBackend, Released};
    use std::os::unix::fs::{MetadataExt, chown};

    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_file_mode(0o660).unwrap();
    let holder = FsBackend::with_settings(&settings).unwrap();
    let lock = lock(&holder, "a");
    let guard = lock.acquire().await.unwrap();
    // Refused to all users except root.
    let _ = chown(locks.file("a"), Some(4711), Some(4711));
    let seen = || {
        let file = std::fs::metadata(locks.file("a")).unwrap();
        (file.uid(), file.gid(), file.mode() & 0o777, file.ino())
    };
    let before = seen();
    let hold = guard.token().unwrap().get();
    let evicted = locks.client().evict(lock.name(), guard.owner(), hold).await;
    assert_eq!(evicted.unwrap(), Released::Freed);
    let after = seen();
    assert_ne!(after.3, before.3);
    assert_eq!((after.0, after.1, after.2), (before.0, before.1, before.2));
    let _next = lock.acquire().await.unwrap();
}

/// Other systems take Unicode only, or have a test of their own.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_directory_need_not_be_unicode() {
    use crate::support::try_once;
    use portalock_core::{LockBackend, Mode, Released};
    use std::{os::unix::ffi::OsStrExt, time::Duration};

    let locks = Locks::new();
    let odd = std::ffi::OsStr::from_bytes(b"l\xf6cks \xff");
    let directory = locks.path().join(odd);
    let (one, two) = (
        FsBackend::open(&directory).unwrap(),
        FsBackend::open(&directory).unwrap(),
    );
    let (held, _) = try_once(&one, "a", Mode::Exclusive).await.unwrap();
    assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
    assert_eq!(one.release(&held).await.unwrap(), Released::Freed);
    assert_eq!(two.clean(Duration::ZERO).unwrap(), 1);

    let lock = portalock_fs::PidFileLock::new(directory.join("pid")).unwrap();
    let pid = lock.try_acquire().unwrap();
    assert_eq!(lock.read_pid(), Some(std::process::id()));
    pid.release().unwrap();
    portalock_fs::open_atomic(directory.join("report"), |_| Ok(())).unwrap();
    assert!(directory.join("report").exists());
}

/// The umask applies to the process, so this runs in a process of its own.
#[tokio::test]
async fn a_group_may_lock_whatever_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;

    const DIRECTORY: &str = "PORTALOCK_FS_TEST_UMASK";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let settings = FsSettings::new(directory).with_file_mode(0o660).unwrap();
        let client = FsBackend::with_settings(&settings).unwrap();
        drop(lock(&client, "a").acquire_shared().await.unwrap());
        return;
    }
    let locks = Locks::new();
    let status = std::process::Command::new("sh")
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "directory::a_group_may_lock_whatever_the_umask_says",
        ])
        .env(DIRECTORY, locks.path())
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&locks.path()), 0o2775);
    for suffix in ["lock", "shared"] {
        let file = locks.path().join(format!("a.{suffix}"));
        assert_eq!(mode(&file), 0o660, "{suffix}");
    }
}
