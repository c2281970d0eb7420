//! What all clones of a backend share: the connections, the session, and how a request is served, lock or semaphore.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Contention, FencingToken, Holder, Loss, OwnerId,
    Patience, Released, Wakeups, session::Sessions,
};

use crate::{
    PostgresSettings,
    connection::{Answer, Connections},
    error::session_ended,
    keys::Wanted,
    place::Place,
    queue::{Entry, Standing},
    record::encode,
    session::{Session, SessionRow, gone},
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
    sessions: Sessions<Session>,
    /// Whether it was found that there is no pooler.
    direct: Arc<AtomicBool>,
}

/// A request, stripped of what it is for.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) wanted: Wanted,
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
            sessions: Sessions::new(),
            direct: Arc::default(),
        }
    }

    /// The session, or a new one if there is none that is certain.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, BackendError> {
        if let Some(session) = self.sessions.live() {
            return Ok(session);
        }
        let row = SessionRow::new(self.settings.clone(), self.direct.clone());
        self.sessions
            .get(|former| Session::start(row, former))
            .await
    }

    /// One attempt for `wish`.
    pub(crate) async fn attempt(&self, wish: Wish<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let (owner, row, places) = (wish.owner, session.service(), session.places());
        let mut entry = Entry {
            session: &row.id,
            epoch: 0,
            wanted: &wish.wanted,
            owner: "".into(),
            queues: wish.patience == Patience::Queue,
            who: encode(wish.holder),
        };
        for _ in 0..ATTEMPTS {
            entry.epoch = row.epoch();
            if places.is_leaving(owner) {
                // What the owner may have left is withdrawn first.
                self.release_in(&session, owner).await?;
            }
            let expected = places.expect(owner, || Place::new(owner, wish.wanted.clone()))?;
            entry.owner = expected.at.name;
            let Answer { value, repeated } = match self.connections.acquire(&entry).await {
                Ok(answer) => answer,
                // What it has done is unknown, but for what the session's end has undone.
                Err(error) => return session.ensure_live().and(Err(error)),
            };
            let unsure = expected.unsure || repeated;
            places.answered(owner, unsure);
            match value {
                Standing::Granted(token) => {
                    session.ensure_live()?;
                    return Ok(Attempt::Granted(places.hold(owner, token)?));
                }
                Standing::Queued { holder, look_in } => {
                    places.queued(owner);
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
                        self.release_in(&session, owner).await?;
                    } else {
                        places.forget(owner);
                    }
                    return Ok(Attempt::Contended(Contention::new().with_holder(holder)));
                }
                Standing::Ended => {
                    session.end(gone());
                    return Err(session_ended("the server no longer knows it"));
                }
                Standing::Stale(epoch) => row.epoch_is(epoch),
            }
        }
        Err(BackendError::new(
            BackendErrorKind::Unavailable,
            "the session's epoch moved on at every try",
        ))
    }

    /// Frees what `owner` has. What it had in an earlier session went with that.
    pub(crate) async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        match self.sessions.latest() {
            Some(session) => self.release_in(&session, owner).await,
            None => Ok(Released::NotHeld),
        }
    }

    /// Whatever becomes of this call, the place stays in the book until nothing can be left of it.
    async fn release_in(
        &self,
        session: &Session,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let Some(releasing) = session.places().release(owner) else {
            return Ok(Released::NotHeld);
        };
        let row = session.service();
        let leaving = releasing.leaving();
        let Answer { value, repeated } = self.connections.release(&row.id, leaving).await?;
        if let Some(epoch) = value.epoch {
            row.epoch_is(epoch);
        }
        // A try without an answer may have freed what the next one no longer found.
        let freed = value.freed || (repeated && leaving.held);
        releasing.done();
        Ok(if freed {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    /// The line on which a grant comes to a waiter.
    pub(crate) fn subscribe(&self, owner: OwnerId) -> Result<Wakeups, BackendError> {
        let session = self.sessions.latest();
        let session = session.ok_or_else(|| session_ended("there is no place to wait in"))?;
        Ok(session.places().listen(owner))
    }

    /// By what `owner` holds: its place and its token.
    pub(crate) fn held(&self, owner: OwnerId) -> Option<(Place, FencingToken)> {
        self.sessions.latest()?.places().held(owner)
    }

    /// Ends the session in good order.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let Some(session) = self.sessions.take() else {
            return Ok(());
        };
        session.end(Loss::SessionEnded("it was closed".into()));
        self.connections.end_session(&session.service().id).await
    }
}
