//! A session: one row at the server, in which all of a backend's claims live, and the connection that hears of grants.
//!
//! # Until when a session is certain
//!
//! The server counts a lease from when it carried out the renewal, by its own clock. That was after the renewal was sent, so
//! `sent + lease` on this machine's clock comes before the lease's end on the server's, up to what two clocks drift apart
//! meanwhile; [`certain_for`] takes off more than that. What is left is a server's clock that is set forward, by hand or by a
//! time service that jumps: it ends every lease early. `docs/guarantees.md` says so, and what a fence does about it.
//!
//! # What survives a broken connection
//!
//! All of it. The session is its row, not its connection: a new connection listens on the same channel and then asks what was
//! granted meanwhile. Whatever the old one may still have under way is done for the same owners, or is made to fail by the
//! session's epoch: see `release` in `src/sql/operations.sql`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    BackendError, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Answered, Asked, Entered, KeptSession, Leaving, Looked, Service},
};
use tokio::time::timeout;
use tokio_postgres::{Error, Notification, types::Type};

use crate::{
    PostgresSettings,
    breaking::{Mark, heed},
    client::{Server, Wish, enter, leave},
    connection::{Connection, Hear},
    error::{POOLED, failed, pooled, timed_out, wrong_version},
    keys::{channel, new_session_id},
    look::{clean_up, look},
    observe::{self, Observers},
    place::Place,
    queue::token,
    schema,
};

const STARTING: &str = "start a session";
const RENEWING: &str = "renew the session";
const LOOKING: &str = "look after the session's claims";
const ENDING: &str = "end the session";

/// A session with Postgres.
pub(crate) type Session = KeptSession<SessionRow>;

/// What there is to know of a session beside what every session has.
#[derive(Debug)]
pub(crate) struct SessionRow {
    pub(crate) id: Arc<str>,
    pub(crate) server: Arc<Server>,
    epoch: AtomicI64,
    pub(crate) observers: Observers,
}

/// A connection that listens, and the server process that it leads to.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) connection: Arc<Connection>,
    backend: i32,
}

impl SessionRow {
    pub(crate) fn settings(&self) -> &PostgresSettings {
        &self.server.settings
    }

    /// The epoch that is known here.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes note of the session's epoch.
    pub(crate) fn epoch_is(&self, epoch: i64) {
        // The newest answer counts, not the largest: a standby that is promoted may lack the last step. What an older answer
        // overwrites is corrected by the next attempt that is stale.
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Checks the server and puts the row there.
    async fn open(&self, line: &Line, former: Option<&str>) -> Result<(), BackendError> {
        let Line {
            connection,
            backend,
        } = line;
        let started = |error| failed(STARTING, error);
        let found = schema::version(connection).await.map_err(started)?;
        if found != schema::VERSION {
            return Err(wrong_version(found, schema::VERSION));
        }
        if !self.server.direct.load(Ordering::Relaxed) {
            // A pooler that gives each transaction a server process gives this one to somebody else's.
            let other = Connection::open(self.settings(), Box::new(|_| {}), None).await?;
            other.hold().await.map_err(started)?;
            let held = other.backend().await.map_err(started)?;
            // With one process for all, nobody else is served while it is held.
            if held == *backend || connection.backend().await.map_err(started)? != *backend {
                return Err(pooled());
            }
            other.let_go().await.map_err(started)?;
        }
        let lease = i64::try_from(self.settings().lease_time.as_millis()).unwrap_or(i64::MAX);
        let former: Vec<&str> = former.into_iter().collect();
        connection
            .query(
                "SELECT portalock.open_session($1, $2, $3, $4)",
                &[
                    (&&*self.id, Type::TEXT),
                    (&lease, Type::INT8),
                    (&former, Type::TEXT_ARRAY),
                    (&self.settings().release_without_notice, Type::BOOL),
                ],
            )
            .await
            .map_err(started)?;
        self.server.direct.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Service for SessionRow {
    type Shared = Arc<Server>;
    type Wish = Wish;
    type Place = Place;
    type Connection = Line;

    const NAME: &'static str = "Postgres";

    fn new(server: &Arc<Server>) -> Self {
        Self {
            id: new_session_id().into(),
            server: server.clone(),
            epoch: AtomicI64::new(0),
            observers: Observers::default(),
        }
    }

    fn place(&self, owner: OwnerId, wish: &Wish) -> Place {
        Place::new(owner, wish.wanted.clone())
    }

    fn lease_time(&self) -> Duration {
        self.settings().lease_time
    }

    fn request_timeout(&self) -> Duration {
        self.settings().request_timeout
    }

    async fn connect(session: &Arc<Session>) -> Result<Line, BackendError> {
        let row = session.service();
        // What the former connection did not hear, they have missed.
        row.observers.end_all();
        let channel = channel(&row.id);
        let (hearer, own) = (Arc::downgrade(session), channel.clone());
        let hear: Hear = Box::new(move |notification: &Notification| {
            if let Some(session) = hearer.upgrade()
                && notification.channel() == own
            {
                hear(&session, notification.payload());
            }
        });
        let hearer = Arc::downgrade(session);
        let ended = Box::new(move || {
            if let Some(session) = hearer.upgrade() {
                session.connection_ended();
            }
        });
        let connection = Connection::open(row.settings(), hear, Some(ended)).await?;
        let backend = timeout(row.settings().request_timeout, connection.listen(&channel))
            .await
            .map_err(|_| timed_out(STARTING))?
            .map_err(|error| failed(STARTING, error))?;
        // Nor have those heard anything who came before this one listened.
        row.observers.end_all();
        Ok(Line {
            connection: Arc::new(connection),
            backend,
        })
    }

    fn ends_with_connection(&self) -> bool {
        self.settings().release_without_notice
    }

    fn is_open(line: &Line) -> bool {
        !line.connection.is_closed()
    }

    async fn begin(
        session: &Arc<Session>,
        line: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let row = session.service();
        let former = former.map(|former| &*former.service().id);
        let sent = Instant::now();
        timeout(row.settings().request_timeout, row.open(line, former))
            .await
            .unwrap_or_else(|_| Err(timed_out(STARTING)))?;
        Ok(sent + certain_for(row.settings().lease_time))
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let row = session.service();
        let sign = alive(&line.connection, &row.id)
            .await
            .map_err(|error| failed(RENEWING, error))?;
        if !sign.alive {
            return Ok(Renewal::Gone(gone()));
        }
        if sign.backend != line.backend {
            return Ok(Renewal::Gone(Loss::SessionEnded(POOLED.into())));
        }
        // Before the lease is prolonged: see there.
        heed(session, sign.marks);
        Ok(Renewal::Renewed(certain_for(row.settings().lease_time)))
    }

    fn looks_anyway(&self) -> bool {
        !self.observers.is_empty()
    }

    async fn look(
        session: &Arc<Session>,
        line: &Line,
        asked: &[Asked<Place>],
    ) -> Result<Looked, BackendError> {
        look(&line.connection, &session.service().id, asked)
            .await
            .map_err(|error| failed(LOOKING, error))
    }

    async fn enter(
        session: &Arc<Session>,
        place: &Place,
        wish: &Wish,
    ) -> Result<Answered<Entered>, BackendError> {
        enter(session, place, wish).await
    }

    async fn leave(
        session: &Arc<Session>,
        leaving: &Leaving<Place>,
    ) -> Result<Answered<bool>, BackendError> {
        leave(session, leaving).await
    }

    async fn end(session: &Arc<Session>, line: &Line) -> Result<(), BackendError> {
        let id = &session.service().id;
        let ended = |error| failed(ENDING, error);
        line.connection.end_session(id).await.map_err(ended)?;
        while line.connection.bury(id).await.map_err(ended)? {}
        Ok(())
    }

    async fn chores(session: &Arc<Session>, former: Option<Arc<Session>>) -> Infallible {
        // Nothing is told any more once the session has ended.
        let _observed = session.service().observers.as_long_as_this_lives();
        let former = former.map(|former| former.service().id.clone());
        clean_up(session, former).await
    }
}

/// A grant, which is the place's name and its token; who holds a name that is observed; or word that a lock was broken, which the
/// next renewal finds.
fn hear(session: &Arc<Session>, message: &str) {
    if let Some(change) = message.strip_prefix("holder ") {
        return observe::hear(session, change);
    }
    if message == "broken" {
        return session.renew_now();
    }
    if let Some((name, number)) = message.split_once(' ')
        && let (Some(owner), Ok(number)) = (Place::owner(name), number.parse())
    {
        let is_of = |place: &Place| *place.name == *name;
        session.places().granted(owner, token(number), is_of);
    }
}

/// What a renewal was answered.
struct Sign {
    alive: bool,
    /// The server process that answered.
    backend: i32,
    marks: Vec<Mark>,
}

async fn alive(line: &Connection, session: &str) -> Result<Sign, Error> {
    let rows = line
        .query(
            "SELECT * FROM portalock.renew($1)",
            &[(&session, Type::TEXT)],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Sign {
            alive: false,
            backend: 0,
            marks: Vec::new(),
        });
    };
    let broken: Option<Vec<String>> = row.try_get(2)?;
    let by: Option<Vec<String>> = row.try_get(3)?;
    let marks = broken.unwrap_or_default().into_iter();
    Ok(Sign {
        alive: row.try_get(0)?,
        backend: row.try_get(1)?,
        marks: marks.zip(by.unwrap_or_default()).collect(),
    })
}

/// The server no longer knows the session.
pub(crate) fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server, or the server lost its data".into())
}

/// How long the client relies on what the server keeps for `lease`, from when it was asked for: less, for two clocks that don't
/// run alike.
fn certain_for(lease: Duration) -> Duration {
    lease.mul_f64(0.95)
}
