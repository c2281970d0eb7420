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
///   [`read`](Self::read), [`leave`](Self::leave) or [`renew`](Self::renew), it drops the call after
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

    /// Whether each waiter repeats its attempt, instead of the session checking all waiters. This is for a service where an
    /// attempt does the same as a check. [`Entered::Queued`] then says when to repeat it. The session checks only holders at
    /// intervals, and checks waiters after a reconnect. False by default.
    const WAITERS_ASK_AGAIN: bool = false;

    /// Creates a session's data before the session begins. Sends nothing.
    fn new(shared: &Self::Shared) -> Self;

    /// Makes a new place for `owner`, with a name that no earlier place of this owner had. So a late message for an earlier
    /// place can't affect this one. Called under a lock, so it must be quick.
    ///
    /// The place is dropped when the service can have nothing left of it. Until then, its name and keys must not be used
    /// for another place.
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

    /// Whether the session ends with its connection. Then it never reconnects, and it keeps a connection that does not answer
    /// for as long as the lease lasts. False by default.
    fn ends_with_connection(&self) -> bool {
        false
    }

    /// Whether more can come over this connection.
    fn is_open(connection: &Self::Connection) -> bool;

    /// Called when the session gives up this connection, because a request over it failed or got no answer in time. Does
    /// nothing by default. A service with several servers can use it to make the next connection to another server.
    fn gave_up(&self, connection: &Self::Connection) {
        let _ = connection;
    }

    /// Begins the session at the service, and ends `former` there if it may still live. Returns until when the new session
    /// is certain, counted from before the request was sent.
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

    /// Reads the states of places. The session calls it at intervals. After a reconnect it calls it for all places before it
    /// extends the lease, because it may have missed a grant, and the service may have lost a hold.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The call is repeated.
    async fn look(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        asked: &[Asked<Self::Place>],
    ) -> Result<Looked, BackendError>;

    /// Reads the states of places, and does nothing else that [`look`](Self::look) may do at each call. If there are very many
    /// places after a reconnect, the session calls it for all but the last few hundred, and then calls `look` for those. By
    /// default it calls `look`.
    ///
    /// # Errors
    ///
    /// As for [`look`](Self::look).
    async fn read(
        session: &Arc<KeptSession<Self>>,
        connection: &Self::Connection,
        asked: &[Asked<Self::Place>],
    ) -> Result<Looked, BackendError> {
        Self::look(session, connection, asked).await
    }

    /// Whether to call [`look`](Self::look) at intervals even without places, for example for observers. False by
    /// default.
    fn looks_anyway(&self) -> bool {
        false
    }

    /// Makes one attempt: takes the place, or finds its state.
    ///
    /// It must not give up the place. If such a request got no answer, it could still take effect after a later attempt was
    /// granted with the same place. [`Entered::Contended`] and [`Entered::Failed`] leave that to [`leave`](Self::leave).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The outcome is then unknown.
    async fn enter(
        session: &Arc<KeptSession<Self>>,
        place: &Self::Place,
        wish: &Self::Wish,
    ) -> Result<Answered<Entered>, BackendError>;

    /// Releases a place for good: nothing of it may be left, and a request that is still in flight may have no effect. Returns
    /// whether its owner held. The session also calls it, for a release that failed or was dropped.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The call is repeated.
    async fn leave(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<Self::Place>,
    ) -> Result<Answered<bool>, BackendError>;

    /// Makes the service refuse late requests for a released place. Called after [`leave`](Self::leave), only if
    /// [`Leaving::unsure`] is set. Does nothing by default. It is for a service that may be able to free a place, but not to
    /// refuse a late request at that moment. The release then succeeds, and the session repeats this call.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. Then `leave` and this call are repeated.
    async fn settle(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<Self::Place>,
    ) -> Result<(), BackendError> {
        let _ = (session, leaving);
        Ok(())
    }

    /// Ends the session at the service. Without this call it would live there until its lease ends.
    /// [`Places::left`](super::Places::left) has the places of its owners.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The session calls this once more, over another connection. After that, the session ends
    /// when its time is over.
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

/// The answer of [`Service::look`] and [`Service::read`].
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
