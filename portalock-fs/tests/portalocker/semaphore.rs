//! `BoundedSemaphore`: a limited number of holders, among processes.

use std::fs;

use portalock_core::{BackendErrorKind, LockError};
use portalock_fs::{BoundedSemaphore, SlotGuard};

use crate::{briefly, child::Other, patient, place};

fn jobs(dir: &tempfile::TempDir, capacity: u32) -> BoundedSemaphore {
    let semaphore = BoundedSemaphore::new("jobs", capacity).unwrap();
    semaphore.in_directory(dir.path()).unwrap()
}

#[test]
fn the_slots_have_portalockers_names() {
    let (dir, _) = place("");
    let names: Vec<_> = jobs(&dir, 12)
        .paths()
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names[0], "jobs.00.lock");
    assert_eq!(names[11], "jobs.11.lock");
}

#[test]
fn so_many_at_once_and_no_more() {
    let (dir, _) = place("");
    for semaphore in [jobs(&dir, 3), jobs(&dir, 3).in_random_order()] {
        let mut held: Vec<_> = (0..3).map(|_| semaphore.try_acquire().unwrap()).collect();
        assert!(matches!(
            semaphore.try_acquire(),
            Err(LockError::AlreadyLocked { .. })
        ));
        held.pop().unwrap().release().unwrap();
        assert!(semaphore.try_acquire().is_ok());
    }
}

#[test]
fn other_processes_count() {
    let (dir, _) = place("");
    let semaphore = jobs(&dir, 2);
    let one = Other::that_has("slot", dir.path());
    let two = Other::that_has("slot", dir.path());
    let error = semaphore
        .clone()
        .with_policy(briefly())
        .blocking_acquire()
        .unwrap_err();
    assert!(error.is_contention(), "{error}");
    if cfg!(target_os = "linux") {
        let pid = error.holder().map(|holder| holder.pid);
        assert_eq!(pid, Some(one.pid()));
    }
    two.kill();
    let held = semaphore
        .clone()
        .with_policy(patient())
        .blocking_acquire()
        .unwrap();
    assert!(semaphore.try_acquire().is_err());
    one.finish();
    assert!(semaphore.try_acquire().is_ok());
    drop(held);
}

#[test]
fn a_guard_knows_its_slot() {
    let (dir, _) = place("");
    let semaphore = jobs(&dir, 2);
    let held = [semaphore.try_acquire(), semaphore.try_acquire()].map(Result::unwrap);
    assert_eq!(held.each_ref().map(SlotGuard::path), *semaphore.paths());
}

#[test]
fn a_missing_directory_is_a_clear_error_and_a_later_retry_works() {
    let (dir, path) = place("later");
    let semaphore = BoundedSemaphore::new("jobs", 1)
        .unwrap()
        .in_directory(&path)
        .unwrap()
        .with_policy(patient());
    let Err(LockError::Backend { source, .. }) = semaphore.blocking_acquire() else {
        panic!("held a slot in a directory that is not there");
    };
    assert_eq!(source.kind(), BackendErrorKind::NotFound);
    assert!(source.to_string().contains("later"), "{source}");
    fs::create_dir(dir.path().join("later")).unwrap();
    assert!(semaphore.blocking_acquire().is_ok());
}

/// Each attempt would need hundreds of gigabytes.
#[test]
fn a_capacity_of_too_many_files_is_refused() {
    for capacity in [(1 << 20) + 1, u32::MAX] {
        let error = BoundedSemaphore::new("many", capacity).unwrap_err();
        assert!(matches!(error, LockError::Unsupported { .. }), "{error}");
    }
    assert!(BoundedSemaphore::new("many", 1 << 20).is_ok());
}

#[test]
fn a_name_leads_to_no_other_directory() {
    for name in ["../jobs", "/tmp/jobs", "a/b", "jobs/"] {
        let error = BoundedSemaphore::new(name, 1).unwrap_err();
        assert!(
            matches!(error, LockError::Backend { .. }),
            "{name}: {error}"
        );
    }
    assert!(BoundedSemaphore::new("", 1).is_err());
    assert!(BoundedSemaphore::new("jobs", 0).is_err());
    assert!(BoundedSemaphore::new("..", 1).is_ok());
}

#[test]
fn a_random_name_is_its_own() {
    // The state that two forked children inherit.
    fastrand::seed(7);
    let one = BoundedSemaphore::with_random_name(1).unwrap();
    fastrand::seed(7);
    let two = BoundedSemaphore::with_random_name(1).unwrap();
    assert_ne!(one.name(), two.name());
}

#[tokio::test]
async fn an_async_waiter_gets_the_next_free_slot() {
    let (dir, _) = place("");
    let semaphore = jobs(&dir, 1).with_policy(patient());
    let held = semaphore.acquire().await.unwrap();
    let (waited, ()) = tokio::join!(semaphore.acquire(), async {
        tokio::task::yield_now().await;
        held.release().unwrap();
    });
    waited.unwrap().release().unwrap();
}

#[cfg(unix)]
#[test]
fn a_release_says_that_a_slot_was_lost() {
    let (dir, _) = place("");
    let semaphore = BoundedSemaphore::new("slots", 2).unwrap();
    let semaphore = semaphore.in_directory(dir.path()).unwrap();
    let held = [semaphore.try_acquire(), semaphore.try_acquire()].map(Result::unwrap);
    let [first, second] = held;
    std::fs::remove_file(&semaphore.paths()[1]).unwrap();
    first.ensure_held().unwrap();
    let error = second.release().unwrap_err();
    assert!(
        matches!(error, portalock_core::LockError::Lost { .. }),
        "{error}"
    );
    first.release().unwrap();
    assert!(semaphore.try_acquire().is_ok());
}

#[test]
fn the_slots_are_tried_in_order_or_in_a_random_one() {
    let (dir, _) = place("");
    let taken = |semaphore: &BoundedSemaphore| {
        let slot = semaphore.try_acquire().unwrap();
        let paths = semaphore.paths().into_iter();
        let number = paths.enumerate().find(|(_, path)| path.exists()).unwrap().0;
        drop(slot);
        fs::remove_file(&semaphore.paths()[number]).unwrap();
        number
    };
    let (ordered, random) = (jobs(&dir, 50), jobs(&dir, 50).in_random_order());
    // By chance, random ones are all the same in one of 50^9 runs.
    let first: Vec<_> = (0..10).map(|_| taken(&random)).collect();
    assert!(first.iter().any(|number| *number != first[0]));
    assert!((0..10).all(|_| taken(&ordered) == 0));
}

#[test]
fn a_slot_is_locked_as_the_semaphore_says() {
    for &kind in crate::kinds() {
        let (dir, _) = place("");
        let semaphore = jobs(&dir, 1).with_kind(kind);
        let once = portalock_core::Policy::new().with_fail_when_locked(true);
        let semaphore = semaphore.with_policy(once);
        let slot = semaphore.try_acquire().unwrap();
        let file = fs::File::options().write(true).open(&semaphore.paths()[0]);
        let mode = portalock_fs::Mode::Exclusive;
        assert!(!portalock_fs::try_lock(&file.unwrap(), mode, kind).unwrap());
        let error = semaphore.blocking_acquire().unwrap_err();
        assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
        drop(slot);
    }
}

#[cfg(unix)]
#[test]
fn a_removed_slot_is_a_lost_permit() {
    let (dir, _) = place("");
    let semaphore = jobs(&dir, 1);
    let slot = semaphore.try_acquire().unwrap();
    slot.ensure_held().unwrap();
    fs::remove_file(&semaphore.paths()[0]).unwrap();
    assert!(matches!(slot.ensure_held(), Err(LockError::Lost { .. })));
}
