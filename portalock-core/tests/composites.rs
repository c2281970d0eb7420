//! Lock sets, reentrant locks and slot semaphores: their calls of a backend, and their guards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Lock, LockBackend, LockError, LockName,
    LockRequest, LockSet, MemoryBackend, Mode, Patience, PermitRequest, Permits, Pool,
    ReentrantLock, Released, Semaphore, SlotSemaphore,
};

/// Records its calls.
#[derive(Debug, Clone, Default)]
struct Noted {
    store: MemoryBackend,
    asked: Arc<Mutex<Vec<String>>>,
    /// The call that fails.
    fails: Arc<Mutex<&'static str>>,
    releases_now: bool,
}

impl Noted {
    fn note(&self, what: &str, name: &str) {
        self.asked.lock().unwrap().push(format!("{what} {name}"));
    }

    fn may_fail(&self) -> Result<(), BackendError> {
        let fails = *self.fails.lock().unwrap();
        if self.asked.lock().unwrap().last().unwrap() == fails {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "told to fail",
            ));
        }
        Ok(())
    }

    fn fail(&self, call: &'static str) {
        *self.fails.lock().unwrap() = call;
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[async_trait]
impl LockBackend for Noted {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&self.store)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.note("try", request.name.as_str());
        self.may_fail()?;
        LockBackend::try_acquire(&self.store, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.note("release", request.name.as_str());
        self.may_fail()?;
        LockBackend::release(&self.store, request).await
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        self.note("now", request.name.as_str());
        self.releases_now && LockBackend::release_now(&self.store, request)
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.note("close", "");
        Ok(())
    }
}

#[tokio::test]
async fn a_set_and_its_guard_tell_what_they_are() {
    let backend = MemoryBackend::new();
    let set = LockSet::new(backend.clone(), ["b", "a", "b"]).unwrap();
    let set = set.with_label("set");
    let names: Vec<_> = set.names().map(LockName::as_str).collect();
    assert_eq!(names, ["a", "b"]);
    let guard = set.acquire().await.unwrap();
    assert!(guard.names().eq(set.names()));
    assert!(guard.tokens().all(|(_, token)| token.is_some()));
    assert_eq!(guard.tokens().count(), 2);
    assert!(!guard.is_lost() && guard.ensure_held().is_ok());
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    let error = set.try_acquire().await.unwrap_err();
    assert_eq!(error.holder().unwrap().label.as_deref(), Some("set"));
    backend.lose(&LockName::new("b").unwrap());
    assert!(guard.is_lost() && guard.lost_signal().is_lost());
    assert!(matches!(guard.ensure_held(), Err(LockError::Lost { .. })));
    drop(guard);
    assert_eq!(backend.names_in_use(), 0);
}

#[tokio::test]
async fn a_dropped_set_frees_the_name_it_took_last_first() {
    let backend = Noted {
        releases_now: true,
        ..Noted::default()
    };
    let set = LockSet::new(backend.clone(), ["a", "b"]).unwrap();
    drop(set.acquire().await.unwrap());
    assert_eq!(backend.take(), ["try a", "try b", "now b", "now a"]);
}

#[tokio::test]
async fn a_set_can_be_shared() {
    let backend = MemoryBackend::new();
    let set = LockSet::new(backend.clone(), ["a", "b"]).unwrap();
    let set = set.with_mode(Mode::Shared);
    let readers = [
        set.acquire().await.unwrap(),
        set.try_acquire().await.unwrap(),
    ];
    let writer = Lock::new(backend, "b").unwrap();
    assert!(writer.try_acquire().await.is_err());
    for reader in readers {
        reader.release().await.unwrap();
    }
    assert!(writer.try_acquire().await.is_ok());
}

#[tokio::test]
async fn a_counted_lock_and_its_guards_tell_what_they_are() {
    let backend = MemoryBackend::new();
    let lock = ReentrantLock::named(backend.clone(), "job").unwrap();
    assert_eq!(lock.count(), 0);
    let outer = lock.acquire().await.unwrap();
    assert_eq!(lock.count(), 1);
    let inner = lock.try_acquire().await.unwrap();
    let third = lock.clone().acquire().await.unwrap();
    assert_eq!(lock.count(), 3);
    assert!(format!("{lock:?}").contains("job") && format!("{inner:?}").contains("job"));
    assert!(outer.token().is_some() && outer.token() == inner.token());
    assert!(!inner.is_lost() && inner.ensure_held().is_ok());
    drop(third);
    backend.lose(lock.lock().name());
    assert!(inner.is_lost() && inner.lost_signal().is_lost());
    assert!(matches!(inner.ensure_held(), Err(LockError::Lost { .. })));
    assert!(matches!(inner.release().await, Err(LockError::Lost { .. })));
    assert!(matches!(outer.release().await, Err(LockError::Lost { .. })));
    assert_eq!(lock.count(), 0);
}

#[tokio::test]
async fn a_try_does_not_wait_behind_a_sibling_that_waits() {
    let backend = MemoryBackend::new();
    let held = Lock::new(backend.clone(), "job").unwrap();
    let held = held.acquire().await.unwrap();
    let lock = ReentrantLock::named(backend, "job").unwrap();
    let sibling = lock.clone();
    let waiting = tokio::spawn(async move { sibling.acquire().await.map(drop) });
    tokio::task::yield_now().await;
    let refused = lock.try_acquire().await;
    assert!(matches!(refused, Err(LockError::AlreadyLocked { .. })));
    held.release().await.unwrap();
    waiting.await.unwrap().unwrap();
    drop(lock.try_acquire().await.unwrap());
}

fn permits(count: u32, capacity: u32) -> PermitRequest {
    let permits = Permits::new(count, capacity).unwrap();
    PermitRequest::new(LockName::new("p").unwrap(), permits, Patience::Once)
}

#[tokio::test]
async fn a_request_for_slots_asks_for_no_more_than_it_needs() {
    let backend = Noted::default();
    let semaphore = SlotSemaphore::new(backend.clone());
    let first = permits(2, 4);
    assert!(matches!(
        semaphore.try_acquire(&first).await,
        Ok(Attempt::Granted(_))
    ));
    assert_eq!(backend.take(), ["try p#slot-0", "try p#slot-1"]);
    assert!(matches!(
        semaphore.try_acquire(&first).await,
        Ok(Attempt::Granted(_))
    ));
    assert!(backend.take().is_empty(), "it holds them already");
    // Three of four permits don't fit beside two.
    assert!(matches!(
        semaphore.try_acquire(&permits(3, 4)).await,
        Ok(Attempt::Contended(_))
    ));
    assert_eq!(backend.take(), ["try p#slot-0", "try p#slot-1"]);
    let second = permits(2, 4);
    assert!(matches!(
        semaphore.try_acquire(&second).await,
        Ok(Attempt::Granted(_))
    ));
    assert_eq!(backend.take().len(), 4);
    assert_eq!(semaphore.release(&first).await.unwrap(), Released::Freed);
    assert_eq!(semaphore.release(&first).await.unwrap(), Released::NotHeld);
    assert_eq!(backend.take(), ["release p#slot-0", "release p#slot-1"]);
    // The slots of the failed attempt are released.
    assert!(matches!(
        semaphore.try_acquire(&permits(3, 4)).await,
        Ok(Attempt::Contended(_))
    ));
    assert_eq!(backend.store.names_in_use(), 2);
    backend.store.lose(&LockName::new("p#slot-3").unwrap());
    assert_eq!(
        semaphore.release(&second).await.unwrap(),
        Released::NotHeld,
        "one of two was lost"
    );
    assert_eq!(backend.store.names_in_use(), 0);
}

#[tokio::test]
async fn a_slot_that_is_released_is_not_released_again() {
    let backend = Noted::default();
    let semaphore = SlotSemaphore::new(backend.clone());
    let request = permits(3, 3);
    let _ = semaphore.try_acquire(&request).await.unwrap();
    backend.take();
    backend.fail("release p#slot-1");
    assert!(semaphore.release(&request).await.is_err());
    let all = ["release p#slot-0", "release p#slot-1", "release p#slot-2"];
    assert_eq!(backend.take(), all);
    assert!(semaphore.release(&request).await.is_err());
    assert!(
        semaphore.try_acquire(&request).await.is_err(),
        "it no longer has all slots"
    );
    assert_eq!(backend.take(), ["release p#slot-1"; 2]);
    backend.fail("");
    semaphore.release(&request).await.unwrap();
    assert_eq!(backend.take(), ["release p#slot-1"]);
    assert_eq!(backend.store.names_in_use(), 0);
}

#[tokio::test]
async fn a_slot_that_is_withdrawn_is_not_withdrawn_again() {
    let backend = Noted::default();
    let semaphore = SlotSemaphore::new(backend.clone());
    let request = permits(3, 3);
    backend.fail("try p#slot-1");
    assert!(semaphore.try_acquire(&request).await.is_err());
    backend.take();
    backend.fail("release p#slot-1");
    assert!(semaphore.release(&request).await.is_err());
    assert_eq!(backend.take(), ["release p#slot-0", "release p#slot-1"]);
    backend.fail("");
    semaphore.release(&request).await.unwrap();
    assert_eq!(backend.take(), ["release p#slot-1"]);
    assert_eq!(backend.store.names_in_use(), 0);
}

#[tokio::test]
async fn slots_are_released_at_once_where_the_backend_can() {
    let semaphore = SlotSemaphore::new(MemoryBackend::new());
    let request = permits(2, 3);
    let _ = Semaphore::try_acquire(&semaphore, &request).await.unwrap();
    assert!(semaphore.release_now(&request));
    assert_eq!(semaphore.backend().names_in_use(), 0);
    assert!(
        semaphore.release_now(&request),
        "nothing is left to release"
    );
    let slow = SlotSemaphore::new(Noted::default());
    let _ = slow.try_acquire(&request).await.unwrap();
    assert!(!slow.release_now(&request));
    assert_eq!(slow.release(&request).await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn who_holds_a_slot_is_named_and_closing_reaches_the_backend() {
    let backend = Noted::default();
    let semaphore = SlotSemaphore::new(backend.clone());
    assert!(format!("{semaphore:?}").contains("Noted"));
    let pool = Pool::new(semaphore.clone(), "p", 1).unwrap();
    let held = pool.with_label("holder").acquire(1).await.unwrap();
    let other = Pool::new(semaphore.clone(), "p", 1).unwrap();
    let error = other.try_acquire(1).await.unwrap_err();
    assert_eq!(error.holder().unwrap().label.as_deref(), Some("holder"));
    held.release().await.unwrap();
    backend.take();
    semaphore.close().await.unwrap();
    assert_eq!(backend.take(), ["close "]);
}
