//! A lock that passes from one waiter of a client to the next without being unlocked.
#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_core::{
    Attempt, Guard, LockBackend, LockError, Mode, Patience, Policy, Released, Wake,
};
use portalock_fs::FsBackend;
use support::{LONG, Locks, Process, lock, request, soon, try_once};
use tokio::task::JoinHandle;

type Waiting = JoinHandle<Result<Guard<FsBackend>, LockError>>;

/// Not a test: the other process.
#[tokio::test]
async fn child() {
    support::child().await;
}

/// A task that waits for `a`. On one thread it has gone to sleep when this returns.
async fn waiter(client: &FsBackend, label: &'static str) -> Waiting {
    let lock = lock(client, "a").with_label(label);
    let waiting = tokio::spawn(async move { lock.acquire().await });
    tokio::task::yield_now().await;
    waiting
}

/// Has the lock handed to the first of two waiters, neither of which has run since. Done again where the machine is so busy
/// that the lock was held for too long to be handed on.
async fn handed_on(client: &FsBackend, other: &FsBackend) -> [Waiting; 2] {
    let start = Instant::now();
    loop {
        let guard = lock(client, "a").acquire().await.unwrap();
        let (token, lost) = (guard.token(), guard.lost_signal());
        let waiting = [
            waiter(client, "first").await,
            waiter(client, "second").await,
        ];
        guard.release().await.unwrap();
        let Some((held, _)) = try_once(other, "a", Mode::Exclusive).await else {
            let seen = lock(other, "a").inspect().await.unwrap();
            assert!(seen.last_token > token && !lost.is_lost());
            return waiting;
        };
        assert!(start.elapsed() < LONG, "it is never handed on");
        other.release(&held).await.unwrap();
        for waiting in waiting {
            drop(soon(waiting).await.unwrap());
        }
    }
}

#[tokio::test]
async fn the_next_waiter_has_it_before_anybody_else_could() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let [first, second] = handed_on(&client, &other).await;
    for (looker, waiters) in [(&client, 1), (&other, 0)] {
        let seen = lock(looker, "a").inspect().await.unwrap();
        assert_eq!(seen.holders.len(), 1);
        assert_eq!(seen.holders[0].holder.label.as_deref(), Some("first"));
        assert_eq!(seen.waiters.len(), waiters);
    }
    let first = soon(first).await.unwrap();
    let token = first.token();
    assert!(first.ensure_held().is_ok());
    drop(first);
    let second = soon(second).await.unwrap();
    assert!(second.token() > token);
    second.release().await.unwrap();
    assert!(try_once(&other, "a", Mode::Exclusive).await.is_some());
}

#[tokio::test]
async fn who_goes_before_reading_its_grant_hands_it_on_or_frees_it() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let [first, second] = handed_on(&client, &other).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    soon(second).await.unwrap().release().await.unwrap();

    // Both go: the second one is handed it perhaps, while it is going.
    let waiting = handed_on(&client, &other).await;
    waiting.iter().for_each(Waiting::abort);
    for waiting in waiting {
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
    assert!(try_once(&other, "a", Mode::Exclusive).await.is_some());
}

#[tokio::test]
async fn who_does_not_listen_is_not_handed_anything() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    for has_gone in [false, true] {
        let guard = lock(&client, "a").acquire().await.unwrap();
        let waiting = request("a", Mode::Exclusive, Patience::Queue);
        let Attempt::Contended(contention) = client.try_acquire(&waiting).await.unwrap() else {
            panic!("granted");
        };
        assert!(contention.queued, "it is woken by who is before it");
        assert!(contention.recheck_after >= Some(Duration::from_secs(10)));
        if has_gone {
            drop(client.subscribe(&waiting).await.unwrap().unwrap());
        }
        guard.release().await.unwrap();
        let (taken, _) = try_once(&other, "a", Mode::Exclusive).await.unwrap();
        other.release(&taken).await.unwrap();
        let freed = client.release(&waiting).await.unwrap();
        assert_eq!(freed, Released::NotHeld);
    }
}

#[tokio::test]
async fn who_begins_to_listen_late_is_told_what_it_missed() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let waiting = request("a", Mode::Exclusive, Patience::Queue);
    let _ = client.try_acquire(&waiting).await.unwrap();
    guard.release().await.unwrap();
    let mut wakeups = client.subscribe(&waiting).await.unwrap().unwrap();
    let wake = tokio::time::timeout(LONG, wakeups.next()).await.unwrap();
    assert!(matches!(wake, Wake::TryNow), "{wake:?}");
}

#[tokio::test]
async fn what_is_shared_or_wanted_shared_is_not_handed_on() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let guard = lock(&client, "a").acquire_shared().await.unwrap();
    let writer = waiter(&client, "writer").await;
    guard.release().await.unwrap();
    assert!(try_once(&other, "a", Mode::Exclusive).await.is_some());
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let guard = lock(&client, "a").acquire().await.unwrap();
    let reader = lock(&client, "a");
    let reader = tokio::spawn(async move { reader.acquire_shared().await });
    tokio::task::yield_now().await;
    guard.release().await.unwrap();
    assert!(try_once(&other, "a", Mode::Shared).await.is_some());
    drop(soon(reader).await.unwrap());
    writer.abort();
}

#[tokio::test]
async fn a_file_that_is_gone_is_not_handed_on() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    for _ in 0..20 {
        let guard = lock(&client, "a").acquire().await.unwrap();
        let token = guard.token();
        let next = waiter(&client, "next").await;
        std::fs::remove_file(locks.file("a")).unwrap();
        // Whether or not the news is there by now.
        let error = guard.release().await.unwrap_err();
        assert!(
            matches!(error, LockError::Lost { .. } | LockError::NotHeld { .. }),
            "{error}"
        );
        let next = soon(next).await.unwrap();
        assert!(next.token() > token);
        assert!(try_once(&other, "a", Mode::Exclusive).await.is_none());
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn who_was_handed_it_hears_of_its_loss() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire().await.unwrap();
    let next = waiter(&client, "next").await;
    guard.release().await.unwrap();
    let next = soon(next).await.unwrap();
    std::fs::remove_file(locks.file("a")).unwrap();
    tokio::time::timeout(LONG, next.lost()).await.unwrap();
    assert!(matches!(next.release().await, Err(LockError::Lost { .. })));
}

#[tokio::test]
async fn a_crash_frees_what_was_handed_on() {
    let locks = Locks::new();
    let mut other = Process::start(&locks.path());
    let token: u64 = other.ask("relay a").parse().unwrap();
    let client = locks.client();
    assert!(try_once(&client, "a", Mode::Exclusive).await.is_none());
    other.kill();
    let guard = lock(&client, "a").acquire().await.unwrap();
    assert!(guard.token().unwrap().get() > token);
}

#[tokio::test]
async fn another_process_gets_its_turn_while_tasks_hand_it_on() {
    let locks = Locks::new();
    let client = locks.client();
    let mut other = Process::start(&locks.path());
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (lock, stop) = (lock(&client, "a"), stop.clone());
            tokio::spawn(async move {
                let mut turns = 0;
                while !stop.load(Ordering::Relaxed) {
                    let guard = lock.acquire().await.unwrap();
                    tokio::task::yield_now().await;
                    guard.release().await.unwrap();
                    turns += 1;
                }
                turns
            })
        })
        .collect();
    let start = Instant::now();
    let asking = tokio::task::spawn_blocking(move || {
        for _ in 0..10 {
            // It would look by itself after minutes only.
            other.ask("hold a").parse::<u64>().unwrap();
            assert_eq!(other.ask("release"), "released");
        }
    });
    soon(asking).await;
    assert!(start.elapsed() < LONG);
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        assert!(soon(task).await > 0);
    }
}

/// Two clients, whose tasks on two threads give up at any moment: before a grant, with it, and after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_are_in_together_and_no_grant_is_forgotten_whoever_gives_up() {
    let locks = Locks::new();
    let clients = [locks.client(), locks.client()];
    let inside = Arc::new(AtomicBool::new(false));
    let last = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..12)
        .map(|at: usize| {
            let lock = lock(&clients[at % 2], "a");
            let (inside, last) = (inside.clone(), last.clone());
            tokio::spawn(async move {
                let mut had = 0;
                for round in 0..150_u64 {
                    let patience = Duration::from_micros(fastrand::u64(0..3_000));
                    let acquired = match round % 3 {
                        0 => lock.acquire().await,
                        1 => match tokio::time::timeout(patience, lock.acquire()).await {
                            Ok(acquired) => acquired,
                            Err(_) => continue,
                        },
                        _ => {
                            lock.acquire_with(&Policy::new().with_timeout(patience))
                                .await
                        }
                    };
                    let Ok(guard) = acquired else {
                        continue;
                    };
                    assert!(!inside.swap(true, Ordering::SeqCst), "two inside");
                    let token = guard.token().unwrap().get();
                    assert!(last.swap(token, Ordering::SeqCst) < token);
                    tokio::task::yield_now().await;
                    inside.store(false, Ordering::SeqCst);
                    had += 1;
                    if round % 2 == 0 {
                        guard.release().await.unwrap();
                    }
                }
                had
            })
        })
        .collect();
    for task in tasks {
        assert!(soon(task).await >= 50);
    }
    portalock_core::shutdown(LONG).await.unwrap();
    for client in &clients {
        let (held, _) = try_once(client, "a", Mode::Exclusive).await.unwrap();
        client.release(&held).await.unwrap();
        assert!(
            lock(client, "a")
                .inspect()
                .await
                .unwrap()
                .waiters
                .is_empty()
        );
    }
}

/// How much a process watches, by what the system says of its inotify instance, which may have several descriptors.
fn watches(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .map(|info| info.matches("inotify wd:").count())
        .max()
        .unwrap_or(0)
}

async fn expect_watches(pid: u32, count: usize) {
    let start = Instant::now();
    while watches(pid) != count {
        assert!(start.elapsed() < LONG, "{} watches", watches(pid));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_watch_of_a_waiter_that_has_its_lock_does_not_stay() {
    let locks = Locks::new();
    let client = locks.client();
    let mut other = Process::start(&locks.path());
    for _ in 0..3 {
        let guard = lock(&client, "a").acquire().await.unwrap();
        other.order("hold a");
        // The directory, and the file that it waits for.
        expect_watches(other.pid(), 2).await;
        drop(guard);
        assert!(other.answer().parse::<u64>().is_ok());
        expect_watches(other.pid(), 1).await;
        assert_eq!(other.ask("release"), "released");
    }
}
