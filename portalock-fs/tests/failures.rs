//! File system failures: each gives a clear error, and never "locked".
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::{path::Path, process::Command};

use portalock_core::{BackendErrorKind, LockBackend, LockError, LockName, Mode, Patience};
use portalock_fs::{FsBackend, FsSettings, Watch};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Locks, lock, request, try_once};

async fn refusal(client: &FsBackend, name: &str) -> (BackendErrorKind, String) {
    match lock(client, name).try_acquire().await {
        Err(LockError::Backend { source, .. }) => (source.kind(), source.to_string()),
        other => panic!("no refusal by the file system: {other:?}"),
    }
}

/// A file system of its own, mounted for one test.
struct Mount(std::path::PathBuf);

impl Mount {
    fn new(on: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(on).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(on)
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(on.to_owned())),
            other => {
                println!("SKIPPED: this needs the right to mount a file system: {other:?}");
                None
            }
        }
    }

    fn change(&self, options: &str) {
        let options = format!("remount,{options}");
        let mount = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status();
        assert!(mount.unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_leaves_no_lock_behind() {
    let locks = Locks::new();
    let Some(_mount) = Mount::new(&locks.path(), "size=16k") else {
        return;
    };
    let client = locks.client();
    drop(lock(&client, "earlier").acquire().await.unwrap());
    let filler = locks.path().join("filler");
    assert!(std::fs::write(&filler, vec![b'x'; 64 * 1024]).is_err());
    let (kind, message) = refusal(&client, "a").await;
    assert_eq!(kind, BackendErrorKind::OutOfSpace);
    assert!(
        message.contains("free some space") && message.contains("a.lock"),
        "{message}"
    );
    // A lock whose file already has its space is still granted.
    drop(lock(&client, "earlier").acquire().await.unwrap());
    std::fs::remove_file(filler).unwrap();
    assert!(
        try_once(&locks.client(), "a", Mode::Exclusive)
            .await
            .is_some()
    );
}

#[tokio::test]
async fn a_read_only_file_system_is_told_apart() {
    let locks = Locks::new();
    let Some(mount) = Mount::new(&locks.path(), "size=1m") else {
        return;
    };
    let client = locks.client();
    drop(lock(&client, "earlier").acquire().await.unwrap());
    mount.change("ro");
    for name in ["a", "earlier"] {
        let (kind, message) = refusal(&client, name).await;
        assert_eq!(kind, BackendErrorKind::ReadOnly);
        assert!(message.contains("can be written"), "{message}");
    }
    let error = FsBackend::open(locks.path().join("sub")).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly);
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_told_apart() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere, so run as another user.
        let locks = Locks::new();
        drop(locks.client());
        std::fs::set_permissions(
            locks.path().parent().unwrap(),
            std::fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        let setpriv = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "as_somebody_else", "--nocapture"])
            .env("PORTALOCK_FS_TEST_FORBIDDEN", locks.path())
            .output();
        match setpriv {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => println!("SKIPPED: this needs setpriv, or not to be root: {error}"),
        }
    } else {
        let locks = Locks::new();
        drop(locks.client());
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(locks.path(), mode(0o555)).unwrap();
        expect_permission_denied(&locks.path()).await;
        std::fs::set_permissions(locks.path(), mode(0o755)).unwrap();
    }
}

/// Not a test of its own: the child process of the test above.
#[tokio::test]
async fn as_somebody_else() {
    if let Ok(directory) = std::env::var("PORTALOCK_FS_TEST_FORBIDDEN") {
        expect_permission_denied(Path::new(&directory)).await;
    }
}

async fn expect_permission_denied(directory: &Path) {
    let client = FsBackend::open(directory).unwrap();
    let (kind, message) = refusal(&client, "a").await;
    assert_eq!(kind, BackendErrorKind::PermissionDenied);
    assert!(message.contains("owner"), "{message}");
}

#[tokio::test]
async fn a_deleted_directory_is_told_apart() {
    let locks = Locks::new();
    let client = locks.client();
    std::fs::remove_dir_all(locks.path()).unwrap();
    let (kind, message) = refusal(&client, "a").await;
    assert_eq!(kind, BackendErrorKind::NotFound);
    assert!(message.contains("directory"), "{message}");
    // Opening it again creates it again.
    assert!(
        try_once(&locks.client(), "a", Mode::Exclusive)
            .await
            .is_some()
    );
}

#[tokio::test]
async fn what_is_no_lock_file_is_left_alone() {
    let locks = Locks::new();
    let client = locks.client();
    let outside = locks.path().parent().unwrap().join("outside");
    std::fs::write(&outside, "precious").unwrap();
    std::os::unix::fs::symlink(&outside, locks.file("link")).unwrap();
    std::os::unix::fs::symlink(locks.path().join("nowhere"), locks.file("dangling")).unwrap();
    // Empty, so that its second name is the only problem.
    let second = locks.path().parent().unwrap().join("second");
    std::fs::write(&second, "").unwrap();
    std::fs::hard_link(&second, locks.file("hard")).unwrap();
    std::fs::create_dir(locks.file("directory")).unwrap();
    std::fs::write(locks.file("foreign"), "4711\n").unwrap();
    let pipe = Command::new("mkfifo").arg(locks.file("pipe")).status();
    assert!(pipe.unwrap().success());
    for name in ["link", "dangling", "hard", "directory", "foreign", "pipe"] {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let error = client
                .try_acquire(&request(name, mode, Patience::Once))
                .await;
            let error = error.expect_err(name);
            assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{name}: {error}");
            assert!(
                error.to_string().contains(&format!("{name}.lock")),
                "{error}"
            );
        }
        let name = LockName::new(name).unwrap();
        let error = client.inspect(&name).await.expect_err(name.as_str());
        assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{name}: {error}");
        assert_eq!(
            client.clean(std::time::Duration::ZERO).unwrap(),
            0,
            "{name}"
        );
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
    assert_eq!(
        std::fs::read_to_string(locks.file("foreign")).unwrap(),
        "4711\n"
    );
    assert!(!locks.path().join("nowhere").exists());
}

#[test]
fn a_lock_directory_that_is_a_file_is_told_apart() {
    let locks = Locks::new();
    std::fs::write(locks.path(), "").unwrap();
    let below = locks.path().join("below");
    for directory in [locks.path(), below] {
        let error = FsBackend::open(directory).unwrap_err();
        assert!(
            error.to_string().contains("a file exists already at"),
            "{error}"
        );
        assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{error}");
    }
}

/// Runs this test again in a process of its own, and returns true; false in that process. A limit applies to the process, so
/// no other test of it may open files meanwhile.
fn runs_in_a_process_of_its_own(test: &str) -> bool {
    if std::env::var_os("PORTALOCK_FS_TEST_LIMIT").is_some() {
        return false;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PORTALOCK_FS_TEST_LIMIT", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    true
}

/// This process may have few files open at once.
fn limit_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(64),
        ..limit
    };
    setrlimit(Resource::Nofile, few).unwrap();
}

#[test]
fn too_many_open_files_are_told_apart() {
    if runs_in_a_process_of_its_own("too_many_open_files_are_told_apart") {
        return;
    }
    let locks = Locks::new();
    let client = locks.client();
    limit_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut held = Vec::new();
    let error = loop {
        let request = request(&format!("{}", held.len()), Mode::Exclusive, Patience::Once);
        match runtime.block_on(client.try_acquire(&request)) {
            Ok(_) => held.push(request),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), BackendErrorKind::Exhausted, "{error}");
    assert!(
        error.is_retryable() && error.to_string().contains("raise the limit"),
        "{error}"
    );
    assert!(held.len() > 40, "{}", held.len());
    // After one release there is a descriptor for one more lock.
    assert!(client.release_now(&held.pop().unwrap()));
    let one_more = request("one-more", Mode::Exclusive, Patience::Once);
    support::granted(runtime.block_on(client.try_acquire(&one_more)).unwrap());
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn a_directory_that_cannot_be_watched_is_told_apart_or_polled() {
    if runs_in_a_process_of_its_own("a_directory_that_cannot_be_watched_is_told_apart_or_polled") {
        return;
    }
    let locks = Locks::new();
    limit_open_files();
    let mut open = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        open.push(file);
    }
    // With few descriptors the directory can be opened, but not watched.
    let settings = FsSettings::new(locks.path());
    let required = settings.clone().with_watch(Watch::On);
    loop {
        open.pop().unwrap();
        let error = FsBackend::with_settings(&required).unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Exhausted, "{error}");
        if error.to_string().contains("raise fs.inotify") {
            break;
        }
    }
    let polling = FsBackend::with_settings(&settings).unwrap();
    assert_eq!(
        polling.capabilities().loss,
        portalock_core::LossNotice::Never
    );
}

#[tokio::test]
async fn a_file_system_without_locks_is_told_apart() {
    // Linux's /proc can be opened, but no file can be created there. The error must not read as "locked".
    let Ok(client) =
        FsBackend::with_settings(&FsSettings::new("/proc/self").with_watch(Watch::Off))
    else {
        println!("SKIPPED: there is no /proc here");
        return;
    };
    let (kind, _) = refusal(&client, "a").await;
    assert_ne!(kind, BackendErrorKind::Other);
}
