//! The backend: what it promises, and the trait.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind as Kind, Capabilities, Contention, CrashRelease,
    Fairness, Inspect, Inspection, LockBackend, LockName, LockRequest, Loss, LossNotice, Mode,
    Patience, Released, Scope, Tokens, Wakeups,
    session::{PerRuntime, Session as _, Sessions},
};

use crate::{
    session::{Place, Session, SessionKey, leave},
    state::{Claim, Entered, State},
    store::{Store, failed, name},
};

/// A waiter hears of its grant, and its session looks after it; this bounds what a bug could cost.
const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// Where the locks are, and for how long a client that is silent keeps its own.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// The server, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// What the names of the two buckets begin with. All who share locks give the same.
    pub bucket: String,
    /// All who share a bucket give the same.
    pub lease_time: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
}

/// Locks in NATS JetStream. Clones share one session.
#[derive(Debug, Clone)]
pub struct NatsBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Arc<NatsSettings>,
    stores: PerRuntime<Store>,
    sessions: Sessions<Session>,
}

impl NatsBackend {
    /// Connects, and begins a session.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the server can't be reached or has no JetStream, or the bucket was made with another lease time.
    ///
    /// # Cancel safety
    ///
    /// Safe: a session that has begun ends with the backend.
    pub async fn connect(settings: NatsSettings) -> Result<Self, BackendError> {
        let backend = Self(Arc::new(Inner {
            settings: Arc::new(settings),
            stores: PerRuntime::new(),
            sessions: Sessions::new(),
        }));
        backend.session().await?;
        Ok(backend)
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &NatsSettings {
        &self.0.settings
    }

    async fn session(&self) -> Result<Arc<Session>, BackendError> {
        let key = SessionKey::new(self.0.settings.clone());
        self.0
            .sessions
            .get(|former| Session::start(key, former))
            .await
    }

    /// What `request` comes to over this runtime's own connection. One that failed is given up for another one.
    async fn over<T>(
        &self,
        request: impl AsyncFnOnce(&Store) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let stores = &self.0.stores;
        stores.forget(|store| !store.is_open());
        let settings = self.0.settings.clone();
        let open = || async move { Store::open(&settings, || ()).await };
        let store = stores.get(open).await?;
        let within = self.0.settings.request_timeout;
        let answer = tokio::time::timeout(within, request(&store)).await;
        let answer = answer.unwrap_or_else(|late| Err(failed(Kind::Unavailable, "go on", late)));
        answer.inspect_err(|_| stores.forget(|_| true))
    }

    async fn leave(
        &self,
        session: &Session,
        request: &LockRequest,
    ) -> Result<Released, BackendError> {
        let Some(releasing) = session.places().release(request.owner) else {
            return Ok(Released::NotHeld);
        };
        let leaving = releasing.leaving();
        let freed = self.over(async |store| leave(store, leaving).await).await?;
        releasing.done();
        Ok(if freed {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }
}

#[async_trait]
impl LockBackend for NatsBackend {
    fn capabilities(&self) -> Capabilities {
        let lease_time = self.0.settings.lease_time;
        // Looks come each third of the lease.
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
        let session = self.session().await?;
        let (owner, places) = (request.owner, session.places());
        if places.is_leaving(owner) {
            // What the owner may have left goes first.
            self.leave(&session, request).await?;
        }
        let expected = places.expect(owner, || Place::new(&request.name, owner))?;
        let (place, queues) = (&expected.at.id, request.patience == Patience::Queue);
        let shared = request.demand == Mode::Shared;
        let claim = || Claim::new(place, &session.service().id, shared, &request.holder);
        let entered = self
            .over(async |store| {
                let step = |state: &mut State| state.enter(claim(), queues);
                let entered = store.change(&request.name, step).await?;
                if !matches!(entered, Entered::Refused(_)) {
                    return Ok(entered);
                }
                // One who waits has its session look. One who doesn't may be in the way of the dead only.
                let own = &session.service().id;
                store.bury_the_dead(&request.name, own, |_| ()).await?;
                store.change(&request.name, step).await
            })
            .await;
        session.ensure_live()?;
        let entered = entered?;
        places.answered(owner, expected.unsure);
        match entered {
            Entered::Granted(token) => Ok(Attempt::Granted(places.hold(owner, token)?)),
            Entered::Queued(holder) => {
                places.queued(owner);
                Ok(Attempt::Contended(
                    Contention::new()
                        .with_holder(holder)
                        .with_queued(true)
                        .with_recheck_after(RECHECK_AFTER),
                ))
            }
            Entered::Refused(holder) => {
                if expected.unsure {
                    self.leave(&session, request).await?;
                } else {
                    places.forget(owner);
                }
                Ok(Attempt::Contended(Contention::new().with_holder(holder)))
            }
        }
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        match self.0.sessions.latest() {
            Some(session) => self.leave(&session, request).await,
            None => Ok(Released::NotHeld),
        }
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let session = self.0.sessions.latest();
        Ok(session.map(|session| session.places().listen(request.owner)))
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let (state, _) = self.over(async |store| store.read(name).await).await?;
        Ok(state.inspection())
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        const LISTING: &str = "list the locks";
        self.over(async |store| {
            let keys = store.locks.keys().await;
            let mut keys = keys.map_err(|error| failed(Kind::Unavailable, LISTING, error))?;
            let mut names = Vec::new();
            while let Some(key) = keys.next().await {
                let key = key.map_err(|error| failed(Kind::Unavailable, LISTING, error))?;
                if let Some(name) = name(&key)
                    && store.read(&name).await?.0.claims().next().is_some()
                {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn close(&self) -> Result<(), BackendError> {
        let Some(session) = self.0.sessions.take() else {
            return Ok(());
        };
        if session.lease().loss().is_none() {
            session.end(Loss::SessionEnded("it was closed".into()));
        }
        let id = session.service().id.clone();
        self.over(async |store| store.end_session(&id).await).await
    }
}
