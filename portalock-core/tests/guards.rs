//! Guards: a loss stops the work, release reports errors, drop releases, and each acquisition is separate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{pin::pin, sync::Arc};

use futures_util::{FutureExt, poll};
use portalock_core::{
    DynBackend, Lock, LockBackend, LockError, MemoryBackend, Mode, Policy, Pool, ReentrantLock,
    blocking,
};

fn named<B: LockBackend>(backend: B) -> Lock<B> {
    Lock::new(backend, "deploy").unwrap()
}

#[tokio::test]
async fn losing_the_lock_stops_the_work_where_it_stands() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    let dropped = Arc::new(());
    let seen = Arc::downgrade(&dropped);
    {
        let mut work = pin!(guard.run(async move {
            std::future::pending::<()>().await;
            drop(dropped);
        }));
        assert!(poll!(&mut work).is_pending());
        assert_eq!(backend.lose(lock.name()), 1);
        assert!(matches!(work.await, Err(LockError::Lost { .. })));
    }
    assert!(
        seen.upgrade().is_none(),
        "the work goes on beside a lost lock"
    );
    assert!(guard.ensure_held().is_err());
}

#[tokio::test]
async fn work_that_ends_in_time_returns_its_output() {
    let guard = named(MemoryBackend::new()).acquire().await.unwrap();
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn work_that_ends_with_a_loss_has_not_ended_in_time() {
    let lock = named(MemoryBackend::new());
    let guard = lock.acquire().await.unwrap();
    let lost = guard.run(async { lock.backend().lose(lock.name()) }).await;
    assert!(matches!(lost, Err(LockError::Lost { .. })));
}

#[tokio::test]
async fn work_does_not_start_beside_a_lock_already_lost() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    backend.lose(lock.name());
    let lost = guard.run(async { panic!("started") }).await;
    assert!(matches!(lost, Err(LockError::Lost { .. })));
}

#[tokio::test]
async fn a_lost_guard_says_so_on_release_and_frees_no_successor() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let old = lock.acquire().await.unwrap();
    let signal = old.lost_signal();
    backend.lose(lock.name());
    let new = lock.try_acquire().await.unwrap();
    assert!(new.token() > old.token());
    assert!(matches!(old.release().await, Err(LockError::Lost { .. })));
    assert!(signal.is_lost(), "readable late");
    assert!(
        lock.try_acquire().await.is_err(),
        "the successor still holds"
    );
    new.release().await.unwrap();
}

#[tokio::test]
async fn a_signal_never_fires_after_a_release_in_good_order() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    let signal = guard.lost_signal();
    guard.release().await.unwrap();
    let _next = lock.acquire().await.unwrap();
    backend.lose(lock.name());
    assert!(!signal.is_lost());
    assert!(signal.lost().now_or_never().is_none());
}

#[tokio::test]
async fn two_guards_of_one_lock_object_are_two_owners() {
    let lock = named(MemoryBackend::new());
    let one = lock.acquire_shared().await.unwrap();
    let two = lock.acquire_shared().await.unwrap();
    assert_ne!(one.owner(), two.owner());
    assert_eq!(two.mode(), Mode::Shared);
    drop(one);
    assert!(
        lock.try_acquire().await.is_err(),
        "one drop freed the other's"
    );
    drop(two);
    assert!(lock.try_acquire().await.is_ok());
}

#[tokio::test]
async fn contention_names_the_holder_by_its_label() {
    let lock = named(MemoryBackend::new()).with_label("blue");
    let guard = lock.acquire().await.unwrap();
    let error = lock.try_acquire().await.unwrap_err();
    let holder = error.holder().unwrap();
    assert_eq!(
        (holder.label.as_deref(), holder.pid),
        (Some("blue"), std::process::id())
    );
    assert!(error.to_string().contains("(blue)"), "{error}");
    drop(guard);
}

#[tokio::test]
async fn a_waiter_sees_those_before_it() {
    let lock = named(MemoryBackend::new());
    let guard = lock.acquire().await.unwrap();
    let mut waiting = pin!(lock.acquire());
    assert!(poll!(&mut waiting).is_pending());
    let inspection = lock.inspect().await.unwrap();
    assert_eq!((inspection.holders.len(), inspection.waiters.len()), (1, 1));
    drop(guard);
    drop(waiting.await.unwrap());
    assert!(!lock.inspect().await.unwrap().held);
}

#[tokio::test]
async fn any_backend_can_be_chosen_at_run_time() {
    let backend: DynBackend = Arc::new(MemoryBackend::new());
    let lock = named(backend);
    let guard = lock.acquire().await.unwrap();
    assert!(guard.token().is_some());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_large_request_is_not_starved_by_small_ones() {
    let pool = Pool::new(MemoryBackend::new(), "workers", 4)
        .unwrap()
        .with_policy(Policy::forever());
    let one = pool.acquire(1).await.unwrap();
    let mut four = pin!(pool.acquire(4));
    assert!(poll!(&mut four).is_pending());
    assert!(
        pool.try_acquire(1).await.is_err(),
        "a later small request overtook a large one"
    );
    drop(one);
    assert_eq!(four.await.unwrap().permits().count(), 4);
    assert!(matches!(
        pool.try_acquire(5).await,
        Err(LockError::InvalidPermits(_))
    ));
}

#[tokio::test]
async fn dropping_a_waiter_leaves_nothing() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    {
        let mut waiting = pin!(lock.acquire());
        assert!(poll!(&mut waiting).is_pending());
        drop(guard);
        // The grant has arrived and was not read yet.
    }
    assert_eq!(backend.names_in_use(), 0);
    assert!(lock.try_acquire().await.is_ok());
}

#[tokio::test]
async fn a_backend_without_shared_locks_refuses_them_without_io() {
    #[derive(Debug)]
    struct NoIo;
    #[async_trait::async_trait]
    impl LockBackend for NoIo {
        fn capabilities(&self) -> portalock_core::Capabilities {
            portalock_core::Capabilities::new(portalock_core::Scope::Process)
        }
        async fn try_acquire(
            &self,
            _: &portalock_core::LockRequest,
        ) -> Result<portalock_core::Attempt, portalock_core::BackendError> {
            panic!("asked the service");
        }
        async fn release(
            &self,
            _: &portalock_core::LockRequest,
        ) -> Result<portalock_core::Released, portalock_core::BackendError> {
            panic!("asked the service");
        }
    }
    let lock = named(NoIo);
    assert!(matches!(
        lock.try_acquire_shared().await,
        Err(LockError::Unsupported { .. })
    ));
    assert!(matches!(
        lock.inspect().await,
        Err(LockError::Unsupported { .. })
    ));
}

#[test]
fn dropping_a_guard_never_panics_even_if_the_backend_does() {
    #[derive(Debug)]
    struct Panics(std::sync::mpsc::Sender<()>);
    #[async_trait::async_trait]
    impl LockBackend for Panics {
        fn capabilities(&self) -> portalock_core::Capabilities {
            portalock_core::Capabilities::new(portalock_core::Scope::Process)
                .with_needs_runtime(false)
        }
        async fn try_acquire(
            &self,
            _: &portalock_core::LockRequest,
        ) -> Result<portalock_core::Attempt, portalock_core::BackendError> {
            Ok(portalock_core::Attempt::Granted(
                portalock_core::Grant::new(),
            ))
        }
        async fn release(
            &self,
            _: &portalock_core::LockRequest,
        ) -> Result<portalock_core::Released, portalock_core::BackendError> {
            self.0.send(()).unwrap();
            Ok(portalock_core::Released::Freed)
        }
        fn release_now(&self, _: &portalock_core::LockRequest) -> bool {
            panic!("told to");
        }
    }
    let (sender, released) = std::sync::mpsc::channel();
    let lock = portalock_core::blocking::Lock::new(Panics(sender), "deploy").unwrap();
    let unwound = std::panic::catch_unwind(|| {
        let _guard = lock.acquire().unwrap();
        panic!("while a guard is held");
    });
    assert!(unwound.is_err(), "and the process lives");
    let in_time = released.recv_timeout(std::time::Duration::from_secs(60));
    in_time.expect("it is released the other way");
}

#[tokio::test]
async fn losing_a_reentrant_lock_stops_the_work_where_it_stands() {
    let backend = MemoryBackend::new();
    let lock = ReentrantLock::new(named(backend.clone()));
    let guard = lock.acquire().await.unwrap();
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    {
        let mut work = pin!(guard.run(std::future::pending::<()>()));
        assert!(poll!(&mut work).is_pending());
        assert_eq!(backend.lose(lock.lock().name()), 1);
        assert!(matches!(work.await, Err(LockError::Lost { .. })));
    }
    let lost = guard.run(async { 7 }).await;
    assert!(matches!(lost, Err(LockError::Lost { .. })));
}

#[test]
fn a_blocking_guard_of_each_kind_tells_a_loss_and_can_be_made_into_the_async_one() {
    let backend = MemoryBackend::new();
    let pool = blocking::Pool::new(backend.clone(), "slots", 3).unwrap();
    let permits = pool.acquire(2).unwrap();
    assert_eq!(backend.names_in_use(), 1);
    let inspection = pool.inspect().unwrap();
    assert_eq!(inspection.holders[0].owner, Some(permits.owner()));
    let permits: portalock_core::PermitGuard<_> = permits.into();
    assert!(
        pool.try_acquire(2).is_err(),
        "the conversion gave them back"
    );
    drop(permits);
    drop(pool.try_acquire(3).unwrap());

    let set = blocking::LockSet::new(backend.clone(), ["b", "a"]).unwrap();
    let names: Vec<_> = set.names().cloned().collect();
    let held = set.acquire().unwrap();
    held.ensure_held().unwrap();
    assert_eq!(backend.lose(&names[1]), 1);
    assert!(matches!(held.ensure_held(), Err(LockError::Lost { name, .. }) if name == names[1]));
    let held: portalock_core::LockSetGuard<_> = held.into();
    assert!(held.is_lost());

    let lock = blocking::ReentrantLock::named(backend.clone(), "deploy").unwrap();
    let guard = lock.acquire().unwrap();
    guard.ensure_held().unwrap();
    assert_eq!(backend.lose(lock.name()), 1);
    assert!(matches!(guard.ensure_held(), Err(LockError::Lost { .. })));

    let election = blocking::Election::new(backend, "scheduler")
        .unwrap()
        .with_policy(Policy::new().with_fail_when_locked(true))
        .with_label("blue");
    let leadership: portalock_core::Leadership<_> = election.campaign().unwrap().into();
    let leader = election.leader().unwrap().unwrap();
    assert_eq!(leader.leader.label.as_deref(), Some("blue"));
    assert!(
        election.campaign().is_err(),
        "the policy is to wait for nobody"
    );
    drop(leadership);
}
