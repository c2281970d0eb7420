//! `Lock`: its effect on the file, and exclusion.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use portalock_core::{LockError, Policy};
#[cfg(target_os = "linux")]
use portalock_fs::ReentrantFileLock;
use portalock_fs::{FileLock, FileMode};

use crate::{briefly, child::Other, kinds, patient, place};

#[test]
fn truncates_only_once_locked() {
    let (_dir, path) = place("data");
    fs::write(&path, "precious").unwrap();
    let held = FileLock::new(&path).unwrap().try_acquire().unwrap();

    let writer = FileLock::new(&path).unwrap().with_mode(FileMode::Write);
    assert!(writer.try_acquire().is_err());
    // Checks the length, because on Windows other handles can't read a locked file.
    assert_eq!(fs::metadata(&path).unwrap().len(), 8);

    drop(held);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let mut file = writer.try_acquire().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    file.write_all(b"new").unwrap();
    file.release().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn keeps_the_data_on_contention() {
    let (_dir, path) = place("data");
    fs::write(&path, "precious").unwrap();
    let other = Other::that_has("file", &path);
    for mode in [
        FileMode::Write,
        FileMode::WriteRead,
        FileMode::Append,
        FileMode::ReadWrite,
    ] {
        let lock = FileLock::new(&path).unwrap().with_mode(mode);
        let error = lock.blocking_acquire_with(&briefly()).unwrap_err();
        assert!(error.is_contention(), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 8, "{mode:?}");
    }
    other.finish();
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert!(FileLock::new(&path).unwrap().try_acquire().is_ok());
}

#[test]
fn appends_by_default() {
    let (_dir, path) = place("data");
    for text in ["one\n", "two\n"] {
        let mut file = FileLock::new(&path).unwrap().try_acquire().unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
}

#[test]
fn a_truncating_mode_writes_where_it_seeks() {
    let (_dir, path) = place("data");
    fs::write(&path, "old").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::WriteRead);
    let mut file = lock.try_acquire().unwrap();
    file.write_all(b"x").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"y").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "y");
}

#[test]
fn reads_and_rewrites_a_file_in_place() {
    let (_dir, path) = place("counter");
    fs::write(&path, "41").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::ReadWrite);
    let mut file = lock.blocking_acquire().unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    let next = content.parse::<u32>().unwrap() + 1;
    file.rewind().unwrap();
    file.set_len(0).unwrap();
    write!(file, "{next}").unwrap();
    file.release().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "42");
}

#[test]
fn a_second_lock_in_the_same_process_contends() {
    for &kind in kinds() {
        let (_dir, path) = place("data");
        let lock = FileLock::new(&path).unwrap().with_kind(kind);
        let held = lock.try_acquire().unwrap();
        let again = FileLock::new(&path).unwrap().with_kind(kind);
        assert!(matches!(
            again.try_acquire(),
            Err(LockError::AlreadyLocked { .. })
        ));
        assert!(matches!(
            lock.try_acquire(),
            Err(LockError::AlreadyLocked { .. })
        ));
        drop(held);
        assert!(again.try_acquire().is_ok(), "{kind:?}");
    }
}

#[test]
fn readers_share_and_keep_a_writer_out() {
    for &kind in kinds() {
        let (_dir, path) = place("data");
        fs::write(&path, "shared").unwrap();
        let reader = FileLock::new(&path).unwrap().with_mode(FileMode::Read);
        let reader = reader.with_kind(kind).shared();
        let mut one = reader.try_acquire().unwrap();
        let two = reader.try_acquire().unwrap();
        let mut content = String::new();
        one.read_to_string(&mut content).unwrap();
        assert_eq!(content, "shared");
        let writer = FileLock::new(&path).unwrap().with_kind(kind);
        assert!(writer.try_acquire().is_err());
        drop(one);
        assert!(writer.try_acquire().is_err(), "{kind:?}");
        drop(two);
        assert!(writer.try_acquire().is_ok(), "{kind:?}");
    }
}

#[test]
fn fail_when_locked_fails_at_the_first_attempt() {
    let (_dir, path) = place("data");
    let _other = Other::that_has("file", &path);
    let lock = FileLock::new(&path).unwrap();
    let policy = Policy::forever().with_fail_when_locked(true);
    let error = lock.blocking_acquire_with(&policy).unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
}

#[test]
fn a_timeout_of_zero_tries_exactly_once() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap();
    let policy = Policy::default().with_timeout(Duration::ZERO);
    let held = lock.blocking_acquire_with(&policy).unwrap();
    let error = lock.blocking_acquire_with(&policy).unwrap_err();
    assert!(
        matches!(error, LockError::Timeout { attempts: 1, .. }),
        "{error}"
    );
    drop(held);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn contention_names_the_holders_pid() {
    let (_dir, path) = place("data");
    let other = Other::that_has("file", &path);
    let lock = FileLock::new(&path).unwrap().with_policy(briefly());
    let reentrant = ReentrantFileLock::new(lock.clone()).unwrap();
    for error in [
        lock.try_acquire().unwrap_err(),
        lock.blocking_acquire().unwrap_err(),
        lock.acquire().await.unwrap_err(),
        reentrant.blocking_acquire().unwrap_err(),
        reentrant.acquire().await.unwrap_err(),
    ] {
        let pid = error.holder().map(|holder| holder.pid);
        assert_eq!(pid, Some(other.pid()), "{error}");
    }
}

#[test]
fn waits_until_the_other_process_releases() {
    let (_dir, path) = place("data");
    let other = Other::that_has("file", &path);
    let lock = FileLock::new(&path).unwrap().with_policy(patient());
    let (waiting, waits) = mpsc::channel();
    let waiter = thread::spawn(move || {
        assert!(lock.try_acquire().is_err());
        waiting.send(()).unwrap();
        lock.blocking_acquire().map(drop)
    });
    waits.recv().unwrap();
    other.finish();
    waiter.join().unwrap().unwrap();
}

#[test]
fn a_killed_holder_frees_it() {
    let (_dir, path) = place("data");
    let other = Other::that_has("file", &path);
    let lock = FileLock::new(&path).unwrap();
    assert!(lock.try_acquire().is_err());
    other.kill();
    assert!(lock.blocking_acquire_with(&patient()).is_ok());
}

#[test]
fn a_dropped_guard_frees_it_although_a_copy_of_the_handle_lives_on() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap();
    let held = lock.try_acquire().unwrap();
    let copy = held.try_clone().unwrap();
    drop(held);
    assert!(lock.try_acquire().is_ok());
    drop(copy);
}

#[test]
fn a_spawned_process_does_not_inherit_it() {
    let (dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap();
    let held = lock.try_acquire().unwrap();
    let bystander = Other::that_has("bystander", dir.path());
    #[cfg(target_os = "linux")]
    for open in fs::read_dir(format!("/proc/{}/fd", bystander.pid())).unwrap() {
        let target = fs::read_link(open.unwrap().path()).unwrap_or_default();
        assert_ne!(target, path);
    }
    drop(held);
    assert!(lock.try_acquire().is_ok());
    bystander.finish();
}

/// On Windows nobody can replace a file that is open.
#[cfg(unix)]
#[tokio::test]
async fn a_replaced_file_is_locked_in_its_new_form() {
    let (dir, path) = place("data");
    fs::write(&path, "old").unwrap();
    let lock = FileLock::new(&path).unwrap().with_mode(FileMode::ReadWrite);
    let lock = lock.with_policy(patient());
    let old = lock.try_acquire().unwrap();
    assert!(old.ensure_held().is_ok());
    // Once polled, the waiter has the old file open.
    let mut waiter = Box::pin(lock.acquire());
    assert!(futures_util::poll!(&mut waiter).is_pending());
    let draft = dir.path().join("draft");
    fs::write(&draft, "new").unwrap();
    fs::rename(&draft, &path).unwrap();

    let mut new = waiter.await.unwrap();
    let mut content = String::new();
    new.read_to_string(&mut content).unwrap();
    assert_eq!(content, "new");
    assert!(matches!(old.ensure_held(), Err(LockError::Lost { .. })));
    drop(old);
    assert!(lock.try_acquire().is_err());
}

#[test]
fn a_changed_working_directory_leads_nowhere_else() {
    let (dir, _) = place("");
    Other::start("elsewhere", dir.path()).expect("ready");
}

#[tokio::test]
async fn an_async_program_waits_without_blocking_its_thread() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap().with_policy(patient());
    let held = lock.acquire().await.unwrap();
    // One thread runs both: if the waiter blocked it, nothing would ever release.
    let releases = async {
        tokio::task::yield_now().await;
        held.release().unwrap();
    };
    let (waited, ()) = tokio::join!(lock.acquire(), releases);
    waited.unwrap().release().unwrap();
}

#[tokio::test]
async fn a_waiter_that_is_dropped_leaves_nothing_behind() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap().with_policy(patient());
    let held = lock.acquire().await.unwrap();
    let mut waiter = Box::pin(lock.acquire());
    assert!(futures_util::poll!(&mut waiter).is_pending());
    drop(waiter);
    held.release().unwrap();
    assert!(lock.try_acquire().is_ok());
}

#[cfg(unix)]
#[test]
fn a_release_says_that_the_file_was_replaced() {
    let (dir, path) = place("ledger");
    let guard = FileLock::new(&path).unwrap().try_acquire().unwrap();
    let new = dir.path().join("new");
    std::fs::write(&new, "").unwrap();
    std::fs::rename(&new, &path).unwrap();
    let error = guard.release().unwrap_err();
    assert!(
        matches!(error, portalock_core::LockError::Lost { .. }),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn opens_as_its_user_says() {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    let (_dir, path) = place("ledger");
    let mut options = std::fs::File::options();
    options.read(true).write(true).create(true).mode(0o600);
    let lock = FileLock::new(&path).unwrap().with_options(options);
    let guard = lock.try_acquire().unwrap();
    assert_eq!(
        guard.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(lock.try_acquire().is_err());
}

/// Nobody drives the runtime meanwhile, so its timer must not be what ends the wait.
#[tokio::test]
async fn a_blocking_wait_on_the_only_thread_of_a_runtime_ends() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap();
    let _held = lock.try_acquire().unwrap();
    let error = lock.blocking_acquire_with(&briefly()).unwrap_err();
    assert!(error.is_contention(), "{error}");
}

#[cfg(unix)]
#[test]
fn a_data_file_may_have_other_names() {
    let (dir, path) = place("data");
    fs::write(&path, "").unwrap();
    fs::hard_link(&path, dir.path().join("second")).unwrap();
    let _held = FileLock::new(&path).unwrap().try_acquire().unwrap();
    std::os::unix::fs::symlink("data", dir.path().join("link")).unwrap();
    for name in ["second", "link"] {
        let error = FileLock::new(dir.path().join(name)).unwrap().try_acquire();
        let error = error.unwrap_err();
        assert!(error.is_contention(), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_cannot_be_looked_at_is_an_error_and_no_loss() {
    let (dir, directory) = place("directory");
    fs::create_dir(&directory).unwrap();
    let lock = FileLock::new(directory.join("data")).unwrap();
    let held = lock.try_acquire().unwrap();
    fs::rename(&directory, dir.path().join("away")).unwrap();
    std::os::unix::fs::symlink(&directory, &directory).unwrap();
    let error = held.ensure_held().unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }), "{error}");
    fs::remove_file(&directory).unwrap();
    fs::rename(dir.path().join("away"), &directory).unwrap();
    held.ensure_held().unwrap();
    held.release().unwrap();
}
