//! The backend: it finds the client of a name, and states what it guarantees.

use std::sync::Arc;

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, CrashRelease, Fairness, Holder,
    HolderWatch, Inspect, Inspection, LockBackend, LockName, LockRequest, LossNotice, Marked,
    OwnerId, Released, Scope, Tokens, Wakeups,
};

use crate::{
    client::Wish,
    clients::Clients,
    config::{InvalidRedisSettings, RedisSettings},
    connection::Call,
    keys::{Kind, Wanted},
    observe::observe,
    queue::{SLOWEST_TICK, UNREAD},
};

/// Locks and semaphores on a Redis server, or in a Redis cluster.
///
/// Cheap to clone: all clones and their locks share one session, which the first call that needs it opens. In a cluster
/// there is one session for each [tag](RedisSettings::with_cluster_tags) that is used. A session runs on a thread of
/// the library, so it depends on no runtime: many runtimes can share a backend, and each has its own connection for its
/// calls. When the session ends, all its locks are lost, and the next call opens a new session. When the last clone is
/// dropped, guards included, the session is closed and the server frees what is left.
#[derive(Debug, Clone)]
pub struct RedisBackend {
    settings: Arc<RedisSettings>,
    pub(crate) clients: Arc<Clients>,
}

impl RedisBackend {
    /// Connects to the server at `url`. If the server has just started or was promoted, the call waits: see
    /// [`restart_wait`](RedisSettings::with_restart_wait).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the URL is not valid ([`Misconfigured`](BackendErrorKind::Misconfigured)), if the server
    /// can't be reached, or if it can't keep locks.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is left behind.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let settings = RedisSettings::new(url).map_err(|error| misconfigured(&error))?;
        Self::with_settings(settings).await
    }

    /// Connects with these settings. In a cluster this starts no session: the first use of a name does.
    ///
    /// # Errors
    ///
    /// The same as for [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is left behind.
    pub async fn with_settings(settings: RedisSettings) -> Result<Self, BackendError> {
        let backend = Self::new(settings);
        backend.clients.connect().await?;
        Ok(backend)
    }

    /// Creates a backend that connects at first use.
    pub fn new(settings: RedisSettings) -> Self {
        let settings = Arc::new(settings);
        Self {
            clients: Arc::new(Clients::new(&settings)),
            settings,
        }
    }

    /// The settings of this backend.
    pub fn settings(&self) -> &RedisSettings {
        &self.settings
    }

    /// Sends a `PING` to the server; in a cluster, to each node that this backend uses.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if there is no answer.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is left behind.
    pub async fn ping(&self) -> Result<(), BackendError> {
        for client in self.clients.in_use().await? {
            client
                .without_session()?
                .send("ping Redis", Call::Plain(&redis::cmd("PING")))
                .await?;
        }
        Ok(())
    }

    /// Ends the session of all clones. Their locks are released, and their guards are lost. A later call starts a new
    /// session.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told; the session then ends there when its time is over.
    ///
    /// # Cancel safety
    ///
    /// Safe: once polled, the session ends nevertheless.
    ///
    /// ```no_run
    /// use portalock_core::{BackendError, LockBackend, Semaphore};
    ///
    /// # async fn shut_down(backend: portalock_redis::RedisBackend) -> Result<(), BackendError> {
    /// backend.close().await
    /// # }
    /// ```
    pub async fn close(&self) -> Result<(), BackendError> {
        LockBackend::close(self).await
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let settings = self.settings();
        // This is the bound for every crash, even if the whole machine and all other waiters crash at the same time.
        let crash = settings
            .session_ttl()
            .saturating_add(settings.tick_interval().saturating_mul(SLOWEST_TICK))
            .saturating_add(UNREAD);
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
        let wish = Wish::new(Wanted::lock(request), request);
        let client = self.clients.of(&request.name).await?;
        client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        match self.clients.used_for(&request.name) {
            Some(client) => client.release(request.owner).await,
            None => Ok(Released::NotHeld),
        }
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let client = self.clients.of(&request.name).await?;
        client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let client = self.clients.of(name).await?;
        client.without_session()?.inspect(Kind::Lock, name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let mut names = Vec::new();
        for client in self.clients.all().await? {
            names.extend(client.without_session()?.names().await?);
        }
        names.sort_unstable();
        // A scan may return a key twice.
        names.dedup();
        Ok(names)
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        let client = self.clients.of(name).await?;
        observe(client.without_session()?, name).await.map(Some)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let client = self.clients.of(name).await?;
        client.without_session()?.mark(name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let client = self.clients.of(name).await?;
        client.without_session()?.evict(name, owner, hold).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.clients.close().await
    }
}
