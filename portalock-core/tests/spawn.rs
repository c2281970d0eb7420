//! Spawned futures: a future that holds a lock across an await must be `Send`, for any backend, also one selected at
//! run time. The compiler can only prove this while the engine's futures name no associated type of the backend.

use std::sync::Arc;

use portalock_core::{
    DynBackend, DynSemaphore, Lock, LockBackend, LockError, LockSet, MemoryBackend, Pool,
};

#[tokio::test]
async fn a_backend_chosen_at_run_time_can_be_spawned() {
    let backend: DynBackend = Arc::new(MemoryBackend::new());
    let lock = Lock::new(backend.clone(), "a").unwrap();
    let again = lock.clone();
    let turns = tokio::spawn(async move {
        for round in 0..3 {
            let guard = lock.acquire().await?;
            guard.run(tokio::task::yield_now()).await?;
            if round % 2 == 0 {
                guard.release().await?;
            }
        }
        Ok::<_, LockError>(())
    });
    turns.await.unwrap().unwrap();
    let guard = again.acquire().await.unwrap();
    let kept = tokio::spawn(async move {
        let _guard = guard;
        tokio::task::yield_now().await;
    });
    kept.await.unwrap();
    let set = LockSet::new(backend, ["a", "b"]).unwrap();
    let taken = tokio::spawn(async move { set.acquire().await?.release().await });
    taken.await.unwrap().unwrap();
    let semaphore: DynSemaphore = Arc::new(MemoryBackend::new());
    let pool = Pool::new(semaphore, "p", 2).unwrap();
    let taken = tokio::spawn(async move { pool.acquire(2).await?.release().await });
    taken.await.unwrap().unwrap();
}

#[tokio::test]
async fn code_that_is_generic_over_backends_can_spawn() {
    fn spawn<B: LockBackend>(lock: Lock<B>) -> tokio::task::JoinHandle<Result<(), LockError>> {
        tokio::spawn(async move {
            let guard = lock.acquire().await?;
            guard.run(tokio::task::yield_now()).await?;
            guard.release().await
        })
    }
    let lock = Lock::new(MemoryBackend::new(), "a").unwrap();
    spawn(lock).await.unwrap().unwrap();
}
