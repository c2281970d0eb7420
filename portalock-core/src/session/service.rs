//! What a networked store has to do for a session: the part that a backend writes.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Answered, Entered, KeptSession, Renewal,
    places::{Asked, Leaving, Stand},
};
use crate::{BackendError, OwnerId, clock::Instant};

/// What a networked store does for one session: the part of a [`KeptSession`] that a backend writes.
///
/// Requests run on the caller's runtime, over that runtime's own connection ([`PerRuntime`](super::PerRuntime)): that is
/// [`enter`](Self::enter) and [`leave`](Self::leave). All else runs on the session thread, over the session's connection.
///
/// # For implementers
///
/// - Each call ends by itself, with an answer or an error: [`look`](Self::look), [`leave`](Self::leave) and
///   [`renew`](Self::renew) are given up after [`request_timeout`](Self::request_timeout) where the session makes them.
/// - What comes over the connection unasked is told to [`KeptSession::places`]; its end to
///   [`KeptSession::connection_ended`]. Hold the session as [`Weak`](std::sync::Weak) there.
#[async_trait]
pub trait Service: fmt::Debug + Send + Sync + Sized + 'static {
    /// What the sessions of one client share, such as settings and connections.
    type Shared: fmt::Debug + Send + Sync;
    /// A request: what is wanted, by whom, and whether to wait for it.
    type Wish: Send + Sync;
    /// What there is to know of a place: its name at the service, what is locked.
    type Place: Clone + fmt::Debug + Send + Sync + 'static;
    /// A connection that hears of the session's grants.
    type Connection: Clone + Send + Sync + 'static;

    /// What the service is called in messages.
    const NAME: &'static str;

    /// Whether a waiter asks again by itself, rather than the session for all that wait: where an attempt does what a look would.
    /// [`Entered::Queued`] then says after what time. Only holders are looked after at intervals; waiters are when a connection
    /// was made anew. False by default.
    const WAITERS_ASK_AGAIN: bool = false;

    /// What there is of a session before it begins. Nothing is sent.
    fn new(shared: &Self::Shared) -> Self;

    /// A new place for `owner`, with a name that no earlier place of it had: so that a message that comes late can't be taken
    /// for one to the next. Called under a lock: it must be quick.
    ///
    /// The place is dropped once nothing can be left of it at the service; until then nothing of what stands for it may be used
    /// for another one.
    fn place(&self, owner: OwnerId, wish: &Self::Wish) -> Self::Place;

    /// How long the session lives at the service without being renewed. It is renewed, and what it has is looked after,
    /// each third of that.
    fn lease_time(&self) -> Duration;

    /// How long one request may take.
    fn request_timeout(&self) -> Duration;

    /// Opens a connection that hears of the session's grants from now on.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if that fails. For a session that has begun, it is tried again.
    async fn connect(session: &Arc<KeptSession<Self>>) -> Result<Self::Connection, BackendError>;

    /// Whether the session ends with its connection: it is then never taken up over another one, and a connection that does
    /// not answer is kept as long as the lease lasts. False by default.
    fn ends_with_connection(&self) -> bool {
        false
    }

    /// Whether more can come over this connection.
    fn is_open(connection: &Self::Connection) -> bool;

    /// The session gives this connection up: a request over it failed, or had no answer in time. Does nothing by default; a service
    /// of several servers makes the next connection to another one.
    fn gave_up(&self, connection: &Self::Connection) {
        let _ = connection;
    }

    /// Begins the session at the service, and ends `former` there, if that may still live. Answers until when the new one is
    /// certain, counted from before the request was sent.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if that fails. The session is then given up.
    async fn begin(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        former: Option<&Arc<KeptSession<Self>>>,
    ) -> Result<Instant, BackendError>;

    /// Renews the session. The time in [`Renewal::Renewed`] counts from when the call began.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The connection is given up for another one, and the session lasts until its
    /// lease ends.
    async fn renew(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
    ) -> Result<Renewal, BackendError>;

    /// Asks how places stand: at intervals, and all of them when a new connection was made, before the lease is prolonged over
    /// it: what was granted meanwhile has not been heard, and the service may have lost what was held.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. It is asked again.
    async fn look(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        asked: &[Asked<Self::Place>],
    ) -> Result<Looked, BackendError>;

    /// Whether to look at intervals though nobody has a place, such as for observers. False by default.
    fn looks_anyway(&self) -> bool {
        false
    }

    /// One attempt: takes the place, or finds how it stands.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed: what came of it is then unknown.
    async fn enter(
        session: &Arc<KeptSession<Self>>,
        place: &Self::Place,
        wish: &Self::Wish,
    ) -> Result<Answered<Entered>, BackendError>;

    /// Releases a place for good: nothing of it may be left, nor come any more where a request may still be on its way. Answers
    /// whether its owner held. Also called by the session, for a release that failed or was dropped.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. It is tried again.
    async fn leave(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<Self::Place>,
    ) -> Result<Answered<bool>, BackendError>;

    /// Sees to it that nothing of a released place comes any more, where a request may still be on its way; called after
    /// [`leave`](Self::leave), for [`Leaving::unsure`] alone. Does nothing by default. It is for a service that may be able to
    /// free a place and not to refuse what comes late: the release then succeeds, and the session makes up for the rest.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. Both are called again.
    async fn settle(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<Self::Place>,
    ) -> Result<(), BackendError> {
        let _ = (session, leaving);
        Ok(())
    }

    /// Ends the session at the service, where it would otherwise live until its lease ends there. What its owners had is in
    /// [`Places::left`](super::Places::left).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. It then ends by its time.
    async fn end(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
    ) -> Result<(), BackendError>;

    /// What else there is to do as long as the session lives; nothing by default.
    async fn chores(
        session: &Arc<KeptSession<Self>>,
        former: Option<Arc<KeptSession<Self>>>,
    ) -> Infallible {
        let _ = (session, former);
        std::future::pending().await
    }
}

/// What the service said of the places that it was asked for.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Looked {
    /// How they stand, in the order in which they were asked for.
    pub stands: Vec<Stand>,
    /// After what time to ask again, if that is known: when somebody in front of a waiter may be dead.
    pub again_in: Option<Duration>,
}

impl Looked {
    /// This is how they stand.
    pub fn new(stands: Vec<Stand>, again_in: Option<Duration>) -> Self {
        Self { stands, again_in }
    }
}
