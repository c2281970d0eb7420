//! Semaphores: the same mechanism, with the caller's weights and capacity.
//!
//! What happens when requests for one name bring different capacities is said on the crate's front page. It follows from
//! `fits` in `prelude.lua`.

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Semaphore,
    Wakeups,
};

use crate::{backend::RedisBackend, keys::Kind, record::Wanted};

#[async_trait]
impl Semaphore for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        let part = self.parts.of(&request.name).await?;
        part.attempt(&Wanted::permits(request)).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        let part = self.parts.of(&request.name).await?;
        part.withdraw(Kind::Semaphore, &request.name, request.owner)
            .await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        let part = self.parts.of(&request.name).await?;
        Ok(Some(part.listen(request.owner)))
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.parts.of(name).await?.look(Kind::Semaphore, name).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.parts.close().await
    }
}
