//! The client that all clones of a backend share: its session, and requests in it.

use std::{sync::Arc, time::Duration};

use super::{
    KeptSession, Leaving, Places, Service, lasting::while_its_runtime_lasts, starts::Sessions,
};
use crate::{
    Attempt, BackendError, BackendErrorKind, Contention, FencingToken, Holder, Loss, OwnerId,
    Released, Wakeups, own::OwnArc,
};

/// When a waiter repeats its attempt without a wake-up. The session checks the waiter's place, so this only limits the effect
/// of a bug.
pub(super) const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// A client of a [`Service`]. Each request is made in the session that lives at that time.
///
/// It has what the methods of [`LockBackend`](crate::LockBackend) need: attempts, releases, subscriptions, and `close`.
/// When the client is dropped, the session ends in the background.
#[derive(Debug)]
pub struct Client<S: Service> {
    sessions: Sessions<KeptSession<S>>,
    shared: OwnArc<S::Shared>,
}

/// The result of an attempt at the service.
#[derive(Debug)]
pub enum Entered {
    /// The owner holds the lock, with this token.
    Granted(FencingToken),
    /// It has a place in the queue.
    Queued {
        /// A holder, if one is known.
        holder: Option<Holder>,
        /// When an owner ahead may be dead, if that is known. The session checks then, or the waiter
        /// [repeats its attempt](Service::WAITERS_ASK_AGAIN).
        look_in: Option<Duration>,
    },
    /// The lock is contended, and the service keeps nothing of the request.
    Refused(Option<Holder>),
    /// The lock is contended, and the request does not wait. The service has a place of it, which the client releases.
    Contended(Option<Holder>),
    /// The service answered with this error. If the request may still be in flight, the attempt fails instead.
    Failed {
        /// The answer.
        error: BackendError,
        /// Whether the service may have executed the request nevertheless: then the place stays until its owner is released.
        /// Otherwise the service keeps nothing of this request. A place that an earlier attempt has taken also stays.
        left: bool,
    },
    /// The service no longer knows the session.
    Ended(Loss),
}

/// An answer, and whether an earlier try of the same request may have been executed without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// Whether the request was sent more than once.
    pub repeated: bool,
}

impl<S: Service> Client<S> {
    /// Creates a client without a session. Nothing is sent yet.
    pub fn new(shared: S::Shared) -> Self {
        Self {
            sessions: Sessions::new(),
            shared: OwnArc::new(shared),
        }
    }

    /// The state that its sessions share, such as settings and connections.
    pub fn shared(&self) -> &S::Shared {
        &self.shared
    }

    /// The same, for requests that need no session, such as those that look at a lock.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](BackendErrorKind::Misconfigured) in a forked child: a thread of the parent may have had a mutex of the
    /// connections during the fork.
    pub fn without_session(&self) -> Result<&S::Shared, BackendError> {
        if self.sessions.is_inherited() {
            return Err(BackendError::forked());
        }
        Ok(&self.shared)
    }

    /// As in a child that was forked since.
    #[cfg(test)]
    pub(super) fn inherit(&mut self) {
        self.sessions.inherit();
        self.shared.inherit();
    }

    /// Returns the session, or a new one if there is no live session.
    ///
    /// # Errors
    ///
    /// The failure of the start that this call waited for, which an earlier caller may have begun. After a failure the next
    /// start waits for a pause, which grows from 50 ms to 2 s. [`Exhausted`](BackendErrorKind::Exhausted) if the system
    /// gives no thread, [`Misconfigured`](BackendErrorKind::Misconfigured) in a forked child.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call gets a session that was started.
    pub async fn session(&self) -> Result<Arc<KeptSession<S>>, BackendError> {
        match self.sessions.live() {
            Some(session) => Ok(session),
            // Boxed: the future is large, and each call would reserve space for it. So are other rare calls below.
            None => Box::pin(self.start()).await,
        }
    }

    async fn start(&self) -> Result<Arc<KeptSession<S>>, BackendError> {
        let service = S::new(self.without_session()?);
        self.sessions
            .get(|former| KeptSession::start(service, former))
            .await
    }

    /// Makes one attempt for `owner`, for [`LockBackend::try_acquire`](crate::LockBackend::try_acquire).
    ///
    /// # Errors
    ///
    /// The error of the service; the outcome is then unknown until the owner is released.
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if the session has ended, and the attempt with it.
    ///
    /// # Cancel safety
    ///
    /// Safe: the client remembers the place until it has been released.
    pub async fn attempt(&self, owner: OwnerId, wish: &S::Wish) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let places = session.places();
        if places.is_leaving(owner) {
            // First release the place of the owner's earlier attempt.
            Box::pin(release(&session, owner)).await?;
        }
        let reconnects = places.reconnects();
        let expected = places.expect(owner, || session.service().place(owner, wish))?;
        let asking = Asking {
            places,
            owner,
            at: expected.at,
            is_answered: false,
        };
        let entering = while_its_runtime_lasts(S::enter(&session, &asking.at, wish));
        let Answered { value, repeated } = match entering.await {
            Ok(answer) => answer,
            // The outcome is unknown. If the session has ended, the attempt has ended with it.
            Err(error) => return session.ensure_live().and(Err(error)),
        };
        let unsure = expected.unsure || repeated;
        if !asking.answered(unsure) {
            return session.ensure_live().and(Err(places.over()));
        }
        match value {
            Entered::Granted(token) => {
                session.ensure_live()?;
                match places.hold(owner, token, reconnects)? {
                    Some(grant) => Ok(Attempt::Granted(grant)),
                    None => Box::pin(self.attempt(owner, wish)).await,
                }
            }
            Entered::Queued { holder, look_in } => {
                places.queued(owner);
                let recheck = match look_in {
                    // The former connection may have received the grant.
                    _ if places.reconnects() != reconnects => Duration::ZERO,
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
            Entered::Refused(holder) if !unsure => {
                places.forget(owner);
                Ok(refused(holder))
            }
            // From here on the place is leaving. If the release fails, no later attempt uses it.
            Entered::Refused(holder) | Entered::Contended(holder) => {
                Box::pin(release(&session, owner)).await?;
                Ok(refused(holder))
            }
            Entered::Failed { error, left } => {
                // An earlier request may still arrive: then the place stays until it is released.
                places.refused(owner, unsure || left);
                Err(error)
            }
            // Perhaps a server that the session has left meanwhile.
            Entered::Ended(_) if places.reconnects() != reconnects => {
                Box::pin(self.attempt(owner, wish)).await
            }
            Entered::Ended(loss) => {
                session.end(loss);
                session.ensure_live().and(Err(session.places().over()))
            }
        }
    }

    /// Releases `owner`, for [`LockBackend::release`](crate::LockBackend::release). Places in earlier sessions have ended with
    /// those sessions.
    ///
    /// # Errors
    ///
    /// The error of the service. The session then releases the owner.
    ///
    /// # Cancel safety
    ///
    /// Safe: the session then releases the owner.
    pub async fn release(&self, owner: OwnerId) -> Result<Released, BackendError> {
        match self.sessions.latest() {
            Some(session) => release(&session, owner).await,
            None => Ok(Released::NotHeld),
        }
    }

    /// The channel on which a waiter gets its grant.
    ///
    /// # Errors
    ///
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) if there was no request yet.
    pub fn subscribe(&self, owner: OwnerId) -> Result<Wakeups, BackendError> {
        let session = self.sessions.latest().ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::SessionEnded,
                "there is no place to wait in",
            )
        })?;
        Ok(session.places().listen(owner))
    }

    /// The place and the token of `owner`, if it holds a lock.
    pub fn held(&self, owner: OwnerId) -> Option<(S::Place, FencingToken)> {
        self.sessions.latest()?.places().held(owner)
    }

    /// Ends the session. The call ends it at once; the returned future waits until it has ended at the service.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be reached. The session then ends there when its time is over.
    ///
    /// # Cancel safety
    ///
    /// Safe: the session ends nevertheless.
    pub fn close(&self) -> impl Future<Output = Result<(), BackendError>> + Send + use<S> {
        let session = self.sessions.take();
        if let Some(session) = &session {
            session.end(Loss::SessionEnded("it was closed".into()));
        }
        async move {
            match session {
                Some(session) => session.finished().await,
                None => Ok(()),
            }
        }
    }
}

fn refused(holder: Option<Holder>) -> Attempt {
    Attempt::Contended(Contention::new().with_holder(holder))
}

/// An attempt in flight. If this is dropped, its outcome is unknown.
struct Asking<'a, P: Clone> {
    places: &'a Places<P>,
    owner: OwnerId,
    at: P,
    is_answered: bool,
}

impl<P: Clone> Asking<'_, P> {
    /// As [`Places::answered`].
    fn answered(mut self, unsure: bool) -> bool {
        self.is_answered = true;
        self.places.answered(self.owner, &self.at, unsure)
    }
}

impl<P: Clone> Drop for Asking<'_, P> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.places.answered(self.owner, &self.at, true);
        }
    }
}

/// The place stays recorded until nothing can be left of it, even if this call fails or is dropped.
async fn release<S: Service>(
    session: &Arc<KeptSession<S>>,
    owner: OwnerId,
) -> Result<Released, BackendError> {
    let Some(releasing) = session.places().release(owner) else {
        return Ok(Released::NotHeld);
    };
    let leaving = releasing.leaving();
    let Answered { value, repeated } = while_its_runtime_lasts(S::leave(session, leaving)).await?;
    // An earlier try without an answer may have freed the place, so that the later one did not find it.
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

/// Makes the service refuse late requests for a released place.
pub(super) async fn settle<S: Service>(
    session: &Arc<KeptSession<S>>,
    leaving: &Leaving<S::Place>,
) -> Result<(), BackendError> {
    if leaving.unsure {
        while_its_runtime_lasts(S::settle(session, leaving)).await?;
    }
    Ok(())
}
