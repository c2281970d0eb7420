//! `lock` and `unlock`: plain locks against another process.

use std::fs::{self, File};

use portalock_fs::{LockKind, Mode, lock, try_lock, unlock};

use crate::{child::Other, place};

fn open(path: &std::path::Path) -> File {
    fs::write(path, "").unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_lock_on_a_handle_keeps_another_process_out() {
    for (kind, task) in [(LockKind::Flock, "flock"), (LockKind::Record, "record")] {
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
    for (kind, task) in [(LockKind::Flock, "flock"), (LockKind::Record, "record")] {
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
    for kind in [LockKind::Flock, LockKind::Record] {
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
