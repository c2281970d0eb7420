//! Code that takes the runtime's thread and does not give it back.

use std::time::Duration;

use async_trait::async_trait;
use portalock_core::{Attempt, BackendError, LockBackend, LockRequest, clock::Instant};

use super::{Flaw, Sound, Specimen, specimen};

pub(super) const SPECIMENS: &[Specimen] = &[specimen!(blocks_the_runtime: BlocksTheRuntime,
        "puts the thread to sleep until the lock is free",
        "timeout::waiting_leaves_the_runtime_free", "another task of the waiter's runtime running did not happen")];

/// Puts the thread to sleep until the lock is free.
#[derive(Debug, Default)]
pub struct BlocksTheRuntime;

#[async_trait]
impl Flaw for BlocksTheRuntime {
    #[allow(
        clippy::disallowed_methods,
        reason = "blocking is what is wrong with it"
    )]
    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        // Longer than any case watches, so that a thread is not taken for good.
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match LockBackend::try_acquire(sound, request).await? {
                Attempt::Contended(_) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                attempt => return Ok(attempt),
            }
        }
    }
}
