//! A backend that forwards and counts all calls, so that a case knows when a waiter has its place.

use std::sync::Arc;

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Holder, HolderWatch, Inspection, LockBackend, LockName,
    LockRequest, Marked, OwnerId, Released, Wakeups,
};
use tokio::sync::watch;

use crate::erased::AnyBackend;
use crate::verdict::{CaseResult, soon};

/// The counts so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Calls of any method that may do I/O.
    pub(crate) calls: usize,
    /// Contended attempts: their owners have places in the queue, if the backend has one.
    pub(crate) contended: usize,
    /// Subscriptions that were answered: a waiter of the engine sleeps after that.
    pub(crate) subscribed: usize,
}

/// The counting backend.
#[derive(Debug)]
pub(crate) struct Spy {
    inner: AnyBackend,
    seen: watch::Sender<Seen>,
}

impl Spy {
    pub(crate) fn on(inner: AnyBackend) -> Arc<Self> {
        Arc::new(Self {
            inner,
            seen: watch::Sender::default(),
        })
    }

    pub(crate) fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Waits until this number of attempts was contended.
    pub(crate) async fn contended(&self, times: usize) -> CaseResult {
        let mut seen = self.seen.subscribe();
        // The sender lives in `self`, so the channel can't be closed.
        let _ = soon(
            "a contended attempt being answered",
            seen.wait_for(|seen| seen.contended >= times),
        )
        .await?;
        Ok(())
    }

    /// Waits until a waiter has its place and listens for its wake-up.
    pub(crate) async fn sleeps(&self) -> CaseResult {
        let mut seen = self.seen.subscribe();
        let _ = soon(
            "a waiter's subscription",
            seen.wait_for(|seen| seen.contended > 0 && seen.subscribed > 0),
        )
        .await?;
        Ok(())
    }

    fn called(&self) {
        self.seen.send_modify(|seen| seen.calls += 1);
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl LockBackend for Spy {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.called();
        let attempt = self.inner.try_acquire(request).await;
        if let Ok(Attempt::Contended(_)) = &attempt {
            self.seen.send_modify(|seen| seen.contended += 1);
        }
        attempt
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.called();
        self.inner.release(request).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.called();
        let line = self.inner.subscribe(request).await;
        self.seen.send_modify(|seen| seen.subscribed += 1);
        line
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        self.inner.release_now(request)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.called();
        self.inner.inspect(name).await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.called();
        self.inner.watch(name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.called();
        self.inner.names().await
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        self.called();
        self.inner.mark_broken(name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.called();
        self.inner.evict(name, owner, hold).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.called();
        self.inner.close().await
    }
}
