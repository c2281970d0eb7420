//! Counting, the turns of tasks that share one lock, and forked children.

use super::*;
use crate::{
    Grant, LockRequest, Loss, MemoryBackend, Patience,
    engine::{held::Held, service::Locks},
    lease::tests::reading,
    request::tests::of_a_parent,
    wakeups::tests::Panics,
};
use futures_util::FutureExt;
use std::{task::Context, time::Duration};
use tokio::task::JoinHandle;

/// A lock that another client holds, and the guard of that client.
async fn held_by_another() -> (ReentrantLock<MemoryBackend>, Guard<MemoryBackend>) {
    let backend = MemoryBackend::new();
    let other = Lock::new(backend.clone(), "r").unwrap();
    let held = other.acquire().await.unwrap();
    (ReentrantLock::named(backend, "r").unwrap(), held)
}

/// Another task that waits through the same object.
async fn sibling(
    lock: &ReentrantLock<MemoryBackend>,
    policy: Policy,
) -> JoinHandle<Result<(), LockError>> {
    let lock = lock.clone();
    let waiting = tokio::spawn(async move { lock.acquire_with(&policy).await.map(drop) });
    tokio::task::yield_now().await;
    waiting
}

#[tokio::test]
async fn the_lock_is_released_with_the_last_guard_in_any_order() {
    let backend = MemoryBackend::new();
    let lock = ReentrantLock::named(backend.clone(), "r").unwrap();
    let other = Lock::new(backend, "r").unwrap();
    let first = lock.acquire().await.unwrap();
    let second = lock.acquire().await.unwrap();
    let third = lock.try_acquire().await.unwrap();
    drop(first);
    second.release().await.unwrap();
    assert!(other.try_acquire().await.is_err());
    drop(third);
    assert!(other.try_acquire().await.is_ok());
}

#[tokio::test]
async fn tasks_that_start_together_share_one_acquisition() {
    let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move { lock.acquire().await.unwrap() })
        })
        .collect();
    let mut guards = Vec::new();
    for task in tasks {
        guards.push(task.await.unwrap());
    }
    assert_eq!(lock.count(), 20);
    let tokens: std::collections::HashSet<_> = guards.iter().map(ReentrantGuard::token).collect();
    assert_eq!(tokens.len(), 1);
    drop(guards);
    assert_eq!(lock.count(), 0);
}

#[tokio::test]
async fn a_free_lock_needs_no_time_however_often_a_task_takes_it() {
    let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    let at_once = Policy::new().with_timeout(Duration::ZERO);
    // More often than a task may go on before it must yield.
    for _ in 0..1000 {
        drop(lock.acquire_with(&at_once).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn one_deadline_covers_waiting_for_a_sibling() {
    let (lock, held) = held_by_another().await;
    let waiting = sibling(&lock, Policy::forever()).await;
    let start = Instant::now();
    let policy = Policy::new().with_timeout(Duration::from_secs(2));
    assert!(
        lock.acquire_with(&policy)
            .await
            .unwrap_err()
            .is_contention()
    );
    assert_eq!(start.elapsed().as_secs(), 2);
    drop(held);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn time_spent_behind_a_sibling_is_not_there_for_the_lock() {
    let (lock, _held) = held_by_another().await;
    let policy = Policy::new().with_timeout(Duration::from_secs(1));
    let gives_up = sibling(&lock, policy).await;
    let start = Instant::now();
    let policy = Policy::new().with_timeout(Duration::from_secs(3));
    assert!(lock.acquire_with(&policy).await.is_err());
    assert_eq!(start.elapsed().as_secs(), 3);
    assert!(gives_up.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn fail_when_locked_does_not_wait_behind_a_sibling() {
    let (lock, _held) = held_by_another().await;
    let waiting = sibling(&lock, Policy::forever()).await;
    let start = Instant::now();
    let policy = Policy::new().with_fail_when_locked(true);
    let error = lock.acquire_with(&policy).await.unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);
    waiting.abort();
}

#[tokio::test]
async fn a_siblings_waker_that_panics_costs_nobody_the_lock() {
    let (lock, held) = held_by_another().await;
    let first = sibling(&lock, Policy::forever()).await;
    let forever = Policy::forever();
    let mut second = Box::pin(lock.acquire_with(&forever));
    let panics = Arc::new(Panics).into();
    let waits = second.as_mut().poll(&mut Context::from_waker(&panics));
    assert!(waits.is_pending());
    drop(held);
    first.await.unwrap().unwrap();
    assert_eq!(lock.count(), 0);
    drop(second);
    lock.acquire().await.unwrap().release().await.unwrap();
}

/// A guard that was acquired before a fork, in the child.
fn inherited(lock: &ReentrantLock<MemoryBackend>) -> ReentrantGuard<MemoryBackend> {
    let mut request = LockRequest::new(lock.lock().name().clone(), Mode::Exclusive, Patience::Once);
    request.owner = of_a_parent();
    let service = Locks(Arc::new(lock.lock().backend().clone()));
    let held = Held::new(service, Arc::new(request), Grant::new());
    lock.begin(Guard::new(held))
}

#[tokio::test]
async fn a_forked_child_is_not_let_in_by_its_parents_guard_and_waits_for_no_turn() {
    let mut lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    Arc::get_mut(&mut lock.inner).unwrap().process += 1;
    let _parents = inherited(&lock);
    // As a task of the parent that waited during the fork.
    let _turn = lock.inner.first.lock().await;
    let acquired = lock.acquire_with(&Policy::forever()).now_or_never();
    let error = acquired.expect("it waits").unwrap_err();
    assert!(!error.is_contention() && !error.is_retryable(), "{error}");
}

#[test]
fn a_forked_child_that_drops_a_guard_waits_for_no_thread_of_its_parent() {
    let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    let parents = inherited(&lock);
    let (sender, dropped) = std::sync::mpsc::channel();
    // As a thread of the parent during the fork.
    let state = lock.inner.state();
    std::thread::spawn(move || {
        drop(parents);
        sender.send(()).unwrap();
    });
    let dropped = dropped.recv_timeout(Duration::from_secs(60));
    drop(state);
    dropped.unwrap();
}

#[test]
fn a_forked_child_that_looks_at_what_it_inherited_waits_for_no_thread_of_its_parent() {
    let mut lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    Arc::get_mut(&mut lock.inner).unwrap().process += 1;
    let parents = inherited(&lock);
    let (sender, seen) = std::sync::mpsc::channel();
    // As a thread of the parent during the fork.
    let state = lock.inner.state();
    let of_child = lock.clone();
    std::thread::spawn(move || {
        let text = format!("{of_child:?}");
        sender.send((text, of_child.count(), parents.token()))
    });
    let seen = seen.recv_timeout(Duration::from_secs(60));
    drop(state);
    let (text, count, token) = seen.unwrap();
    assert!(text.contains("count: 0"), "{text}");
    assert_eq!((count, token), (0, None));
}

#[test]
fn a_forked_child_that_releases_a_guard_waits_for_no_thread_of_its_parent() {
    let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
    let parents = inherited(&lock);
    let (sender, released) = std::sync::mpsc::channel();
    let signal = parents.lost_signal();
    let read = reading(&signal);
    std::thread::spawn(move || sender.send(parents.release().now_or_never().is_some()));
    let released = released.recv_timeout(Duration::from_secs(60));
    drop(read);
    assert_eq!(released, Ok(true));
}

#[tokio::test]
async fn a_lost_lock_is_not_entered_again() {
    let backend = MemoryBackend::new();
    let lock = ReentrantLock::named(backend.clone(), "r").unwrap();
    let guard = lock.acquire().await.unwrap();
    backend.lose(lock.lock().name());
    assert!(matches!(
        lock.acquire().await,
        Err(LockError::Lost {
            loss: Loss::Removed(_),
            ..
        })
    ));
    assert!(guard.release().await.is_err());
    assert!(
        lock.acquire().await.is_ok(),
        "a new acquisition starts once all lost guards are gone"
    );
}
