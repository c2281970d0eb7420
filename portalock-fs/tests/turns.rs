//! The order of turns: among the waiters of one client, and between that client and others.
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

use portalock_core::{LockBackend, Mode, Patience, Policy, Wake, blocking};
use support::{LONG, Locks, Process, lock, patience, request, soon, try_once};

/// Not a test: the child process.
#[tokio::test]
async fn child() {
    support::child().await;
}

/// A future that was polled once and then ignored, like a branch of a `select!` in a loop.
#[tokio::test]
async fn a_waiter_that_is_not_polled_keeps_no_other_client_out() {
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    let guard = lock(&client, "a").acquire().await.unwrap();
    let left = lock(&client, "a");
    let mut left = Box::pin(left.acquire());
    assert!(futures_util::poll!(&mut left).is_pending());
    guard.release().await.unwrap();
    let (held, _) = try_once(&other, "a", Mode::Exclusive).await.unwrap();
    // It keeps its place in its own client, as in any fair lock.
    other.release(&held).await.unwrap();
    let brief = Policy::new().with_timeout(Duration::from_millis(50));
    let behind = lock(&client, "a").acquire_with(&brief).await;
    assert!(behind.unwrap_err().is_contention());
    drop(left.await.unwrap());
}

/// The tasks of one client hear of a release long before another client does, but must let that client have its turn.
#[tokio::test]
async fn tasks_that_take_turns_let_another_client_in() {
    let locks = Locks::new();
    let client = locks.client();
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let lock = lock(&client, "a");
            tokio::spawn(async move {
                loop {
                    let guard = lock.acquire().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    tokio::task::yield_now().await;
    // On its own thread, like another process.
    let other = portalock_core::blocking::Lock::from(lock(&locks.client(), "a"));
    // Hundreds of turns.
    let policy = patience().with_timeout(Duration::from_secs(10));
    let waiting = tokio::task::spawn_blocking(move || other.acquire_with(&policy).map(drop));
    soon(waiting).await.unwrap();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
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
async fn another_process_gets_its_turn_while_tasks_take_turns() {
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
            // Without a wake-up it would poll after minutes.
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

/// Two clients, whose tasks on two threads are dropped at any moment: before, during and after a grant.
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

/// Threads of two clients and another process: each waits for a random time, or until it has the lock. A lost wake-up would
/// keep one of them for minutes.
#[test]
fn threads_that_give_up_at_any_moment_lose_no_wake_up() {
    let locks = Locks::new();
    let clients = [locks.client(), locks.client()];
    let mut other = Process::start(&locks.path());
    let seed = fastrand::get_seed();
    let (inside, last) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (done, threads_done) = std::sync::mpsc::channel();
    for number in 0..8 {
        let lock = blocking::Lock::from(lock(&clients[number % 2], "a"));
        let (inside, last, done) = (inside.clone(), last.clone(), done.clone());
        let mut random = fastrand::Rng::with_seed(seed + number as u64);
        std::thread::spawn(move || {
            let mut had = 0;
            while had < 100 {
                let policy = match random.u64(..3) {
                    0 => patience(),
                    _ => patience().with_timeout(Duration::from_micros(random.u64(1..2_000))),
                };
                let guard = match lock.acquire_with(&policy) {
                    Ok(guard) => guard,
                    Err(error) => {
                        assert!(error.is_contention(), "{error}");
                        continue;
                    }
                };
                assert!(!inside.swap(true, Ordering::SeqCst), "two inside");
                let token = guard.token().unwrap().get();
                assert!(last.swap(token, Ordering::SeqCst) < token);
                if random.bool() {
                    std::thread::yield_now();
                }
                inside.store(false, Ordering::SeqCst);
                had += 1;
                if random.bool() {
                    guard.release().unwrap();
                }
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..20 {
        other.ask("hold a").parse::<u64>().unwrap();
        assert_eq!(other.ask("release"), "released");
    }
    for _ in 0..8 {
        let ended = threads_done.recv_timeout(LONG * 2);
        assert!(ended.is_ok(), "a thread sleeps or has failed, seed {seed}");
    }
    for client in &clients {
        let lock = blocking::Lock::from(lock(client, "a"));
        assert!(lock.inspect().unwrap().waiters.is_empty());
    }
}

/// The number of watches of a process, from the system's information about its inotify instance.
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
async fn the_watch_of_a_waiter_ends_with_the_file_it_waited_for() {
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
        assert_eq!(other.ask("release"), "released");
        expect_watches(other.pid(), 1).await;
    }
}
