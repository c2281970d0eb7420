//! The clean-up after dropped calls and guards.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Lease, Lock, LockBackend, LockError,
    LockRequest, Loss, MemoryBackend, Released, Wakeups,
};

use crate::scripted::{Call, Scripted, Step, within_real_time};

#[tokio::test(start_paused = true)]
async fn a_grant_after_the_deadline_is_released_in_the_background() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_millis(5_001))]);
    assert!(backend.lock().acquire().await.is_err());
    assert!(
        backend.releases().is_empty(),
        "released before the attempt had ended"
    );
    backend.first_release().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiter_withdraws_its_place() {
    let backend = Scripted::new([Step::Contended]).listening();
    let lock = backend.lock();
    {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    let Some((_, Call::Attempt(owner))) = backend.0.calls.lock().unwrap().first().cloned() else {
        panic!()
    };
    assert_eq!(backend.first_release().await, owner);
}

/// Its subscriptions panic when they are dropped.
#[derive(Debug)]
struct Explodes(MemoryBackend);

struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("the test's own panic");
    }
}

#[async_trait]
impl LockBackend for Explodes {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&self.0)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(&self.0, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        LockBackend::release(&self.0, request).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let wakeups = LockBackend::subscribe(&self.0, request).await?;
        Ok(wakeups.map(|wakeups| wakeups.with_subscription(Explosive)))
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        LockBackend::release_now(&self.0, request)
    }
}

#[tokio::test]
async fn a_waiter_whose_subscription_panics_when_it_is_dropped_withdraws_its_place() {
    let backend = MemoryBackend::new();
    let lock = Lock::new(Explodes(backend.clone()), "explodes").unwrap();
    for is_granted in [false, true] {
        let held = lock.acquire().await.unwrap();
        let mut waiting = Box::pin(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let held = (!is_granted).then_some(held);
        let ended = AssertUnwindSafe(|| {
            if is_granted {
                let _ = waiting.as_mut().now_or_never();
            }
            drop(waiting);
        });
        assert!(catch_unwind(ended).is_err());
        drop(held);
        assert_eq!(backend.names_in_use(), 0, "it stayed held");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_an_attempt_in_flight_sees_it_out_before_the_release() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_secs(2))]);
    let lock = backend.lock();
    {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    backend.first_release().await;
    assert_eq!(
        backend.0.start.lock().unwrap().unwrap().elapsed(),
        Duration::from_secs(2)
    );
}

#[test]
fn an_attempt_whose_runtime_has_ended_is_released() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_secs(3600))]);
    let lock = backend.lock();
    let mut waiting = Box::pin(lock.acquire());
    let ended = runtime();
    ended.block_on(async { assert!(futures_util::poll!(&mut waiting).is_pending()) });
    drop(ended);
    drop(waiting);
    runtime().block_on(backend.first_release());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_a_panic_beside_it_drops_is_seen_out_all_the_same() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_secs(2))]);
    let lock = backend.lock();
    let told_to = true;
    let panicked = AssertUnwindSafe(async {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(!told_to, "told to panic");
    });
    assert!(panicked.catch_unwind().await.is_err());
    backend.first_release().await;
    assert_eq!(
        backend.0.start.lock().unwrap().unwrap().elapsed(),
        Duration::from_secs(2)
    );
}

#[tokio::test]
async fn an_attempt_that_panics_is_released_and_its_caller_panics() {
    let backend = Scripted::new([Step::Panics]);
    let lock = backend.lock();
    let panicked = AssertUnwindSafe(lock.acquire()).catch_unwind().await;
    assert!(panicked.is_err());
    backend.first_release().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_goes_on_in_the_background() {
    let backend = Scripted::new([Step::Grant]).failing_releases(3);
    let guard = backend.lock().acquire().await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }));
    loop {
        // Read before the check, because the clean-up runs on another thread.
        let released = backend.0.released.notified();
        if backend.releases().len() >= 4 {
            break;
        }
        released.await;
    }
}

#[tokio::test]
async fn the_reaper_stops_once_the_lease_has_ended() {
    let lease = Lease::unbounded();
    let backend = Scripted::new([Step::Grant]).failing_releases(u32::MAX);
    *backend.0.lease.lock().unwrap() = Some(lease.clone());
    drop(backend.lock().acquire().await.unwrap());
    within_real_time(async {
        while backend.releases().len() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("one try is no retry");
    lease.end(Loss::Expired);
    // The reaper's task drops its handle of the backend.
    within_real_time(async {
        while Arc::strong_count(&backend.0) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it went on");
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_attempt_that_was_granted_is_released_for_as_long_as_its_lease_lasts() {
    let lease = Lease::unbounded();
    lease.end(Loss::Expired);
    let backend =
        Scripted::new([Step::GrantAfter(Duration::from_secs(2))]).failing_releases(u32::MAX);
    *backend.0.lease.lock().unwrap() = Some(lease);
    {
        let lock = backend.lock();
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    backend.first_release().await;
    within_real_time(async {
        while Arc::strong_count(&backend.0) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it went on");
    assert_eq!(backend.releases().len(), 1);
}

#[test]
fn a_guard_dropped_beside_its_idle_runtime_is_released() {
    let backend = Scripted::new([Step::Grant]);
    let idle = runtime();
    let guard = idle.block_on(backend.lock().acquire()).unwrap();
    let owner = guard.owner();
    drop(guard);
    assert_eq!(runtime().block_on(backend.first_release()), owner);
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn a_released_guards_signal_outlives_the_session_in_silence() {
    let session = Lease::unbounded();
    let backend = Scripted::new([Step::Grant]);
    *backend.0.lease.lock().unwrap() = Some(session.clone());
    let released = backend.lock().acquire().await.unwrap();
    let dropped = backend.lock().acquire().await.unwrap();
    let held = backend.lock().acquire().await.unwrap();
    let signals = [released.lost_signal(), dropped.lost_signal()];
    released.release().await.unwrap();
    drop(dropped);
    session.end(Loss::SessionEnded("all its locks with it".into()));
    assert!(held.is_lost());
    assert!(
        signals.iter().all(|signal| !signal.is_lost()),
        "lost fired on a normal release"
    );
    for signal in signals {
        let lost = tokio::time::timeout(Duration::from_secs(3600), signal.lost()).await;
        assert!(lost.is_err(), "{lost:?}");
    }
}

#[tokio::test]
async fn a_refused_try_leaves_nothing_to_release() {
    let backend = Scripted::new([Step::Contended]);
    assert!(backend.lock().try_acquire().await.is_err());
    // A clean-up would have its own handle.
    within_real_time(async {
        while Arc::strong_count(&backend.0) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("something goes on");
    assert!(backend.releases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_is_withdrawn_even_if_the_next_was_answered() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([fails, Step::Contended]);
    assert!(backend.lock().try_acquire().await.is_err());
    backend.first_release().await;
}

#[test]
fn a_guard_dropped_outside_its_runtime_is_released() {
    let backend = Scripted::new([Step::Grant]);
    let ended = runtime();
    let guard = ended.block_on(backend.lock().acquire()).unwrap();
    drop(ended);
    let owner = guard.owner();
    drop(guard);
    assert_eq!(runtime().block_on(backend.first_release()), owner);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
