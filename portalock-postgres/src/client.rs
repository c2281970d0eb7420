//! The state that all clones of a backend share, and how requests for locks and semaphores are served.

use std::sync::{Arc, atomic::AtomicBool};

use portalock_core::{
    BackendError, BackendErrorKind, Holder, Patience, Request,
    session::{Answered, Entered, Leaving},
};

use crate::{
    PostgresSettings,
    answer::Standing,
    connection::Connections,
    keys::{Place, Wanted},
    queue::Entry,
    record::encode,
    session::{Session, SessionRow, gone},
};

/// How often an attempt is sent again because the session's epoch has changed.
const ATTEMPTS: usize = 5;

/// One client of Postgres.
pub(crate) type Client = portalock_core::session::Client<SessionRow>;

/// The server: its settings and connections.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: Arc<PostgresSettings>,
    pub(crate) connections: Connections,
    /// Whether a check has found that there is no pooler.
    pub(crate) direct: AtomicBool,
}

/// A request, for a lock or for permits.
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
    pub(crate) fn new(settings: PostgresSettings) -> Self {
        let settings = Arc::new(settings);
        Self {
            connections: Connections::new(settings.clone()),
            settings,
            direct: AtomicBool::new(false),
        }
    }
}

/// Makes one attempt, and sends it again if it named an earlier epoch of the session.
pub(crate) async fn enter(
    session: &Session,
    place: &Place,
    wish: &Wish,
) -> Result<Answered<Entered>, BackendError> {
    let row = session.service();
    let mut entry = Entry {
        session: &row.id,
        epoch: 0,
        place,
        queues: wish.patience == Patience::Queue,
        who: encode(&wish.holder),
    };
    let mut repeated = false;
    for _ in 0..ATTEMPTS {
        entry.epoch = row.epoch();
        let answer = row.server.connections.acquire(&entry).await?;
        repeated |= answer.repeated;
        let value = match answer.value {
            Standing::Granted(token) => Entered::Granted(token),
            Standing::Queued { holder, look_in } => Entered::Queued { holder, look_in },
            Standing::Refused { holder } => Entered::Refused(holder),
            Standing::Ended => Entered::Ended(gone()),
            Standing::Stale(epoch) => {
                row.epoch_is(epoch);
                continue;
            }
        };
        return Ok(Answered { value, repeated });
    }
    Err(BackendError::new(
        BackendErrorKind::Unavailable,
        "the session's epoch moved on at every try",
    ))
}

/// Releases the place's owner.
pub(crate) async fn leave(
    session: &Session,
    leaving: &Leaving<Place>,
) -> Result<Answered<bool>, BackendError> {
    let row = session.service();
    let Answered { value, repeated } = row.server.connections.release(&row.id, leaving).await?;
    if let Some(epoch) = value.epoch {
        row.epoch_is(epoch);
    }
    Ok(Answered {
        value: value.freed,
        repeated,
    })
}
