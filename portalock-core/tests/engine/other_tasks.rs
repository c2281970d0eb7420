//! A task that never has to wait lets other tasks of its thread run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, Capabilities, Election, Inspection, Lock, LockBackend, LockName,
    LockRequest, MemoryBackend, Policy, ReentrantLock, Released,
};

use crate::scripted::{Scripted, Step};

/// Far more steps than a runtime allows a task in one turn.
const PAIRS: u32 = 100_000;

/// Repeats `pair` until another task has run.
async fn until_another_ran(mut pair: impl AsyncFnMut()) {
    let has_run = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn({
        let has_run = has_run.clone();
        async move { has_run.store(true, Ordering::Relaxed) }
    });
    let mut pairs = 0;
    while !has_run.load(Ordering::Relaxed) && pairs < PAIRS {
        pair().await;
        pairs += 1;
    }
    assert!(pairs < PAIRS, "the other task never ran");
    other.await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn others_run_beside_a_task_that_takes_a_free_lock_in_a_loop() {
    let lock = Lock::new(MemoryBackend::new(), "free").unwrap();
    until_another_ran(async || drop(lock.acquire().await.unwrap())).await;
}

#[tokio::test(flavor = "current_thread")]
async fn others_run_beside_a_task_that_takes_its_own_lock_again_in_a_loop() {
    let lock = ReentrantLock::named(MemoryBackend::new(), "own").unwrap();
    let _outer = lock.acquire().await.unwrap();
    until_another_ran(async || drop(lock.acquire().await.unwrap())).await;
}

#[tokio::test(flavor = "current_thread")]
async fn others_run_beside_a_waiter_whose_pauses_are_over_at_once() {
    let shortest = Policy::new()
        .with_timeout(Duration::from_secs(60))
        .with_check_interval(Duration::from_nanos(1))
        .unwrap();
    let backend = Scripted::new([Step::Contended]);
    let holder = tokio::spawn({
        let backend = backend.clone();
        async move { *backend.0.steps.lock().unwrap() = [Step::Grant].into() }
    });
    let granted = backend.lock().acquire_with(&shortest).await;
    assert!(granted.is_ok(), "the holder never ran");
    holder.await.unwrap();
}

/// Answers at once, without a watch.
#[derive(Debug, Clone, Default)]
struct Polled {
    store: MemoryBackend,
    looks: Arc<AtomicU32>,
}

#[async_trait]
impl LockBackend for Polled {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&self.store)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(&self.store, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        LockBackend::release(&self.store, request).await
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        assert!(looks < PAIRS, "the candidate never ran");
        LockBackend::inspect(&self.store, name).await
    }
}

#[tokio::test(flavor = "current_thread")]
async fn others_run_beside_an_observer_whose_pauses_are_over_at_once() {
    let shortest = Policy::new().with_check_interval(Duration::from_nanos(1));
    let election = Election::new(Polled::default(), "scheduler")
        .unwrap()
        .with_policy(shortest.unwrap());
    let mut observer = election.observe();
    assert_eq!(observer.next().await.unwrap(), None);
    let candidate = tokio::spawn(async move { election.campaign().await.unwrap() });
    let term = observer.next().await.unwrap().unwrap();
    assert_eq!(candidate.await.unwrap().token(), term.token);
}

#[test]
fn a_wait_with_the_shortest_pauses_lets_others_run_on_any_executor() {
    let backend = Scripted::new([Step::Contended]);
    let (sender, is_pending) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let shortest = Duration::from_nanos(1);
        let policy = Policy::forever().with_first_check(shortest).unwrap();
        let policy = policy.with_check_interval(shortest).unwrap();
        let acquired = backend.lock().acquire_with(&policy).now_or_never();
        sender.send(acquired.is_none())
    });
    assert_eq!(is_pending.recv_timeout(Duration::from_secs(60)), Ok(true));
}
