//! What the watcher and held locks take: threads and descriptors.
#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use portalock_core::Mode;
use support::{LONG, Locks, lock, try_once};

/// They are counted for the whole process, so one test runs at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn watcher_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let name = task.as_ref().unwrap().path().join("comm");
            // A thread that has just ended has no name.
            std::fs::read_to_string(name).is_ok_and(|name| name.trim() == "portalock-watch")
        })
        .count()
}

/// A thread sets its name when it runs, so it may not be visible at once.
async fn expect_watcher_threads(count: usize) {
    let start = Instant::now();
    while watcher_threads() != count {
        assert!(start.elapsed() < LONG, "{} threads", watcher_threads());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Only those of lock files and of the watcher: the runtimes of other tests have descriptors too.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| {
            let target = target.to_string_lossy();
            target.contains("/locks") || target.contains("inotify")
        })
        .count()
}

#[tokio::test]
async fn one_thread_watches_for_all_and_ends_with_the_last_backend() {
    let _alone = ALONE.lock().await;
    let before = open_descriptors();
    for round in 0..3 {
        let (locks, others) = (Locks::new(), Locks::new());
        let clients: Vec<_> = (0..20)
            .map(|at| {
                if at % 2 == 0 {
                    locks.client()
                } else {
                    others.client()
                }
            })
            .collect();
        expect_watcher_threads(1).await;
        let mut guards = Vec::new();
        for (at, client) in clients.iter().enumerate() {
            guards.push(lock(client, &format!("{at}")).acquire().await.unwrap());
        }
        drop(clients);
        assert_eq!(
            watcher_threads(),
            1,
            "round {round}: the guards still need it"
        );
        drop(guards);
        assert_eq!(watcher_threads(), 0);
    }
    assert_eq!(open_descriptors(), before);
}

#[tokio::test]
async fn a_held_lock_is_one_descriptor_and_a_dropped_waiter_leaves_none() {
    let _alone = ALONE.lock().await;
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    let watched = lock(&one, "first").acquire().await.unwrap();
    let before = open_descriptors();
    let guard = lock(&one, "a").acquire().await.unwrap();
    assert_eq!(open_descriptors(), before + 1);
    for client in [&one, &two] {
        let waiter = lock(client, "a");
        let waiting = tokio::spawn(async move { waiter.acquire().await.map(drop) });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
    portalock_core::shutdown(LONG).await.unwrap();
    assert_eq!(open_descriptors(), before + 1);
    drop(guard);
    assert_eq!(open_descriptors(), before);
    drop(watched);
}

#[tokio::test]
async fn a_copied_descriptor_does_not_keep_a_released_lock() {
    let _alone = ALONE.lock().await;
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    let guard = lock(&one, "a").acquire().await.unwrap();
    let number = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .find_map(|entry| {
            let path = entry.unwrap().path();
            let target = std::fs::read_link(&path).ok()?;
            (target == std::fs::canonicalize(locks.file("a")).unwrap())
                .then(|| path.file_name()?.to_str()?.parse().ok())?
        })
        .unwrap();
    // The copy of a child that was forked while the lock was held.
    let us = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    let copy = rustix::process::pidfd_getfd(&us, number, rustix::process::PidfdGetfdFlags::empty());
    let copy = copy.unwrap();
    assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
    guard.release().await.unwrap();
    assert!(try_once(&two, "a", Mode::Exclusive).await.is_some());
    drop(copy);
}
