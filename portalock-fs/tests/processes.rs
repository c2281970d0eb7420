//! The backend between processes: crashes, stops, wake-ups and descriptors that a child inherits.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::time::{Duration, Instant};

use portalock_core::{CrashRelease, LockBackend, Policy};
use rustix::process::Signal;
use support::{LONG, Locks, Process, lock, soon};

/// Not a test: the child process.
#[tokio::test]
async fn child() {
    support::child().await;
}

#[tokio::test]
async fn another_process_is_excluded_and_told_of() {
    let locks = Locks::new();
    let mut other = Process::start(&locks.path());
    assert!(other.ask("hold a").parse::<u64>().is_ok());
    let error = lock(&locks.client(), "a").try_acquire().await.unwrap_err();
    assert!(error.is_contention());
    assert_eq!(error.holder().unwrap().pid, other.pid());
    assert_eq!(other.ask("release"), "released");
    let guard = lock(&locks.client(), "a").acquire().await.unwrap();
    let answer = other.ask("try a");
    assert!(
        answer.contains(&format!("held by pid {} on", std::process::id())),
        "{answer}"
    );
    drop(guard);
    assert_eq!(other.ask("try a"), "free");
}

#[tokio::test]
async fn a_release_in_another_process_wakes_a_waiter_here() {
    let locks = Locks::new();
    let client = locks.client();
    let mut other = Process::start(&locks.path());
    for _ in 0..10 {
        other.ask("hold a");
        let waiter = lock(&client, "a");
        let waiting = tokio::spawn(async move { waiter.acquire().await });
        tokio::task::yield_now().await;
        // Without a wake-up it would poll after a minute.
        let start = Instant::now();
        other.ask("release");
        drop(soon(waiting).await.unwrap());
        assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_killed_holders_lock_passes_on_within_the_declared_time() {
    let locks = Locks::new();
    let client = locks.client();
    let CrashRelease::Within(bound) = client.capabilities().crash_release else {
        panic!("{:?}", client.capabilities());
    };
    for order in ["hold a", "share a"] {
        for _ in 0..5 {
            let mut other = Process::start(&locks.path());
            let token: u64 = other.ask(order).parse().unwrap();
            let waiter = lock(&client, "a");
            let waiting = tokio::spawn(async move { waiter.acquire().await });
            tokio::task::yield_now().await;
            let start = Instant::now();
            other.kill();
            let guard = soon(waiting).await.unwrap();
            assert!(start.elapsed() < bound, "{:?}", start.elapsed());
            assert!(guard.token().unwrap().get() > token);
        }
    }
}

#[tokio::test]
async fn a_stopped_holder_keeps_its_lock() {
    let locks = Locks::new();
    let client = locks.client();
    let mut other = Process::start(&locks.path());
    other.ask("hold a");
    other.signal(Signal::STOP);
    let brief = Policy::new().with_timeout(Duration::from_millis(300));
    let error = lock(&client, "a").acquire_with(&brief).await.unwrap_err();
    assert!(error.is_contention(), "{error}");
    other.signal(Signal::CONT);
    assert_eq!(other.ask("release"), "released");
    drop(lock(&client, "a").acquire().await.unwrap());
}

#[tokio::test]
async fn a_child_that_outlives_its_parents_guard_keeps_no_lock() {
    let locks = Locks::new();
    let client = locks.client();
    for crash in [false, true] {
        let mut other = Process::start(&locks.path());
        other.ask("hold a");
        let sleeper: i32 = other.ask("spawn").parse().unwrap();
        assert!(lock(&client, "a").try_acquire().await.is_err());
        if crash {
            other.kill();
        } else {
            other.ask("release");
        }
        drop(lock(&client, "a").acquire().await.unwrap());
        let sleeper = rustix::process::Pid::from_raw(sleeper).unwrap();
        rustix::process::kill_process(sleeper, Signal::KILL)
            .expect("the grandchild ended before the lock was taken");
    }
}

#[test]
fn four_processes_lose_no_update() {
    let locks = Locks::new();
    drop(locks.client());
    let counter = locks.path().join("counter.txt");
    std::fs::write(&counter, "0").unwrap();
    let mut others: Vec<_> = (0..4).map(|_| Process::start(&locks.path())).collect();
    for other in &mut others {
        other.order(&format!("count 100 {}", counter.display()));
    }
    for other in &mut others {
        assert_eq!(other.answer(), "counted");
    }
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), "400");
}
