//! What all clones of a backend share: the session when it is needed, and the requests in it.

use std::{sync::Arc, time::Duration};

use super::{KeptSession, Leaving, Service, Sessions};
use crate::{
    Attempt, BackendError, BackendErrorKind, Contention, FencingToken, Holder, Loss, OwnerId,
    Released, Wakeups,
};

/// After how long a waiter looks again without having been told to. Its session looks after it; this bounds what a bug could
/// cost.
pub(super) const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// A client of a [`Service`]: its requests, each in the session that lives when it is made.
///
/// It has what the methods of [`LockBackend`](crate::LockBackend) need: an attempt, a release, a waiter's line, and the end.
/// When the last clone is dropped the session ends, in the background.
#[derive(Debug)]
pub struct Client<S: Service> {
    sessions: Sessions<KeptSession<S>>,
    shared: S::Shared,
}

/// What an attempt came to at the service.
#[derive(Debug)]
pub enum Entered {
    /// The owner holds, by this token.
    Granted(FencingToken),
    /// It has a place in the queue.
    Queued {
        /// Who holds, if that is known.
        holder: Option<Holder>,
        /// After what time somebody in front may be dead, if that is known: the session looks then, or the waiter
        /// [asks again](Service::WAITERS_ASK_AGAIN).
        look_in: Option<Duration>,
    },
    /// It would have had to wait, and nothing of it is kept.
    Refused(Option<Holder>),
    /// The service no longer knows the session.
    Ended(Loss),
}

/// An answer, and whether an earlier try of the same request may have been carried out without one.
#[derive(Debug, Clone, Copy)]
pub struct Answered<T> {
    /// What was answered.
    pub value: T,
    /// Whether the request was sent more than once.
    pub repeated: bool,
}

impl<S: Service> Client<S> {
    /// A client without a session. Nothing is sent yet.
    pub fn new(shared: S::Shared) -> Self {
        Self {
            sessions: Sessions::new(),
            shared,
        }
    }

    /// What its sessions share, such as settings and connections.
    pub fn shared(&self) -> &S::Shared {
        &self.shared
    }

    /// The session, or a new one if there is none that is certain.
    ///
    /// # Errors
    ///
    /// As [`Sessions::get`] and [`KeptSession::start`].
    ///
    /// # Cancel safety
    ///
    /// Safe: a session that was begun serves the next call.
    pub async fn session(&self) -> Result<Arc<KeptSession<S>>, BackendError> {
        if let Some(session) = self.sessions.live() {
            return Ok(session);
        }
        let service = S::new(&self.shared);
        self.sessions
            .get(|former| KeptSession::start(service, former))
            .await
    }

    /// One attempt for `owner`: what [`LockBackend::try_acquire`](crate::LockBackend::try_acquire) answers.
    ///
    /// # Errors
    ///
    /// What the service failed with; what came of the attempt is then unknown until the owner is released.
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if the session did, and the attempt with it.
    ///
    /// # Cancel safety
    ///
    /// Safe: the place stays known until it has been released.
    pub async fn attempt(&self, owner: OwnerId, wish: &S::Wish) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let places = session.places();
        if places.is_leaving(owner) {
            // What the owner may have left is withdrawn first.
            release(&session, owner).await?;
        }
        let connections = session.connections();
        let expected = places.expect(owner, || session.service().place(owner, wish))?;
        let Answered { value, repeated } = match S::enter(&session, &expected.at, wish).await {
            Ok(answer) => answer,
            // What it has done is unknown, but for what the session's end has undone.
            Err(error) => return session.ensure_live().and(Err(error)),
        };
        let unsure = expected.unsure || repeated;
        places.answered(owner, unsure);
        match value {
            Entered::Granted(token) => {
                session.ensure_live()?;
                Ok(Attempt::Granted(places.hold(owner, token)?))
            }
            Entered::Queued { holder, look_in } => {
                places.queued(owner);
                let recheck = match look_in {
                    // A grant may have been told to the connection before.
                    _ if session.connections() != connections => Duration::ZERO,
                    Some(time) if S::WAITERS_ASK_AGAIN => time,
                    Some(time) => {
                        session.look_within(time);
                        RECHECK_AFTER
                    }
                    None => RECHECK_AFTER,
                };
                Ok(Attempt::Contended(
                    Contention::new()
                        .with_holder(holder)
                        .with_queued(true)
                        .with_recheck_after(recheck),
                ))
            }
            Entered::Refused(holder) => {
                if unsure {
                    release(&session, owner).await?;
                } else {
                    places.forget(owner);
                }
                Ok(Attempt::Contended(Contention::new().with_holder(holder)))
            }
            Entered::Ended(loss) => {
                session.end(loss);
                session.ensure_live().and(Err(session.places().over()))
            }
        }
    }

    /// Frees what `owner` has: what [`LockBackend::release`](crate::LockBackend::release) does. What it had in an earlier session
    /// went with that.
    ///
    /// # Errors
    ///
    /// What the service failed with. The session then releases the owner.
    ///
    /// # Cancel safety
    ///
    /// Safe: the session releases the owner then.
    pub async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        match self.sessions.latest() {
            Some(session) => release(&session, owner).await,
            None => Ok(Released::NotHeld),
        }
    }

    /// The line on which a grant comes to a waiter.
    ///
    /// # Errors
    ///
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if nothing was ever asked for.
    pub fn subscribe(&self, owner: OwnerId) -> Result<Wakeups, BackendError> {
        let session = self.sessions.latest().ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::SessionEnded,
                "there is no place to wait in",
            )
        })?;
        Ok(session.places().listen(owner))
    }

    /// By what `owner` holds: its place and its token.
    pub fn held(&self, owner: OwnerId) -> Option<(S::Place, FencingToken)> {
        self.sessions.latest()?.places().held(owner)
    }

    /// Ends the session in good order, and waits until the service knows.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told: the session then ends there by its time.
    ///
    /// # Cancel safety
    ///
    /// Safe: the session ends all the same.
    pub async fn close(&self) -> Result<(), BackendError> {
        let Some(session) = self.sessions.take() else {
            return Ok(());
        };
        session.end(Loss::SessionEnded("it was closed".into()));
        session.finished().await
    }
}

/// Whatever becomes of this call, the place stays in the book until nothing can be left of it.
async fn release<S: Service>(
    session: &Arc<KeptSession<S>>,
    owner: OwnerId,
) -> Result<Released, BackendError> {
    let Some(releasing) = session.places().release(owner) else {
        return Ok(Released::NotHeld);
    };
    let leaving = releasing.leaving();
    let Answered { value, repeated } = S::leave(session, leaving).await?;
    // A try without an answer may have freed what the next one no longer found.
    let freed = value || (repeated && leaving.held);
    match settle(session, leaving).await {
        Ok(()) => releasing.done(),
        Err(error) => {
            tracing::debug!(service = S::NAME, %error, "what may come late can't be refused yet");
        }
    }
    Ok(if freed {
        Released::Freed
    } else {
        Released::NotHeld
    })
}

/// Has the service refuse what may come late of a place that was released.
pub(super) async fn settle<S: Service>(
    session: &Arc<KeptSession<S>>,
    leaving: &Leaving<S::Place>,
) -> Result<(), BackendError> {
    if leaving.unsure {
        S::settle(session, leaving).await?;
    }
    Ok(())
}
