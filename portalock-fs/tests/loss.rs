//! Removed lock files, and the watcher that notices them.
#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use portalock_core::{
    BackendErrorKind, Holder, LockBackend, LockError, LockName, Loss, LossNotice, Mode,
};
use portalock_fs::{FsBackend, FsSettings, Watch};
use support::{LONG, Locks, lock, soon, try_once};

#[tokio::test]
async fn a_lock_file_that_is_deleted_or_replaced_is_a_loss() {
    let locks = Locks::new();
    let client = locks.client();
    let LossNotice::Within(bound) = client.capabilities().loss else {
        panic!("{:?}", client.capabilities());
    };
    let elsewhere = locks.path().join("elsewhere");
    for way in ["delete", "replace", "move away", "remove all"] {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let client = locks.client();
            let take = async || match mode {
                Mode::Exclusive => lock(&client, "a").acquire().await.unwrap(),
                Mode::Shared => lock(&client, "a").acquire_shared().await.unwrap(),
            };
            let mut guards = vec![take().await];
            if mode == Mode::Shared {
                guards.push(take().await);
            }
            let bystander = lock(&client, "b").acquire().await.unwrap();
            let start = Instant::now();
            match way {
                "delete" => std::fs::remove_file(locks.file("a")).unwrap(),
                "replace" => {
                    std::fs::write(&elsewhere, "").unwrap();
                    std::fs::rename(&elsewhere, locks.file("a")).unwrap();
                }
                "move away" => std::fs::rename(locks.file("a"), &elsewhere).unwrap(),
                _ => std::fs::remove_dir_all(locks.path()).unwrap(),
            }
            for guard in guards {
                let loss = tokio::time::timeout(LONG, guard.lost()).await;
                assert!(matches!(loss, Ok(Loss::Removed(_))), "{way}: {loss:?}");
                assert!(start.elapsed() < bound, "{way}: {:?}", start.elapsed());
                let error = guard.release().await.unwrap_err();
                assert!(matches!(error, LockError::Lost { .. }), "{way}: {error}");
            }
            assert_eq!(bystander.is_lost(), way == "remove all");
            let _ = bystander.release().await;
        }
    }
}

/// Some executors drop a task in its wake-up, if they have ended. The guard is then dropped by the thread that tells of the loss.
#[tokio::test]
async fn a_wake_up_that_drops_the_guard_stops_nobody() {
    struct Task(
        Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
        mpsc::Sender<()>,
    );

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            let task = self.0.lock().unwrap().take();
            drop(task);
            let _ = self.1.send(());
        }
    }

    for broken in [false, true] {
        let locks = Locks::new();
        let client = locks.client();
        let guard = lock(&client, "a").acquire().await.unwrap();
        let (dropped, is_dropped) = mpsc::channel();
        let held = async move { drop(guard.lost().await) };
        let task = Arc::new(Task(Mutex::new(Some(Box::pin(held))), dropped));
        let waker = Waker::from(task.clone());
        let polled = task
            .0
            .lock()
            .unwrap()
            .as_mut()
            .unwrap()
            .as_mut()
            .poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        if broken {
            let name = LockName::new("a").unwrap();
            let owner = client.inspect(&name).await.unwrap().holders[0]
                .owner
                .unwrap();
            let by = Holder::this_process(None);
            locks.client().mark_broken(&name, owner, &by).await.unwrap();
        } else {
            std::fs::remove_file(locks.file("a")).unwrap();
        }
        if is_dropped.recv_timeout(LONG).is_err() {
            // Dropping it would wait for the thread.
            std::mem::forget(client);
            panic!("the guard was not dropped");
        }
        // The file is unlocked after the wake-up.
        let next = tokio::time::timeout(LONG, async { lock(&client, "a").acquire().await });
        next.await.unwrap().unwrap().release().await.unwrap();
    }
}

/// Says whether another client gets the lock meanwhile.
struct TriesWhenWoken(FsBackend, Mutex<mpsc::Sender<bool>>);

impl Wake for TriesWhenWoken {
    fn wake(self: Arc<Self>) {
        let lock = portalock_core::blocking::Lock::new(self.0.clone(), "a").unwrap();
        let is_free = lock.try_acquire().is_ok();
        let _ = self.1.lock().unwrap().send(is_free);
    }
}

#[tokio::test]
async fn a_holder_whose_lock_is_broken_is_told_before_it_is_free() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let (told, is_told) = mpsc::channel();
    let tries = TriesWhenWoken(locks.client(), Mutex::new(told));
    let mut waiting = Box::pin(guard.lost());
    let waker = Waker::from(Arc::new(tries));
    let polled = waiting.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let name = LockName::new("a").unwrap();
    let by = Holder::this_process(Some("operator".into()));
    let other = locks.client();
    other.mark_broken(&name, guard.owner(), &by).await.unwrap();
    assert_eq!(is_told.recv_timeout(LONG), Ok(false));
    let loss = tokio::time::timeout(LONG, waiting).await.unwrap();
    assert!(
        matches!(&loss, Loss::Broken(who) if who.label == by.label),
        "{loss}"
    );
}

/// One thread tells all backends of the process.
#[tokio::test]
async fn a_wake_up_that_panics_keeps_nobody_from_being_told() {
    struct Panics(mpsc::Sender<()>);

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
            panic!("this executor has ended");
        }
    }

    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let (woken, is_woken) = mpsc::channel();
    let panics = Waker::from(Arc::new(Panics(woken)));
    let shared = lock(&client, "a");
    let readers = [
        shared.acquire_shared().await.unwrap(),
        shared.acquire_shared().await.unwrap(),
    ];
    let mut first = pin!(readers[0].lost());
    let polled = first.as_mut().poll(&mut Context::from_waker(&panics));
    assert!(polled.is_pending());
    std::fs::remove_file(locks.file("a")).unwrap();
    is_woken.recv_timeout(LONG).unwrap();
    // The other one of the same event, and one of a later event.
    let second = tokio::time::timeout(LONG, readers[1].lost());
    second.await.unwrap();
    let later = lock(&other, "b").acquire().await.unwrap();
    std::fs::remove_file(locks.file("b")).unwrap();
    tokio::time::timeout(LONG, later.lost()).await.unwrap();
}

#[tokio::test]
async fn newcomers_exclude_each_other_after_a_loss() {
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    let lost = lock(&one, "a").acquire().await.unwrap();
    let token = lost.token();
    // A waiter has the old file open, and must not be granted that one.
    let waiter = lock(&two, "a");
    let waiting = tokio::spawn(async move { waiter.acquire().await });
    tokio::task::yield_now().await;
    std::fs::remove_file(locks.file("a")).unwrap();
    let guard = soon(waiting).await.unwrap();
    assert!(guard.token() > token);
    tokio::time::timeout(LONG, lost.lost()).await.unwrap();
    for client in [&one, &two, &locks.client()] {
        assert!(try_once(client, "a", Mode::Exclusive).await.is_none());
    }
    // The late release of the lost guard does not release another holder's lock.
    drop(lost);
    assert!(
        try_once(&locks.client(), "a", Mode::Exclusive)
            .await
            .is_none()
    );
    guard.release().await.unwrap();
    assert!(try_once(&one, "a", Mode::Exclusive).await.is_some());
}

#[tokio::test]
async fn a_lost_guard_keeps_nobody_out_of_its_own_client_either() {
    let locks = Locks::new();
    let client = locks.client();
    let lost = lock(&client, "a").acquire().await.unwrap();
    let waiter = lock(&client, "a");
    let waiting = tokio::spawn(async move { waiter.acquire().await });
    tokio::task::yield_now().await;
    std::fs::remove_file(locks.file("a")).unwrap();
    let next = soon(waiting).await.unwrap();
    assert!(lost.is_lost() && next.token() > lost.token());
    assert!(next.ensure_held().is_ok());
}

#[tokio::test]
async fn a_lock_directory_that_is_moved_is_a_loss_of_all() {
    let locks = Locks::new();
    let client = locks.client();
    let guards = [
        lock(&client, "a").acquire().await.unwrap(),
        lock(&client, "b").acquire_shared().await.unwrap(),
    ];
    std::fs::rename(locks.path(), locks.path().with_extension("old")).unwrap();
    for guard in &guards {
        tokio::time::timeout(LONG, guard.lost()).await.unwrap();
    }
    // Clients that open the path now exclude each other. This client is not one of them, and reports that.
    let error = lock(&client, "c").try_acquire().await.unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }), "{error}");
    let (one, two) = (locks.client(), locks.client());
    let _held = try_once(&one, "a", Mode::Exclusive).await.unwrap();
    assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
}

/// Makes `path` lead to another directory, in a way that causes no event for a watch of the directory.
fn lead_elsewhere(way: &str, base: &std::path::Path) {
    if way == "an ancestor is renamed" {
        std::fs::rename(base.join("a"), base.join("old")).unwrap();
    } else {
        std::fs::remove_file(base.join("a")).unwrap();
        std::os::unix::fs::symlink("v2", base.join("a")).unwrap();
    }
}

#[tokio::test]
async fn a_path_that_leads_elsewhere_is_a_loss_of_all() {
    for way in ["an ancestor is renamed", "a link is switched"] {
        for watch in [Watch::On, Watch::Off] {
            let base = tempfile::tempdir().unwrap();
            if way == "a link is switched" {
                for version in ["v1", "v2"] {
                    std::fs::create_dir(base.path().join(version)).unwrap();
                }
                std::os::unix::fs::symlink("v1", base.path().join("a")).unwrap();
            }
            let settings = FsSettings::new(base.path().join("a/locks")).with_watch(watch);
            let first = FsBackend::with_settings(&settings).unwrap();
            let idle = FsBackend::with_settings(&settings).unwrap();
            let guard = lock(&first, "x").acquire().await.unwrap();
            lead_elsewhere(way, base.path());
            // Newcomers exclude each other.
            let second = FsBackend::with_settings(&settings).unwrap();
            let present = try_once(&second, "x", Mode::Exclusive).await.unwrap();
            for client in [&first, &idle] {
                let error = lock(client, "y").try_acquire().await.unwrap_err();
                let LockError::Backend { source, .. } = error else {
                    panic!("{way}: {error}");
                };
                assert_eq!(source.kind(), BackendErrorKind::NotFound, "{way}");
            }
            if watch == Watch::On {
                let loss = tokio::time::timeout(LONG, guard.lost()).await;
                assert!(matches!(loss, Ok(Loss::Removed(_))), "{way}: {loss:?}");
            }
            let error = guard.release().await.unwrap_err();
            assert!(
                matches!(error, LockError::Lost { .. } | LockError::NotHeld { .. }),
                "{way}: {error}"
            );
            let third = FsBackend::with_settings(&settings).unwrap();
            assert!(try_once(&third, "x", Mode::Exclusive).await.is_none());
            drop(present);
        }
    }
}

#[tokio::test]
async fn a_release_is_no_loss() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let lost = guard.lost_signal();
    guard.release().await.unwrap();
    std::fs::remove_file(locks.file("a")).unwrap();
    // The watcher gets the next loss after this one.
    let guard = lock(&client, "b").acquire().await.unwrap();
    std::fs::remove_file(locks.file("b")).unwrap();
    tokio::time::timeout(LONG, guard.lost()).await.unwrap();
    assert!(!lost.is_lost());
}

/// Reports that it was called, and returns when it may.
struct SlowToWake(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);

impl Wake for SlowToWake {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
        let _ = self.1.lock().unwrap().recv_timeout(LONG);
    }
}

#[tokio::test]
async fn other_files_that_come_and_go_are_no_loss() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let marker = lock(&client, "z").acquire().await.unwrap();
    for name in ["notes", "a.lock.bak", "A.lock", "b.shared"] {
        std::fs::write(locks.path().join(name), "").unwrap();
        std::fs::remove_file(locks.path().join(name)).unwrap();
    }
    // A file is moved away and back while the watcher's thread is busy: when it reads the events, the same file is there.
    let busy = lock(&client, "y").acquire().await.unwrap();
    let (told, is_called) = mpsc::channel();
    let (go_on, may_return) = mpsc::channel();
    let waker = Waker::from(Arc::new(SlowToWake(told, Mutex::new(may_return))));
    let mut lost = Box::pin(busy.lost());
    let polled = lost.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    std::fs::remove_file(locks.file("y")).unwrap();
    is_called.recv_timeout(LONG).unwrap();
    std::fs::rename(locks.file("a"), locks.path().join("away")).unwrap();
    std::fs::rename(locks.path().join("away"), locks.file("a")).unwrap();
    go_on.send(()).unwrap();
    std::fs::remove_file(locks.file("z")).unwrap();
    tokio::time::timeout(LONG, marker.lost()).await.unwrap();
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn without_a_watch_a_release_still_tells_that_the_file_was_removed() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_watch(Watch::Off);
    let client = FsBackend::with_settings(&settings).unwrap();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let waiter = lock(&client, "a");
    let waiting = tokio::spawn(async move { waiter.acquire().await });
    tokio::task::yield_now().await;
    std::fs::remove_file(locks.file("a")).unwrap();
    let error = guard.release().await.unwrap_err();
    assert!(matches!(error, LockError::NotHeld { .. }), "{error}");
    // The waiter behind it is woken nevertheless.
    drop(soon(waiting).await.unwrap());
}

/// Other libraries get two holders by unlocking before, after or without unlinking. Here files are removed continuously
/// while six threads take turns.
#[test]
fn files_removed_under_six_threads_let_no_two_in_together() {
    let locks = Locks::new();
    let inside = Arc::new(AtomicU32::new(0));
    let last_token = Arc::new(AtomicU64::new(0));
    let removed = Arc::new(AtomicUsize::new(0));
    let cleaner = locks.client();
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let client = locks.client();
            let (inside, last_token) = (inside.clone(), last_token.clone());
            let removed = removed.clone();
            std::thread::spawn(move || {
                let lock = portalock_core::blocking::Lock::new(client, "a").unwrap();
                let policy = portalock_core::Policy::new().with_timeout(LONG);
                let (begun, mut rounds) = (Instant::now(), 0);
                // On a busy machine, a file may not be removed before all rounds are over.
                while rounds < 150 || removed.load(Ordering::SeqCst) == 0 && begun.elapsed() < LONG
                {
                    rounds += 1;
                    let guard = lock.acquire_with(&policy).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                    let token = guard.token().unwrap().get();
                    assert!(last_token.swap(token, Ordering::SeqCst) < token);
                    let hold = Instant::now();
                    while hold.elapsed() < Duration::from_micros(50) {
                        std::hint::spin_loop();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                }
            })
        })
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        let count = cleaner.clean(Duration::ZERO).unwrap();
        removed.fetch_add(count, Ordering::SeqCst);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(
        removed.load(Ordering::SeqCst) > 0,
        "nothing was ever removed: the test shows nothing"
    );
}

/// Another watch on the same directory, for example for the release of a lock on the directory itself.
#[tokio::test]
async fn whoever_waits_for_the_directory_itself_takes_no_watch_away() {
    use portalock_fs::{LockKind, blocking_lock_with, lock_with};

    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let open = || std::fs::File::open(locks.path()).unwrap();
    let (ours, theirs) = (open(), open());
    let policy = support::patience();
    blocking_lock_with(&theirs, Mode::Exclusive, LockKind::Flock, &policy).unwrap();
    let mut waiting = Box::pin(lock_with(&ours, Mode::Exclusive, LockKind::Flock, &policy));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    std::fs::remove_file(locks.file("a")).unwrap();
    tokio::time::timeout(LONG, guard.lost()).await.unwrap();
    drop(theirs);
    tokio::time::timeout(LONG, waiting).await.unwrap().unwrap();
}

/// A holder that gets the lock while the file is cleaned must not keep a removed file. This is repeated often, because
/// a bug only shows if the other thread runs at the right moment.
#[test]
fn a_file_is_removed_before_it_is_unlocked() {
    use portalock_fs::{LockKind, try_lock};

    let locks = Locks::new();
    let client = locks.client();
    let cleaned = portalock_core::blocking::Lock::new(client.clone(), "a").unwrap();
    for _ in 0..300 {
        drop(cleaned.acquire().unwrap());
        let file = std::fs::File::open(locks.file("a")).unwrap();
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| {
                let mut was_locked = false;
                started.wait();
                loop {
                    let is_there = locks.file("a").exists();
                    match try_lock(&file, Mode::Exclusive, LockKind::Flock).unwrap() {
                        // Before it was locked to be removed, or after.
                        true if is_there && !was_locked => {
                            portalock_fs::unlock(&file, LockKind::Flock).unwrap();
                        }
                        true => return locks.file("a").exists(),
                        false => was_locked = true,
                    }
                }
            });
            started.wait();
            while client.clean(Duration::ZERO).unwrap() == 0 {}
            assert!(!next.join().unwrap(), "unlocked, and still there");
        });
    }
}
