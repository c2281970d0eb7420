//! The backend: a session when it is needed, and the requests in it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, CrashRelease, Fairness, Holder,
    HolderWatch, Inspect, Inspection, LockBackend, LockName, LockRequest, LossNotice, OwnerId,
    Released, Scope, Tokens, Wakeups,
};

use crate::{
    client::{Client, Server, Wish},
    config::{InvalidRedisSettings, RedisSettings},
    connection::Call,
    keys::{Kind, Wanted},
    observe::observe,
    queue::SLOWEST_TICK,
};

/// Locks and semaphores on a Redis server.
///
/// Cheap to clone: clones share one session, opened by the first call that needs it and shared by all locks. The session lives
/// on a thread of the library's own, so it depends on no runtime: a backend can be shared by many, and each has a
/// connection of its own for its calls. When the session ends, everything held in it is lost, and the next call opens
/// another. When the last clone goes, guards included, the session is closed and the server frees what is left.
#[derive(Debug, Clone)]
pub struct RedisBackend {
    pub(crate) client: Arc<Client>,
}

impl RedisBackend {
    /// A backend for the server at `url`, connected. A server that has just started or been promoted is waited for: see
    /// [`restart_wait`](RedisSettings::with_restart_wait).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the URL is none ([`Misconfigured`](BackendErrorKind::Misconfigured)), or the server can't be
    /// reached or can't keep locks.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let settings = RedisSettings::new(url).map_err(|error| misconfigured(&error))?;
        Self::with_settings(settings).await
    }

    /// A backend with these settings, connected.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn with_settings(settings: RedisSettings) -> Result<Self, BackendError> {
        let backend = Self::new(settings);
        backend.client.session().await?;
        Ok(backend)
    }

    /// A backend that connects when it is first used.
    pub fn new(settings: RedisSettings) -> Self {
        Self {
            client: Arc::new(Client::new(Arc::new(Server::new(settings)))),
        }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RedisSettings {
        &self.client.shared().settings
    }

    /// Asks the server to answer.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if it doesn't.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn ping(&self) -> Result<(), BackendError> {
        self.client
            .shared()
            .send("ping Redis", Call::Plain(&redis::cmd("PING")))
            .await
            .map(drop)
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let settings = self.settings();
        // What is declared here holds for every crash: the machine's too, and that of everyone else in the queue at the same
        // time.
        let crash = settings
            .session_ttl()
            .saturating_add(settings.tick_interval().saturating_mul(SLOWEST_TICK));
        let loss = if settings.release_without_notice() {
            LossNotice::Within(settings.session_ttl())
        } else {
            LossNotice::BeforeSuccessor
        };
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(crash))
            .with_loss(loss)
            .with_inspect(Inspect::HoldersAndWaiters)
            .with_breaks(true)
    }
}

fn misconfigured(error: &InvalidRedisSettings) -> BackendError {
    BackendError::new(BackendErrorKind::Misconfigured, error.to_string())
}

#[async_trait]
impl LockBackend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.client
            .attempt(
                request.owner,
                &Wish {
                    wanted: Wanted::lock(request),
                    patience: request.patience,
                    holder: request.holder.clone(),
                },
            )
            .await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.client.shared().inspect(Kind::Lock, name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.client.shared().names().await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        observe(self.client.shared(), name).await.map(Some)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        self.client.shared().mark(name, owner, by).await
    }

    async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
        self.client.shared().evict(name, owner).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}
