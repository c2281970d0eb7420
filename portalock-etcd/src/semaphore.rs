//! Semaphores: the same queue, with weights.

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Semaphore,
    Wakeups,
};

use crate::{EtcdBackend, client::Wish};

/// Permits are granted first come, first served: small requests don't overtake a large one. If requests with different
/// capacities meet, each is limited by the smallest capacity of all holders and waiters ahead of it.
#[async_trait]
impl Semaphore for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        let queue = self.client.shared().keys.permits(request);
        let wish = Wish::new(queue, request);
        self.client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let server = self.client.without_session()?;
        server.inspect(&server.keys.permit_queue(name)).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}
