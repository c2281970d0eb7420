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

    /// Asks how places stand: at intervals, and all of them when a new connection was made, before the lease is prolonged over
    /// it: what was granted meanwhile has not been heard, and the service may have lost what was held.
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
