//! `PidFileLock`: the holder, and that nobody else ever believes to hold it.

use std::{
    fs, process, str,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portalock_core::LockError;
use portalock_fs::{LockKind, Mode, PidFileLock, PidFileOutcome, PidState};

use crate::{child::Other, patient, place};

#[test]
fn publishes_its_pid_and_removes_both_files() {
    let (dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap();
    assert_eq!(lock.read_pid(), None);
    let held = lock.try_acquire().unwrap();
    assert_eq!(lock.read_pid(), Some(process::id()));
    assert_eq!(
        fs::read_to_string(&path).unwrap().trim(),
        process::id().to_string()
    );
    assert!(dir.path().join("daemon.pid.lock").exists());
    held.ensure_held().unwrap();
    held.release().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn fails_closed_and_names_the_holder() {
    let (_dir, path) = place("daemon.pid");
    let other = Other::that_has("pid", &path);
    let lock = PidFileLock::new(&path).unwrap();
    let error = lock.blocking_acquire().unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
    assert_eq!(error.holder().map(|holder| holder.pid), Some(other.pid()));
    assert_eq!(lock.read_pid(), Some(other.pid()));
    other.finish();
    assert!(lock.blocking_acquire().is_ok());
}

#[test]
fn answers_with_the_holders_pid() {
    let (_dir, path) = place("daemon.pid");
    let other = Other::that_has("pid", &path);
    let lock = PidFileLock::new(&path).unwrap();
    let PidFileOutcome::HeldBy(holder) = lock.blocking_acquire_or_holder().unwrap() else {
        panic!("two holders");
    };
    assert_eq!(holder.pid, other.pid());
    if cfg!(target_os = "linux") {
        assert_eq!(holder.state, PidState::Running);
    }
    other.finish();
    let outcome = lock.blocking_acquire_or_holder().unwrap();
    assert!(matches!(outcome, PidFileOutcome::Acquired(_)));
}

#[test]
fn a_holder_whose_pid_cannot_be_read_is_not_taken_for_nobody() {
    let (_dir, path) = place("daemon.pid");
    let _other = Other::that_has("pid", &path);
    let lock = PidFileLock::new(&path).unwrap();
    for damage in ["junk", "", "-1", "0"] {
        fs::write(&path, damage).unwrap();
        let error = lock.blocking_acquire_or_holder().unwrap_err();
        assert!(error.is_contention(), "{error}");
        assert!(error.holder().is_none(), "{damage}: {error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(lock.blocking_acquire_or_holder().is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn a_pid_that_cannot_be_the_holders_is_not_reported() {
    let (dir, path) = place("daemon.pid");
    let _other = Other::that_has("pid", &path);
    fs::write(&path, i32::MAX.to_string()).unwrap();
    fs::write(dir.path().join("daemon.pid.lock"), "").unwrap();
    let lock = PidFileLock::new(&path).unwrap();
    assert_eq!(lock.read_holder().unwrap().state, PidState::Gone);
    let error = lock.blocking_acquire_or_holder().unwrap_err();
    assert!(error.is_contention() && error.holder().is_none(), "{error}");
}

#[test]
fn a_killed_holders_pid_file_is_taken_over() {
    let (_dir, path) = place("daemon.pid");
    let other = Other::that_has("pid", &path);
    let dead = other.pid();
    other.kill();
    let lock = PidFileLock::new(&path).unwrap();
    assert_eq!(lock.read_pid(), Some(dead));
    if cfg!(unix) {
        assert!(!lock.read_holder().unwrap().may_be_holding());
    }
    let held = lock.blocking_acquire_with(&patient()).unwrap();
    assert_eq!(lock.read_pid(), Some(process::id()));
    held.release().unwrap();
    assert!(!path.exists());
}

/// On Windows nobody can remove a file that is open.
#[cfg(unix)]
#[test]
fn a_stale_pid_lock_never_removes_anothers_files() {
    let (dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap();
    let stale = lock.try_acquire().unwrap();
    fs::remove_file(dir.path().join("daemon.pid.lock")).unwrap();
    assert!(matches!(stale.ensure_held(), Err(LockError::Lost { .. })));
    let present = Other::that_has("pid", &path);
    assert!(matches!(stale.release(), Err(LockError::Lost { .. })));
    assert_eq!(lock.read_pid(), Some(present.pid()));
    assert!(lock.try_acquire().is_err());
    present.finish();
}

#[test]
fn a_pid_that_cannot_be_published_gives_the_lock_back() {
    let (dir, path) = place("daemon.pid");
    fs::create_dir(&path).unwrap();
    let lock = PidFileLock::new(&path).unwrap();
    assert!(matches!(
        lock.blocking_acquire(),
        Err(LockError::Backend { .. })
    ));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::remove_dir(&path).unwrap();
    assert!(lock.try_acquire().is_ok());
}

#[test]
fn a_release_reports_what_it_could_not_remove_and_frees_the_lock() {
    let (_dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap();
    for report in [true, false] {
        let held = lock.try_acquire().unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        if report {
            let error = held.release().unwrap_err();
            assert!(matches!(error, LockError::Backend { .. }), "{error}");
        } else {
            drop(held);
        }
        fs::remove_dir(&path).unwrap();
        lock.try_acquire().unwrap().release().unwrap();
    }
}

#[test]
fn nobody_ever_reads_half_a_pid() {
    let (_dir, path) = place("daemon.pid");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let lock = PidFileLock::new(&path).unwrap();
            let rounds = (0..200).try_for_each(|_| lock.try_acquire().map(drop));
            done.store(true, Ordering::Release);
            rounds.unwrap();
        });
        while !done.load(Ordering::Acquire) {
            if let Ok(content) = fs::read(&path) {
                let pid = str::from_utf8(&content).unwrap().trim();
                assert_eq!(pid, process::id().to_string());
            }
        }
    });
}

#[cfg(unix)]
#[test]
fn the_pid_file_is_readable_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, path) = place("daemon.pid");
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let _held = PidFileLock::new(&path).unwrap().try_acquire().unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
}

#[tokio::test]
async fn works_in_an_async_program() {
    let (_dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap().with_policy(patient());
    let held = lock.acquire().await.unwrap();
    let (waited, ()) = tokio::join!(lock.acquire(), async {
        tokio::task::yield_now().await;
        held.release().unwrap();
    });
    assert_eq!(lock.read_pid(), Some(process::id()));
    waited.unwrap().release().unwrap();
}

#[cfg(any(target_os = "linux", target_os = "android", windows))]
#[test]
fn record_locks_meet_a_program_that_uses_lockf() {
    let (_dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap().with_kind(LockKind::Record);
    let held = lock.try_acquire().unwrap();
    let sidecar = path.with_extension("pid.lock");
    let other = fs::File::options().write(true).open(&sidecar).unwrap();
    assert!(!portalock_fs::try_lock(&other, Mode::Exclusive, LockKind::Record).unwrap());
    assert!(lock.try_acquire().is_err());
    held.release().unwrap();
    // Windows removes an open file when it is closed.
    assert!(!sidecar.exists() || cfg!(windows));
}

#[cfg(unix)]
#[test]
fn a_release_says_that_the_lock_was_lost_and_removes_nothing_of_the_next_holder() {
    let (_dir, path) = place("daemon.pid");
    let lock = PidFileLock::new(&path).unwrap();
    let first = lock.try_acquire().unwrap();
    let sidecar = path.with_extension("pid.lock");
    fs::remove_file(&sidecar).unwrap();
    let second = lock.try_acquire().unwrap();
    let error = first.release().unwrap_err();
    assert!(matches!(error, LockError::Lost { .. }), "{error}");
    assert!(path.exists() && sidecar.exists());
    second.ensure_held().unwrap();
    second.release().unwrap();
}

#[cfg(unix)]
#[test]
fn a_hard_link_is_not_written_through() {
    let (dir, path) = place("daemon.pid");
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::hard_link(&victim, path.with_extension("pid.lock")).unwrap();
    let error = PidFileLock::new(&path).unwrap().try_acquire().unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// When the lock file is gone, the pid file belongs to the next holder.
#[cfg(target_os = "linux")]
#[test]
fn the_pid_file_goes_before_the_lock_file() {
    use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

    let (dir, path) = place("daemon.pid");
    let held = PidFileLock::new(&path).unwrap().try_acquire().unwrap();
    let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&told, dir.path(), WatchFlags::DELETE).unwrap();
    held.release().unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut events = Reader::new(&told, &mut buffer);
    for expected in ["daemon.pid", "daemon.pid.lock"] {
        let event = events.next().unwrap();
        assert_eq!(event.file_name().unwrap().to_str(), Ok(expected));
    }
}

/// A holder that gets the lock while it is released must find neither file. This is repeated often, because a bug only
/// shows if the other thread runs at the right moment.
#[cfg(unix)]
#[test]
fn both_files_go_before_the_lock_is_freed() {
    let (_dir, path) = place("daemon.pid");
    let sidecar = path.with_extension("pid.lock");
    for _ in 0..300 {
        let held = PidFileLock::new(&path).unwrap().try_acquire().unwrap();
        let other = fs::File::options().append(true).open(&sidecar).unwrap();
        let started = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            let next = scope.spawn(|| {
                started.wait();
                while !portalock_fs::try_lock(&other, Mode::Exclusive, LockKind::Flock).unwrap() {
                    std::hint::spin_loop();
                }
                (path.exists(), sidecar.exists())
            });
            started.wait();
            held.release().unwrap();
            assert_eq!(next.join().unwrap(), (false, false));
        });
    }
}

#[cfg(unix)]
#[test]
fn a_pid_is_read_through_a_link_and_a_named_pipe_has_none() {
    let (dir, path) = place("daemon.pid");
    let pipe = process::Command::new("mkfifo").arg(&path).status();
    assert!(pipe.unwrap().success());
    assert_eq!(PidFileLock::new(&path).unwrap().read_pid(), None);
    let link = dir.path().join("link");
    fs::write(dir.path().join("other"), "4711").unwrap();
    std::os::unix::fs::symlink("other", &link).unwrap();
    assert_eq!(PidFileLock::new(&link).unwrap().read_pid(), Some(4711));
}

#[test]
fn a_pid_file_that_is_gone_already_is_no_failure() {
    let (dir, path) = place("daemon.pid");
    let held = PidFileLock::new(&path).unwrap().try_acquire().unwrap();
    fs::remove_file(&path).unwrap();
    held.release().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
