//! `shutdown` counts the clean-up of the whole process: it has a test binary, and a test, of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Grant, Lock, LockBackend, LockRequest, Released, Scope,
    shutdown,
};
use tokio::sync::Semaphore;

/// A backend whose releases wait until the test lets them through.
#[derive(Debug, Clone)]
struct Gate(Arc<Semaphore>);

#[async_trait]
impl LockBackend for Gate {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Process)
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        Ok(Attempt::Granted(Grant::new()))
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        self.0
            .acquire()
            .await
            .map(tokio::sync::SemaphorePermit::forget)
            .expect("the gate is never closed");
        Ok(Released::Freed)
    }
}

#[tokio::test]
async fn shutdown_waits_for_the_clean_up_and_says_what_is_left_at_its_deadline() {
    let gate = Gate(Arc::new(Semaphore::new(0)));
    shutdown(Duration::ZERO)
        .await
        .expect("nothing was to be cleaned up");
    for name in ["a", "b", "c"] {
        drop(
            Lock::new(gate.clone(), name)
                .unwrap()
                .acquire()
                .await
                .unwrap(),
        );
    }
    let soon = Duration::from_millis(50);
    assert_eq!(shutdown(soon).await.unwrap_err().pending, 3);
    gate.0.add_permits(2);
    while shutdown(soon).await.unwrap_err().pending > 1 {}
    assert_eq!(shutdown(soon).await.unwrap_err().pending, 1);
    gate.0.add_permits(1);
    shutdown(Duration::from_secs(60)).await.unwrap();
}
