//! The trait that a networked backend implements for the session layer.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Answered, Entered, KeptSession, Renewal,
    places::{Asked, Leaving, Stand},
};
use crate::{BackendError, OwnerId, clock::Instant};

/// The requests of one session to a networked store. A backend implements this trait, and a [`KeptSession`] calls it.
///
/// [`enter`](Self::enter) and [`leave`](Self::leave) run on the caller's runtime, over that runtime's own connection
/// ([`PerRuntime`](super::PerRuntime)). All other methods run on the session thread, over the session's connection.
///
/// # For implementers
///
/// - Each call must end by itself, with an answer or an error. If the session calls [`look`](Self::look),
///   [`leave`](Self::leave) or [`renew`](Self::renew), it drops the call after
///   [`request_timeout`](Self::request_timeout).
/// - Pass messages of the connection to [`KeptSession::places`], and call [`KeptSession::connection_ended`] when it
///   ends. The listener must hold the session as [`Weak`](std::sync::Weak).
#[async_trait]
pub trait Service: fmt::Debug + Send + Sync + Sized + 'static {
    /// The state that the sessions of one client share, such as settings and connections.
    type Shared: fmt::Debug + Send + Sync;
    /// A request: the demand, the holder's description, and whether it waits.
    type Wish: Send + Sync;
    /// The backend's data of a place: its name at the service, and what is locked.
    type Place: Clone + fmt::Debug + Send + Sync + 'static;
    /// A connection that receives the session's grants.
    type Connection: Clone + Send + Sync + 'static;

    /// The service's name in messages.
    const NAME: &'static str;

    /// Whether each waiter asks again by itself, instead of the session for all its waiters. This is for a service
    /// where an attempt does the same as a check. [`Entered::Queued`] then contains the time. At intervals only holders
    /// are checked; waiters are checked after a reconnect. False by default.
    const WAITERS_ASK_AGAIN: bool = false;

    /// Creates the state of a session before its start. Nothing is sent.
    fn new(shared: &Self::Shared) -> Self;

    /// Creates a new place for `owner`. Its name must differ from all earlier places of the owner, so that a late
    /// message can't be mistaken for one to the new place. This is called under a lock, so it must be quick.
    ///
    /// The place is dropped when nothing of it can be left at the service. Until then, nothing that represents it there
    /// may be used for another place.
    fn place(&self, owner: OwnerId, wish: &Self::Wish) -> Self::Place;

    /// How long the session lives at the service without a renewal. It is renewed, and its places are checked, each
    /// third of this time.
    fn lease_time(&self) -> Duration;

    /// How long one request may take.
    fn request_timeout(&self) -> Duration;

    /// Opens a connection that receives the session's grants from now on.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if that fails. If the session has begun, the call is retried.
    async fn connect(session: &Arc<KeptSession<Self>>) -> Result<Self::Connection, BackendError>;

    /// Whether the session ends with its connection. Such a session is never resumed over another connection, and a
    /// connection that does not answer is kept as long as the lease lasts. False by default.
    fn ends_with_connection(&self) -> bool {
        false
    }

    /// Whether messages can still arrive over this connection.
    fn is_open(connection: &Self::Connection) -> bool;

    /// Called when the session gives this connection up, because a request over it failed or was not answered in time.
    /// Does nothing by default. A service with several servers makes the next connection to another server.
    fn gave_up(&self, connection: &Self::Connection) {
        let _ = connection;
    }

    /// Starts the session at the service, and ends `former` there if it may still be alive. Returns the time until
    /// which the new session is certain, counted from before the request was sent.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if that fails. The session has then ended.
    async fn begin(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        former: Option<&Arc<KeptSession<Self>>>,
    ) -> Result<Instant, BackendError>;

    /// Renews the session. The time in [`Renewal::Renewed`] counts from the start of the call.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The session then opens another connection, and lasts until its lease
    /// ends.
    async fn renew(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
    ) -> Result<Renewal, BackendError>;

    /// Reads the states of places. The session calls this at intervals. After a reconnect it calls this for all places
    /// before it extends the lease over the new connection: grants that came meanwhile were not received, and the
    /// service may have lost a hold.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The call is repeated.
    async fn look(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        asked: &[Asked<Self::Place>],
    ) -> Result<Looked, BackendError>;

    /// Whether to call [`look`](Self::look) at intervals even without places, for example for observers. False by
    /// default.
    fn looks_anyway(&self) -> bool {
        false
    }

    /// Makes one attempt: takes the place, or finds its state.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The outcome is then unknown.
    async fn enter(
        session: &Arc<KeptSession<Self>>,
        place: &Self::Place,
        wish: &Self::Wish,
    ) -> Result<Answered<Entered>, BackendError>;

    /// Releases a place for good: nothing of it may be left, and if a request may still arrive, it must have no effect.
    /// Returns whether the place's owner held. The session also calls this, for a release that failed or was dropped.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. It is tried again.
    async fn leave(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<Self::Place>,
    ) -> Result<Answered<bool>, BackendError>;

    /// Makes late requests for a released place fail. Called after [`leave`](Self::leave), and only if
    /// [`Leaving::unsure`] is set. Does nothing by default. It is for a service that can sometimes free a place but not
    /// refuse late requests: the release then succeeds, and the session does the rest later.
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

    /// Ends the session at the service; otherwise it would live until its lease ends there.
    /// [`Places::left`](super::Places::left) has the places of its owners.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The session then ends when its time is over.
    async fn end(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
    ) -> Result<(), BackendError>;

    /// Other work while the session lives; nothing by default.
    async fn chores(
        session: &Arc<KeptSession<Self>>,
        former: Option<Arc<KeptSession<Self>>>,
    ) -> Infallible {
        let _ = (session, former);
        std::future::pending().await
    }
}

/// The answer of [`Service::look`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Looked {
    /// The states of the places, in the order of the request.
    pub stands: Vec<Stand>,
    /// When to call again, if that is known: when a holder or waiter ahead of a waiter may be dead.
    pub again_in: Option<Duration>,
}

impl Looked {
    /// The states of the places, and when to call again.
    pub fn new(stands: Vec<Stand>, again_in: Option<Duration>) -> Self {
        Self { stands, again_in }
    }
}
