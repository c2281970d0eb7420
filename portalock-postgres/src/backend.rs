//! The backend: its capabilities, and the trait for locks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, CrashRelease, Fairness, Holder, HolderWatch, Inspect,
    Inspection, LockBackend, LockName, LockRequest, LossNotice, Marked, OwnerId, Released, Scope,
    Tokens, Wakeups,
};

use crate::{
    Fence, PostgresSettings,
    client::{Client, Server, Wish},
    error::{is_of_one_server, misconfigured},
    keys::{Kind, Wanted},
    observe::observe,
};

/// How long after the end of its lease a crash may be noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// Locks and semaphores in a Postgres database.
///
/// All clones, and all locks made from them, share one session. It uses one connection on the library's own thread,
/// one for each runtime that uses locks, and up to two for clean-up. When the last clone is dropped, the session ends in the background;
/// [`close`](Self::close) ends it in the foreground.
#[derive(Debug, Clone)]
pub struct PostgresBackend {
    pub(crate) client: Arc<Client>,
}

impl PostgresBackend {
    /// Connects to the server at `url`, a URL for [`PostgresSettings::from_url`].
    ///
    /// # Errors
    ///
    /// As [`with_settings`](Self::with_settings), and
    /// [`Misconfigured`](portalock_core::BackendErrorKind::Misconfigured) if the URL is invalid.
    ///
    /// # Cancel safety
    ///
    /// Safe: a session whose start got no answer serves the next call, or ends with the backend.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, BackendError> {
        let settings = PostgresSettings::from_url(url.as_ref()).map_err(misconfigured)?;
        Self::with_settings(settings).await
    }

    /// Connects with `settings` and starts a session, so that this call reports anything that is wrong. If the session
    /// ends later, the backend starts a new one when it is needed. If a server accepts the connection and does not confirm the
    /// session within [`request_timeout`](PostgresSettings::request_timeout), or can't, for example because its disk is full, the next of
    /// several servers is tried.
    ///
    /// # Errors
    ///
    /// By [`BackendErrorKind`](portalock_core::BackendErrorKind): `Unavailable` if the server does not answer;
    /// `Exhausted` if it has no free connection; `PermissionDenied` for a wrong user or password, or a user without the
    /// needed privileges; `NotFound` if the database doesn't exist or [`migrate`](crate::migrate) was not called in it;
    /// `ReadOnly` for a standby; `Misconfigured` for a schema of another version, or if TLS is required and not
    /// available; `Unsupported` behind a pooler that is not in session mode, for a server older than version 13, and
    /// for a database whose encoding is not UTF8.
    ///
    /// # Cancel safety
    ///
    /// Safe: a session whose start got no answer serves the next call, or ends with the backend.
    pub async fn with_settings(settings: PostgresSettings) -> Result<Self, BackendError> {
        let backend = Self::new(settings);
        let connections = &backend.client.shared().connections;
        for _ in 1..backend.settings().servers.len() {
            let order = connections.order().servers;
            match backend.client.session().await {
                // The next server may confirm what this one did not.
                Err(error) if is_of_one_server(&error) && connections.order().servers != order => {}
                begun => return begun.map(|_| backend),
            }
        }
        backend.client.session().await?;
        Ok(backend)
    }

    /// Creates a backend that connects when it is first used. Nothing is sent yet, and no runtime is needed.
    pub fn new(settings: PostgresSettings) -> Self {
        Self {
            client: Arc::new(Client::new(Arc::new(Server::new(settings)))),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &PostgresSettings {
        &self.client.shared().settings
    }

    /// Returns the fence of the lock that `owner` holds, as a condition for your own transactions; `None` if it holds
    /// nothing. A guard's owner is [`Guard::owner`](portalock_core::Guard::owner).
    pub fn fence(&self, owner: OwnerId) -> Option<Fence> {
        let (place, token) = self.client.held(owner)?;
        Some(Fence::new(&place, token))
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
    /// # async fn shut_down(backend: portalock_postgres::PostgresBackend) -> Result<(), BackendError> {
    /// backend.close().await
    /// # }
    /// ```
    pub async fn close(&self) -> Result<(), BackendError> {
        LockBackend::close(self).await
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let lease_time = self.settings().lease_time;
        let loss = if self.settings().release_without_notice {
            LossNotice::Within(lease_time)
        } else {
            LossNotice::BeforeSuccessor
        };
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            // The same in both forms of sessions: if a machine loses its power, its connection doesn't end.
            .with_crash_release(CrashRelease::Within(lease_time + NOTICED_WITHIN))
            .with_loss(loss)
            .with_inspect(Inspect::HoldersAndWaiters)
            .with_breaks(true)
    }
}

#[async_trait]
impl LockBackend for PostgresBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let wish = Wish::new(Wanted::lock(request), request);
        self.client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.client
            .without_session()?
            .inspect(Kind::Lock, name)
            .await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.client.without_session()?.names().await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        observe(&self.client, name).await.map(Some)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let connections = &self.client.without_session()?.connections;
        connections.mark(name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let connections = &self.client.without_session()?.connections;
        connections.evict(name, owner, hold).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}
