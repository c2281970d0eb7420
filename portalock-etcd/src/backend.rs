//! The backend: its capabilities, and the two traits on top of the queue.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, CrashRelease, Fairness, Holder, HolderWatch, Inspect,
    Inspection, LockBackend, LockName, LockRequest, LossNotice, Marked, OwnerId, Released, Scope,
    Tokens, Wakeups, session::Service as _,
};

use crate::{
    EtcdSettings, Fence,
    client::{Client, Server, Wish},
    error::misconfigured,
    observe::observe,
};

/// How much longer than its time a lease may live: etcd looks for expired leases twice a second, and deletes them
/// through its log.
const EXPIRY_SLACK: Duration = Duration::from_secs(3);

/// The shortest lease that etcd grants with its default election timeout.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// Locks and semaphores on an etcd cluster.
///
/// All clones, and all locks made from them, share one connection and one lease. When the last clone is dropped, the
/// lease is revoked in the background; [`close`](Self::close) does it in the foreground.
#[derive(Debug, Clone)]
pub struct EtcdBackend {
    pub(crate) client: Arc<Client>,
    pub(crate) capabilities: Capabilities,
}

impl EtcdBackend {
    /// Connects to the cluster at `url`: plain endpoints (`host:port[,host:port…]`) or a URL for
    /// [`EtcdSettings::from_url`].
    ///
    /// # Errors
    ///
    /// As [`with_settings`](Self::with_settings), and
    /// [`Misconfigured`](portalock_core::BackendErrorKind::Misconfigured) if the URL is invalid.
    ///
    /// # Cancel safety
    ///
    /// Safe: a lease whose grant got no answer ends when its time is over.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, BackendError> {
        let settings = EtcdSettings::from_url(url.as_ref()).map_err(misconfigured)?;
        Self::with_settings(settings).await
    }

    /// Connects with `settings` and starts a session, so that this call reports anything that is wrong. If the session
    /// ends later, the backend starts a new one when it is needed.
    ///
    /// # Errors
    ///
    /// Within three request timeouts, by [`BackendErrorKind`](portalock_core::BackendErrorKind): `Unavailable` if no
    /// member answers or there is no majority; `PermissionDenied` for a wrong user or password, or a role that may not
    /// write the prefix; `Misconfigured` for a user where authentication is off, or a TLS file that can't be read;
    /// `Unsupported` if etcd is older than 3.4 or the server isn't etcd; `OutOfSpace` if etcd is full.
    ///
    /// # Cancel safety
    ///
    /// Safe: a lease whose grant got no answer ends when its time is over.
    pub async fn with_settings(settings: EtcdSettings) -> Result<Self, BackendError> {
        let mut backend = Self::new(settings)?;
        let session = backend.client.session().await?;
        backend.capabilities = capabilities(session.service().lease_time());
        Ok(backend)
    }

    /// Creates a backend that connects when it is first used. Nothing is sent yet, and no runtime is needed.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](portalock_core::BackendErrorKind::Misconfigured) if a TLS file can't be read.
    pub fn new(settings: EtcdSettings) -> Result<Self, BackendError> {
        let lease_time = settings.lease_time().max(SHORTEST_LEASE);
        Ok(Self {
            client: Arc::new(Client::new(Arc::new(Server::new(settings)?))),
            capabilities: capabilities(lease_time),
        })
    }

    /// The settings.
    pub fn settings(&self) -> &EtcdSettings {
        &self.client.shared().settings
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
    /// # async fn shut_down(backend: portalock_etcd::EtcdBackend) -> Result<(), BackendError> {
    /// backend.close().await
    /// # }
    /// ```
    pub async fn close(&self) -> Result<(), BackendError> {
        LockBackend::close(self).await
    }

    /// Returns the key and the revision of the lock that `owner` holds, as a condition for your own transactions;
    /// `None` if it holds nothing. A guard's owner is [`Guard::owner`](portalock_core::Guard::owner).
    pub fn fence(&self, owner: OwnerId) -> Option<Fence> {
        let (place, _) = self.client.held(owner)?;
        Some(Fence {
            key: place.key.to_string(),
            revision: place.taken()?,
        })
    }
}

#[async_trait]
impl LockBackend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let queue = self.client.shared().keys.lock(request);
        let wish = Wish::new(queue, request);
        self.client.attempt(request.owner, &wish).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.client.release(request.owner).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.client.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let server = self.client.without_session()?;
        server.inspect(&server.keys.lock_queue(name)).await
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
        self.client.without_session()?.mark(name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.client
            .without_session()?
            .evict(name, owner, hold)
            .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.client.close().await
    }
}

fn capabilities(lease_time: Duration) -> Capabilities {
    Capabilities::new(Scope::Network)
        .with_shared(true)
        .with_fairness(Fairness::FirstCome)
        .with_tokens(Tokens::Growing)
        .with_crash_release(CrashRelease::Within(lease_time + EXPIRY_SLACK))
        .with_loss(LossNotice::BeforeSuccessor)
        .with_inspect(Inspect::HoldersAndWaiters)
        .with_breaks(true)
}
