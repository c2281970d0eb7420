//! The backend: its capabilities, and the trait.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, CrashRelease, Fairness, Inspect, Inspection, LockBackend,
    LockName, LockRequest, LossNotice, Released, Scope, Tokens, Wakeups, session::Client,
};

use crate::{
    server::{Server, Store},
    session::SessionKey,
    state::State,
};

/// The settings of the backend.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// The server, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// The prefix of the names of the two buckets. Clients that share locks must use the same.
    pub bucket: String,
    /// How long a session lives without renewals. Clients that share a bucket must use the same.
    pub lease_time: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
}

/// Locks in NATS. Clones share one session.
#[derive(Debug, Clone)]
pub struct NatsBackend(Arc<Client<SessionKey>>);

impl NatsBackend {
    /// Connects, and starts a session.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the server can't be reached or has no streams, or if the bucket was created with another
    /// lease time.
    ///
    /// # Cancel safety
    ///
    /// Safe: a started session ends with the backend.
    pub async fn connect(settings: NatsSettings) -> Result<Self, BackendError> {
        let client = Client::new(Arc::new(Server::new(settings)));
        client.session().await?;
        Ok(Self(Arc::new(client)))
    }

    /// The settings.
    pub fn settings(&self) -> &NatsSettings {
        &self.0.shared().settings
    }
}

#[async_trait]
impl LockBackend for NatsBackend {
    fn capabilities(&self) -> Capabilities {
        let lease_time = self.settings().lease_time;
        // Sessions check at each third of the lease.
        let noticed = lease_time / 2 + Duration::from_secs(1);
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(lease_time + noticed))
            .with_loss(LossNotice::BeforeSuccessor)
            .with_inspect(Inspect::HoldersAndWaiters)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.0.attempt(request.owner, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.0.release(request.owner).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.0.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        // Dead holders are removed first, so that an inspection does not return them.
        let look = async |store: &Store| store.bury_the_dead(name, "", State::inspection).await;
        Ok(self.0.without_session()?.over(look).await?.value)
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let list = async |store: &Store| store.names().await;
        Ok(self.0.without_session()?.over(list).await?.value)
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.0.close().await
    }
}
