//! A session: one row at the server, to which all claims of a backend belong, and the connection that is notified of
//! grants.
//!
//! How long a session is certain
//!
//! The server counts a lease from when it executed the renewal, by its own clock. That was after the renewal was sent,
//! so `sent + lease` on this machine's clock is before the lease's end on the server's clock, except for the drift
//! between the two clocks; [`certain_for`] subtracts more than that drift. One risk remains: if the server's clock is
//! set forward, by a person or by a time service that jumps, every lease ends early. `docs/guarantees.md` describes
//! this, and how a fence protects against it.
//!
//! # What survives a broken connection
//!
//! The whole session survives. It is the row, not the connection: a new connection listens on the same channel and then
//! asks for grants that came meanwhile. Requests that the old connection still executes are for the same owners, or the
//! session's epoch makes them fail: see `release` in `src/sql/operations.sql`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join;
use portalock_core::{
    BackendError, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{
        Answered, Asked, Entered, KeptSession, Leaving, Looked, Service, Session as _, new_id,
    },
};
use tokio::time::timeout;
use tokio_postgres::{Error, Notification, error::SqlState, types::Type};

use crate::{
    PostgresSettings,
    breaking::{Mark, heed},
    client::{Server, Wish, enter, leave},
    connection::{Connection, Hear},
    error::{POOLED, failed, is_of_one_server, pooled, timed_out, wrong_version},
    keys::{Place, channel},
    look::{LOOK, READ, clean_up, look, release_again},
    observe::{self, Observers},
    queue::token,
    schema,
};

const STARTING: &str = "start a session";
const RENEWING: &str = "renew the session";
const LOOKING: &str = "look after the session's claims";
const ENDING: &str = "end the session";

/// A session with Postgres.
pub(crate) type Session = KeptSession<SessionRow>;

/// The state of a session beyond what every session has.
#[derive(Debug)]
pub(crate) struct SessionRow {
    pub(crate) id: Arc<str>,
    pub(crate) server: Arc<Server>,
    epoch: AtomicI64,
    pub(crate) observers: Observers,
}

/// A connection that listens, and the server process that serves it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) connection: Arc<Connection>,
    backend: i32,
}

impl SessionRow {
    pub(crate) fn settings(&self) -> &PostgresSettings {
        &self.server.settings
    }

    /// The last known epoch.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Records the session's epoch.
    pub(crate) fn epoch_is(&self, epoch: i64) {
        // The newest answer counts, not the largest epoch, because a promoted standby may lack the last change. An
        // older answer may overwrite a newer one; the next attempt is then stale and corrects the value.
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Checks the server and writes the session's row.
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
            // A pooler that assigns server processes per transaction assigns this connection's process to `other`.
            let only = self.server.connections.only(connection);
            let other = Connection::open(self.settings(), &only, Box::new(|_| {}), None).await?;
            if let Err(error) = other.hold().await {
                // A pooler that assigns them per statement refuses transactions, and nothing else.
                let refused = error.code() == Some(&SqlState::PROTOCOL_VIOLATION);
                if refused && connection.backend().await.is_ok() {
                    return Err(pooled());
                }
                return Err(started(error));
            }
            let held = other.backend().await.map_err(started)?;
            // If the pooler has only one process, it serves no other client while that process is held.
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
            id: new_id(),
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
        // These observers have missed the changes that the former connection did not receive.
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
        let mut settings = row.settings().clone();
        if session.lease().deadline().is_some() && settings.servers.len() > 1 {
            // A reconnect is a part of a renewal, which may take a third of the lease: silent servers must leave time for the others.
            let within = settings.lease_time / 4;
            settings.connect_timeout = settings.connect_timeout.min(within);
        }
        let connections = &row.server.connections;
        let order = connections.order();
        let connection = Connection::open(&settings, &order, hear, Some(ended)).await?;
        let connection = Arc::new(connection);
        let backend = timeout(row.settings().request_timeout, connection.listen(&channel))
            .await
            .map_err(|_| {
                connections.not_confirmed(&connection);
                timed_out(STARTING)
            })?
            .map_err(|error| failed(STARTING, error))?;
        // One that has ended only ends at the server. The next one may be at another server.
        if session.ensure_live().is_ok() {
            connections.follow(&connection);
        }
        // Observers that started before this connection listened have also missed changes.
        row.observers.end_all();
        Ok(Line {
            connection,
            backend,
        })
    }

    fn ends_with_connection(&self) -> bool {
        self.settings().release_without_notice
    }

    fn is_open(line: &Line) -> bool {
        !line.connection.is_closed()
    }

    fn gave_up(&self, line: &Line) {
        self.server.connections.not_confirmed(&line.connection);
        // The next connection may be to another server, and a grant of this one would count no more.
        line.connection.close();
    }

    async fn begin(
        session: &Arc<Session>,
        line: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let row = session.service();
        let former = former.map(|former| &*former.service().id);
        let connections = &row.server.connections;
        let sent = Instant::now();
        timeout(row.settings().request_timeout, row.open(line, former))
            .await
            .unwrap_or_else(|_| Err(timed_out(STARTING)))
            .inspect_err(|error| {
                if is_of_one_server(error) {
                    connections.not_confirmed(&line.connection);
                }
            })?;
        connections.confirmed(&line.connection);
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
        let connections = &row.server.connections;
        connections.confirmed(&line.connection);
        // Before the lease is extended, as the module `breaking` requires.
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
        look(&line.connection, LOOK, &session.service().id, asked)
            .await
            .map_err(|error| failed(LOOKING, error))
    }

    async fn read(
        session: &Arc<Session>,
        line: &Line,
        asked: &[Asked<Place>],
    ) -> Result<Looked, BackendError> {
        look(&line.connection, READ, &session.service().id, asked)
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
        let left = session.places().left();
        line.connection.bury(id, left).await.map_err(ended)
    }

    async fn chores(session: &Arc<Session>, former: Option<Arc<Session>>) -> Infallible {
        // Nothing is reported to observers after the session has ended.
        let _observed = session.service().observers.as_long_as_this_lives();
        join(clean_up(session, former), release_again(session))
            .await
            .0
    }
}

/// Processes a message: a grant, which is the place's name and its token; the holder of an observed name; or the news
/// that a lock was broken, which the next renewal reads.
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

/// The answer to a renewal.
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

/// The loss of a session that the server no longer knows.
pub(crate) fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server, or the server lost its data".into())
}

/// How long the client relies on what the server keeps for `lease`, from when it was requested: less than the lease,
/// because two clocks don't run at the same speed.
fn certain_for(lease: Duration) -> Duration {
    lease.mul_f64(0.95)
}
