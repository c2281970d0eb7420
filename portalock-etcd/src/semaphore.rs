//! Semaphores: the same queue, with weights.

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Semaphore,
    Wakeups,
};

use crate::{EtcdBackend, client::Wish, inspect::inspect};

/// Permits are granted first come, first served: a large request is not starved by small ones behind it. Whoever asks with
/// another capacity than others is held to the smallest of all who hold or wait before it.
#[async_trait]
impl Semaphore for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        self.client
            .attempt(Wish {
                queue: self.client.keys.permits(request),
                owner: request.owner,
                patience: request.patience,
                holder: &request.holder,
            })
            .await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    fn release_now(&self, _request: &PermitRequest) -> bool {
        false
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let queue = self.client.keys.permit_queue(name);
        inspect(&self.client.endpoints, queue).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}
