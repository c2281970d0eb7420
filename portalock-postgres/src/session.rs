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
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use portalock_core::{BackendError, Keeper, Lease, Loss, OwnerId, Renewal, clock::Instant};
use tokio::{sync::Notify, time::timeout};
use tokio_postgres::{Error, Notification, types::Type};

use crate::{
    PostgresSettings,
    connection::{Connection, Hear},
    error::{POOLED, failed, pooled, session_ended, timed_out, wrong_version},
    keys::{channel, new_session_id},
    places::{Asked, Places},
    queue::{millis, token},
    schema,
};

const STARTING: &str = "start a session";
const RENEWING: &str = "renew the session";
const LOOKING: &str = "look after the session's claims";

/// How many claims one look asks for; with more, each has its turn.
const SEEN_AT_ONCE: usize = 500;
/// Looks don't come closer than this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// How often a session removes what nobody needs any more. A short one does so once in so many starts.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
const CLEAN_ONE_START_IN: u32 = 50;

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
    settings: Arc<PostgresSettings>,
    places: Arc<Places>,
    /// The connection that listens, while there is one.
    line: Mutex<Option<Line>>,
    /// Told when that connection ends.
    broken: Arc<Notify>,
    look: Look,
}

/// A connection that listens, and the server process that it leads to.
#[derive(Debug, Clone)]
struct Line {
    connection: Arc<Connection>,
    backend: i32,
}

/// When to look after the claims next.
#[derive(Debug, Default)]
struct Look {
    at: Mutex<Option<Instant>>,
    sooner: Notify,
    /// A connection was made anew: every claim is to be asked for.
    resumed: Notify,
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
            let held = other.hold_a_server_process().await.map_err(started)?;
            let rows = connection
                .query("SELECT pg_backend_pid()", &[])
                .await
                .map_err(started)?;
            let mine: i32 = rows
                .first()
                .map_or(Ok(0), |row| row.try_get(0))
                .map_err(started)?;
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

    /// Takes note of the session's epoch, which only grows.
    pub(crate) fn epoch_is(&self, epoch: i64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
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

    /// Somebody in front of a waiter may be dead after this time.
    pub(crate) fn look_within(&self, time: Duration) {
        let mut at = self.lock_look();
        let sooner = Instant::now() + time.max(LOOK_AT_MOST_EVERY);
        if at.is_none_or(|at| sooner < at) {
            *at = Some(sooner);
            drop(at);
            self.look.sooner.notify_one();
        }
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
                    never = self.look_after() => match never {},
                    never = self.resume() => match never {},
                    never = self.clear_up(former) => match never {},
                }
            }
        }
        let loss = self
            .lease
            .loss()
            .map_or_else(String::new, |loss| loss.to_string());
        tracing::debug!(%loss, "Postgres session ended");
        self.places.session_ended(&self.id, &session_ended(&loss));
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
    fn interval(&self) -> Duration {
        self.settings.lease_time / 3
    }

    /// Renews the lease, over a new connection if there is none.
    async fn renew(self: Arc<Self>) -> Result<Renewal, BackendError> {
        let start = Instant::now();
        let line = match self.open_line() {
            Some(line) => line,
            None => {
                let line = self.listen().await?;
                *self.lock_line() = Some(line.clone());
                self.look.resumed.notify_one();
                line
            }
        };
        let sent = Instant::now();
        // Half of what the keeper allows: a line that hangs leaves time for another.
        let answer = timeout(self.interval() / 2, alive(&line.connection, &self.id)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| failed(RENEWING, error)),
            Err(_) => Err(timed_out(RENEWING)),
        };
        match answer {
            Ok((true, backend)) if backend != line.backend => {
                Ok(Renewal::Gone(Loss::SessionEnded(POOLED.into())))
            }
            Ok((true, _)) => Ok(Renewal::Renewed(
                certain_for(self.settings.lease_time) + sent.duration_since(start),
            )),
            Ok((false, _)) => Ok(Renewal::Gone(gone())),
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

    /// A grant: the owner and its token.
    fn hear(&self, message: &str) {
        if let Some((owner, number)) = message.split_once(' ')
            && let (Ok(owner), Ok(number)) = (owner.parse(), number.parse())
        {
            self.places
                .granted(&self.id, owner, token(number), &self.lease.signal());
        }
    }

    /// Has a connection that broke made anew at once.
    async fn mend(&self, keeper: &Keeper) -> Infallible {
        loop {
            self.broken.notified().await;
            if self.open_line().is_none() {
                keeper.renew_now();
            }
        }
    }

    /// Looks after the claims: now and then, and when somebody in front of a waiter may have died.
    async fn look_after(&self) -> Infallible {
        let mut turn = 0;
        loop {
            self.wait_for_look().await;
            let mut asked = self.places.standing(&self.id);
            let due = self.places.due(&self.id);
            if asked.is_empty() && due.is_empty() {
                continue;
            }
            if asked.len() > SEEN_AT_ONCE {
                asked.sort_unstable_by_key(|asked| asked.owner);
                turn = (turn + SEEN_AT_ONCE) % asked.len();
                asked.rotate_left(turn);
                asked.truncate(SEEN_AT_ONCE);
            }
            let looked = async {
                self.pay(&due).await?;
                self.ask(&asked).await
            };
            self.report(timeout(self.settings.request_timeout, looked).await);
        }
    }

    /// Asks for every claim after a connection was made anew: what was granted meanwhile has not been heard.
    async fn resume(&self) -> Infallible {
        loop {
            self.look.resumed.notified().await;
            for some in self.places.standing(&self.id).chunks(SEEN_AT_ONCE) {
                self.report(timeout(self.settings.request_timeout, self.ask(some)).await);
            }
        }
    }

    fn report<E>(&self, looked: Result<Result<(), BackendError>, E>) {
        let error = match looked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => timed_out(LOOKING),
        };
        tracing::debug!(%error, "could not look after the claims of a session");
    }

    async fn wait_for_look(&self) {
        loop {
            let at = {
                let mut at = self.lock_look();
                *at.get_or_insert_with(|| Instant::now() + self.interval())
            };
            if timeout_at(at, self.look.sooner.notified()).await {
                *self.lock_look() = None;
                return;
            }
        }
    }

    /// Asks the server for these claims, and has it serve those that wait behind the dead.
    async fn ask(&self, asked: &[Asked]) -> Result<(), BackendError> {
        let Some(line) = self.open_line() else {
            // The renewal makes a connection, and then everything is asked for.
            return Ok(());
        };
        let owners: Vec<String> = asked.iter().map(|asked| asked.owner.to_string()).collect();
        let (claims, again_in) = look(&line.connection, &self.id, &owners)
            .await
            .map_err(|error| failed(LOOKING, error))?;
        self.places.found(asked, &claims, &self.lease.signal());
        if let Some(time) = again_in {
            self.look_within(time);
        }
        Ok(())
    }

    /// Releases what is due: its release failed or was dropped half-way.
    async fn pay(&self, due: &[OwnerId]) -> Result<(), BackendError> {
        for owner in due {
            let Some(line) = self.open_line() else {
                return Ok(());
            };
            let Some(releasing) = self.places.release(*owner) else {
                continue;
            };
            let left = line
                .connection
                .leave(&releasing.leaving)
                .await
                .map_err(|error| failed(LOOKING, error))?;
            if let Some(epoch) = left.epoch {
                self.epoch_is(epoch);
            }
            self.places.forget(*owner);
        }
        Ok(())
    }

    /// Removes what nobody needs any more: of the former session at once, of others once in a while.
    async fn clear_up(&self, former: Option<Arc<str>>) -> Infallible {
        if let (Some(former), Some(line)) = (former, self.open_line()) {
            while let Ok(true) = line.connection.bury(&former).await {}
        }
        if fastrand::u32(..CLEAN_ONE_START_IN) > 0 {
            tokio::time::sleep(CLEAN_EVERY).await;
        }
        loop {
            if let Some(line) = self.open_line()
                && let Err(error) = line.connection.query("SELECT portalock.clean()", &[]).await
            {
                tracing::debug!(%error, "could not remove what nobody needs");
            }
            tokio::time::sleep(CLEAN_EVERY).await;
        }
    }

    fn open_line(&self) -> Option<Line> {
        self.lock_line()
            .as_ref()
            .filter(|line| !line.connection.is_closed())
            .cloned()
    }

    fn drop_line(&self, line: &Line) {
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

    fn lock_look(&self) -> MutexGuard<'_, Option<Instant>> {
        self.look.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if the time has come, false if the notification came first.
async fn timeout_at(at: Instant, notified: impl Future<Output = ()>) -> bool {
    tokio::time::timeout_at(at, notified).await.is_err()
}

async fn alive(line: &Connection, session: &str) -> Result<(bool, i32), Error> {
    let rows = line
        .query(
            "SELECT * FROM portalock.renew($1)",
            &[(&session, Type::TEXT)],
        )
        .await?;
    match rows.first() {
        Some(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
        None => Ok((false, 0)),
    }
}

type Claims = HashMap<OwnerId, Option<portalock_core::FencingToken>>;

async fn look(
    line: &Connection,
    session: &str,
    owners: &[String],
) -> Result<(Claims, Option<Duration>), Error> {
    let rows = line
        .query(
            "SELECT * FROM portalock.look($1, $2)",
            &[(&session, Type::TEXT), (&owners, Type::TEXT_ARRAY)],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok((Claims::new(), None));
    };
    let owners: Option<Vec<&str>> = row.try_get("owners")?;
    let tokens: Option<Vec<Option<i64>>> = row.try_get("tokens")?;
    let again_in: Option<i64> = row.try_get("again_in")?;
    let claims = owners
        .unwrap_or_default()
        .into_iter()
        .zip(tokens.unwrap_or_default())
        .filter_map(|(owner, number)| Some((owner.parse().ok()?, number.map(token))))
        .collect();
    Ok((claims, again_in.map(millis)))
}

fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server, or the server lost its data".into())
}

/// How long the client relies on what the server keeps for `lease`, from when it was asked for: less, for two clocks that don't
/// run alike.
pub(crate) fn certain_for(lease: Duration) -> Duration {
    lease - lease / 20
}
