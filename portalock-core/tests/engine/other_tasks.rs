//! A task that always finds its lock free lets other tasks of its thread run.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use portalock_core::{Lock, MemoryBackend};

/// Far more steps than a runtime allows a task in one turn.
const PAIRS: u32 = 100_000;

#[tokio::test(flavor = "current_thread")]
async fn others_run_beside_a_task_that_takes_a_free_lock_in_a_loop() {
    let lock = Lock::new(MemoryBackend::new(), "free").unwrap();
    let has_run = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn({
        let has_run = has_run.clone();
        async move { has_run.store(true, Ordering::Relaxed) }
    });
    let mut pairs = 0;
    while !has_run.load(Ordering::Relaxed) && pairs < PAIRS {
        drop(lock.acquire().await.unwrap());
        pairs += 1;
    }
    assert!(pairs < PAIRS, "the other task never ran");
    other.await.unwrap();
}
