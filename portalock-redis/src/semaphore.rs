//! Semaphores: the same mechanism, with the caller's weights and capacity.
//!
//! The crate's front page describes requests for one name with different capacities. The behaviour follows from `fits`
//! in `prelude.lua`.

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Semaphore,
    Wakeups,
};

use crate::{
    backend::RedisBackend,
    client::Wish,
    keys::{Kind, Wanted},
};

#[async_trait]
impl Semaphore for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        let wish = Wish::new(Wanted::permits(request), request);
        let client = self.clients.of(&request.name).await?;
        client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        match self.clients.used_for(&request.name) {
            Some(client) => client.release(request.owner).await,
            None => Ok(Released::NotHeld),
        }
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        let client = self.clients.of(&request.name).await?;
        client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let client = self.clients.of(name).await?;
        client
            .without_session()?
            .inspect(Kind::Semaphore, name)
            .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.clients.close().await
    }
}
