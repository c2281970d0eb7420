//! Semaphores: the same queue, with the caller's weights and capacity.

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Semaphore,
    Wakeups,
};

use crate::{
    PostgresBackend,
    client::Wish,
    keys::{Kind, Wanted},
};

/// Permits are granted first come, first served: small requests don't overtake a large one. The database stores no
/// limit of its own. If requests with different capacities meet, a request is granted when its permits and those of all
/// holders fit under its own capacity and under the capacity of every current holder.
#[async_trait]
impl Semaphore for PostgresBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        let wish = Wish::new(Wanted::permits(request), request);
        self.client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.client
            .without_session()?
            .inspect(Kind::Semaphore, name)
            .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}
