//! Waiting: who is woken, in which order, and on which threads the calls run.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use portalock_core::{Attempt, LockBackend, LossNotice, Mode, Patience, Released};
#[cfg(any(target_os = "linux", target_os = "android"))]
use portalock_core::{LockError, Policy, Wake};
use portalock_fs::{Calls, FsBackend, FsSettings, Watch};

use crate::support::{LONG, Locks, lock, patience, request, soon, try_once};

#[tokio::test]
async fn a_release_wakes_the_next_waiter_of_this_client_and_of_another() {
    let locks = Locks::new();
    let holder = locks.client();
    for waiter in [holder.clone(), locks.client()] {
        let guard = lock(&holder, "a").acquire().await.unwrap();
        let token = guard.token();
        let waiting = tokio::spawn(async move { lock(&waiter, "a").acquire().await });
        tokio::task::yield_now().await;
        // With one thread the waiter now sleeps, for a minute if nothing wakes it.
        guard.release().await.unwrap();
        let next = soon(waiting).await.unwrap();
        assert!(next.token() > token);
    }
}

#[tokio::test]
async fn waiters_of_one_client_are_served_in_order_and_readers_do_not_starve_a_writer() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire_shared().await.unwrap();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for (at, mode) in [Mode::Exclusive, Mode::Shared, Mode::Shared, Mode::Exclusive]
        .into_iter()
        .enumerate()
    {
        let (lock, served) = (lock(&client, "a"), served.clone());
        tasks.push(tokio::spawn(async move {
            let guard = match mode {
                Mode::Exclusive => lock.acquire().await.unwrap(),
                Mode::Shared => lock.acquire_shared().await.unwrap(),
            };
            served.send(at).unwrap();
            guard.release().await.unwrap();
        }));
        tokio::task::yield_now().await;
    }
    // Shared, but behind a writer.
    assert!(try_once(&client, "a", Mode::Shared).await.is_none());
    guard.release().await.unwrap();
    for task in tasks {
        soon(task).await;
    }
    let mut seen = Vec::new();
    while let Ok(at) = order.try_recv() {
        seen.push(at);
    }
    seen[1..3].sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_waiter_that_gives_up_lets_those_behind_it_through() {
    let locks = Locks::new();
    let (holder, client) = (locks.client(), locks.client());
    let guard = lock(&holder, "a").acquire_shared().await.unwrap();
    let writer = request("a", Mode::Exclusive, Patience::Queue);
    let attempt = client.try_acquire(&writer).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(_)));
    let reader = lock(&client, "a");
    let reader = tokio::spawn(async move { reader.acquire_shared().await });
    tokio::task::yield_now().await;
    assert_eq!(client.release(&writer).await.unwrap(), Released::NotHeld);
    drop(soon(reader).await.unwrap());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn waiters_poll_where_nothing_is_watched() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_watch(Watch::Off);
    let holder = locks.client();
    let client = FsBackend::with_settings(&settings).unwrap();
    assert_eq!(client.capabilities().loss, LossNotice::Never);
    let guard = lock(&holder, "a").acquire().await.unwrap();
    let waiting = tokio::spawn(async move { lock(&client, "a").acquire().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    guard.release().await.unwrap();
    drop(soon(waiting).await.unwrap());
}

/// It makes the first attempt, and the last ones just before the deadline: more than one if each is quicker than the one before. One
/// that looks from time to time makes fifty.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[tokio::test]
async fn a_watched_waiter_does_not_look_from_time_to_time() {
    // Two files: a waiter that gives up closes its file, which wakes the others.
    let locks = Locks::new();
    let holder = locks.client();
    let _held = lock(&holder, "a").acquire().await.unwrap();
    let _other = lock(&holder, "b").acquire().await.unwrap();
    let client = FsBackend::open(locks.path()).unwrap();
    let policy = Policy::new().with_timeout(Duration::from_secs(2));
    let asynchronous = lock(&client, "a").acquire_with(&policy).await;
    let waiting = portalock_core::blocking::Lock::from(lock(&client, "b"));
    let blocking = tokio::task::spawn_blocking(move || waiting.acquire_with(&policy).map(drop));
    for error in [
        asynchronous.unwrap_err(),
        blocking.await.unwrap().unwrap_err(),
    ] {
        let LockError::Timeout { attempts, .. } = error else {
            panic!("{error}");
        };
        assert!(attempts < 8, "{attempts} attempts");
    }
}

/// The release comes after the attempt that starts the watch, and before the subscription.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[tokio::test]
async fn a_waiter_is_told_what_it_missed_of_another_client() {
    let locks = Locks::new();
    let (holder, client) = (locks.client(), locks.client());
    let guard = lock(&holder, "a").acquire().await.unwrap();
    let waiting = request("a", Mode::Exclusive, Patience::Queue);
    let contended = client.try_acquire(&waiting).await.unwrap();
    assert!(matches!(contended, Attempt::Contended(_)), "{contended:?}");
    guard.release().await.unwrap();
    // The event of the release has been read once that of a later change has.
    let told = lock(&client, "b").acquire().await.unwrap();
    std::fs::remove_file(locks.file("b")).unwrap();
    tokio::time::timeout(LONG, told.lost_signal().lost())
        .await
        .unwrap();
    let mut wakeups = client.subscribe(&waiting).await.unwrap().unwrap();
    let wake = tokio::time::timeout(LONG, wakeups.next()).await.unwrap();
    assert!(matches!(wake, Wake::TryNow), "{wake:?}");
}

#[test]
fn the_longest_poll_interval_is_no_panic_and_none_is_refused() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_watch(Watch::Off);
    let none = settings.clone().with_poll_interval(Duration::ZERO);
    assert!(none.is_err());
    let settings = settings.with_poll_interval(Duration::MAX).unwrap();
    FsBackend::with_settings(&settings).unwrap();
}

#[tokio::test]
async fn calls_may_be_made_in_other_threads() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_calls(Calls::Offload);
    let client = FsBackend::with_settings(&settings).unwrap();
    assert!(!client.capabilities().releases_now);
    let guard = lock(&client, "a").acquire().await.unwrap();
    assert!(lock(&client, "a").inspect().await.unwrap().held);
    let waiter = lock(&client, "a");
    let waiting = tokio::spawn(async move { waiter.acquire().await });
    guard.release().await.unwrap();
    drop(soon(waiting).await.unwrap());
    portalock_core::shutdown(LONG).await.unwrap();
    assert!(try_once(&client, "a", Mode::Exclusive).await.is_some());
}

#[test]
fn only_calls_that_should_run_in_other_threads_do() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    // The only other thread is busy.
    let busy = runtime.spawn_blocking(move || wait.recv());
    for (calls, inline) in [
        (Calls::Auto, true),
        (Calls::Inline, true),
        (Calls::Offload, false),
    ] {
        let locks = Locks::new();
        let settings = FsSettings::new(locks.path()).with_calls(calls);
        let client = FsBackend::with_settings(&settings).unwrap();
        assert_eq!(client.capabilities().releases_now, inline, "{calls:?}");
        let request = request("a", Mode::Exclusive, Patience::Once);
        let attempt = runtime.block_on(async { client.try_acquire(&request).now_or_never() });
        assert_eq!(attempt.is_some(), inline, "{calls:?}");
        assert_eq!(client.release_now(&request), inline, "{calls:?}");
    }
    drop(done);
    assert!(runtime.block_on(busy).unwrap().is_err());
}

/// The engine gives up such an attempt in the end, and releases its owner before the attempt is made.
#[test]
fn an_attempt_for_which_a_thread_is_free_too_late_leaves_nothing() {
    let locks = Locks::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let settings = FsSettings::new(locks.path()).with_calls(Calls::Offload);
    let client = FsBackend::with_settings(&settings).unwrap();
    let other = lock(&locks.client(), "a");
    for (is_free, patience) in [
        (true, Patience::Once),
        (true, Patience::Queue),
        (false, Patience::Queue),
    ] {
        let held = (!is_free).then(|| other.try_acquire().now_or_never().unwrap().unwrap());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let busy = runtime.spawn_blocking(move || wait.recv());
        let late = request("a", Mode::Exclusive, patience);
        let attempt = runtime.block_on(async { client.try_acquire(&late).now_or_never() });
        assert!(attempt.is_none());
        drop(done);
        assert!(runtime.block_on(busy).unwrap().is_err());
        // The thread runs this after the attempt.
        let last = runtime.spawn_blocking(|| ());
        runtime.block_on(last).unwrap();
        drop(held);
        let seen = runtime.block_on(client.inspect(&late.name)).unwrap();
        assert!(!seen.held && seen.waiters.is_empty(), "{seen:?}");
        drop(other.try_acquire().now_or_never().unwrap().unwrap());
    }
}

#[test]
fn synchronous_code_needs_no_runtime() {
    let locks = Locks::new();
    let blocking = |client: FsBackend| {
        let lock = portalock_core::blocking::Lock::new(client, "a").unwrap();
        lock.with_policy(patience())
    };
    let guard = blocking(locks.client()).acquire().unwrap();
    let waiter = blocking(locks.client());
    let waiting = std::thread::spawn(move || waiter.acquire().map(|guard| guard.token()));
    let token = guard.token();
    let start = Instant::now();
    guard.release().unwrap();
    assert!(waiting.join().unwrap().unwrap() > token);
    assert!(start.elapsed() < LONG, "nobody woke it");
}

#[tokio::test]
async fn only_one_who_waits_is_woken() {
    let locks = Locks::new();
    let client = locks.client();
    let waiting = request("a", Mode::Exclusive, Patience::Queue);
    assert!(client.subscribe(&waiting).await.unwrap().is_none());
    let guard = lock(&client, "a").acquire().await.unwrap();
    assert!(client.subscribe(&waiting).await.unwrap().is_none());
    let _ = client.try_acquire(&waiting).await.unwrap();
    assert!(client.subscribe(&waiting).await.unwrap().is_some());
    client.release(&waiting).await.unwrap();
    guard.release().await.unwrap();
}
