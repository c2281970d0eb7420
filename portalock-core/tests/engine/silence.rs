//! A service that grants and then never answers again.

use std::time::Duration;

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Grant, Inspect, Inspection, Lease, Lock, LockBackend,
    LockError, LockName, LockRequest, Loss, PermitRequest, Pool, Released, Scope, Semaphore,
    clock::Instant,
};

const PROMISED: Duration = Duration::from_secs(5);

/// Its grants have this lease.
#[derive(Debug)]
struct Silent(Lease);

fn promises() -> Capabilities {
    Capabilities::new(Scope::Network).with_inspect(Inspect::Holders)
}

#[async_trait]
impl LockBackend for Silent {
    fn capabilities(&self) -> Capabilities {
        promises()
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        Ok(Attempt::Granted(Grant::new().with_lost(self.0.signal())))
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        std::future::pending().await
    }

    async fn inspect(&self, _: &LockName) -> Result<Inspection, BackendError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Semaphore for Silent {
    fn capabilities(&self) -> Capabilities {
        promises()
    }

    async fn try_acquire(&self, _: &PermitRequest) -> Result<Attempt, BackendError> {
        std::future::pending().await
    }

    async fn release(&self, _: &PermitRequest) -> Result<Released, BackendError> {
        std::future::pending().await
    }

    async fn inspect(&self, _: &LockName) -> Result<Inspection, BackendError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_without_an_answer_says_so_and_does_not_hide_a_loss() {
    for is_lost in [false, true] {
        let lease = Lease::unbounded();
        let lock = Lock::new(Silent(lease.clone()), "silent").unwrap();
        let guard = lock.acquire().await.unwrap();
        if is_lost {
            lease.end(Loss::Expired);
        }
        let start = Instant::now();
        let error = guard.release().await.unwrap_err();
        assert_eq!(start.elapsed(), PROMISED);
        match error {
            LockError::Lost { loss, .. } => assert!(is_lost && loss == Loss::Expired),
            LockError::Backend { source, .. } => assert!(!is_lost && source.is_retryable()),
            error => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_inspection_without_an_answer_ends() {
    let start = Instant::now();
    let lock = Lock::new(Silent(Lease::unbounded()), "silent").unwrap();
    assert!(lock.inspect().await.unwrap_err().is_retryable());
    assert_eq!(start.elapsed(), PROMISED);
    let pool = Pool::new(Silent(Lease::unbounded()), "silent", 1).unwrap();
    assert!(pool.inspect().await.unwrap_err().is_retryable());
    assert_eq!(start.elapsed(), PROMISED * 2);
}
