//! What all clones of a backend share: the connections, the session, and how a request is served, lock or semaphore.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Contention, FencingToken, Grant, Holder, Loss,
    OwnerId, Patience, Released, Wakeups, session::Sessions,
};

use crate::{
    PostgresSettings,
    connection::{Answer, Connections},
    error::session_ended,
    keys::Spot,
    places::Places,
    queue::{Entry, Standing},
    record::encode,
    session::Session,
};

/// After how long a waiter looks again without having been told to. Its session looks after it; this bounds what a bug could
/// cost.
const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// How often an attempt is sent again because the session's epoch has moved on.
const ATTEMPTS: usize = 5;

/// One client of Postgres.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) settings: Arc<PostgresSettings>,
    pub(crate) connections: Connections,
    places: Arc<Places>,
    sessions: Sessions<Session>,
    /// Whether it was found that there is no pooler.
    direct: Arc<AtomicBool>,
}

/// A request, stripped of what it is for.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) spot: Spot,
    pub(crate) owner: OwnerId,
    pub(crate) patience: Patience,
    pub(crate) holder: &'a Holder,
}

impl Client {
    /// A client without a session. Nothing is sent yet.
    pub(crate) fn new(settings: PostgresSettings) -> Self {
        let settings = Arc::new(settings);
        Self {
            connections: Connections::new(settings.clone()),
            settings,
            places: Arc::default(),
            sessions: Sessions::new(),
            direct: Arc::default(),
        }
    }

    /// The session, or a new one if there is none that is certain.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        if let Some(session) = self.sessions.live() {
            return Ok(session);
        }
        let (settings, places) = (self.settings.clone(), self.places.clone());
        let direct = self.direct.clone();
        self.sessions
            .get(|former| async move {
                let former = former.map(|former| former.id.clone());
                let known = direct.load(Ordering::Relaxed);
                let session = Session::start(settings, places, former, known).await?;
                direct.store(true, Ordering::Relaxed);
                Ok(session)
            })
            .await
    }

    /// One attempt for `wish`.
    pub(crate) async fn attempt(&self, wish: Wish<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let owner = wish.owner;
        let mut entry = Entry {
            session: &session.id,
            epoch: 0,
            spot: &wish.spot,
            owner: "".into(),
            queues: wish.patience == Patience::Queue,
            who: encode(wish.holder),
        };
        for _ in 0..ATTEMPTS {
            entry.epoch = session.epoch();
            if self.places.is_leaving(owner) {
                // What the owner may have left is withdrawn first.
                self.release(owner).await?;
            }
            let expected = self.places.expect(owner, &session.id, &wish.spot)?;
            entry.owner = expected.name;
            let answer = self.connections.acquire(&entry).await;
            let Answer { value, repeated } = match answer {
                Ok(answer) => answer,
                // What it has done is unknown, but for what the session's end has undone.
                Err(error) => return Err(session.ended().unwrap_or(error)),
            };
            let unsure = expected.unsure || repeated;
            self.places.answered(owner, unsure);
            match value {
                Standing::Granted(token) => return self.granted(&session, owner, token),
                Standing::Queued { holder, look_in } => {
                    self.places.queued(owner);
                    if let Some(time) = look_in {
                        session.look_within(time);
                    }
                    return Ok(Attempt::Contended(
                        Contention::new()
                            .with_holder(holder)
                            .with_queued(true)
                            .with_recheck_after(RECHECK_AFTER),
                    ));
                }
                Standing::Refused { holder } => {
                    if unsure {
                        self.release(owner).await?;
                    } else {
                        self.places.forget(owner);
                    }
                    return Ok(Attempt::Contended(Contention::new().with_holder(holder)));
                }
                Standing::Ended => {
                    session.end_gone();
                    return Err(session_ended("the server no longer knows it"));
                }
                Standing::Stale(epoch) => session.epoch_is(epoch),
            }
        }
        Err(BackendError::new(
            BackendErrorKind::Unavailable,
            "the session's epoch moved on at every try",
        ))
    }

    fn granted(
        &self,
        session: &Session,
        owner: OwnerId,
        token: FencingToken,
    ) -> Result<Attempt, BackendError> {
        if let Some(error) = session.ended() {
            return Err(error);
        }
        let grant: Option<Grant> = self.places.hold(owner, token, &session.lease.signal());
        match grant {
            Some(grant) => Ok(Attempt::Granted(grant)),
            None => Err(session_ended("it ended while the lock was granted")),
        }
    }

    /// Frees what `owner` has, wherever it is. Whatever becomes of this call, the place stays in the book until nothing can be
    /// left of it.
    pub(crate) async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        let Some(releasing) = self.places.release(owner) else {
            return Ok(Released::NotHeld);
        };
        let leaving = &releasing.leaving;
        let Answer { value, repeated } = self.connections.release(leaving).await?;
        if let (Some(epoch), Some(session)) = (value.epoch, self.sessions.latest())
            && session.id == leaving.session
        {
            session.epoch_is(epoch);
        }
        let held = leaving.held;
        releasing.done();
        // A try without an answer may have freed what the next one no longer found.
        Ok(if value.freed || (repeated && held) {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    /// The line on which a grant comes to a waiter.
    pub(crate) fn subscribe(&self, owner: OwnerId) -> Wakeups {
        self.places.listen(owner)
    }

    /// By what `owner` holds: its name at the server and its token.
    pub(crate) fn held(&self, owner: OwnerId) -> Option<(Arc<str>, FencingToken)> {
        self.places.held(owner)
    }

    /// Ends the session in good order.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let Some(session) = self.sessions.take() else {
            return Ok(());
        };
        session.end(Loss::SessionEnded("it was closed".into()));
        self.connections.end_session(&session.id).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.take() {
            // Its task ends it at the server.
            session.end(Loss::SessionEnded("the backend was dropped".into()));
        }
    }
}
