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
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use portalock_core::{BackendError, Keeper, Lease, Loss, Renewal, clock::Instant};
use tokio::{sync::Notify, time::timeout};
use tokio_postgres::{Error, Notification, types::Type};

use crate::{
    PostgresSettings,
    breaking::{Mark, heed},
    connection::{Connection, Hear},
    error::{POOLED, failed, pooled, session_ended, timed_out, wrong_version},
    keys::{channel, new_session_id},
    look::Look,
    observe::Observers,
    places::Places,
    queue::token,
    schema,
};

const STARTING: &str = "start a session";
const RENEWING: &str = "renew the session";

impl portalock_core::session::Session for Session {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// One row and what hangs on it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Arc<str>,
    pub(crate) lease: Lease,
    epoch: AtomicI64,
    pub(crate) settings: Arc<PostgresSettings>,
    pub(crate) places: Arc<Places>,
    /// The connection that listens, while there is one.
    line: Mutex<Option<Line>>,
    /// Told when that connection ends.
    pub(crate) broken: Arc<Notify>,
    pub(crate) look: Look,
    pub(crate) observers: Observers,
    /// Told when a lock of the session was broken: the next renewal comes at once.
    marked: Notify,
}

/// A connection that listens, and the server process that it leads to.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) connection: Arc<Connection>,
    backend: i32,
}

impl Session {
    /// Starts a session, in place of `former`. Runs on the session thread. `direct` says that there is no pooler, as an earlier
    /// start has found.
    pub(crate) async fn start(
        settings: Arc<PostgresSettings>,
        places: Arc<Places>,
        former: Option<Arc<str>>,
        direct: bool,
    ) -> Result<Arc<Self>, BackendError> {
        // Until the row is there nothing is certain, and nobody knows of the session.
        let session = Arc::new(Self {
            id: new_session_id().into(),
            lease: Lease::unbounded(),
            epoch: AtomicI64::new(0),
            line: Mutex::new(None),
            broken: Arc::default(),
            look: Look::default(),
            observers: Observers::default(),
            marked: Notify::new(),
            settings,
            places,
        });
        let line = session.listen().await?;
        let sent = Instant::now();
        timeout(
            session.settings.request_timeout,
            session.open(&line, former.as_deref(), direct),
        )
        .await
        .unwrap_or_else(|_| Err(timed_out(STARTING)))?;
        *session.lock_line() = Some(line);
        let certain = certain_for(session.settings.lease_time);
        if !sent
            .checked_add(certain)
            .is_some_and(|end| session.lease.extend(end))
        {
            return Err(session_ended("its lease ran out while it started"));
        }
        portalock_core::session::spawn(session.clone().live(former))?.detach();
        tracing::debug!(lease = ?session.settings.lease_time, "Postgres session started");
        Ok(session)
    }

    /// Checks the server and puts the row there.
    async fn open(
        &self,
        line: &Line,
        former: Option<&str>,
        direct: bool,
    ) -> Result<(), BackendError> {
        let Line {
            connection,
            backend,
        } = line;
        let started = |error| failed(STARTING, error);
        let found = schema::version(connection).await.map_err(started)?;
        if found != schema::VERSION {
            return Err(wrong_version(found, schema::VERSION));
        }
        if !direct {
            // A pooler that gives each transaction a server process gives this one to somebody else's.
            let other = Connection::open(&self.settings, Box::new(|_| {}), None).await?;
            other.hold().await.map_err(started)?;
            let held = other.backend().await.map_err(started)?;
            let mine = connection.backend().await.map_err(started)?;
            other.let_go().await.map_err(started)?;
            if mine != *backend || held == *backend {
                return Err(pooled());
            }
        }
        let lease = i64::try_from(self.settings.lease_time.as_millis()).unwrap_or(i64::MAX);
        let former: Vec<&str> = former.into_iter().collect();
        connection
            .query(
                "SELECT portalock.open_session($1, $2, $3)",
                &[
                    (&&*self.id, Type::TEXT),
                    (&lease, Type::INT8),
                    (&former, Type::TEXT_ARRAY),
                ],
            )
            .await
            .map_err(started)?;
        Ok(())
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

    /// The error of a session that is certain no more.
    pub(crate) fn ended(&self) -> Option<BackendError> {
        self.lease
            .loss()
            .map(|loss| session_ended(&loss.to_string()))
    }

    /// Ends the session: its locks are lost. The rest is seen to in the background.
    pub(crate) fn end(&self, loss: Loss) {
        self.lease.end(loss);
    }

    /// Ends the session because the server no longer knows it.
    pub(crate) fn end_gone(&self) {
        self.end(gone());
    }

    /// Keeps the session until it ends, however it comes; then tells the waiters and clears up.
    async fn live(self: Arc<Self>, former: Option<Arc<str>>) {
        let keeper = Keeper::spawn(self.lease.clone(), self.interval(), {
            let session = self.clone();
            move || session.clone().renew()
        });
        match keeper {
            Err(error) => self.end(Loss::SessionEnded(error.to_string().into())),
            Ok(keeper) => {
                let ended = self.lease.signal();
                tokio::select! {
                    _ = ended.lost() => {}
                    never = self.mend(&keeper) => match never {},
                    never = self.look_after(former) => match never {},
                }
            }
        }
        let loss = self
            .lease
            .loss()
            .map_or_else(String::new, |loss| loss.to_string());
        tracing::debug!(%loss, "Postgres session ended");
        self.places.session_ended(&self.id, &session_ended(&loss));
        self.observers.end_all();
        // The row may outlive what is certain here. Nobody needs to wait for it.
        if timeout(self.settings.request_timeout, self.finish())
            .await
            .is_err()
        {
            tracing::debug!("the session could not be ended at the server: it ends by its time");
        }
    }

    async fn finish(&self) {
        let line = self.lock_line().take();
        let line = match line {
            Some(line) if !line.connection.is_closed() => line.connection,
            _ => match Connection::open(&self.settings, Box::new(|_| {}), None).await {
                Ok(connection) => Arc::new(connection),
                Err(_) => return,
            },
        };
        if line.end_session(&self.id).await.is_ok() {
            while let Ok(true) = line.bury(&self.id).await {}
        }
    }

    /// A third of the time may pass before a renewal is due.
    pub(crate) fn interval(&self) -> Duration {
        self.settings.lease_time / 3
    }

    /// Renews the lease, over a new connection if there is none.
    async fn renew(self: Arc<Self>) -> Result<Renewal, BackendError> {
        let start = Instant::now();
        let line = if let Some(line) = self.open_line() {
            line
        } else {
            let line = self.listen().await?;
            *self.lock_line() = Some(line.clone());
            self.look.resumed.notify_one();
            self.observers.end_all();
            line
        };
        let sent = Instant::now();
        // Half of what the keeper allows: a line that hangs leaves time for another.
        let answer = timeout(self.interval() / 2, alive(&line.connection, &self.id)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| failed(RENEWING, error)),
            Err(_) => Err(timed_out(RENEWING)),
        };
        match answer {
            Ok(sign) if !sign.alive => Ok(Renewal::Gone(gone())),
            Ok(sign) if sign.backend != line.backend => {
                Ok(Renewal::Gone(Loss::SessionEnded(POOLED.into())))
            }
            Ok(sign) => {
                if !sign.marks.is_empty() {
                    // Before the lease is prolonged: see there.
                    heed(&self.places, &self.id, sign.marks);
                    self.look_within(Duration::ZERO);
                }
                Ok(Renewal::Renewed(
                    certain_for(self.settings.lease_time) + sent.duration_since(start),
                ))
            }
            Err(error) => {
                self.drop_line(&line);
                Err(error)
            }
        }
    }

    /// Makes a connection that hears of this session's grants.
    async fn listen(self: &Arc<Self>) -> Result<Line, BackendError> {
        let channel = channel(&self.id);
        let session = Arc::downgrade(self);
        let own = channel.clone();
        let hear: Hear = Box::new(move |notification: &Notification| {
            if let Some(session) = session.upgrade()
                && notification.channel() == own
            {
                session.hear(notification.payload());
            }
        });
        let connection = Connection::open(&self.settings, hear, Some(self.broken.clone())).await?;
        let backend = timeout(self.settings.request_timeout, connection.listen(&channel))
            .await
            .map_err(|_| timed_out(STARTING))?
            .map_err(|error| failed(STARTING, error))?;
        Ok(Line {
            connection: Arc::new(connection),
            backend,
        })
    }

    /// A grant, which is the place and its token; who holds a name that is observed; or word that a lock was broken, which the next
    /// renewal finds.
    fn hear(&self, message: &str) {
        if let Some(change) = message.strip_prefix("holder ") {
            return self.observers.hear(change);
        }
        if message == "broken" {
            return self.marked.notify_one();
        }
        // Of a session that is certain no more, nothing is.
        if self.lease.loss().is_none()
            && let Some((owner, number)) = message.split_once(' ')
            && let Ok(number) = number.parse()
        {
            self.places
                .granted(&self.id, owner, token(number), &self.lease.signal());
        }
    }

    /// Has a connection that broke made anew at once, and locks that were broken found at once.
    async fn mend(&self, keeper: &Keeper) -> Infallible {
        loop {
            tokio::select! {
                () = self.broken.notified() => {
                    if self.open_line().is_none() {
                        keeper.renew_now();
                    }
                }
                () = self.marked.notified() => keeper.renew_now(),
            }
        }
    }

    /// The connection that listens, if there is one.
    pub(crate) fn open_line(&self) -> Option<Line> {
        self.lock_line()
            .as_ref()
            .filter(|line| !line.connection.is_closed())
            .cloned()
    }

    /// Gives up a connection that is of no use any more.
    pub(crate) fn drop_line(&self, line: &Line) {
        let mut present = self.lock_line();
        if present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(&present.connection, &line.connection))
        {
            *present = None;
        }
    }

    fn lock_line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
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

fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server, or the server lost its data".into())
}

/// How long the client relies on what the server keeps for `lease`, from when it was asked for: less, for two clocks that don't
/// run alike.
pub(crate) fn certain_for(lease: Duration) -> Duration {
    lease.mul_f64(0.95)
}
