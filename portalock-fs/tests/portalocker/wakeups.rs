//! A release wakes its waiter; portalocker polls every 250 ms.

use std::{
    fs,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use portalock_core::{LockError, Policy};
use portalock_fs::{
    BoundedSemaphore, FileLock, FileMode, PidFileLock, ReentrantFileLock, TemporaryFileLock,
};

use crate::{child::Other, kinds, place};

/// Far less than the waiters' check interval, and long enough for a loaded machine.
const WOKEN: Duration = Duration::from_secs(60);

/// Polls so rarely that only a wake-up can end a wait.
fn hardly_ever() -> Policy {
    Policy::forever()
        .with_check_interval(Duration::from_secs(3600))
        .unwrap()
}

#[tokio::test]
async fn a_release_by_another_process_wakes_the_waiter() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap().with_policy(hardly_ever());
    for kill in [false, true] {
        let other = Other::that_has("file", &path);
        let mut waiter = Box::pin(lock.acquire());
        assert!(futures_util::poll!(&mut waiter).is_pending());
        if kill {
            other.kill();
        } else {
            other.finish();
        }
        let woken = tokio::time::timeout(WOKEN, waiter).await;
        drop(woken.expect("nobody woke the waiter").unwrap());
    }
}

#[tokio::test]
async fn a_reader_that_releases_wakes_the_writer() {
    for &kind in kinds() {
        let (_dir, path) = place("data");
        fs::write(&path, "").unwrap();
        let reader = FileLock::new(&path).unwrap().with_mode(FileMode::Read);
        let reading = reader.with_kind(kind).shared().try_acquire().unwrap();
        let writer = FileLock::new(&path).unwrap().with_kind(kind);
        let writer = writer.with_policy(hardly_ever());
        let mut waiter = Box::pin(writer.acquire());
        assert!(futures_util::poll!(&mut waiter).is_pending());
        drop(reading);
        let woken = tokio::time::timeout(WOKEN, waiter).await;
        drop(woken.expect("nobody woke the writer").unwrap());
    }
}

/// The release may come at any moment while the waiter starts to wait.
#[test]
fn no_wake_up_is_missed() {
    let (_dir, path) = place("data");
    let lock = FileLock::new(&path).unwrap().with_policy(hardly_ever());
    let seed = fastrand::get_seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let held = lock.try_acquire().unwrap();
        let (sets_out, waiter_sets_out) = mpsc::channel();
        let (has_it, waiter_has_it) = mpsc::channel();
        let waiter = thread::spawn({
            let lock = lock.clone();
            move || {
                sets_out.send(()).unwrap();
                drop(lock.blocking_acquire().unwrap());
                has_it.send(()).unwrap();
            }
        });
        waiter_sets_out.recv().unwrap();
        let (delay, since) = (random.u64(..400), Instant::now());
        while since.elapsed() < Duration::from_micros(delay) {
            std::hint::spin_loop();
        }
        drop(held);
        let woken = waiter_has_it.recv_timeout(WOKEN);
        woken.unwrap_or_else(|_| panic!("missed in round {round}, seed {seed}"));
        waiter.join().unwrap();
    }
}

/// Each holder creates a new file, so each waiter must watch another file than before.
#[tokio::test]
async fn a_waiter_goes_on_listening_when_the_file_is_a_new_one() {
    let (dir, path) = place("lock");
    let temporary = TemporaryFileLock::new(&path)
        .unwrap()
        .with_policy(hardly_ever());
    let pid = PidFileLock::new(dir.path().join("pid"))
        .unwrap()
        .with_policy(hardly_ever());
    let turns: Vec<_> = (0..12)
        .map(|_| {
            let (temporary, pid) = (temporary.clone(), pid.clone());
            tokio::spawn(async move {
                let outer = temporary.acquire().await.unwrap();
                tokio::task::yield_now().await;
                drop(outer);
                pid.acquire().await.unwrap().release().unwrap();
            })
        })
        .collect();
    for turn in turns {
        let woken = tokio::time::timeout(WOKEN, turn).await;
        woken.expect("nobody woke a waiter").unwrap();
    }
}

#[tokio::test]
async fn a_freed_slot_wakes_a_waiter() {
    let (dir, _) = place("");
    let semaphore = BoundedSemaphore::new("jobs", 2).unwrap();
    let semaphore = semaphore.in_directory(dir.path()).unwrap();
    let semaphore = semaphore.with_policy(hardly_ever());
    let one = Other::that_has("slot", dir.path());
    let two = Other::that_has("slot", dir.path());
    let mut held = Vec::new();
    for other in [two, one] {
        let mut waiter = Box::pin(semaphore.acquire());
        assert!(futures_util::poll!(&mut waiter).is_pending());
        other.kill();
        let woken = tokio::time::timeout(WOKEN, waiter).await;
        held.push(woken.expect("nobody woke the waiter").unwrap());
    }
}

#[tokio::test]
async fn a_reentrant_lock_is_woken_each_time_it_waits() {
    let (_dir, path) = place("data");
    let file = FileLock::new(&path).unwrap().with_policy(hardly_ever());
    let lock = ReentrantFileLock::new(file.clone()).unwrap();
    for _ in 0..2 {
        let held = file.try_acquire().unwrap();
        let mut waiter = Box::pin(lock.acquire());
        assert!(futures_util::poll!(&mut waiter).is_pending());
        drop(held);
        let woken = tokio::time::timeout(WOKEN, waiter).await;
        drop(woken.expect("nobody woke the waiter").unwrap());
    }
}

/// A waiter must not take its own attempt for a release, because it would then try again at once, forever.
#[tokio::test]
async fn a_waiter_does_not_wake_itself() {
    let (dir, path) = place("daemon.pid");
    let policy = hardly_ever().with_timeout(Duration::from_secs(1));
    let pid = PidFileLock::new(&path).unwrap();
    let _held = pid.try_acquire().unwrap();
    let pid = pid.with_policy(policy.clone());
    let semaphore = BoundedSemaphore::new("jobs", 2).unwrap();
    let semaphore = semaphore.in_directory(dir.path()).unwrap();
    let _all = [semaphore.try_acquire(), semaphore.try_acquire()].map(Result::unwrap);
    let semaphore = semaphore.with_policy(policy);
    for (what, error) in [
        ("permits", semaphore.acquire().await.unwrap_err()),
        ("pid file", pid.acquire().await.unwrap_err()),
    ] {
        let LockError::Timeout { attempts, .. } = error else {
            panic!("{what}: {error}");
        };
        // After a wake-up it polls after 1, 2, 4 ... ms.
        assert!(attempts < 50, "{what}: {attempts} attempts");
    }
}
