//! The client that all clones of a backend share: how it serves a request for a lock or a semaphore.

use std::{fmt, sync::Arc};

use portalock_core::{
    BackendError, BackendErrorKind, Holder, Patience, Request,
    session::{Answered, Entered, Leaving},
};

use crate::{
    config::RedisSettings,
    connection::Connections,
    keys::{Keys, Place, Wanted},
    neighbours,
    queue::{Entry, Standing, recheck},
    record::Encoder,
    replicas::confirm,
    route::Route,
    session::{Session, SessionKey, forgotten},
};

/// How often an attempt is sent with a stamp that another call has made invalid meanwhile.
const ATTEMPTS: usize = 10;

/// A client of Redis.
pub(crate) type Client = portalock_core::session::Client<SessionKey>;

/// The route and the connections to the server, or to a slot of a cluster.
pub(crate) struct Server {
    pub(crate) settings: Arc<RedisSettings>,
    pub(crate) route: Arc<Route>,
    pub(crate) keys: Keys,
    pub(crate) connections: Connections,
    who: Encoder,
}

/// A request, without the difference between locks and semaphores.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) wanted: Wanted,
    pub(crate) patience: Patience,
    pub(crate) holder: Holder,
}

impl Wish {
    /// `wanted` is what `request` is for.
    pub(crate) fn new<D>(wanted: Wanted, request: &Request<D>) -> Self {
        Self {
            wanted,
            patience: request.patience,
            holder: request.holder.clone(),
        }
    }
}

impl Server {
    pub(crate) fn new(route: Route) -> Self {
        let route = Arc::new(route);
        Self {
            settings: route.settings().clone(),
            keys: Keys::new(route.prefix()),
            connections: Connections::new(route.clone()),
            who: Encoder::default(),
            route,
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Makes one attempt. It is sent again if the session's stamp has changed.
pub(crate) async fn enter(
    session: &Session,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Entered>, BackendError> {
    let key = session.service();
    let settings = &key.server.settings;
    let entry = Entry {
        session: key,
        place,
        wanted: &wish.wanted,
        queues: wish.patience == Patience::Queue,
        who: key.server.who.encode(&wish.holder, settings.label()),
    };
    let mut repeated = false;
    let reconnects = session.places().reconnects();
    for _ in 0..ATTEMPTS {
        let stamp = key.stamp();
        let goes_on = || session.ensure_live();
        let answer = key.server.acquire(&entry, &stamp, goes_on).await?;
        repeated |= answer.repeated;
        let (standing, wire) = answer.value;
        let value = match standing {
            Standing::Granted(token) => {
                if settings.wait_replicas() > 0 {
                    // Over the same connection: another one may lead to another server, which confirms only what it has itself.
                    // Boxed: the future is large, and each call would reserve space for it.
                    Box::pin(confirm(&mut wire.connection(), key)).await?;
                }
                Entered::Granted(token)
            }
            Standing::Queued {
                behind,
                holder,
                ahead,
            } => {
                neighbours::answered(session, place, ahead.as_ref(), reconnects);
                Entered::Queued {
                    holder,
                    look_in: Some(recheck(behind, settings.tick_interval())),
                }
            }
            Standing::Refused { holder } => Entered::Refused(holder),
            Standing::Ended => Entered::Ended(forgotten()),
            Standing::Stale(present) => {
                key.stamp_is(present);
                continue;
            }
        };
        return Ok(Answered { value, repeated });
    }
    Err(BackendError::new(
        BackendErrorKind::Unavailable,
        "the session's stamp was another one at every try",
    ))
}

/// Releases the place of an owner, and makes sure that no earlier request for it can take effect later.
pub(crate) async fn leave(
    session: &Arc<Session>,
    leaving: &Leaving<Place>,
) -> Result<Answered<bool>, BackendError> {
    let key = session.service();
    if leaving.unsure && session.ensure_live().is_ok() {
        Box::pin(key.raises.raise(session)).await?;
    }
    let next = leaving.next.as_ref();
    key.server.release(&leaving.at, next, leaving.waits).await
}
