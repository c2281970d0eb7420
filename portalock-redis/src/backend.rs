//! The backend: a session when it is needed, and the requests in it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, CrashRelease, Fairness, Holder,
    HolderWatch, Inspect, Inspection, LockBackend, LockName, LockRequest, Loss, LossNotice,
    OwnerId, Released, Scope, Tokens, Wakeups, session::Sessions,
};

use crate::{
    claims::Claims,
    config::{InvalidRedisSettings, RedisSettings},
    connection::{Answered, Call, Calls},
    error::failed,
    keys::{Keys, Kind, NameKeys, Named},
    record::{SLOWEST_TICK, Wanted},
    route::Route,
    scripts::RELEASE,
    session::Session,
};

/// Locks and semaphores on a Redis server.
///
/// Cheap to clone: clones share one session, opened by the first call that needs it and shared by all locks. The session lives
/// on a thread of the library's own, so it depends on no runtime: a backend can be shared by many, and each has a
/// connection of its own for its calls. When the session ends, everything held in it is lost, and the next call opens
/// another. When the last clone goes, guards included, the session is closed and the server frees what is left.
#[derive(Clone)]
pub struct RedisBackend(pub(crate) Arc<Inner>);

/// What clones share.
pub(crate) struct Inner {
    pub(crate) settings: Arc<RedisSettings>,
    pub(crate) route: Arc<Route>,
    pub(crate) keys: Keys,
    /// What the key of every session begins with.
    pub(crate) prefix: String,
    pub(crate) claims: Arc<Claims>,
    pub(crate) sessions: Sessions<Session>,
    pub(crate) calls: Calls,
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
        backend.session().await?;
        Ok(backend)
    }

    /// A backend that connects when it is first used.
    pub fn new(settings: RedisSettings) -> Self {
        let keys = Keys::new(settings.prefix().into());
        let settings = Arc::new(settings);
        let route = Arc::new(Route::new(settings.clone()));
        Self(Arc::new(Inner {
            prefix: keys.sessions(),
            keys,
            calls: Calls::new(route.clone()),
            route,
            settings,
            claims: Arc::default(),
            sessions: Sessions::new(),
        }))
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RedisSettings {
        &self.0.settings
    }

    /// The way to the server.
    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.0.route
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
        self.0
            .send("ping Redis", Call::Plain(&redis::cmd("PING")))
            .await
            .map(drop)
    }

    /// The live session, begun if there is none.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        match self.0.sessions.live() {
            Some(session) => Ok(session),
            // In a box of its own: it is large, and each call would carry room for it.
            None => Box::pin(self.begin_session()).await,
        }
    }

    async fn begin_session(&self) -> Result<Arc<Session>, BackendError> {
        // The session would begin all the same, on its own thread, and the call fail after it.
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BackendError::new(
                BackendErrorKind::Misconfigured,
                "Redis needs a tokio runtime: call from within one, or use the blocking facade",
            ));
        }
        let (route, keys, claims) = (
            self.0.route.clone(),
            self.0.keys.clone(),
            self.0.claims.clone(),
        );
        self.0
            .sessions
            .get(move |former| Session::start(route, keys, claims, former))
            .await
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let settings = &self.0.settings;
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

    /// What the key of every session begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The keys of a lock.
    pub(crate) fn lock_keys(&self, name: &LockName) -> NameKeys {
        self.0.keys.of(&Named {
            kind: Kind::Lock,
            name: name.clone(),
        })
    }

    /// Ends the session in good order: its guards are lost first, then the server frees what they held.
    pub(crate) async fn end_session(&self) -> Result<(), BackendError> {
        const WHAT: &str = "close the session with Redis";
        let inner = &*self.0;
        let Some(session) = inner.sessions.take() else {
            return Ok(());
        };
        let left = inner.claims.of_session(session.id());
        if session.loss().is_some() {
            return Ok(());
        }
        session.end(Loss::SessionEnded("this program closed it".into()));
        for (owner, named) in left {
            let keys = inner.keys.of(&named);
            let call = Call::Script(
                &RELEASE,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&inner.prefix, &owner.to_string()],
            );
            inner.send(WHAT, call).await?;
        }
        let mut delete = redis::cmd("DEL");
        inner
            .send(WHAT, Call::Plain(delete.arg(session.key())))
            .await
            .map(drop)
    }
}

impl Inner {
    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered, BackendError> {
        self.calls.send(what, call, || Ok(())).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.take() {
            session.end(Loss::SessionEnded("its backend was dropped".into()));
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
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
        self.attempt(&Wanted::lock(request)).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.withdraw(Kind::Lock, &request.name, request.owner)
            .await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(Some(self.listen(request.owner)))
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.look(Kind::Lock, name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        const WHAT: &str = "list the locks in Redis";
        let mut names = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(self.0.keys.lock_pattern())
                .arg("COUNT")
                .arg(1000);
            let answered = self.0.send(WHAT, Call::Plain(&scan)).await?;
            let (next, found): (String, Vec<String>) = redis::from_redis_value(answered.value)
                .map_err(|error| failed(WHAT, error.into()))?;
            // A state outlives its last grant for a while: only a look tells.
            for name in found.iter().filter_map(|key| self.0.keys.lock_name(key)) {
                let found = self.look(Kind::Lock, &name).await?;
                if found.held || !found.waiters.is_empty() {
                    names.push(name);
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        names.sort_unstable();
        // A scan may come by the same key twice.
        names.dedup();
        Ok(names)
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.observe(name).await.map(Some)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        self.mark(name, owner, by).await
    }

    async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
        self.end_hold(name, owner).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.end_session().await
    }
}
